"""Answers that a grammar lets go on for ever, and small models that do.

Two rules, both within what the grammar allows. Digits: after MAX_DIGITS in a row no token that is digits only
may follow, unless nothing else may. Tool calls (specs with `LoopRules`): what only repeats itself is closed,
a call that says the same as the one before it is the last one, and so is one in which something was closed.
(White space between the parts of a JSON text is bounded by the grammars themselves.)
"""

from __future__ import annotations

import numpy as np

from penstock.decoding.grammar.backend import Matcher, Vocabulary, mask_words
from penstock.decoding.grammar.spec import LoopRules

MAX_DIGITS = 80  # no number needs more: 256 bits in decimal have 78 digits
_DIGITS = b"0123456789"
# A repetition is closed when it fills a quarter of what the answer may have, within these bounds (tokens):
# long enough for every table of zeros that fits, short enough for the call to end.
REPEATED_SHARE = 4
MIN_REPEATED, MAX_REPEATED = 48, 512
LEAST_AGAIN = 16  # each further one of the same answer is closed at half the length, down to this
MIN_REPEATS = 4
MAX_PERIOD = 64  # tokens
_BRACKETS = ("]", "}", ")")
_ITEM_ENDS = (b",", b"]", b"}", b")")


class LoopGuard:
    """What all answers of one vocabulary share."""

    def __init__(self, vocabulary: Vocabulary) -> None:
        self.vocabulary = vocabulary
        self.ends = frozenset(vocabulary.tokenizer.eos_ids)
        pieces = [vocabulary.tokenizer.piece(token) for token in range(vocabulary.tokenizer.vocab_size)]
        self.digits_of = np.zeros(vocabulary.size, np.int32)  # digits that a token adds to a run, or 0
        for token, piece in enumerate(pieces):
            if piece and not piece.strip(_DIGITS):
                self.digits_of[token] = len(piece)
        self.digits = self._mask(self.digits_of > 0)
        ends = np.zeros(vocabulary.size, bool)
        ends[[token for token in self.ends if token < vocabulary.size]] = True
        self.end_mask = self._mask(ends)

    def answer(self, rules: LoopRules | None, max_tokens: int) -> AnswerLoops:
        """For an answer at its beginning, of at most `max_tokens`."""
        return AnswerLoops(self, rules, max_tokens)

    def _mask(self, chosen: np.ndarray) -> np.ndarray:
        bits = np.zeros(mask_words(self.vocabulary.size) * 32, bool)
        bits[: self.vocabulary.size] = chosen
        return np.packbits(bits, bitorder="little").view(np.int32)


