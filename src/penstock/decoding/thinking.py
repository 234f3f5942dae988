"""Thinking: where an answer's reasoning sections begin and end, and when one must end.

A *section* lies between a start and an end marker, sequences of token ids. Its tokens, markers excluded, are
thinking tokens; a budget bounds their number over all sections of an answer and the one that the prompt is
inside of. When the budget is spent the end marker is forced, one token per position, after `closing` (the
tokens of a sentence) where that fits in the budget: the sentence is thinking too.

- Budget 0: the end marker follows the start marker at once.
- A model that was writing the end marker by itself when the budget ran out only has the rest forced.
- Ids know no characters: where the budget ends inside one, its remaining bytes are never written and the
  reader sees U+FFFD. Waiting for them would break the bound.
- Nothing is forced outside a section, so nothing after an end of sequence.

Invariants: the state changes in `record` only, and depends on the tokens alone, so an answer may be recorded
token by token, several per step, or all at once when its request comes back; with every forced token obeyed
there are never more than `budget` thinking tokens, unless the prompt had more.
"""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
from msgspec import Struct

Marker = tuple[int, ...]


class ThinkingSpec(Struct, frozen=True, kw_only=True, omit_defaults=True):
    """What one request's reasoning looks like, in ids.

    `starts`, `ends`: the markers in each spelling that is recognized; the first of `ends` is the one that is
    forced, the first of `starts` the one that a grammar leaves room for. `ended_by`: markers of calls, which
    end a section and are part of the answer. `budget`: thinking tokens at most, None for any number.
    `open`: the prompt ends inside a section, whose `used` tokens so far are the prompt's last.
    `lead_in`: what a message format puts between the reasoning and an answer that has a grammar.
    """

    starts: tuple[Marker, ...]
    ends: tuple[Marker, ...]
    ended_by: tuple[Marker, ...] = ()
    budget: int | None = None
    closing: Marker = ()
    open: bool = False
    used: int = 0
    lead_in: Marker = ()

    @property
    def token_ids(self) -> tuple[int, ...]:
        """Every id named."""
        markers = (*self.starts, *self.ends, *self.ended_by, self.closing, self.lead_in)
        return tuple(token for marker in markers for token in marker)


class Thinking:
    """The state of one answer. `is_open`: the next token is a thinking token or an end marker's.

    `leading`: only a section at the very beginning of the answer is one, because a grammar rules the rest;
    `over`: that section has ended, or is none.
    """

    __slots__ = ("_leading", "_longest", "_queue", "_spec", "_tail", "_used", "is_open", "over")

    def __init__(
        self, spec: ThinkingSpec, tokens: Sequence[int] | np.ndarray, prompt_len: int, leading: bool = False
    ) -> None:
        """tokens: the prompt, and what of the answer is known."""
        self._spec = spec
        self._leading = leading
        self._longest = max(map(len, (*spec.starts, *spec.ends, *spec.ended_by)), default=0)
        self._used = spec.used
        self.is_open = spec.open
        self.over = False
        # A marker may have begun in the prompt, but not before the section that it would end.
        shared = min(spec.used, self._longest) if spec.open else 0 if leading else self._longest
        self._tail: Marker = tuple(map(int, tokens[max(0, prompt_len - shared) : prompt_len]))
        self._queue: Marker = ()  # forced, next first
        self._force()
        for token in tokens[prompt_len:]:
            self.record(int(token))

    @property
    def tokens(self) -> int:
        """Thinking tokens, the prompt's included, without what may become an end marker."""
        return self._used - (len(self._begun(self._spec.ends[0])) if self.is_open else 0)

    def forced(self) -> int | None:
        """The token that must come next; None if the model chooses."""
        return self._queue[0] if self._queue else None

    def record(self, token: int) -> None:
        """The token came."""
        if self.over:
            return
        self._queue = self._queue[1:] if self._queue[:1] == (token,) else ()
        self._tail = (*self._tail, token)[-self._longest :]
        spec = self._spec
        if self.is_open:
            self._used += 1
            if marker := self._found((*spec.ends, *spec.ended_by)):
                self._used -= len(marker)
                self.is_open, self.over = False, self._leading
                self._tail = self._queue = ()
        elif self._found(spec.starts):
            self.is_open = True
            self._tail = ()
        elif self._leading and self._tail != spec.starts[0][: len(self._tail)]:
            self.over = True
        self._force()

    def _force(self) -> None:
        spec = self._spec
        if not self.is_open or self._queue or spec.budget is None:
            return
        room, end = spec.budget - self._used, spec.ends[0]
        begun = len(self._begun(end))
        if room <= 0 or (begun and room == len(spec.closing)):
            self._queue = end[begun:]
        elif room == len(spec.closing):
            self._queue = spec.closing + end

    def _found(self, markers: Sequence[Marker]) -> Marker:
        """The longest of `markers` that the tokens end in, () if they end in none."""
        return max((m for m in markers if self._tail[-len(m) :] == m), key=len, default=())

    def _begun(self, marker: Marker) -> Marker:
        """The longest proper beginning of `marker` that the tokens end in."""
        return next((marker[:n] for n in range(len(marker) - 1, 0, -1) if self._tail[-n:] == marker[:n]), ())
