"""N-gram drafter (prompt lookup): what followed the last few tokens where they first stood in the request.

After Prompt Lookup Decoding (https://github.com/apoorvumang/prompt-lookup-decoding); proposals are those of
transformers' `PromptLookupCandidateGenerator` with `max_matching_ngram_size=longest`, found in an index in
place of a scan of all tokens on each step. Of several occurrences that takes the first, which is mostly in
the prompt, where a whole answer may follow; of the latest one, in the answer, less is known. Accepted length
at k = 8, first against latest: editing 7.61 to 7.23, tool calls 1.79 to 1.68, free text 1.22 to 1.23
(benchmarks/draft_acceptance.py).
"""

from __future__ import annotations

from array import array
from collections.abc import Sequence
from struct import Struct

import numpy as np
from numpy.lib.stride_tricks import sliding_window_view

from penstock.decoding.drafting.drafter import NOTHING, Proposal
from penstock.errors import PenstockError

_WIDTH = 4  # bytes of a token in an n-gram
_pack = Struct("<i").pack
_MOST_SUPPORT = 32  # tokens; a longer match says nothing more about what follows


class Request:
    """The tokens of one request, and what follows its n-grams.

    `followed[ngram]`: position after the n-gram's first occurrence; an n-gram is its tokens' little-endian
    bytes, so those of different lengths never meet. The n-grams at the end of the text are entered once
    their next token is known: whatever is found has a token after it. Memory: 4 bytes a token and about
    130 for each different n-gram, 290 a token of source code with the default sizes.
    """

    __slots__ = ("followed", "sizes", "tail", "tokens")

    def __init__(self, tokens: np.ndarray, sizes: range) -> None:
        """tokens: int32[known]; sizes: lengths of n-grams, rising."""
        self.sizes = sizes
        self.tokens = array("i", tokens.astype(np.int32).tobytes())
        self.followed: dict[bytes, int] = {}
        text = tokens.astype("<i4")
        for size in sizes:
            if size < len(text):
                grams = np.ascontiguousarray(sliding_window_view(text[:-1], size))
                keys = grams.view(f"V{size * _WIDTH}")[::-1, 0].tolist()
                # From the last to the first, whose entry then stays.
                self.followed.update(zip(keys, range(len(text) - 1, size - 1, -1), strict=True))
        self.tail = text[-sizes[-1] :].tobytes()

    def append(self, token: int) -> None:
        position = len(self.tokens)
        for size in self.sizes:
            if size > position:
                break
            self.followed.setdefault(self.tail[-size * _WIDTH :], position)
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
        """How many tokens before `place` are those at the end; `size` are known to be."""
        tokens, known = self.tokens, len(self.tokens)
        most = min(place, _MOST_SUPPORT)
        while size < most and tokens[place - size - 1] == tokens[known - size - 1]:
            size += 1
        return size


class NgramDrafter:
    """See `penstock.decoding.drafting.drafter.HostDrafter`. Knows one request at a time: tenants share
    nothing."""

    name = "ngram"

    def __init__(self, *, longest: int = 5, shortest: int = 2) -> None:
        """Lengths in tokens of the n-grams that are looked up, the longest first. With 1 as the shortest,
        6% instead of 14% of the tokens proposed for free text are right, in three times as many steps."""
        if not 1 <= shortest <= longest:
            raise ValueError(f"n-grams of {shortest} to {longest} tokens: 1 <= shortest <= longest must hold")
        self._sizes = range(shortest, longest + 1)
        self._requests: dict[int, Request] = {}

    def admit(self, slot: int, tokens: np.ndarray, tenant: str, prompt_len: int | None = None) -> None:
        self._requests[slot] = Request(tokens, self._sizes)

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
        return Proposal(tokens, [1.0] * len(tokens), request.support(place, size))

    def release(self, slot: int, finished: bool = False) -> None:
        self._requests.pop(slot, None)

    def _request(self, slot: int) -> Request:
        request = self._requests.get(slot)
        if request is None:
            raise PenstockError(f"slot {slot} holds no request; admit one before drafting for it")
        return request
