"""`penstock tune self-draft MODEL`: which layers of a model draft best for it on this machine."""

from __future__ import annotations

import datetime
import json
import time
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer
from msgspec import Struct

from penstock.errors import InvalidRequest

if TYPE_CHECKING:
    import numpy as np

    from penstock.bench.self_draft.places import Places
    from penstock.bench.self_draft.search import Found, Judged

PROMPTS = 16
PROMPT_TOKENS = 48
KV_BYTES = 2**27  # of each engine that confirms: one request of a few hundred tokens


class Tuned(Struct, frozen=True):
    """What programs are told. setting: for --speculation, None where self-drafting does not pay. ratios: of
    plain decoding, the first by the measured costs."""

    setting: dict[str, Any] | None
    layers: tuple[int, ...]
    promised_ratio: float
    measured_ratio: float | None
    is_complete: bool


app = typer.Typer(help="Find settings by measuring.", no_args_is_help=True)


@app.callback()
def root() -> None:
    """Find settings by measuring."""


@app.command("self-draft")
def self_draft(
    model: Annotated[str, typer.Argument(help="name, GGUF file or folder")] = "smollm2",
    prompts: Annotated[
        Path | None,
        typer.Option("--prompts", help="text file, a prompt a line; default: text that comes with Python"),
    ] = None,
    temperature: Annotated[
        float, typer.Option("--temperature", min=0, max=2, help="of the answers that drafts are tried on")
    ] = 0.0,
    tokens: Annotated[int, typer.Option("--tokens", min=32, max=4096, help="of each of these answers")] = 96,
    k: Annotated[int, typer.Option("--k", min=1, max=16, help="drafts of a round at most")] = 4,
    beam: Annotated[
        int, typer.Option("--beam", min=1, max=64, help="subsets of each size that the search goes on from")
    ] = 1,
    seconds: Annotated[float, typer.Option("--seconds", min=1, help="for the search at most")] = 300.0,
    backend: Annotated[str, typer.Option("--backend", help="kernel backend")] = "auto",
    weights: Annotated[
        str, typer.Option("--weights", help="form of the weights: file, float32, bf16, int8, int4")
    ] = "file",
    threads: Annotated[
        int | None, typer.Option("--threads", min=1, help="that compute; default: the cores there are")
    ] = None,
    report: Annotated[
        Path | None, typer.Option("--report", "-o", help="write the report here as JSON")
    ] = None,
) -> None:
    """Search the layers that draft best for a model, and say whether self-drafting pays."""
    from penstock.bench.self_draft.search import find
    from penstock.cli import console
    from penstock.cli.start import ensure_model
    from penstock.models.sources import resolve

    ensure_model(model)
    engine = {"model": model, "backend": backend, "weights": weights, "threads": threads}
    texts = _read_prompts(resolve(model), prompts)
    places = _places(engine, texts, temperature, tokens, k)
    console.note(f"{len(places)} places in {len(texts)} answers of the model at temperature {temperature:g}")
    until = time.monotonic() + seconds
    with console.err().status("trying layers"):
        found = find(places, beam, lambda: time.monotonic() < until)
    del places
    if found.setting is not None:
        found = _confirmed(found, engine, texts, tokens, temperature)
    _show(found, seconds)
    if report is not None:
        described = {**engine, "kind": "self-draft", "prompts": str(prompts) if prompts else "built in"}
        _save(
            report, found, {**described, "temperature": temperature, "tokens": tokens, "k": k, "beam": beam}
        )


def _read_prompts(model: Path, file: Path | None) -> list[np.ndarray]:
    """int32[2 … PROMPT_TOKENS] each."""
    import numpy as np

    from penstock.bench.passages import passages
    from penstock.text.tokenizer import Tokenizer

    if file is None:
        lines = passages(PROMPTS)
    else:
        try:
            lines = [line for line in file.read_text(encoding="utf-8").splitlines() if line.strip()]
        except UnicodeDecodeError as error:
            raise InvalidRequest(f"--prompts: {file} is not UTF-8 text: {error}") from None
    ids = Tokenizer.load(model).encode_many(lines, add_special=True)
    found = [np.array(each[:PROMPT_TOKENS], np.int32) for each in ids if len(each) > 1]
    if not found:
        raise InvalidRequest(
            f"--prompts: {file} has no line of two tokens or more; write a prompt on each line"
        )
    return found


