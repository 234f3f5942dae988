"""The reference backend: the numpy op table, float32 weights and KV."""

from __future__ import annotations

from penstock.errors import ConfigError
from penstock.kernels.backend import BackendOptions, KVForm
from penstock.kernels.reference import ReferenceOps


class ReferenceBackend:
    """`penstock.kernels.backend.OpTableBackend` over ReferenceOps."""

    name = "reference"
    numerics = "reference/float32"
    kv_form: KVForm = "float32"
    attention_workspace_bytes = ReferenceOps.attention_workspace_bytes

    weight_bytes = staticmethod(ReferenceOps.weight_bytes)
    prepare = staticmethod(ReferenceOps.prepare)
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
