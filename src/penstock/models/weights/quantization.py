"""Quantized safetensors checkpoints: which reader `quantization_config` of config.json asks for.

A reader answers for a weight's name: the tensor, if the checkpoint holds it quantized. What a
checkpoint leaves unquantized (`ignore`, `modules_to_not_convert`) is stored under the plain name and
never reaches a reader.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import Any, Protocol

from penstock.errors import ModelRefused
from penstock.kernels.ops import WeightTensor
from penstock.models.weights.source import WeightSource

FLOAT_SCALES = ("F16", "BF16", "F32")


class Quantization(Protocol):
    """One opened quantized checkpoint.

    summary: method and width for people ("gptq 4-bit, group 128"); notes: what is done otherwise than
    the checkpoint prescribes, in sentences, filled as tensors are found.
    """

    summary: str
    notes: list[str]

    def find(self, name: str) -> tuple[WeightTensor, list[str]] | None:
        """The weight `name` ("….weight") and the stored tensors it is made of; None if it is stored
        plainly or not at all. Reads headers only. ModelRefused for what can't be read."""
        ...

    def spare(self, name: str) -> bool:
        """Whether the stored tensor `name`, used by no weight, can be left out without changing a result."""
        ...


def quantization_of(source: WeightSource) -> Quantization | None:
    """The reader for `source`, None if it is not quantized in a way that needs one.

    ModelRefused naming the method, version or width that is not supported.
    """
    config = source.config.get("quantization_config") or {}
    method = config.get("quant_method")
    if source.kind == "gguf" or method is None or method == "mxfp4":
        return None
    readers = _readers()
    if method not in readers:
        raise ModelRefused(
            f"quantization {method!r} of a safetensors model is not supported, only "
            f"{', '.join((*readers, 'mxfp4'))} are; use the unquantized weights or a GGUF file"
        )
    return readers[method](source, config)


def _readers() -> Mapping[str, Callable[[WeightSource, dict[str, Any]], Quantization]]:
    from penstock.models.weights.awq import AWQ
    from penstock.models.weights.compressed_tensors import CompressedTensors
    from penstock.models.weights.gptq import GPTQ

    return {"gptq": GPTQ, "awq": AWQ, "compressed-tensors": CompressedTensors}


def note_once(notes: list[str], note: str) -> None:
    """Add `note` unless it was said."""
    if note not in notes:
        notes.append(note)


def is_zero_bias(source: WeightSource, name: str, packed_suffix: str) -> bool:
    """A bias of zeros beside a packed weight: some quantizers write one for layers that have none."""
    stem, dot, kind = name.rpartition(".")
    if not dot or kind != "bias":
        return False
    try:
        source.shape(stem + packed_suffix)
    except KeyError:
        return False
    return not source.float32(name).any()