def _places(
    engine: dict[str, Any], prompts: list[np.ndarray], temperature: float, tokens: int, k: int
) -> Places:
    from penstock.bench.self_draft.places import Places
    from penstock.config import EngineSettings, build
    from penstock.decoding.params import TokenSampling
    from penstock.engine.shape import KV_BYTES as ITEM_BYTES
    from penstock.kernels.backend import BackendOptions, open_backend
    from penstock.models.load import inspect_model, load_model
    from penstock.models.sources import resolve
    from penstock.text.tokenizer import Tokenizer

    settings = build(EngineSettings, **engine)
    path = resolve(settings.model)
    options = BackendOptions(weights=settings.weights, threads=settings.threads)
    opened = open_backend(settings.backend, options)
    loaded = load_model(inspect_model(path), opened, context=PROMPT_TOKENS + tokens)
    # Answers that do not end: every one has the same number of places.
    sampling = TokenSampling(
        max_tokens=tokens,
        min_tokens=tokens,
        stop_token_ids=Tokenizer.load(path).eos_ids,
        temperature=temperature,
        seed=0,
    )
    return Places(loaded, prompts, sampling, k, ITEM_BYTES[opened.kv_form])


def _confirmed(
    found: Found, engine: dict[str, Any], prompts: list[np.ndarray], tokens: int, temperature: float
) -> Found:
    import msgspec

    from penstock.bench.self_draft.confirm import measured_ratio
    from penstock.cli import console

    assert found.setting is not None
    own = {key: value for key, value in engine.items() if value is not None}
    with console.err().status("comparing with plain decoding"):
        ratio = measured_ratio({**own, "kv_bytes": KV_BYTES}, found.setting, prompts, tokens, temperature)
    setting = found.setting if ratio > 1.0 else None
    return msgspec.structs.replace(found, measured_ratio=ratio, setting=setting)


def _show(found: Found, seconds: float) -> None:
    from rich.table import Table

    from penstock.cli import console, output

    if not output.for_people():
        output.record(
            Tuned(found.setting, found.best.layers, found.best.ratio, found.measured_ratio, found.is_complete)
        )
        return
    steps = ", ".join(f"{each * 1000:.2f}" for each in found.verify_s)
    console.write(f"a step with 0, 1, … drafts takes {steps} ms\n")
    table = Table(
        "layers", "first draft right", "draft ms", "k", "tokens a round", "of plain", "left out", box=None
    )
    for judged in (*found.exits, *found.sizes):
        table.add_row(*_row(judged, len(found.layers)))
    console.out().print(table)
    if not found.is_complete:
        console.write(f"the search was cut after {seconds:g} s: fewer layers were not tried\n")
    best = found.best
    promised = f"{best.ratio:.2f} of plain decoding by the measured costs, with {len(best.layers)} layers"
    if found.measured_ratio is not None:
        promised += f", {found.measured_ratio:.2f} measured"
    if found.setting is None:
        console.write(f"none pays: the best is {promised}. Leave self-drafting off for this model\n")
    else:
        console.write(f"{promised}:\n--speculation '{json.dumps(found.setting)}'\n")


def _row(judged: Judged, total: int) -> tuple[str, ...]:
    left = [layer for layer in range(total) if layer not in judged.layers]
    return (
        str(len(judged.layers)),
        f"{judged.survival[0]:.1%}",
        f"{judged.draft_s * 1000:.2f}",
        str(judged.k),
        f"{judged.tokens_per_round:.2f}",
        f"{judged.ratio:.2f}",
        " ".join(_runs(left)),
    )


def _runs(layers: list[int]) -> list[str]:
    """`[2, 3, 4, 7] -> ["2-4", "7"]`."""
    ends = [i for i, layer in enumerate(layers) if layer + 1 not in layers]
    firsts = [0, *(end + 1 for end in ends[:-1])]
    pairs = [(layers[first], layers[end]) for first, end in zip(firsts, ends, strict=True)]
    return [f"{first}-{last}" if first < last else f"{first}" for first, last in pairs]


def _save(file: Path, found: Found, workload: dict[str, Any]) -> None:
    from penstock.bench import report
    from penstock.observe.machine import describe_machine

    today = datetime.datetime.now(tz=datetime.UTC).date().isoformat()
    report.save(file, report.as_json(found, workload, describe_machine(), today))
