"""CpuBackend: `penstock.kernels.backend.ProgramBackend` over the native module."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np

from penstock.errors import ConfigError
from penstock.kernels.backend import BackendOptions, KVForm, Role
from penstock.kernels.cpu import _native
from penstock.kernels.cpu.encoder import NativeEncoder
from penstock.kernels.cpu.executable import Executable
from penstock.kernels.cpu.memory import zeroed
from penstock.kernels.cpu.packed_cache import PackedCache
from penstock.kernels.cpu.weights import CpuWeights
from penstock.kernels.encoder import EncoderProgram
from penstock.kernels.ops import WeightTensor
from penstock.kernels.program import Program

# Partial softmaxes and per-thread tiles: what attention takes beside its result.
ATTENTION_BYTES = 4 << 20


class CpuBackend:
    """Weights in panels, steps in one native call. The same bits at every batch and chunking."""

    name = "cpu"
    attention_workspace_bytes = ATTENTION_BYTES

    def __init__(self, options: BackendOptions) -> None:
        self._weights = CpuWeights(options.weights)
        self._isa = choose_instruction_set(options.instruction_set)
        self._threads = options.threads
        self.kv_form: KVForm = options.kv
        if options.kv == "auto":
            self.kv_form = "float32" if options.weights == "float32" else "bf16"
        self.numerics = f"cpu/{self._isa}/{options.weights}"

    def weight_bytes(self, shape: tuple[int, ...], dtype: str, role: Role = "layer") -> int:
        return self._weights.weight_bytes(shape, dtype, role)

    def prepare(self, parts: Sequence[WeightTensor], role: Role = "layer") -> Any:
        return self._weights.prepare(parts, role)

    def prepare_gated(self, parts: Sequence[WeightTensor]) -> Any:
        return self._weights.prepare_gated(parts)

    def weight_cache(self, revision: str) -> WeightCache | None:
        """None for float32: those weights are copies of the file."""
        form = self._weights.precision
        return None if form == "float32" else WeightCache(PackedCache(revision, form), self._weights)

    def vector(self, parts: Sequence[WeightTensor]) -> Any:
        return self._weights.vector(parts)

    def compile(self, program: Program) -> Executable:
        return Executable(program, self._isa, self._threads)

    def compile_encoder(self, program: EncoderProgram) -> NativeEncoder:
        return NativeEncoder(program, self._isa, self._threads)

    def allocate_kv(self, layout: Any, num_blocks: int) -> np.ndarray:
        """uint8[num_blocks · block bytes], zero pages."""
        return zeroed(num_blocks * layout.block_bytes)


class WeightCache:
    """`penstock.kernels.backend.WeightCache` over a PackedCache."""

    def __init__(self, cache: PackedCache, weights: CpuWeights) -> None:
        self._cache, self._weights = cache, weights

    def load(self, key: str) -> Any | None:
        return self._cache.load(key, self._weights.regions)

    def add(self, key: str, weight: Any) -> None:
        self._cache.add(key, weight)

    def finish(self) -> None:
        self._cache.finish()


def choose_instruction_set(name: str) -> str:
    """The best that this processor has for "auto", or `name` if it has it; else ConfigError."""
    sets = _native.instruction_sets()
    present = [known for known, supported, _ in sets if supported]
    if name == "auto" and present:
        return str(present[0])
    if name in present:
        return name
    why = next((f": {reason}" for known, _, reason in sets if known == name), "")
    raise ConfigError(
        f"instruction_set: {name!r} is not to be had on this processor{why}; "
        f"use auto or one of {', '.join(present)}",
        param="instruction_set",
    )
