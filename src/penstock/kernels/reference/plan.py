"""ReferencePlan: the index arrays of one batch, made once and used by all layers of a group.

A row of one token (decode) is attended together with others of similar length: their blocks are
gathered through the table into one padded array. Rows of several tokens (prefill chunks) are
attended one by one, straight over the keys that they see. Only table entries of blocks that hold
a visible key are ever read; what is padded repeats the row's own last block and is masked.
"""

from __future__ import annotations

from functools import cached_property
from typing import NamedTuple

import numpy as np

from penstock.kernels.batch import Batch

GATHER_BYTES = 2 << 20  # most bytes of gathered keys (values: as many) of one bucket: they stay in the cache


class Bucket(NamedTuple):
    """b single-token rows, padded to n blocks each (L = n · block_size keys).

    tokens: int[b], their index among the T tokens; blocks: int[b, n];
    hidden: bool[b, L], keys that the row does not see.
    """

    tokens: np.ndarray
    blocks: np.ndarray
    hidden: np.ndarray


class Span(NamedTuple):
    """A row of several tokens: tokens [first, last) at positions from `start` on.

    blocks: int[n]; key j of the gathered blocks has position `key_start` + j.
    """

    first: int
    last: int
    start: int
    blocks: np.ndarray
    key_start: int


class ReferencePlan:
    """One batch's write places and attention work, per group and window, made when first asked."""

    def __init__(self, batch: Batch) -> None:
        self.batch = batch
        self._places: dict[int, tuple[np.ndarray, np.ndarray]] = {}
        self._work: dict[tuple[int, int | None], tuple[list[Bucket], list[Span]]] = {}

    @cached_property
    def counts(self) -> np.ndarray:
        """int[R]: tokens of each row."""
        return np.diff(self.batch.offsets)

    def write_places(self, group: int, block_size: int) -> tuple[np.ndarray, np.ndarray]:
        """(block id, place in the block) of every token, int[T] each."""
        if group not in self._places:
            rows = np.repeat(np.arange(self.batch.num_rows), self.counts)
            logical, place = np.divmod(self.batch.positions, block_size)
            self._places[group] = (self.batch.tables[group][rows, logical], place)
        return self._places[group]

    def attention_work(
        self, group: int, window: int | None, block_size: int, block_bytes: int
    ) -> tuple[list[Bucket], list[Span]]:
        """The single-token rows in buckets, and the rows of several tokens. `block_bytes` is what
        the keys of one block take as float32."""
        key = (group, window)
        if key not in self._work:
            singles = np.flatnonzero(self.counts == 1)
            several = np.flatnonzero(self.counts > 1)
            self._work[key] = (
                self._buckets(singles, group, window, block_size, block_bytes),
                [self._span(int(row), group, window, block_size) for row in several],
            )
        return self._work[key]

    def _span(self, row: int, group: int, window: int | None, block_size: int) -> Span:
        start, context = int(self.batch.starts[row]), int(self.batch.contexts[row])
        first_key = 0 if window is None else max(0, start - window + 1)
        first_block, end_block = first_key // block_size, -(-context // block_size)
        blocks = self.batch.tables[group][row, first_block:end_block]
        first, last = int(self.batch.offsets[row]), int(self.batch.offsets[row + 1])
        return Span(first, last, start, blocks, first_block * block_size)

    def _buckets(
        self, rows: np.ndarray, group: int, window: int | None, block_size: int, block_bytes: int
    ) -> list[Bucket]:
        contexts = np.asarray(self.batch.contexts)[rows]
        first_key = np.zeros_like(contexts) if window is None else np.maximum(contexts - window, 0)
        first_block = first_key // block_size
        num_blocks = -(-contexts // block_size) - first_block
        order = np.argsort(num_blocks, kind="stable")
        buckets = []
        begin = 0
        while begin < len(order):
            end = _bucket_end(num_blocks[order], begin, block_bytes)
            chosen = order[begin:end]
            width = int(num_blocks[chosen[-1]])
            steps = np.minimum(np.arange(width), num_blocks[chosen, None] - 1)
            blocks = self.batch.tables[group][rows[chosen, None], first_block[chosen, None] + steps]
            keys = first_block[chosen, None] * block_size + np.arange(width * block_size)
            hidden = (keys < first_key[chosen, None]) | (keys >= contexts[chosen, None])
            buckets.append(Bucket(np.asarray(self.batch.offsets)[rows[chosen]], blocks, hidden))
            begin = end
        return buckets


def _bucket_end(num_blocks: np.ndarray, begin: int, block_bytes: int) -> int:
    """End of the bucket that starts at `begin` of the ascending `num_blocks`: no row is padded to
    more than twice its blocks (short ones aside), and the gathered keys stay under GATHER_BYTES."""
    most = max(2 * int(num_blocks[begin]), 8)
    end = begin + 1
    while end < len(num_blocks) and num_blocks[end] <= most:
        if (end + 1 - begin) * int(num_blocks[end]) * block_bytes > GATHER_BYTES:
            break
        end += 1
    return end
