"""LastToken: a decoder as an embedding model. A text's vector is the final hidden state of its last token.

The decoder's own forward pass over paged KV, which here lives for one batch only; long texts go through in
chunks, as prompts do.
"""

from __future__ import annotations

from typing import Any

import numpy as np

from penstock.kernels.batch import Batch
from penstock.kernels.encoder import TextBatch
from penstock.kv.groups import LayerKV, plan_layout
from penstock.models.encoder.pool import normalized
from penstock.models.forward import Model
from penstock.models.lowered import LoweredModel
from penstock.models.spec import kv_layers

BLOCK_SIZE = 16
STEP_TOKENS = 512  # computed at once, as an engine's default budget: bounds the buffers
ITEM_BYTES = {"float32": 4, "bf16": 2, "int8": 1}


class LastToken:
    def __init__(self, model: Model | LoweredModel, kv_form: str, normalize: bool) -> None:
        self._model = model
        self._normalize = normalize
        layers = [LayerKV(*layer) for layer in kv_layers(model.spec)]
        self._layout = plan_layout(layers, BLOCK_SIZE, ITEM_BYTES[kv_form])
        self._kv: Any = None
        self._num_blocks = 0

    def embed(self, batch: TextBatch) -> np.ndarray:
        """float32[R, d]."""
        counts = np.diff(batch.offsets)
        first_block = np.concatenate([[0], np.cumsum(-(-counts // BLOCK_SIZE))])
        self._need(int(first_block[-1]))
        out = np.empty((len(counts), self._model.spec.hidden_size), np.float32)
        for step in _steps(counts, STEP_TOKENS):
            hidden = self._forward(batch, step, counts, first_block)
            ends = np.cumsum([stop - start for _, start, stop in step]) - 1
            for (row, _, stop), end in zip(step, ends, strict=True):
                if stop == counts[row]:
                    out[row] = hidden[end]
        return normalized(out) if self._normalize else out

    def _need(self, blocks: int) -> None:
        """A pool with room for `blocks` blocks of every group."""
        blocks *= len(self._layout.groups)
        if blocks > self._num_blocks:
            self._kv = None  # the old one goes first
            self._kv = self._model.allocate_kv(self._layout, blocks)
            self._num_blocks = blocks

    def _forward(
        self, texts: TextBatch, step: list[tuple[int, int, int]], counts: np.ndarray, first_block: np.ndarray
    ) -> np.ndarray:
        """Hidden states of the step's tokens."""
        starts = np.array([start for _, start, _ in step], np.int32)
        stops = np.array([stop for _, _, stop in step], np.int32)
        positions = np.concatenate([np.arange(start, stop, dtype=np.int32) for _, start, stop in step])
        tokens = np.concatenate(
            [
                texts.tokens[texts.offsets[row] + start : texts.offsets[row] + stop]
                for row, start, stop in step
            ]
        )
        groups = len(self._layout.groups)
        width = int(-(-counts[[row for row, _, _ in step]].max() // BLOCK_SIZE))
        logical = np.array([first_block[row] for row, _, _ in step])[:, None] + np.arange(width)
        logical = np.minimum(logical, first_block[-1] - 1)  # beyond a row's context; never read
        tables = tuple((logical * groups + group).astype(np.int32) for group in range(groups))
        batch = Batch(
            tokens=tokens,
            positions=positions,
            offsets=np.concatenate([[0], np.cumsum(stops - starts)]).astype(np.int32),
            starts=starts,
            contexts=stops,
            tables=tables,
        )
        return np.asarray(self._model.forward(batch, self._kv))


def _steps(counts: np.ndarray, budget: int) -> list[list[tuple[int, int, int]]]:
    """Texts of `counts` tokens in order, cut into steps of at most `budget` tokens: (text, start, stop)."""
    steps: list[list[tuple[int, int, int]]] = [[]]
    left = budget
    for row, count in enumerate(counts.tolist()):
        start = 0
        while start < count:
            stop = min(count, start + left)
            steps[-1].append((row, start, stop))
            left -= stop - start
            start = stop
            if left == 0:
                steps.append([])
                left = budget
    return steps if steps[-1] else steps[:-1]
