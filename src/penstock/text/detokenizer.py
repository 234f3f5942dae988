"""Incremental detokenization: token ids in, finished characters out.

Invariants: the texts of all `feed` calls and the final `flush` join to `Tokenizer.decode` of all ids;
a character is given out when its last byte has come, never before and never later than that; at most
three bytes are held back, so a token costs constant time and the state is bounded.
"""

from __future__ import annotations

import codecs

from penstock.text.tokenizer import Tokenizer

_Utf8 = codecs.getincrementaldecoder("utf-8")


class Detokenizer:
    """`continuation` as in `Tokenizer.decode`. Ids beyond the vocabulary (padding rows) have no text.

    `keep`: special ids whose text is wanted although others are skipped.
    """

    def __init__(
        self,
        tokenizer: Tokenizer,
        skip_special: bool,
        continuation: bool = False,
        keep: frozenset[int] = frozenset(),
    ) -> None:
        self._piece = tokenizer.piece
        self._skip = tokenizer.special_ids - keep if skip_special else frozenset()
        self._utf8 = _Utf8("replace")
        self._strip = tokenizer.strip_leading_space and not continuation

    def feed(self, token_id: int) -> str:
        """The characters that this token completes; may be empty."""
        if token_id in self._skip:
            return ""
        data = self._piece(token_id)
        if self._strip and data:
            self._strip = False
            if data.startswith(b" "):
                data = data[1:]
        return self._utf8.decode(data)

    def flush(self) -> str:
        """What is left at the end: U+FFFD if a character never got its last byte."""
        rest = self._utf8.decode(b"", True)
        self._utf8.reset()
        return rest
