"""Backends: what prepares weights and computes steps, and the one table of them.

Two kinds. An *op table* (`reference`) computes operation by operation, called from
`models/forward.py`; a *program* backend (`cpu`) runs a whole lowered step in one call.
"""

from __future__ import annotations

from collections.abc import Sequence
from importlib import import_module
from importlib.util import find_spec
from typing import Any, Literal, Protocol, runtime_checkable

from msgspec import Struct

from penstock.errors import ConfigError
from penstock.kernels.encoder import EncoderNetwork, EncoderProgram
from penstock.kernels.ops import Ops, WeightTensor
from penstock.kernels.program import Program

WeightsForm = Literal["file", "float32", "bf16", "int8", "int4"]
KVForm = Literal["auto", "float32", "bf16", "int8"]
# What a matrix is for: embeddings and head, routers (whose results decide), and all others.
Role = Literal["layer", "vocabulary", "router"]


class BackendOptions(Struct, frozen=True, kw_only=True):
    """How a backend computes. threads None: all cores that this process may use."""

    weights: WeightsForm = "file"
    kv: KVForm = "auto"
    instruction_set: str = "auto"
    threads: int | None = None


class Backend(Protocol):
    """Weights in a backend's own form; `numerics` names everything that changes the bits of KV and logits."""

    name: str
    numerics: str
    kv_form: KVForm  # float32, bf16 or int8
    attention_workspace_bytes: int

    def weight_bytes(self, shape: tuple[int, ...], dtype: str, role: Role = "layer") -> int:
        """Bytes that `prepare` will hold for a tensor of `shape` stored as `dtype`."""
        ...

    def prepare(self, parts: Sequence[WeightTensor], role: Role = "layer") -> Any:
        """Weight (N, K) or (E, N, K) in the backend's form; parts are joined along N."""
        ...

    def prepare_gated(self, parts: Sequence[WeightTensor]) -> Any:
        """The same for gate (first half of N) and up, which only ever meet in an activation."""
        ...

    def vector(self, parts: Sequence[WeightTensor]) -> Any:
        """float32 of the parts joined along their last axis: norm gains, biases, sinks."""
        ...


class WeightCache(Protocol):
    """Prepared weights of one model kept from an earlier start. Thread-safe."""

    def load(self, key: str) -> Any | None:
        """The weight kept under `key`; None if there is none, or it is damaged."""
        ...

    def add(self, key: str, weight: Any) -> None:
        """Keep a weight that `load` did not have."""
        ...

    def finish(self) -> None:
        """All weights of the model were loaded or added."""
        ...


@runtime_checkable
class ProgramBackend(Backend, Protocol):
    """A backend that executes Programs."""

    def weight_cache(self, revision: str) -> WeightCache | None:
        """The cache of the model with this revision; None if nothing is gained by one."""
        ...

    def compile(self, program: Program) -> Any:
        """An executable (see kernels.cpu.executable.Executable)."""
        ...

    def compile_encoder(self, program: EncoderProgram) -> EncoderNetwork:
        """An encoder whose weights this backend prepared, as float32 or bfloat16."""
        ...

    def allocate_kv(self, layout: Any, num_blocks: int) -> Any:
        """The KV pool of `num_blocks` blocks in the backend's page form."""
        ...


@runtime_checkable
class OpTableBackend(Backend, Protocol):
    """A backend that offers the op table."""

    ops: Ops


_BACKENDS: dict[str, str] = {
    "cpu": "penstock.kernels.cpu.backend:CpuBackend",
    "reference": "penstock.kernels.reference.backend:ReferenceBackend",
}


def backend_names() -> tuple[str, ...]:
    """Names that `open_backend` accepts, without "auto"; the fastest first."""
    return tuple(_BACKENDS)


def register_backend(name: str, target: str) -> None:
    """Make `name` known; `target` is "module:factory", called with BackendOptions."""
    _BACKENDS[name] = target


def unavailable(name: str) -> str | None:
    """Why a known backend can't be used in this installation; None if it can."""
    if name == "cpu" and find_spec("penstock.kernels.cpu._native") is None:
        return "its native module was not built; install penstock where a C++ compiler is present"
    return None


def resolve_backend(name: str) -> str:
    """The backend that "auto" stands for here, or `name` itself if it is known and present.

    Raises ConfigError otherwise."""
    if name == "auto":
        return next(known for known in _BACKENDS if unavailable(known) is None)
    if name not in _BACKENDS:
        known = ", ".join(("auto", *_BACKENDS))
        raise ConfigError(f"backend: {name!r} is not a kernel backend; use one of {known}", param="backend")
    if reason := unavailable(name):
        raise ConfigError(f"backend: {name!r} can't be used: {reason}", param="backend")
    return name


def open_backend(name: str = "auto", options: BackendOptions | None = None) -> Backend:
    """A fresh backend. ConfigError for an unknown one, or for options that it can't honour."""
    module, _, factory = _BACKENDS[resolve_backend(name)].partition(":")
    backend: Backend = getattr(import_module(module), factory)(options or BackendOptions())
    return backend
