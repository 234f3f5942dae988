"""What a sentence-transformers folder says about the use of its model: pooling, norm, longest text.

modules.json                 the steps in order, by type and folder
<n>_Pooling/config.json      which pooling
sentence_bert_config.json    max_seq_length: texts are cut there in training and in use
tokenizer_config.json        model_max_length, where there is none of the former

A folder without modules.json is a bare checkpoint: its users decided; most decided for the mean.
"""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

from msgspec import Struct

from penstock.errors import ModelRefused
from penstock.models.encoder.spec import Pooling

# The two spellings of sentence-transformers' files: a flag per kind, or its name.
_FLAGS: dict[str, Pooling] = {
    "pooling_mode_cls_token": "cls",
    "pooling_mode_mean_tokens": "mean",
    "pooling_mode_lasttoken": "last",
}
_MODES: dict[str, Pooling] = {"cls": "cls", "mean": "mean", "lasttoken": "last"}
_LONGEST = 10**6  # model_max_length of tokenizers that have none is an astronomical number


class Modules(Struct, frozen=True):
    """max_tokens: None where no file names it."""

    pooling: Pooling
    normalize: bool
    max_tokens: int | None


def read_modules(folder: Path, default: Pooling) -> Modules:
    """Of the model in `folder`. ModelRefused for steps or poolings that are not served."""
    steps = _read(folder / "modules.json", [])
    if not steps:
        return Modules(default, False, _max_tokens(folder))
    pooling, normalize = default, False
    for step in steps:
        kind = str(step.get("type", "")).rpartition(".")[2]
        if kind == "Pooling":
            pooling = _pooling(folder / str(step.get("path", "")) / "config.json")
        elif kind == "Normalize":
            normalize = True
        elif kind != "Transformer":
            raise ModelRefused(
                f"{folder / 'modules.json'}: step {kind!r} is not served; Transformer, Pooling, Normalize are"
            )
    return Modules(pooling, normalize, _max_tokens(folder))


def _pooling(path: Path) -> Pooling:
    config = _read(path, {})
    mode = config.get("pooling_mode")
    if isinstance(mode, str):
        wanted = [mode]
        known = _MODES.get(mode)
    else:
        wanted = [name for name, on in config.items() if name.startswith("pooling_mode_") and on]
        known = _FLAGS.get(wanted[0]) if len(wanted) == 1 else None
    if known is None:
        raise ModelRefused(f"{path}: pooling {wanted} is not served; one of cls, mean and lasttoken is")
    return known


def _max_tokens(folder: Path) -> int | None:
    for name, key in (
        ("sentence_bert_config.json", "max_seq_length"),
        ("tokenizer_config.json", "model_max_length"),
    ):
        value = _read(folder / name, {}).get(key)
        if isinstance(value, (int, float)) and 0 < value < _LONGEST:
            return int(value)
    return None


def _read(path: Path, absent: Any) -> Any:
    if not path.is_file():
        return absent
    try:
        value = json.loads(path.read_bytes())
    except ValueError as error:
        raise ModelRefused(f"{path}: not JSON: {error}; fetch the file again") from None
    if not isinstance(value, type(absent)):
        raise ModelRefused(f"{path}: a JSON {type(absent).__name__} is expected; fetch the file again")
    return value
