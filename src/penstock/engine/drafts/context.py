"""Contexts of draft networks: keys and values per request, in a bounded memory, and a shelf of finished ones.

The target takes a known prefix from its prefix cache and does not compute it, so its features, of which a
draft network makes its context, do not exist then. What the network made of them when they did is kept here:
a context whose request left its slot goes to the shelf, and a request takes from it, or from one that still
runs, the positions that it lacks. A position's context is a function of the tokens up to it (and the one
after, for some networks), so it may be shared where the tokens, and whoever may see them, are the same.

Invariants: `used` never exceeds the budget; the shelf gives way, longest unused first, to requests that run;
positions of a context ascend.
"""

from __future__ import annotations

from collections import OrderedDict
from collections.abc import Iterable

import numpy as np

from penstock.models.drafters.network import CacheShape

GROWTH = 64  # positions by which a context grows at least


class Context:
    """Rows [0, length) of keys, values float32[L, N, G, D] and positions int32[N]; more is spare room."""

    __slots__ = ("keys", "length", "positions", "values")

    def __init__(self, shape: CacheShape) -> None:
        size = (shape.layers, 0, shape.kv_heads, shape.head_dim)
        self.keys, self.values = np.empty(size, np.float32), np.empty(size, np.float32)
        self.positions = np.empty(0, np.int32)
        self.length = 0

    @property
    def capacity(self) -> int:
        return len(self.positions)

    @property
    def last_position(self) -> int:
        """-1 for an empty one."""
        return int(self.positions[self.length - 1]) if self.length else -1

    def resize(self, capacity: int) -> None:
        """Keep the first rows, as many as there is room for."""
        kept = min(self.length, capacity)
        for name in ("keys", "values"):
            old = getattr(self, name)
            new = np.empty((old.shape[0], capacity, *old.shape[2:]), np.float32)
            new[:, :kept] = old[:, :kept]
            setattr(self, name, new)
        positions = np.empty(capacity, np.int32)
        positions[:kept] = self.positions[:kept]
        self.positions, self.length = positions, kept

    def append(self, positions: np.ndarray, keys: np.ndarray, values: np.ndarray) -> None:
        """Rows behind the others; there is room."""
        rows = slice(self.length, self.length + len(positions))
        self.positions[rows] = positions
        self.keys[:, rows], self.values[:, rows] = keys, values
        self.length = rows.stop

    def rows(self, first: int, end: int) -> slice:
        """Those of positions [first, end)."""
        low, high = np.searchsorted(self.positions[: self.length], (first, end)).tolist()
        return slice(low, high)


class Shelved:
    """A finished context, of tokens int32[n], for those whose key is `whose`."""

    __slots__ = ("context", "tokens", "whose")

    def __init__(self, whose: str, tokens: np.ndarray, context: Context) -> None:
        self.whose, self.tokens, self.context = whose, tokens, context


class ContextPool:
    """Room for `budget` positions in all."""

    def __init__(self, shape: CacheShape, budget: int) -> None:
        self.shape = shape
        self.budget = budget
        self.used = 0
        self._shelf: OrderedDict[int, Shelved] = OrderedDict()
        self._next = 0

    @property
    def shelved(self) -> int:
        """Positions that the shelf takes."""
        return sum(entry.context.capacity for entry in self._shelf.values())

    def reach(self, context: Context, rows: int) -> bool:
        """Room for so many rows. False, and nothing changed, if there is none."""
        if rows <= context.capacity:
            return True
        grown = max(rows, context.capacity + max(GROWTH, context.capacity // 2))
        for capacity in (grown, rows):
            if self._free(capacity - context.capacity):
                self.used += capacity - context.capacity
                context.resize(capacity)
                return True
        return False

    def _free(self, wanted: int) -> bool:
        if self.used + wanted - self.shelved > self.budget:
            return False
        while self.used + wanted > self.budget:
            _, entry = self._shelf.popitem(last=False)
            self.drop(entry.context)
        return True

    def drop(self, context: Context) -> None:
        """Give a context's room back."""
        self.used -= context.capacity
        context.resize(0)

    def shelve(self, whose: str, tokens: np.ndarray, context: Context) -> None:
        """A request left: what it had may serve others. It replaces what says no more than it."""
        if not context.length:
            self.drop(context)
            return
        for number, entry in list(self._shelf.items()):
            count = len(entry.tokens)
            shorter = entry.whose == whose and np.array_equal(entry.tokens, tokens[:count])
            if shorter and entry.context.length <= context.length:
                self.drop(self._shelf.pop(number).context)
        self.used -= context.capacity - context.length
        context.resize(context.length)
        self._shelf[self._next] = Shelved(whose, tokens, context)
        self._next += 1

    def find(
        self, whose: str, tokens: np.ndarray, upto: int, ahead: int, running: Iterable[Shelved]
    ) -> tuple[Context, slice] | None:
        """The most rows, of a shelved context or of one that runs, for positions [0, upto) of `tokens`.

        ahead: 1 if the context of a position depends on the token after it too."""
        best: tuple[Context, slice] | None = None
        chosen = -1
        candidates: list[tuple[int, Shelved]] = [*self._shelf.items(), *((-1, entry) for entry in running)]
        for number, entry in candidates:
            if entry.whose != whose:
                continue
            count = min(len(tokens), len(entry.tokens))
            differs = np.flatnonzero(tokens[:count] != entry.tokens[:count])
            common = int(differs[0]) if len(differs) else count
            rows = entry.context.rows(0, min(upto, common - ahead))
            if rows.stop > 0 and (best is None or rows.stop > best[1].stop):
                best, chosen = (entry.context, rows), number
        if chosen >= 0:
            self._shelf.move_to_end(chosen)
        return best
