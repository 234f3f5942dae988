"""Random texts that a grammar allows, over a vocabulary of bytes and special tokens."""

from __future__ import annotations

import random
import re
from collections.abc import Sequence

import numpy as np

from penstock.decoding.grammar.backend import Matcher, mask_words
from penstock.engine.tools.lark import Specials

END = 256
_CLOSING = b"\"']})<>/\n|, :=e"  # of them more, or nothing ever ends


class ByteTokens:
    """A tokenizer whose tokens are bytes, an end of sentence and the given special texts."""

    def __init__(self, specials: Sequence[str] = ()) -> None:
        self.texts = list(dict.fromkeys(specials))
        self.vocab_size = END + 1 + len(self.texts)
        self.bos_id = None
        self.eos_ids = (END,)
        self.special_ids = frozenset(range(END, self.vocab_size))
        self._split = re.compile("(" + "|".join(map(re.escape, sorted(self.texts, key=len)[::-1])) + ")")

    @property
    def specials(self) -> Specials:
        return Specials({text: END + 1 + at for at, text in enumerate(self.texts)}, frozenset([END]))

    def piece(self, token_id: int) -> bytes:
        if token_id < END:
            return bytes([token_id])
        return b"<|eos|>" if token_id == END else self.texts[token_id - END - 1].encode()

    def encode_continuation(self, text: str) -> list[int]:
        if not self.texts:
            return list(text.encode())
        ids = self.specials.ids
        parts = self._split.split(text)
        return [t for p in parts for t in ([ids[p]] if p in ids else list(p.encode()))]


def draw_text(
    matcher: Matcher, tokens: ByteTokens, chance: random.Random, begin: str = "", most: int = 1500
) -> str | None:
    """A random answer that the grammar allows and that begins with `begin`; None if it did not end within
    `most` tokens."""
    mask = np.zeros(mask_words(tokens.vocab_size), np.int32)
    closing = set(_CLOSING)
    written = tokens.encode_continuation(begin)
    for token in written:
        assert matcher.consume(token), begin
    for _ in range(most):
        matcher.fill(mask)
        bits = np.unpackbits(mask.view(np.uint8), bitorder="little")[: tokens.vocab_size]
        allowed = np.flatnonzero(bits).tolist()
        assert allowed, bytes(token for token in written if token < END)
        if END in allowed and (len(allowed) == 1 or chance.random() < 0.3):
            return b"".join(map(tokens.piece, written)).decode()
        allowed = [token for token in allowed if token != END]
        special = [token for token in allowed if token > END]
        closers = [token for token in allowed if token in closing]
        kind = chance.random()
        pool = special if special and kind < 0.5 else closers if closers and kind < 0.7 else allowed
        token = chance.choice(pool)
        assert matcher.consume(token)
        written.append(token)
    return None
