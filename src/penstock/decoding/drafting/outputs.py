"""Finished outputs, per tenant: what a tenant's requests generated before, for its other requests to draw on.

Invariants: what one tenant added, no other is given; no more than `kept_tokens` are held over all tenants.
"""

from __future__ import annotations

from collections import deque
from collections.abc import Sequence

import numpy as np

from penstock.decoding.drafting.contexts import NO_TOKEN, ContextIndex

# Outputs are dropped an index at a time: taking single texts out of a sorted list would cost a pass over it.
# More of them make eviction finer and each search slower.
_INDEXES = 4
_SEPARATOR = np.array([NO_TOKEN], np.int32)


class FinishedOutputs:
    """At most `kept_tokens` tokens. The oldest outputs of the tenant that added nothing for the longest go
    first, so that one busy tenant pushes out what the idle ones left, and then its own."""

    def __init__(self, depth: int, kept_tokens: int) -> None:
        """depth: as ContextIndex; kept_tokens: 0 keeps nothing."""
        self._depth = depth
        self._kept_tokens = kept_tokens
        self._index_tokens = kept_tokens // _INDEXES
        self._tenants: dict[str, deque[ContextIndex]] = {}  # latest index first; latest tenant last
        self._num_tokens = 0

    @property
    def num_tokens(self) -> int:
        """Tokens held, separators and the prompts' ends included."""
        return self._num_tokens

    def of(self, tenant: str) -> Sequence[ContextIndex]:
        """The tenant's outputs, the latest index first. Not to be kept: the next `add` changes it."""
        return self._tenants.get(tenant, ())

    def add(self, tenant: str, tokens: np.ndarray, prompt_len: int) -> None:
        """Keep the output tokens[prompt_len:] of int32[known], with as much of the prompt's end as a context
        can reach. Of an output longer than a quarter of `kept_tokens`, only the end is kept."""
        room = self._index_tokens - 1
        start = max(prompt_len - self._depth, len(tokens) - room, 0)
        if room <= 0 or prompt_len >= len(tokens):
            return
        text = np.concatenate([_SEPARATOR, tokens[start:]])
        indexes = self._tenants.pop(tenant, None) or deque()
        self._tenants[tenant] = indexes
        if not indexes or len(indexes[0]) + len(text) > self._index_tokens:
            indexes.appendleft(ContextIndex(self._depth))
        indexes[0].extend(text, 1 + max(prompt_len - start, 0))
        self._num_tokens += len(text)
        while self._num_tokens > self._kept_tokens:
            self._evict()

    def _evict(self) -> None:
        tenant, indexes = next(iter(self._tenants.items()))
        self._num_tokens -= len(indexes.pop())
        if not indexes:
            del self._tenants[tenant]
