"""Bad words: token sequences that must not be completed.

A word counts however it came about, the prompt's end included: if the request's tokens end in all but
the word's last token, that last token is forbidden now. Only the tail that the longest word needs is kept.
"""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Iterable

import numpy as np


class BadWords:
    """The words of one request and the tail of its tokens."""

    def __init__(self, words: Iterable[tuple[int, ...]], tokens: np.ndarray) -> None:
        """words: non-empty sequences of ids; tokens: int32[known], everything known so far."""
        self._always: list[int] = []
        # By the last token that must precede the forbidden one: a step looks at few words, not at all.
        self._after: dict[int, list[tuple[list[int], int]]] = defaultdict(list)
        self._longest = 0
        for word in words:
            *prefix, last = word
            if prefix:
                self._after[prefix[-1]].append((prefix, last))
                self._longest = max(self._longest, len(prefix))
            else:
                self._always.append(last)
        self._tail: list[int] = tokens[len(tokens) - min(self._longest, len(tokens)) :].tolist()

    def record(self, token: int) -> None:
        """The token was generated."""
        if self._longest:
            self._tail = [*self._tail, token][-self._longest :]

    def forbidden(self) -> list[int]:
        """Ids that would complete a word now, in no particular order."""
        ids = list(self._always)
        if self._tail:
            for prefix, last in self._after.get(self._tail[-1], ()):
                if self._tail[-len(prefix) :] == prefix:
                    ids.append(last)
        return ids
