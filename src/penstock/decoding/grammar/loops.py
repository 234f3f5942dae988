"""LoopGuard: a grammar that allows any number of digits lets a model write digits for ever.

Greedy small models do. After MAX_DIGITS digits in a row no token that is digits only may follow, unless
nothing else may; so what follows is still what the grammar allows. (White space between the parts of a JSON
text is bounded by the grammars themselves.)
"""

from __future__ import annotations

import numpy as np

from penstock.decoding.grammar.backend import Vocabulary, mask_words

MAX_DIGITS = 80  # no number needs more: 256 bits in decimal have 78 digits
_DIGITS = b"0123456789"


class LoopGuard:
    def __init__(self, vocabulary: Vocabulary) -> None:
        self.ends = frozenset(vocabulary.tokenizer.eos_ids)
        pieces = [vocabulary.tokenizer.piece(token) for token in range(vocabulary.tokenizer.vocab_size)]
        self._lengths = np.zeros(vocabulary.size, np.int32)  # digits that a token adds to a run, or 0
        for token, piece in enumerate(pieces):
            if piece and not piece.strip(_DIGITS):
                self._lengths[token] = len(piece)
        bits = np.zeros(mask_words(vocabulary.size) * 32, bool)
        bits[: vocabulary.size] = self._lengths > 0
        self._digits = np.packbits(bits, bitorder="little").view(np.int32)

    def run(self, before: int, token: int) -> int:
        """Digits at the end of an answer that had `before` of them, after `token`."""
        added = int(self._lengths[token])
        return before + added if added else 0

    def bound(self, mask: np.ndarray, run: int) -> None:
        """Take digits out of a mask after a run of so many."""
        if run < MAX_DIGITS:
            return
        rest = mask & ~self._digits
        if rest.any():
            mask[:] = rest
