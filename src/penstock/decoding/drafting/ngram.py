"""N-gram drafter (prompt lookup): what followed the last few tokens when they stood in the request before.

After Prompt Lookup Decoding (https://github.com/apoorvumang/prompt-lookup-decoding) as transformers has it
(`PromptLookupCandidateGenerator`), with an index in place of its scan of all tokens on each step.
"""

from __future__ import annotations

from array import array
from collections.abc import Sequence
from struct import Struct
from typing import Literal

import numpy as np

from penstock.decoding.drafting.drafter import NOTHING, Proposal
from penstock.errors import PenstockError

_WIDTH = 4  # bytes of a token in a key
_pack = Struct("<i").pack
_MOST_SUPPORT = 32  # tokens; a longer match says nothing more about what follows


class Request:
    """The tokens of one request and where its n-grams are followed by another token.

    `followed[ngram]`: position of the token after that n-gram's chosen occurrence; an n-gram is its tokens'
    little-endian bytes, so those of different lengths never meet. The n-grams at the end of the text are
    entered once their next token is known: what is found always has a token after it.
    """

    __slots__ = ("first", "followed", "sizes", "tail", "tokens")

    def __init__(self, tokens: np.ndarray, sizes: range, first: bool) -> None:
        """tokens: int32[known]; sizes: lengths of n-grams, rising; first: of several occurrences, which."""
        self.sizes = sizes
        self.first = first
        self.tokens = array("i", tokens.astype(np.int32).tobytes())
        self.followed: dict[bytes, int] = {}
        data = tokens.astype("<i4").tobytes()
        for size in sizes:
            ends = range(size, len(tokens))
            if first:
                ends = ends[::-1]  # the last entry stays
            width = size * _WIDTH
            self.followed.update((data[end * _WIDTH - width : end * _WIDTH], end) for end in ends)
        self.tail = data[-sizes[-1] * _WIDTH :]

    def append(self, token: int) -> None:
        position = len(self.tokens)
        for size in self.sizes:
            if size > position:
                break
            ngram = self.tail[-size * _WIDTH :]
            if self.first:
                self.followed.setdefault(ngram, position)
            else:
                self.followed[ngram] = position
        self.tokens.append(token)
        self.tail = (self.tail + _pack(token))[-self.sizes[-1] * _WIDTH :]

    def find(self) -> tuple[int, int]:
        """Length of the longest n-gram at the end that stood before, and the position after it; or (0, 0)."""
        for size in reversed(self.sizes):
            if size * _WIDTH <= len(self.tail):
                place = self.followed.get(self.tail[-size * _WIDTH :])
                if place is not None:
                    return size, place
        return 0, 0

    def support(self, place: int, size: int) -> int:
        """How many tokens before `place` are those at the end: `size` are known to be."""
        tokens, known = self.tokens, len(self.tokens)
        most = min(place, _MOST_SUPPORT)
        while size < most and tokens[place - size - 1] == tokens[known - size - 1]:
            size += 1
        return size


class NgramDrafter:
    """See `penstock.decoding.drafting.drafter.HostDrafter`."""

    name = "ngram"

    def __init__(
        self, longest: int = 3, shortest: int = 1, occurrence: Literal["last", "first"] = "last"
    ) -> None:
        if not 1 <= shortest <= longest:
            raise ValueError(f"n-grams of {shortest} to {longest} tokens: 1 <= shortest <= longest")
        self._sizes = range(shortest, longest + 1)
        self._first = occurrence == "first"
        self._requests: dict[int, Request] = {}

    def admit(self, slot: int, tokens: np.ndarray, tenant: str, prompt_len: int | None = None) -> None:
        self._requests[slot] = Request(tokens, self._sizes, self._first)

    def extend(self, slot: int, tokens: Sequence[int]) -> None:
        request = self._request(slot)
        for token in tokens:
            request.append(token)

    def propose(self, slot: int, most: int) -> Proposal:
        request = self._request(slot)
        size, place = request.find()
        if not size or most <= 0:
            return NOTHING
        tokens = request.tokens[place : place + most].tolist()
        if not self._first:
            period = len(tokens)
            while len(tokens) < most:
                tokens.append(tokens[-period])
        return Proposal(tokens, [1.0] * len(tokens), request.support(place, size))

    def release(self, slot: int, finished: bool = False) -> None:
        self._requests.pop(slot, None)

    def _request(self, slot: int) -> Request:
        request = self._requests.get(slot)
        if request is None:
            raise PenstockError(f"slot {slot} holds no request; admit one before drafting for it")
        return request
