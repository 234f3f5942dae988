"""Teacher forcing: known tokens through a model, hidden states out, without an engine.

For measuring (quality, calibration), not for serving: every sequence starts at position 0, nothing is
cached between calls.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from typing import Any, Protocol

import numpy as np

from penstock.kernels.batch import Batch
from penstock.kv.groups import KVLayout, LayerKV, plan_layout
from penstock.models.spec import DecoderSpec, kv_layers

BLOCK_SIZE = 16


class TaughtModel(Protocol):
    """What is needed of a model (`models.forward.Model`, `models.lowered.LoweredModel`)."""

    @property
    def spec(self) -> DecoderSpec: ...

    def allocate_kv(self, layout: KVLayout, num_blocks: int) -> Any:
        """A KV pool, as `forward` takes it."""
        ...

    def forward(self, batch: Batch, kv: Any) -> Any:
        """float32[T, d]"""
        ...

    def logits(self, hidden: Any) -> Any:
        """float32[n, V] of hidden [n, d]"""
        ...


def in_batches(sequences: Sequence[np.ndarray], tokens: int) -> Iterator[list[np.ndarray]]:
    """Consecutive sequences, together at most `tokens` long (a longer one comes alone)."""
    batch: list[np.ndarray] = []
    held = 0
    for sequence in sequences:
        if batch and held + len(sequence) > tokens:
            yield batch
            batch, held = [], 0
        batch.append(sequence)
        held += len(sequence)
    if batch:
        yield batch


class TeacherForcing:
    """`model` over batches of at most `tokens` tokens in at most `rows` sequences.

    `kv_itemsize`: bytes of an element of KV. The pool is made once.
    """

    def __init__(self, model: TaughtModel, tokens: int, rows: int, kv_itemsize: int = 4) -> None:
        self.model = model
        kept = [LayerKV(*layer) for layer in kv_layers(model.spec)]
        self._layout = plan_layout(kept, BLOCK_SIZE, kv_itemsize)
        self._per_group = tokens // BLOCK_SIZE + rows
        self._kv = model.allocate_kv(self._layout, self._per_group * len(self._layout.groups))

    def hidden(self, sequences: Sequence[np.ndarray]) -> Any:
        """int32[n] each -> float32[sum of n, d], ready for `model.logits`."""
        counts = np.array([len(sequence) for sequence in sequences], np.int32)
        blocks = -(-counts // BLOCK_SIZE)
        if blocks.sum() > self._per_group:
            raise ValueError(f"{counts.sum()} tokens in {len(counts)} sequences exceed the pool's blocks")
        firsts = np.cumsum(blocks) - blocks
        # Entries behind a row's own are never read; clipping keeps them valid block ids all the same.
        table = firsts[:, None] + np.minimum(np.arange(blocks.max()), blocks[:, None] - 1)
        batch = Batch(
            tokens=np.concatenate(sequences).astype(np.int32),
            positions=np.concatenate([np.arange(count, dtype=np.int32) for count in counts]),
            offsets=np.concatenate([[0], np.cumsum(counts)]).astype(np.int32),
            starts=np.zeros(len(counts), np.int32),
            contexts=counts,
            tables=tuple(
                (table + group * self._per_group).astype(np.int32)
                for group in range(len(self._layout.groups))
            ),
        )
        return self.model.forward(batch, self._kv)
