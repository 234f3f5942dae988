"""One output being parsed: its cursor, the events so far, and calls that may turn out to be none.

White space around calls and reasoning sections is part of their syntax: what precedes one is dropped, what
follows the last one is given only if more text follows.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Protocol

from penstock.call import ToolSpec
from penstock.text.output.arguments import Schemas
from penstock.text.output.events import (
    CallArguments,
    CallEnd,
    CallStart,
    Malformed,
    ParsedEvent,
    Reasoning,
    Text,
)
from penstock.text.output.reasoning import ReasoningMarkers
from penstock.text.output.scan import Cursor, Markers, NotCallError, Wait, markers


class OutputParser(Protocol):
    """Model output in any pieces to events; merged, they do not depend on the pieces."""

    def feed(self, text: str) -> list[ParsedEvent]: ...

    def close(self) -> list[ParsedEvent]:
        """What is left at the end of the output. Nothing may be fed afterwards."""
        ...


class Session:
    """`prompt` is the rendered prompt; `tools` may be empty, then nothing is a call."""

    def __init__(self, tools: Sequence[ToolSpec], prompt: str) -> None:
        self.cursor = Cursor()
        self.schemas = Schemas(tools)
        self.prompt = prompt
        self.has_tools = bool(tools)
        self.inside = False  # a section of calls
        self._events: list[ParsedEvent] = []
        self._kind: type[Text | Reasoning | CallArguments] = Text  # of the event that is being collected
        self._pieces: list[str] = []
        self._space: list[str] = []  # white space that is text if text follows
        self._lead: list[str] = []  # white space dropped before the call that is open
        self._edge = False  # nothing but white space has come since a call or section
        self._line_start = True
        self._next = 0
        self._open: int | None = None  # the call between CallStart and CallEnd

    # ---------------------------------------------------------------- events

    def take_events(self) -> list[ParsedEvent]:
        self._collect(Text, "")
        events, self._events = self._events, []
        return events

    def _collect(self, kind: type[Text | Reasoning | CallArguments], piece: str) -> None:
        """Adds to the event of `kind`; an event of another kind is complete with that."""
        if (kind is not self._kind or not piece) and self._pieces:
            whole = "".join(self._pieces)
            self._pieces.clear()
            if self._kind is CallArguments:
                self._events.append(CallArguments(self._next - 1, whole))
            else:
                self._events.append(Text(whole) if self._kind is Text else Reasoning(whole))
        self._kind = kind
        if piece:
            self._pieces.append(piece)

    def _give(self, event: ParsedEvent) -> None:
        self._collect(Text, "")
        self._events.append(event)

    # ---------------------------------------------------------------- text and reasoning

    def text(self, piece: str) -> None:
        if self._hold(Text, piece):
            self._edge = self._line_start = False

    def _hold(self, kind: type[Text | Reasoning], piece: str) -> bool:
        """Gives `piece` but for the white space at its end; whether anything was given."""
        body = piece.rstrip()
        if body:
            for held in self._space:
                self._collect(kind, held)
            self._space.clear()
            self._collect(kind, body)
        if len(body) < len(piece):
            self._space.append(piece[len(body) :])
        return bool(body)

    @property
    def at_line_start(self) -> bool:
        return self._line_start or any("\n" in piece for piece in self._space)

    def syntax(self) -> None:
        """What was just read is no text: white space before it is dropped."""
        self._space.clear()
        self._edge = self._line_start = True

    def flush(self) -> None:
        """The end of the output: white space that followed text is given."""
        if not self._edge:
            for held in self._space:
                self._collect(Text, held)
        self._space.clear()

    def reason(self, marks: ReasoningMarkers, begin: str) -> Wait[None]:
        """A reasoning section whose opening marker was read."""
        ends = (marks.end_of(begin), *(marks.ended_by if self.has_tools else ()))
        found = yield from self.reason_until(markers(*ends))
        if found == ends[0]:
            yield from self.cursor.space()
        elif found is not None:
            self.cursor.give_back(found)

    def reason_until(self, ends: Markers) -> Wait[str | None]:
        """Reasoning up to one of `ends`, which is returned; None at the end of the output."""
        self.syntax()
        yield from self.cursor.space()
        found = yield from self.cursor.until(ends, lambda piece: void(self._hold(Reasoning, piece)))
        if found is None:
            for held in self._space:
                self._collect(Reasoning, held)
        self.syntax()
        return found

    # ---------------------------------------------------------------- calls

    def start(self, name: str) -> None:
        if not name:
            raise NotCallError("a call without a name")
        if self._open is not None:
            raise NotCallError("a call has two names")
        self._lead = self._space[:]
        self.syntax()
        self._open = self._next
        self._next += 1
        self._give(CallStart(self._open, name))

    def arguments(self, piece: str) -> None:
        """More of the arguments of the call that was started."""
        if piece:
            self._collect(CallArguments, piece)

    def end(self, repairs: Sequence[str] = ()) -> None:
        if self._open is not None:
            self._give(CallEnd(self._open, ", ".join(repairs) or None))
        self._open = None

    def attempt(self, call: Wait[None], quiet: bool = False) -> Wait[bool]:
        """Reads one call. If it is none, what the cursor recorded is given as text.

        `quiet`: without Malformed while no name is known, because the text only might have been a call.
        """
        try:
            yield from call
        except NotCallError as error:
            self.reject(str(error), quiet)
            return False
        self.cursor.record()
        return True

    def reject(self, reason: str, quiet: bool = False) -> None:
        raw = self.cursor.recorded()
        self.cursor.record()
        if self._open is not None:
            self._space[:0] = self._lead
        if self._open is not None or not quiet:
            self._give(Malformed(raw, reason, self._open))
        self._open = None
        self.text(raw)


def void(_: object) -> None:
    """For callbacks whose result nobody wants."""
