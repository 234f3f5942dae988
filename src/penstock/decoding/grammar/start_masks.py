"""Masks of the first places of answers, shared by answers of the same grammar.

Requests for one schema begin alike: brackets, the first names. The mask at such a place depends on the
grammar and the tokens so far alone, and to copy it costs a hundredth of making it.
"""

from __future__ import annotations

from collections import OrderedDict

import numpy as np

from penstock.decoding.grammar.backend import CompiledGrammar

MOST_TOKENS = 16  # longer beginnings are seldom shared
MOST_MASKS = 256  # of 6 to 32 kB

Start = tuple[CompiledGrammar, tuple[int, ...]]  # a grammar, and the tokens of an answer so far


class StartMasks:
    """The masks used last. Only the thread that makes masks calls this."""

    def __init__(self) -> None:
        self._masks: OrderedDict[Start, np.ndarray] = OrderedDict()

    def copy(self, start: Start, mask: np.ndarray) -> bool:
        """Write int32[words] `mask`. False, and nothing written, if it is not known."""
        known = self._masks.get(start)
        if known is None:
            return False
        self._masks.move_to_end(start)
        mask[:] = known
        return True

    def keep(self, start: Start, mask: np.ndarray) -> None:
        self._masks[start] = mask.copy()
        while len(self._masks) > MOST_MASKS:
            self._masks.popitem(last=False)
