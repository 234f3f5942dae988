"""Run a Model over paged KV as an engine would, hostile to whoever reads what is not theirs.

The pool starts as NaN, block ids are shuffled, and every undefined entry of a block table (before a
window's first needed block, beyond the context) is an id far outside the pool, so that a wrong
read is an IndexError or a NaN. A native pool is poisoned byte by byte (0xFF…: NaN in every float form).
"""

from __future__ import annotations

from typing import Any

import numpy as np

from penstock.kernels.batch import Batch
from penstock.kv.groups import LayerKV, plan_layout
from penstock.models.forward import Model
from penstock.models.lowered import LoweredModel
from penstock.models.spec import kv_layers

NOWHERE = 1 << 30


class PagedRunner:
    """`step({row: tokens})` computes the next tokens of some rows; rows are made as they are named."""

    def __init__(
        self,
        model: Model | LoweredModel,
        block_size: int = 4,
        num_blocks: int = 600,
        seed: int = 0,
        itemsize: int = 4,
    ) -> None:
        self.model = model
        self.block_size = block_size
        self.layout = plan_layout([LayerKV(*layer) for layer in kv_layers(model.spec)], block_size, itemsize)
        self.kv: Any = model.allocate_kv(self.layout, num_blocks)
        if isinstance(model, LoweredModel):
            self.kv.data[...] = 0xFF
        else:
            for layer in self.kv:
                layer.k[...] = np.nan
                layer.v[...] = np.nan
        self.free = [int(b) for b in np.random.default_rng(seed).permutation(num_blocks)]
        self.lengths: dict[Any, int] = {}
        self.features: dict[Any, np.ndarray] = {}  # of the last step, of a model that captures some
        self.blocks: dict[Any, list[dict[int, int]]] = {}

    def step(self, work: dict[Any, list[int]]) -> dict[Any, np.ndarray]:
        """float32[n, V] of each row's n tokens, after one forward pass over all of them."""
        rows = list(work)
        starts = np.array([self.lengths.setdefault(row, 0) for row in rows], np.int32)
        counts = np.array([len(work[row]) for row in rows], np.int32)
        contexts = starts + counts
        offsets = np.concatenate([[0], np.cumsum(counts)]).astype(np.int32)
        batch = Batch(
            tokens=np.concatenate([np.array(work[row], np.int32) for row in rows]),
            positions=np.concatenate(
                [np.arange(s, c, dtype=np.int32) for s, c in zip(starts, contexts, strict=True)]
            ),
            offsets=offsets,
            starts=starts,
            contexts=contexts,
            tables=self._tables(rows, starts, contexts),
        )
        features = None
        if self.model.capture:
            width = len(self.model.capture) * self.model.spec.hidden_size
            features = np.full((int(offsets[-1]), width), np.nan, np.float32)
        hidden = self.model.forward(batch, self.kv, features)
        if features is not None:
            self.features = {row: features[offsets[i] : offsets[i + 1]] for i, row in enumerate(rows)}
        logits = self.model.logits(hidden)
        for row, context in zip(rows, contexts, strict=True):
            self.lengths[row] = int(context)
        return {row: logits[offsets[i] : offsets[i + 1]] for i, row in enumerate(rows)}

    def _tables(self, rows: list[Any], starts: np.ndarray, contexts: np.ndarray) -> tuple[np.ndarray, ...]:
        width = -(-int(contexts.max()) // self.block_size) + 2
        tables = []
        for number, group in enumerate(self.layout.groups):
            table = np.full((len(rows), width), NOWHERE, np.int32)
            for index, row in enumerate(rows):
                held = self.blocks.setdefault(row, [{} for _ in self.layout.groups])[number]
                first = 0 if group.window is None else max(0, int(starts[index]) - group.window + 1)
                for logical in [b for b in held if b < first // self.block_size]:
                    self._give_back(number, held.pop(logical))
                for logical in range(first // self.block_size, -(-int(contexts[index]) // self.block_size)):
                    if logical not in held:
                        held[logical] = self.free.pop()
                    table[index, logical] = held[logical]
            tables.append(table)
        return tuple(tables)

    def _give_back(self, group: int, block: int) -> None:
        if isinstance(self.model, LoweredModel):  # blocks belong to one group at a time
            size = self.layout.block_bytes
            self.kv.data[block * size : (block + 1) * size] = 0xFF
        else:
            for layer in self.kv:
                if layer.group == group:
                    layer.k[block] = np.nan
                    layer.v[block] = np.nan
        self.free.insert(0, block)

    def greedy(self, row: Any, prompt: list[int], count: int) -> list[int]:
        logits = self.step({row: prompt})[row]
        out = [int(logits[-1].argmax())]
        while len(out) < count:
            out.append(int(self.step({row: out[-1:]})[row][-1].argmax()))
        return out
