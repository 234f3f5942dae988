"""What the call formats have in common: sections, several calls in one, and how a reader of one call is used.

A family's `Calls` says with which markers calls begin; the session's loop reads text up to one of them and
hands over. After anything that is no call the loop goes on reading text, so a marker behind it is found
again.
"""

from __future__ import annotations

from collections.abc import Sequence

from penstock.text.output.scan import Wait, markers
from penstock.text.output.session import Session


class Calls:
    """`section`: the markers around all calls. `begins`: what begins one call, in a section and (`alone`)
    outside.

    `between`: text that may stand between two calls of a section. `bare`: beginnings that are part of the
    call itself and count at the start of a line only; what they begin may well be no call, so it is not
    reported.
    """

    section: tuple[str, str] | None = None
    begins: tuple[str, ...] = ()
    alone: bool = True
    between: tuple[str, ...] = ()
    bare: tuple[str, ...] = ()
    ends: tuple[str, ...] = ()

    def triggers(self, inside: bool) -> tuple[str, ...]:
        """The markers at which text stops being text."""
        found = self.begins if self.alone or inside else ()
        if self.section is not None:
            found = (*found, self.section[0], *(self.section[1:] if inside else ()))
        return (*found, *self.bare)

    @property
    def all_markers(self) -> tuple[str, ...]:
        return (*self.begins, *(self.section or ()), *self.between, *self.ends)

    def run(self, session: Session, marker: str) -> Wait[None]:
        """Reads calls behind `marker`, which the cursor's record begins with."""
        if self.section is not None and marker == self.section[1]:
            session.inside = False
            session.syntax()
            return
        if self.section is None or marker != self.section[0]:
            if not (yield from session.attempt(self.call(session, marker))) or not session.inside:
                return
        else:
            session.inside = True
        yield from self._section(session, empty=self.section is not None and marker == self.section[0])

    def _section(self, session: Session, empty: bool) -> Wait[None]:
        """The calls of a section, as long as nothing else comes. `empty`: none has come yet."""
        cursor, end = session.cursor, self.section[1] if self.section else ""
        marks = markers(*self.begins, *self.between, end)
        while True:
            space = yield from cursor.space()
            marker = yield from cursor.match(marks)
            if marker == end:
                session.inside = False
                session.syntax()
                return
            if marker is None:
                if empty:
                    session.inside = False
                    session.reject("no call in a section of calls")
                else:
                    session.text(space)
                return
            if marker not in self.between:
                empty = False
                if not (yield from session.attempt(self.call(session, marker))):
                    return

    def call(self, session: Session, marker: str) -> Wait[None]:
        """Reads one call behind its beginning; NotCallError if it is none."""
        raise NotImplementedError


class ListCalls(Calls):
    """Calls that follow each other between one beginning and one end, in square brackets or not."""

    separators: tuple[str, ...] = (",", ";")
    fences: Sequence[str] = ("```json", "```")

    def run(self, session: Session, marker: str) -> Wait[None]:
        cursor, quiet = session.cursor, marker in self.bare
        if quiet:
            cursor.give_back(marker)
        yield from cursor.space()
        fenced = (yield from cursor.match(markers(*self.fences))) is not None
        space = yield from cursor.space()
        listed = (yield from cursor.peek()) == "["
        if listed:
            cursor.take()
        count = 0
        while True:
            space = (yield from cursor.space()) if listed or count else space
            if not self.item_begins((yield from cursor.peek())):
                break
            if not (yield from session.attempt(self.item(session, quiet, listed), quiet)):
                return
            count += 1
            between = yield from self._separator(session)
            if between is None:
                return
        if listed and (yield from cursor.peek()) == "]":
            cursor.take()
            space = yield from cursor.space()
        yield from self._end(session, space, count, quiet, fenced)

    def _separator(self, session: Session) -> Wait[str | None]:
        """What stands between two calls; None if it is no separator but text, which is given."""
        cursor = session.cursor
        space = yield from cursor.space()
        char = yield from cursor.peek()
        if char not in self.separators or not char:
            if space:
                cursor.give_back(space)
            return ""
        between = space + cursor.take() + (yield from cursor.space())
        char = yield from cursor.peek()
        if self.item_begins(char) or (char and char in "]`"):
            return between
        if self.ends and (yield from cursor.looking_at(markers(*self.ends))) is not None:
            return between
        session.text(between)
        return None

    def _end(self, session: Session, space: str, count: int, quiet: bool, fenced: bool) -> Wait[None]:
        cursor = session.cursor
        if fenced and (yield from cursor.match(markers("```"))) is not None:
            space = yield from cursor.space()
        found = (yield from cursor.match(markers(*self.ends))) if self.ends and not quiet else None
        if count == 0 and found is None:
            session.reject("no call behind a call marker", quiet)
        elif found is None:
            session.text(space)
        else:
            session.syntax()

    def item_begins(self, char: str) -> bool:
        raise NotImplementedError

    def item(self, session: Session, quiet: bool, listed: bool) -> Wait[None]:
        raise NotImplementedError
