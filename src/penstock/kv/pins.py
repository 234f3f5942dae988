"""Pins: prefixes that are kept while others are evicted, for a time, by name.

A pin is a node of the prefix tree: the blocks on the way to it are evicted after all that nobody pinned,
and before a request goes without (last resort: a pin never makes anybody wait). Pinned blocks are at most a
share of the pool; beyond it the pins that end soonest are let go. What was evicted nevertheless stays
pinned in name: the next request computes it again and it is kept again.
"""

from __future__ import annotations

import heapq

from penstock.kv.tree import Node, PrefixTree


class Pins:
    """Over one tree. Times are seconds of the caller's clock."""

    def __init__(self, tree: PrefixTree, max_blocks: int) -> None:
        self._tree = tree
        self._max_blocks = max_blocks
        self._held: dict[str, tuple[float, Node]] = {}
        self._ends: list[tuple[float, str]] = []  # a heap; entries of pins that were replaced are stale

    def __len__(self) -> int:
        return len(self._held)

    def add(self, name: str, node: Node, until_s: float) -> None:
        """Pin the way to `node`; a pin of the same name is replaced."""
        self._tree.claim(node)
        self.drop(name)
        self._held[name] = (until_s, node)
        heapq.heappush(self._ends, (until_s, name))
        while self._tree.num_claimed > self._max_blocks:
            self._drop_first()
        if len(self._ends) > 2 * len(self._held) + 64:
            self._ends = [(until, held) for held, (until, _) in self._held.items()]
            heapq.heapify(self._ends)

    def drop(self, name: str) -> None:
        """Unknown names are ignored: it may have ended."""
        held = self._held.pop(name, None)
        if held is not None:
            self._tree.unclaim(held[1])

    def expire(self, now: float) -> None:
        while self._ends and self._ends[0][0] <= now:
            self._drop_first()

    def clear(self) -> None:
        for name in list(self._held):
            self.drop(name)
        self._ends.clear()

    def _drop_first(self) -> None:
        until, name = heapq.heappop(self._ends)
        if self._held.get(name, (None,))[0] == until:
            self.drop(name)
