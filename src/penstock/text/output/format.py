"""OutputFormat: how one family of models writes reasoning and tool calls, and the loop that reads it.

`CallSyntax` describes the calls for whoever writes them (a grammar): the exact text that the family's
template writes. The parser reads that and the usual deviations from it.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Literal

from msgspec import Struct

from penstock.call import ToolSpec
from penstock.text.output.calls import Calls
from penstock.text.output.events import ParsedEvent
from penstock.text.output.reasoning import ReasoningMarkers
from penstock.text.output.scan import Wait, markers
from penstock.text.output.session import OutputParser, Session

ArgumentStyle = Literal["json", "xml_parameters", "pythonic", "marked", "elements"]


class CallSyntax(Struct, frozen=True):
    """The text of a section of calls: begin, calls with separators between them, end.

    A call is `call_begin` (before and after the name), its arguments, `call_end`. Arguments are a JSON object
    (json), or one `parameter` (before the key, between key and value, after the value) for each, with
    `between_parameters`: raw strings and JSON for anything else (xml_parameters), Python literals (pythonic),
    values whose strings stand between two `string_quote` (marked), or an element for each, nested, every tag
    behind `parameter[0]` (elements). `string_hint`: what between key and value says whether the value is a
    string (is one, is none), at `{hint}`.
    """

    call_begin: tuple[str, str]
    call_end: str
    arguments: ArgumentStyle
    begin: str = ""
    end: str = ""
    separator: str = ""
    parameter: tuple[str, str, str] | None = None
    between_parameters: str = ""
    string_quote: str = '"'
    string_hint: tuple[str, str] = ("", "")


class OutputFormat(Struct, frozen=True):
    """One family. `frames`: markers around text that are no text. `signs`: sets of texts; a chat template
    that has all of one set is of this family. `loop` reads an output; the standard one suits all but message
    formats.
    """

    name: str
    reasoning: ReasoningMarkers | None = None
    calls: Calls | None = None
    syntax: CallSyntax | None = None
    frames: tuple[str, ...] = ()
    signs: tuple[tuple[str, ...], ...] = ()
    loop: Callable[[OutputFormat, Session], Wait[None]] | None = None

    @property
    def special_markers(self) -> tuple[str, ...]:
        """Texts that must reach the parser: a special token among them may not be left out of the text."""
        found = [*self.frames]
        for begin, end in self.reasoning.pairs if self.reasoning else ():
            found += [begin, end]
        if self.calls is not None:
            found += self.calls.all_markers
        return tuple(dict.fromkeys(marker for marker in found if marker))

    def parser(self, tools: Sequence[ToolSpec] = (), prompt: str = "") -> OutputParser:
        """A parser of one output. `prompt` is the rendered prompt that the output continues."""
        session = Session(tools, prompt)
        return _Parser(session, (self.loop or standard_loop)(self, session))


class _Parser:
    def __init__(self, session: Session, steps: Wait[None]) -> None:
        self._session = session
        self._steps = steps
        self._done = False

    def feed(self, text: str) -> list[ParsedEvent]:
        self._session.cursor.add(text)
        return self._run()

    def close(self) -> list[ParsedEvent]:
        self._session.cursor.closed = True
        return self._run()

    def _run(self) -> list[ParsedEvent]:
        if not self._done:
            try:
                next(self._steps)
            except StopIteration:
                self._done = True
        return self._session.take_events()


def standard_loop(form: OutputFormat, session: Session) -> Wait[None]:
    """Text with reasoning sections and calls in it."""
    reasoning, calls, cursor = form.reasoning, form.calls if session.has_tools else None, session.cursor
    pairs = reasoning.pairs if reasoning is not None else ()
    begins, ends = {begin for begin, _ in pairs}, {end for _, end in pairs}
    reasoned = False
    opened = reasoning.open_at_end(session.prompt) if reasoning is not None else None
    if reasoning is not None and opened is not None:
        reasoned = True
        yield from cursor.space()
        yield from cursor.match(markers(opened))  # some models write again what the prompt ends in
        yield from session.reason(reasoning, opened)
    while True:
        triggers = calls.triggers(session.inside) if calls is not None else ()
        marker = yield from cursor.until(markers(*begins, *ends, *form.frames, *triggers), session.text)
        if marker is None:
            session.flush()
            return
        if reasoning is not None and marker in begins:
            reasoned = True
            yield from session.reason(reasoning, marker)
        elif marker in form.frames or (marker in ends and not reasoned):
            reasoned = reasoned or marker in ends
            session.syntax()
            yield from cursor.space()
        elif calls is None or marker not in triggers or (marker in calls.bare and not session.at_line_start):
            session.text(marker)
        else:
            cursor.record(marker)
            yield from calls.run(session, marker)
            cursor.forget()
