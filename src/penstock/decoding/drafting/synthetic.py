"""A drafter of arbitrary tokens, always as many as it may propose: for acceptance that is synthetic too."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np

from penstock.decoding.drafting.drafter import NOTHING, Proposal
from penstock.errors import PenstockError

_SPREAD = 2654435761  # a prime: every token of a vocabulary comes up before one does again


class SyntheticDrafter:
    """See `penstock.decoding.drafting.drafter.HostDrafter`. A draft is a function of its position."""

    name = "synthetic"

    def __init__(self, vocab_size: int) -> None:
        self._vocab_size = vocab_size
        self._known: dict[int, int] = {}  # tokens, by slot

    def admit(self, slot: int, tokens: np.ndarray, tenant: str, prompt_len: int | None = None) -> None:
        self._known[slot] = len(tokens)

    def extend(self, slot: int, tokens: Sequence[int]) -> None:
        self._known[slot] = self._of(slot) + len(tokens)

    def propose(self, slot: int, most: int) -> Proposal:
        known = self._of(slot)
        if most <= 0:
            return NOTHING
        tokens = [position * _SPREAD % self._vocab_size for position in range(known, known + most)]
        return Proposal(tokens, [1.0] * most, 0)

    def release(self, slot: int, finished: bool = False) -> None:
        self._known.pop(slot, None)

    def _of(self, slot: int) -> int:
        known = self._known.get(slot)
        if known is None:
            raise PenstockError(f"slot {slot} holds no request; admit one before drafting for it")
        return known