class AnswerLoops:
    """One answer. Per token: `plan`, then `bound` its mask (any number of times), then `record` it.

    Invariant: what is planned depends on the tokens and the matcher alone, so an answer that is followed
    again after a preemption goes on as it would have.
    """

    def __init__(self, guard: LoopGuard, rules: LoopRules | None, max_tokens: int) -> None:
        self._guard, self._rules = guard, rules
        self._digits = 0  # at the end of the answer
        self._queue: list[int] = []  # tokens that must come next, to close what is open
        self._closing = self._last_call = False
        self._closers = _Closers(guard, rules) if rules is not None else None
        self._repetition = _Repetition(max_tokens)
        self._calls = _Calls(rules) if rules is not None else None

    def plan(self, matcher: Matcher) -> None:
        """Decides what must come next, if anything must. `matcher` has consumed all that was recorded."""
        if self._closers is None or self._queue:
            return
        if self._closing or self._repetition.found:
            expected = None if self._closing else self._repetition.next_token
            self._queue = self._closers.of_value(matcher, expected)
            if self._queue:
                self._closing = True
            elif self._closing:
                self._closing, self._last_call = False, True
                self._repetition.again()
        if self._last_call and not self._queue:
            self._queue = self._closers.of_section(matcher)

    def bound(self, mask: np.ndarray) -> None:
        """Take out of a mask what would go on for ever."""
        if self._queue:
            token = self._queue[0]
            mask[:] = 0
            mask[token // 32] = np.uint32(1 << token % 32).astype(np.int32)
            return
        if self._last_call and (mask & self._guard.end_mask).any():
            mask &= self._guard.end_mask
        elif self._digits >= MAX_DIGITS and (rest := mask & ~self._guard.digits).any():
            mask[:] = rest

    @property
    def is_binding(self) -> bool:
        """`bound` would take something out of the next mask."""
        return bool(self._queue) or self._last_call or self._digits >= MAX_DIGITS

    def record(self, token: int) -> None:
        added = int(self._guard.digits_of[token])
        self._digits = self._digits + added if added else 0
        if self._calls is None:
            return
        if self._queue:
            self._queue = self._queue[1:] if token == self._queue[0] else []
        if not self._closing:
            self._repetition.add(token)
        self._calls.add(self._guard.vocabulary.tokenizer.piece(token))
        self._last_call = self._last_call or self._calls.repeated


class _Closers:
    """The tokens of the texts that close something."""

    def __init__(self, guard: LoopGuard, rules: LoopRules) -> None:
        encode = guard.vocabulary.tokenizer.encode_continuation
        self._piece = guard.vocabulary.tokenizer.piece
        self._value = [(text in _BRACKETS, encode(text)) for text in rules.closers]
        self._section = encode(rules.section_end) if rules.section_end else []

    def of_value(self, matcher: Matcher, expected: int | None) -> list[int]:
        """What closes the innermost thing that is open; [] if nothing can be closed here.

        A closer that may come twice is no closer here: it is content, or opens something. `expected`: the
        token with which the repetition would go on; a list is not closed in the middle of an item.
        """
        inside = expected is not None and self._piece(expected).lstrip()[:1] not in _ITEM_ENDS
        for bracket, tokens in self._value:
            if bracket and inside:
                continue
            if matcher.accepts(tokens) == len(tokens) and (
                bracket or matcher.accepts(tokens + tokens) < 2 * len(tokens)
            ):
                return list(tokens)
        return []

    def of_section(self, matcher: Matcher) -> list[int]:
        """What ends the calls; [] if it can't come now, or is content as well."""
        end = self._section
        if end and matcher.accepts(end) == len(end) and matcher.accepts(end + end) < 2 * len(end):
            return list(end)
        return []


class _Repetition:
    """Whether the end of an answer is one run of tokens over and over."""

    def __init__(self, max_tokens: int) -> None:
        self._length = min(MAX_REPEATED, max(MIN_REPEATED, max_tokens // REPEATED_SHARE))
        self._start()

    def _start(self) -> None:
        periods = np.arange(1, MAX_PERIOD + 1)
        # Tokens in a row that equal the one a period earlier, by period: so many make a repetition.
        self._wanted = np.maximum(self._length - periods, (MIN_REPEATS - 1) * periods)
        self._tail = np.full(MAX_PERIOD, -1, np.int64)  # the latest tokens, the newest first
        self._equal = np.zeros(MAX_PERIOD, np.int64)

    def add(self, token: int) -> None:
        self._equal = np.where(self._tail == token, self._equal + 1, 0)
        self._tail[1:] = self._tail[:-1]
        self._tail[0] = token

    @property
    def found(self) -> bool:
        return bool((self._equal >= self._wanted).any())

    @property
    def next_token(self) -> int:
        """With which the repetition goes on, once one is found."""
        return int(self._tail[np.flatnonzero(self._equal >= self._wanted)[0]])

    def again(self) -> None:
        """Begin anew behind a repetition that was closed; the next one is closed sooner."""
        self._length = max(LEAST_AGAIN, self._length // 2)
        self._start()


class _Calls:
    """The texts of an answer's calls, as bytes."""

    def __init__(self, rules: LoopRules) -> None:
        self._begin, self._separator = rules.call_begin.encode(), rules.separator.encode()
        self._text = bytearray()  # from the beginning of the latest call on
        self._inside = False
        self._previous: bytes | None = None

    def add(self, piece: bytes) -> None:
        if not self._begin:
            return
        self._text += piece
        known = len(self._text) - len(piece) - len(self._begin)
        at = self._text.find(self._begin, max(int(self._inside), known))
        if at >= 0:
            if self._inside:
                self._previous = bytes(self._text[:at]).removesuffix(self._separator).rstrip()
            self._inside = True
            del self._text[:at]
        elif not self._inside:
            del self._text[: -len(self._begin)]

    @property
    def repeated(self) -> bool:
        """Whether the latest call is complete and says what the one before it says."""
        return self._previous is not None and self._text == self._previous
