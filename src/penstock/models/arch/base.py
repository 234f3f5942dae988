"""Architecture: what a mapping file provides."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

from msgspec import Struct

from penstock.models.arch import names
from penstock.models.arch.config import Config
from penstock.models.spec import DecoderSpec
from penstock.models.tensors import TensorNames
from penstock.models.weights.source import WeightSource


def _nothing(source: WeightSource, config: dict[str, Any]) -> dict[str, Any]:
    return {}


class Architecture(Struct, frozen=True, kw_only=True):
    """One decoder architecture.

    model_types: `model_type` values of config.json; gguf_arch: `general.architecture` ("" if GGUF
    has none); gguf_experts: it is that GGUF architecture *with* experts. `gguf_extra` gives what the
    shared translation of metadata does not know: keys of config.json that override it.
    """

    name: str
    model_types: tuple[str, ...]
    spec: Callable[[Config], DecoderSpec]
    gguf_arch: str = ""
    gguf_experts: bool = False
    gguf_extra: Callable[[WeightSource, dict[str, Any]], dict[str, Any]] = _nothing
    hf_names: TensorNames = names.HF
    gguf_names: TensorNames = names.GGUF


def interleaved(source: WeightSource, config: dict[str, Any]) -> dict[str, Any]:
    """GGUF files of the Llama line keep the rows of Q and K in the order of interleaved rope."""
    return {"rope_style": "interleaved"}
