"""The reference backend: the numpy op table, float32 weights and KV."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from penstock.errors import ConfigError
from penstock.kernels.backend import BackendOptions, KVForm, Role
from penstock.kernels.ops import WeightTensor
from penstock.kernels.reference import ReferenceOps


class ReferenceBackend:
    """`penstock.kernels.backend.OpTableBackend` over ReferenceOps."""

    name = "reference"
    numerics = "reference/float32"
    kv_form: KVForm = "float32"
    attention_workspace_bytes = ReferenceOps.attention_workspace_bytes

    prepare_gated = staticmethod(ReferenceOps.prepare)
    vector = staticmethod(ReferenceOps.vector)

    def __init__(self, options: BackendOptions) -> None:
        for key, value, only in (("weights", options.weights, ("file", "float32")),
                                 ("kv_dtype", options.kv, ("auto", "float32"))):  # fmt: skip
            if value not in only:
                raise ConfigError(
                    f"{key}: {value!r} is not for the reference backend, which computes in float32; "
                    f"use backend cpu, or {key} float32",
                    param=key,
                )
        self.ops = ReferenceOps()

    def weight_bytes(self, shape: tuple[int, ...], dtype: str, role: Role = "layer") -> int:
        """Four bytes a weight, whatever it is for."""
        del role
        return ReferenceOps.weight_bytes(shape, dtype)

    def prepare(self, parts: Sequence[WeightTensor], role: Role = "layer") -> Any:
        """float32, whatever it is for."""
        del role
        return ReferenceOps.prepare(parts)
