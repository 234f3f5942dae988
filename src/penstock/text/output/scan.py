"""Reading model output that arrives in pieces: a cursor, markers, and generators that wait for more.

A reader is a generator that yields whenever it needs text that has not come yet. Every primitive here decides
from the text alone, never from where the pieces end, so readers made of them give the same for every split.

Invariants: text that may be the beginning of a marker is not given out; what is held back is shorter than the
longest marker; every character is consumed once; after the end (`closed`) no primitive yields.
"""

from __future__ import annotations

import re
from collections.abc import Callable, Generator
from functools import lru_cache
from typing import TypeVar

T = TypeVar("T")
Wait = Generator[None, None, T]
Emit = Callable[[str], None]

_SPACE = re.compile(r"\s+")


class NotCallError(Exception):
    """What follows is no call in this format: the reason, in words."""


class Markers:
    """A set of marker texts. The leftmost one in a text counts; of several there, the longest."""

    def __init__(self, texts: tuple[str, ...]) -> None:
        self.texts = tuple(sorted(set(texts), key=lambda text: (-len(text), text)))
        self.longest = len(self.texts[0]) if self.texts else 0
        self._firsts = frozenset(text[0] for text in self.texts)
        self._pattern = re.compile("|".join(map(re.escape, self.texts)) or "(?!)")

    def search(self, text: str, at: int) -> re.Match[str] | None:
        return self._pattern.search(text, at)

    def held_from(self, text: str, at: int) -> int:
        """Where the longest end of `text` begins that may become a (longer) marker; else its length."""
        for start in range(max(at, len(text) - self.longest + 1), len(text)):
            if text[start] in self._firsts and self.may_grow(text[start:]):
                return start
        return len(text)

    def may_grow(self, text: str) -> bool:
        """Whether `text` is a proper beginning of a marker."""
        return any(len(marker) > len(text) and marker.startswith(text) for marker in self.texts)

    def longest_at(self, text: str) -> str | None:
        return next((marker for marker in self.texts if text.startswith(marker)), None)


@lru_cache(maxsize=1024)
def markers(*texts: str) -> Markers:
    return Markers(texts)


class Cursor:
    """The text that has come and is not consumed yet. Positions change at every wait."""

    def __init__(self, text: str = "", closed: bool = False) -> None:
        self.buffer = text
        self.at = 0
        self.closed = closed
        self._record: list[str] | None = None

    def add(self, text: str) -> None:
        self.buffer = self.buffer[self.at :] + text
        self.at = 0

    def take_to(self, end: int) -> str:
        text = self.buffer[self.at : end]
        self.at = end
        if self._record is not None:
            self._record.append(text)
        return text

    def give_back(self, text: str) -> None:
        """Undo the latest consumption, which was of `text`."""
        if self.at >= len(text):
            self.at -= len(text)
        else:  # what was consumed before a wait is gone from the buffer
            self.buffer, self.at = text + self.buffer[self.at :], 0
        if self._record:
            self._record = ["".join(self._record).removesuffix(text)]

    # ---------------------------------------------------------------- a record of what was consumed

    def record(self, text: str = "") -> None:
        """Keep what is consumed from here on, beginning with `text`."""
        self._record = [text] if text else []

    def recorded(self) -> str:
        return "".join(self._record or ())

    def forget(self) -> None:
        self._record = None

    # ---------------------------------------------------------------- primitives that wait

    def need(self, count: int) -> Wait[bool]:
        """Whether `count` characters come."""
        while len(self.buffer) - self.at < count and not self.closed:
            yield
        return len(self.buffer) - self.at >= count

    def peek(self) -> Wait[str]:
        """The next character, not consumed; "" at the end of the output."""
        while self.at == len(self.buffer) and not self.closed:
            yield
        return self.buffer[self.at : self.at + 1]

    def take(self, count: int = 1) -> str:
        """`count` characters that are known to be there."""
        return self.take_to(self.at + count)

    def span(self, pattern: re.Pattern[str]) -> Wait[str]:
        """The longest run of `pattern`, which matches any number of characters of one class."""
        pieces = []
        while True:
            found = pattern.match(self.buffer, self.at)
            if found is not None:
                pieces.append(self.take_to(found.end()))
            if self.at < len(self.buffer) or self.closed:
                return "".join(pieces)
            yield

    def space(self) -> Wait[str]:
        """Consumes white space, and returns it."""
        return (yield from self.span(_SPACE))

    def looking_at(self, marks: Markers) -> Wait[str | None]:
        """The longest marker that comes next, not consumed."""
        while True:
            text = self.buffer[self.at : self.at + marks.longest]
            if self.closed or not marks.may_grow(text):
                return marks.longest_at(text)
            yield

    def match(self, marks: Markers) -> Wait[str | None]:
        """The longest marker that comes next, consumed."""
        found = yield from self.looking_at(marks)
        if found is not None:
            self.take(len(found))
        return found

    def expect(self, char: str) -> Wait[None]:
        found = yield from self.peek()
        if found != char:
            raise NotCallError(f"{char} expected" if found else "the output ends in a call")
        self.take()

    def until(self, marks: Markers, emit: Emit) -> Wait[str | None]:
        """Gives the text before the first marker to `emit`; the marker, consumed; None at the end."""
        while True:
            found = marks.search(self.buffer, self.at)
            held = len(self.buffer) if self.closed else marks.held_from(self.buffer, self.at)
            if found is not None and found.start() < held:
                if found.start() > self.at:
                    emit(self.take_to(found.start()))
                return self.take_to(found.end())
            if held > self.at:
                emit(self.take_to(held))
            if self.closed:
                return None
            yield

    def head(self, marks: Markers, limit: int = 1024) -> Wait[tuple[str, str]]:
        """(the text before the next marker, the marker), consumed unless it fails."""
        while True:
            window = self.buffer[self.at : self.at + limit + marks.longest]
            found = marks.search(window, 0)
            held = len(window) if self.closed else marks.held_from(window, 0)
            if found is not None and found.start() < held:
                before = self.take(found.start())
                return before, self.take(len(found.group()))
            if self.closed or len(window) == limit + marks.longest:
                reason = "the output ends in a call" if self.closed else f"{marks.texts[0]} expected"
                raise NotCallError(reason)
            yield


def finish(steps: Wait[T]) -> T:
    """Runs a reader over a closed cursor to its end."""
    try:
        while True:
            next(steps)
    except StopIteration as done:
        result: T = done.value
        return result
