"""Batch: the ragged rows of one forward pass, and the paged KV they read and write."""

from __future__ import annotations

from typing import Any

from msgspec import Struct


class Batch(Struct, frozen=True):
    """T tokens of R rows, concatenated without padding.

    Row r holds tokens [offsets[r], offsets[r+1]) at positions starts[r], starts[r]+1, …;
    after this pass its KV reaches contexts[r] = starts[r] + (offsets[r+1] - offsets[r]) tokens.

    tokens, positions: int32[T]; offsets: int32[R+1]; starts, contexts: int32[R].
    tables: per KV group int32[R, B], logical block index -> block id. Entries before a sliding
    window's first needed block, and beyond a row's context, are undefined and must not be read.
    Arrays are numpy or the backend's own (torch).
    """

    tokens: Any
    positions: Any
    offsets: Any
    starts: Any
    contexts: Any
    tables: tuple[Any, ...]

    @property
    def num_rows(self) -> int:
        return len(self.starts)


class LayerKV(Struct, frozen=True):
    """One layer's view of the pool: k, v are [num_blocks, block_size, kv_heads, head_dim]."""

    k: Any
    v: Any
    group: int
    block_size: int
