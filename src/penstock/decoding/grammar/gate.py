"""Gate: where in an answer its grammar begins, if the model may reason first.

    start marker │ reasoning │ end marker │ lead-in │ what the grammar sees …

A prompt may end inside the reasoning. Else the answer begins with the start marker or with what the grammar
allows; until tokens tell them apart both are open. Reasoning is free, but may not end the answer, which has a
form to fulfil, nor begin a call. The grammar's first mask is the very next token's.
"""

from __future__ import annotations

from collections.abc import Iterable

import numpy as np

from penstock.decoding.grammar.backend import Matcher
from penstock.decoding.thinking import Thinking, ThinkingSpec


class Gate:
    """Stands before the matcher of one answer until that has begun (`done`)."""

    def __init__(self, spec: ThinkingSpec, matcher: Matcher, tokens: np.ndarray, ends: Iterable[int]) -> None:
        """tokens: int32[prompt_len]; ends: the ids that end an answer. The matcher is at its beginning."""
        self._thinking = Thinking(spec, tokens, len(tokens), leading=True)
        self._matcher = matcher
        self._start = spec.starts[0]
        self._lead_in = spec.lead_in
        self._banned = (*ends, *(marker[0] for marker in spec.ended_by if len(marker) == 1))
        self._seen = 0  # tokens of the start marker so far
        self._taken = 0  # of these, what the grammar could take for its own
        self.done = False

    @property
    def asks_grammar(self) -> bool:
        """Whether the next token may be the answer's first, or one that the start marker shares with it."""
        return self._undecided and self._taken == self._seen

    @property
    def passed(self) -> tuple[int, ...]:
        """Of an answer that has begun: its tokens that the matcher had before."""
        return tuple(self._start[: self._taken])

    @property
    def _undecided(self) -> bool:
        return not self._thinking.is_open and not self._thinking.over

    def fill(self, mask: np.ndarray) -> None:
        """mask: int32[words], what the grammar allows now if it was asked; becomes what may come."""
        bits = mask.view(np.uint32)
        if self._thinking.is_open:
            bits[:] = 0xFFFFFFFF
            for token in self._banned:
                if token >> 5 < len(bits):
                    bits[token >> 5] &= ~np.uint32(1 << (token & 31))
            return
        if not self.asks_grammar:
            bits[:] = 0
        token = self._start[self._seen] if self._undecided else self._lead_in[0]
        bits[token >> 5] |= np.uint32(1 << (token & 31))

    def forced(self) -> list[int]:
        """What must come next: the rest of the lead-in, once the reasoning is over."""
        return list(self._lead_in) if self._thinking.over else []

    def takes(self, token: int) -> bool:
        """The token came. False: it is the answer's, and so are those that the matcher has already."""
        thinking = self._thinking
        undecided, was_open = self._undecided, thinking.is_open
        thinking.record(token)
        if was_open:
            self.done = thinking.over and not self._lead_in
            return True
        if undecided:
            return self._took_of_start(token)
        self._lead_in = self._lead_in[1:] if token == self._lead_in[0] else ()
        self.done = not self._lead_in
        return True

    def _took_of_start(self, token: int) -> bool:
        if self._thinking.over:
            self.done = True
            return False
        if self._thinking.is_open:
            self._matcher.rollback(self._taken)
            self._seen = self._taken = 0
            return True
        self._taken += self._taken == self._seen and self._matcher.consume(token)
        self._seen += 1
        return True
