"""Tokens sorted by what stood before them: where the end of a text stood earlier, and what followed there.

The *context* of a position is the `depth` tokens before it, nearest first. Sorted by context, positions whose
last m tokens agree stand side by side: the longest match of a context is with a neighbour of the place where
it would be inserted, and all occurrences of that match are one range, as below one node of a suffix tree.
This is the suffix array of the reversed text (Manber and Myers, 1990), cut at `depth` and kept sorted as
the text grows.

A key is the context and the position, big-endian, so that bytes sort as tokens do and C compares them. That
is 4 * depth + 37 bytes of object, 8 of list and 4 of text for a token: 145 at the default depth of 24, where
the same token's KV takes 23 KB in the smallest model that we serve. A suffix automaton takes 330 bytes before
it counts anything, and its counts are updated along chains of links as long as the text repeats itself.
"""

from __future__ import annotations

from array import array
from bisect import bisect_left, bisect_right, insort
from collections.abc import Sequence
from struct import Struct

import numpy as np
from numpy.lib.stride_tricks import sliding_window_view

_WIDTH = 4  # bytes of a token or position in a key
_pack = Struct(">i").pack
NO_TOKEN = -1  # before the first token, and between texts; equals no token
# Insertion moves half of a list's pointers: 5 to 15 us at this length, as busy as the caches are.
MAX_RUN = 1 << 16


class ContextIndex:
    """A growing text. Positions are indexed once their token is known, so each occurrence found has at
    least one token after it."""

    __slots__ = ("_runs", "_width", "context", "depth", "tokens")

    def __init__(self, depth: int) -> None:
        """depth: tokens of a context; matches are no longer than that."""
        self.depth = depth
        self.tokens = array("i")
        self.context = _pack(NO_TOKEN) * depth  # of the position after the last token
        self._width = depth * _WIDTH
        self._runs: list[list[bytes]] = [[]]

    def __len__(self) -> int:
        return len(self.tokens)

    def append(self, token: int) -> None:
        """Add and index one token. O(log n) comparisons, and a move of at most MAX_RUN pointers."""
        insort(self._run(1), self.context + _pack(len(self.tokens)))
        self.tokens.append(token)
        self.context = _pack(token) + self.context[:-_WIDTH]

    def extend(self, tokens: np.ndarray, skipped: int = 0) -> None:
        """Add int32[n] at once; the first `skipped` of them are context only and follow nothing."""
        keys = self._keys(tokens)[skipped:]
        self.tokens.frombytes(np.ascontiguousarray(tokens, np.int32).tobytes())
        recent = np.array(self.tokens[-self.depth :], ">i4")[::-1].tobytes()
        self.context = recent + _pack(NO_TOKEN) * (self.depth - len(recent) // _WIDTH)
        for first in range(0, len(keys), MAX_RUN):
            part = keys[first : first + MAX_RUN]
            run = self._run(len(part))
            run += part
            run.sort()

    def longest(self, context: bytes) -> list[tuple[int, int, list[bytes]]]:
        """Per run, the latest tokens first: tokens in common with its best match of `context`, the place
        between two keys where `context` would stand, and the run's keys."""
        wanted = int.from_bytes(context, "big")
        width = 8 * self._width
        found = []
        for run in reversed(self._runs):
            at = bisect_left(run, context)
            differing = width  # low bits from the first difference on; fewer at the better neighbour
            for key in run[max(at - 1, 0) : at + 1]:
                bits = (int.from_bytes(key, "big") >> 8 * _WIDTH ^ wanted).bit_length()
                differing = min(bits, differing)
            found.append(((width - differing) // (8 * _WIDTH), at, run))
        return found

    def _run(self, room: int) -> list[bytes]:
        """The run that takes `room` more keys."""
        if len(self._runs[-1]) + room > MAX_RUN:
            self._runs.append([])
        return self._runs[-1]

    def _keys(self, tokens: np.ndarray) -> list[bytes]:
        """One per token, as if they were appended."""
        n, start = len(tokens), len(self.tokens)
        before = np.frombuffer(self.context, ">i4")[::-1]
        text = np.concatenate([before, tokens.astype(">i4")])
        table = np.empty((n, self.depth + 1), ">i4")
        table[:, :-1] = sliding_window_view(text, self.depth)[:n, ::-1]
        table[:, -1] = np.arange(start, start + n)
        keys: list[bytes] = table.view(f"V{self._width + _WIDTH}")[:, 0].tolist()
        return keys


def find(
    indexes: Sequence[ContextIndex], context: bytes, known: int, most: int
) -> tuple[int, list[tuple[ContextIndex, list[int]]]]:
    """The longest match of a context in any of the indexes, and where in their tokens it is followed.

    context: as ContextIndex.context, of which `known` tokens are real. Of more than `most` occurrences a
    systematic sample is taken (every n-th in context order). Returns (length, per index its positions,
    latest first); (0, []) if not even the last token stands anywhere.
    """
    best = 0
    places: list[tuple[ContextIndex, int, list[bytes]]] = []
    for index in indexes:
        for length, at, run in index.longest(context):
            length = min(length, known)
            if length > best:
                best = length
                places.clear()
            if length and length == best:
                places.append((index, at, run))
    width = best * _WIDTH
    prefix = context[:width]
    after = prefix + b"\xff" * (len(context) + _WIDTH - width)
    ranges = [
        (index, run, bisect_left(run, prefix, 0, at), bisect_right(run, after, at))
        for index, at, run in places
    ]
    total = sum(last - first for _, _, first, last in ranges)
    step = -(-total // most)
    return best, [
        (index, sorted((int.from_bytes(key[-_WIDTH:], "big") for key in run[first:last:step]), reverse=True))
        for index, run, first, last in ranges
    ]
