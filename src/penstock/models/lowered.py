"""LoweredModel: a spec compiled to one native program. The same interface as `models.forward.Model`."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import msgspec
import numpy as np

from penstock.kernels.backend import ProgramBackend
from penstock.kernels.batch import Batch
from penstock.models.lower import lower
from penstock.models.spec import DecoderSpec


class NativePool:
    """The KV pool of a lowered model: `data` uint8[num_blocks · block bytes] in pages of `layout`."""

    def __init__(self, data: np.ndarray, layout: Any) -> None:
        self.data = data
        self.layout = layout


class LoweredModel:
    """A Program on its backend. `executable` is what the native runner drives directly."""

    def __init__(
        self,
        spec: DecoderSpec,
        backend: ProgramBackend,
        weights: Mapping[str, Any],
        layers: Sequence[Mapping[str, Any]],
        context: int | None = None,
        capture: tuple[int, ...] = (),
    ) -> None:
        self.spec = spec
        self.capture = capture
        self.context = context or spec.max_context
        self._backend = backend
        self._weights, self._layers = weights, layers
        self.executable = backend.compile(lower(spec, weights, layers, self.context, capture))
        self._bound: NativePool | None = None

    def allocate_kv(self, layout: Any, num_blocks: int) -> NativePool:
        """One pool, bound to the program."""
        pool = NativePool(self._backend.allocate_kv(layout, num_blocks), layout)
        self.bind(pool)
        return pool

    def bind(self, pool: NativePool) -> None:
        """Run over `pool` from now on."""
        if pool is not self._bound:
            self.executable.bind_kv(pool.data, pool.layout)
            self._bound = pool

    def with_layers(self, kept: Sequence[int], kv: NativePool) -> LoweredModel:
        """Some of the layers, ascending, and the head, over the same weights and the pool of all layers."""
        spec = msgspec.structs.replace(self.spec, layers=tuple(self.spec.layers[i] for i in kept))
        layers = [self._layers[i] for i in kept]
        model = LoweredModel(spec, self._backend, self._weights, layers, self.context)
        places = tuple(kv.layout.layer_place[i] for i in kept)
        layout = msgspec.structs.replace(kv.layout, layer_place=places)
        model.bind(NativePool(kv.data, layout))
        return model

    def forward(self, batch: Batch, kv: NativePool, features: np.ndarray | None = None) -> np.ndarray:
        """float32[T, d]: every token's hidden state after the final norm, ready for `logits`.

        features: float32[T, len(capture) · d], filled if given."""
        self.bind(kv)
        nothing = np.empty(0, np.int32)
        self.executable.forward(batch, nothing)
        if features is not None:
            self.executable.features(features)
        return np.asarray(self.executable.hidden(np.arange(len(batch.tokens), dtype=np.int32)))

    @property
    def final_norm(self) -> np.ndarray:
        """float32[d]: the gain of the norm before the head."""
        return np.asarray(self._weights["final_norm"])

    def embedding(self, tokens: np.ndarray) -> np.ndarray:
        """int32[n] -> float32[n, d]: rows of the embedding, not scaled. Also while a step runs."""
        return self.executable.embedding(tokens)

    def logits(self, hidden: np.ndarray) -> np.ndarray:
        """hidden float32[n, d] (rows of what `forward` returned) -> float32[n, V]."""
        return np.asarray(self.executable.head(hidden))
