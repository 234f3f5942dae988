"""From a folder to an encoder, in two steps as for decoders: inspect (headers only), then load."""

from __future__ import annotations

import logging
from math import prod
from pathlib import Path
from typing import Any

import numpy as np
from msgspec import Struct

from penstock.errors import ModelRefused
from penstock.kernels.backend import Backend, BackendOptions, OpTableBackend, ProgramBackend, open_backend
from penstock.kernels.encoder import EncoderLayer, EncoderNetwork, EncoderProgram, TextBatch
from penstock.kernels.ops import WeightTensor
from penstock.models.arch import bert
from penstock.models.arch.config import Config
from penstock.models.encoder.forward import OpTableEncoder
from penstock.models.encoder.modules import Modules, read_modules
from penstock.models.encoder.pool import normalized, pool
from penstock.models.encoder.spec import EncoderSpec, layer_shapes, model_tensors
from penstock.models.tensors import Tensors, resolve_shapes
from penstock.models.weights.source import WeightSource, open_source

log = logging.getLogger("penstock.models")

Parts = dict[str, list[WeightTensor]]


class EncoderInfo(Struct, frozen=True, kw_only=True):
    """What the headers say. `max_tokens`: of a text, with the tokens put around it."""

    path: Path
    spec: EncoderSpec
    modules: Modules
    max_tokens: int


def is_encoder(path: Path) -> bool:
    """Whether the model at `path` is of an architecture that this package reads (headers only)."""
    source = open_source(path)
    try:
        return source.config.get("model_type") in bert.MODEL_TYPES
    finally:
        source.close()


def inspect_encoder(path: Path) -> EncoderInfo:
    """Read headers and configuration. ModelRefused, naming path and reason, for what can't be served."""
    source = open_source(path)
    try:
        spec = bert.spec(Config(source.config))
        _resolve(source, spec)
        modules = read_modules(path if path.is_dir() else path.parent, "mean")
    except ModelRefused as refused:
        raise ModelRefused(f"{path}: {refused.message}") from None
    except (KeyError, TypeError, ValueError) as error:
        raise ModelRefused(
            f"{path}: the configuration can't be read ({type(error).__name__}: {error})"
        ) from error
    finally:
        source.close()
    return EncoderInfo(
        path=path,
        spec=spec,
        modules=modules,
        max_tokens=min(spec.max_tokens, modules.max_tokens or spec.max_tokens),
    )


class Encoder:
    """An encoder with its pooling or its classification head. Float32 throughout."""

    def __init__(self, info: EncoderInfo, network: EncoderNetwork, head: dict[str, np.ndarray]) -> None:
        self.info = info
        self.network = network
        self._head = head

    def embed(self, batch: TextBatch) -> np.ndarray:
        """float32[R, d]: one vector per text, of length 1 where the model says so."""
        modules = self.info.modules
        vectors = pool(self.network.hidden(batch), batch.offsets, modules.pooling)
        return normalized(vectors) if modules.normalize else vectors

    def classify(self, batch: TextBatch) -> np.ndarray:
        """float32[R, labels]: logits of the classification head, over the first token of each text."""
        first = pool(self.network.hidden(batch), batch.offsets, "cls")
        head = self._head
        pooled = np.tanh(first @ head["pooler"].T + head["pooler_bias"])
        logits: np.ndarray = pooled @ head["classifier"].T + head["classifier_bias"]
        return logits


def load_encoder(info: EncoderInfo, backend: Backend | str = "auto", threads: int | None = None) -> Encoder:
    """Prepare every weight for `backend` (opened, or a name and `threads`), exactly: float32."""
    if isinstance(backend, str):
        backend = open_backend(backend, BackendOptions(weights="float32", threads=threads))
    source = open_source(info.path)
    try:
        tensors = _resolve(source, info.spec)
        program = _program(info.spec, tensors, backend)
        head = {
            name: _floats(parts)
            for name, parts in tensors.model.items()
            if name.startswith(("pooler", "classifier"))
        }
    finally:
        source.close()
    network: EncoderNetwork
    if isinstance(backend, ProgramBackend):
        network = backend.compile_encoder(program)
    else:
        assert isinstance(backend, OpTableBackend)
        network = OpTableEncoder(program, backend.ops)
    count = sum(prod(part.shape) for part in tensors.parts())
    log.info("%s: %d layers, %.1f million weights in float32", info.path, info.spec.num_layers, count / 1e6)
    return Encoder(info, network, head)


def _resolve(source: WeightSource, spec: EncoderSpec) -> Tensors:
    return resolve_shapes(source, bert.NAMES, model_tensors(spec), layer_shapes(spec))


def _floats(parts: list[WeightTensor]) -> np.ndarray:
    return np.concatenate([part.float32() for part in parts], axis=0, dtype=np.float32)


def _program(spec: EncoderSpec, tensors: Tensors, backend: Backend) -> EncoderProgram:
    def prepared(parts: list[WeightTensor]) -> Any:
        return backend.vector(parts) if len(parts[0].shape) == 1 else backend.prepare(parts)

    table = {name: _floats(parts) for name, parts in tensors.model.items()}
    return EncoderProgram(
        heads=spec.heads,
        first_position=spec.first_position,
        eps=spec.norm_eps,
        activation=spec.activation,
        word=table["embed"],
        place=table["place"],
        kind=table.get("kind"),
        norm=table["norm"],
        norm_bias=table["norm_bias"],
        layers=tuple(
            EncoderLayer(**{name: prepared(parts) for name, parts in layer.items()})
            for layer in tensors.layers
        ),
    )
