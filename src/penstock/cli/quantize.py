"""`penstock quantize MODEL OUT`: write a model with int8 or int4 weights."""

from __future__ import annotations

import os
import shutil
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Literal

import typer
from msgspec import Struct

from penstock.errors import ConfigError, InvalidRequest

if TYPE_CHECKING:
    import numpy as np


class Quantized(Struct, frozen=True):
    path: str
    weights: str
    size_bytes: int


CALIBRATION_TOKENS = 8192
SEQUENCE_TOKENS = 512


def quantize(
    model: Annotated[str, typer.Argument(help="name, GGUF file or safetensors folder")],
    out: Annotated[Path, typer.Argument(help="folder to write; it must not exist")],
    weights: Annotated[
        Literal["int8", "int4"],
        typer.Option("--weights", help="int8: W8A8, a scale a row; int4: W4A16, a scale a group"),
    ],
    group: Annotated[
        int | None, typer.Option("--group", help="columns that share an int4 scale: 32 (default), 64, 128")
    ] = None,
    symmetric: Annotated[bool, typer.Option("--symmetric", help="int4 without zero points")] = False,
    activations: Annotated[
        Literal["group", "token"], typer.Option("--activations", help="scales of int8 activations")
    ] = "group",
    calibrate: Annotated[
        Path | None, typer.Option("--calibrate", help="text that the model is smoothed for (SmoothQuant)")
    ] = None,
    alpha: Annotated[
        float, typer.Option("--alpha", min=0, max=1, help="share of the activations' range to move")
    ] = 0.5,
) -> None:
    """Quantize a model into a folder that Penstock, transformers and vLLM read (compressed-tensors)."""
    from penstock.cli import console, output
    from penstock.cli.start import ensure_model
    from penstock.models.quantize import write
    from penstock.models.quantize.plan import make_plan
    from penstock.models.sources import resolve
    from penstock.models.weights.source import open_source

    if group is not None and (weights == "int8" or group not in (32, 64, 128)):
        raise ConfigError(f"--group: {group} with {weights}; groups of 32, 64 or 128 columns are for int4")
    if out.exists():
        raise ConfigError(f"{out}: already exists; give a new folder")
    ensure_model(model)
    path = resolve(model)
    text = None if calibrate is None else calibration(path, calibrate)
    source = open_source(path)
    try:
        plan = make_plan(source)
        recipe = write.Recipe(
            weights=weights, group=group or 32, symmetric=symmetric, activations=activations
        )
        with _appearing(out) as folder, console.byte_progress() as progress:
            scales = {}
            if text is not None:
                from penstock.models.quantize.smooth import activation_maxima, smoothing_scales

                progress("calibrate", 0, None)
                scales = smoothing_scales(plan, activation_maxima(plan, text), alpha)
            write.write_weights(
                plan, source, recipe, scales, folder, lambda done, total: progress("round", done, total)
            )
            write.write_tokenizer(source.path, folder)
    finally:
        source.close()
    size = sum(file.stat().st_size for file in out.iterdir())
    output.result(Quantized(str(out), weights, size), f"{out}: {weights}, {console.size(size)}")


def calibration(model: Path, text: Path) -> list[np.ndarray]:
    """The first CALIBRATION_TOKENS tokens of a text file, int32 pieces of SEQUENCE_TOKENS."""
    import numpy as np

    from penstock.text.tokenizer import MAX_TEXT_CHARS, Tokenizer

    try:
        content = text.read_text(encoding="utf-8")[:MAX_TEXT_CHARS]
    except UnicodeDecodeError as error:
        raise InvalidRequest(f"--calibrate: {text} is not UTF-8 text: {error}") from None
    ids = np.array(Tokenizer.load(model).encode(content)[:CALIBRATION_TOKENS], np.int32)
    if len(ids) < 2:
        raise InvalidRequest(f"--calibrate: {text} holds {len(ids)} tokens; give a page of text or more")
    return [ids[at : at + SEQUENCE_TOKENS] for at in range(0, len(ids), SEQUENCE_TOKENS)]


@contextmanager
def _appearing(out: Path) -> Iterator[Path]:
    """A folder beside `out` that takes its name when the block ends well, and goes otherwise."""
    out.parent.mkdir(parents=True, exist_ok=True)
    folder = Path(tempfile.mkdtemp(prefix=f".{out.name}.", dir=out.parent))
    try:
        yield folder
        folder.chmod(0o777 & ~_umask())
        folder.rename(out)
    except BaseException:
        shutil.rmtree(folder)
        raise


def _umask() -> int:
    mask = os.umask(0)
    os.umask(mask)
    return mask
