"""Calls written as Python: `[f(a=1, b="x"), g()]`, with keyword arguments and literals only."""

from __future__ import annotations

import re

from penstock.text.output.arguments import quoted
from penstock.text.output.calls import ListCalls
from penstock.text.output.copy_value import PYTHON, Copy
from penstock.text.output.scan import NotCallError, Wait, markers
from penstock.text.output.session import Session

_NAME = re.compile(r"[\w.-]+")
_KEY = re.compile(r"\w+")


class PythonicCalls(ListCalls):
    fences = ()

    def __init__(
        self, begins: tuple[str, ...] = (), ends: tuple[str, ...] = (), *, bare: tuple[str, ...] = ()
    ) -> None:
        self.begins, self.ends, self.bare = begins, ends, bare

    def item_begins(self, char: str) -> bool:
        return char.isalpha() or char == "_"

    def item(self, session: Session, quiet: bool, listed: bool) -> Wait[None]:
        if quiet and not listed:
            raise NotCallError("a call outside of a list")
        cursor = session.cursor
        name = yield from cursor.span(_NAME)
        yield from cursor.expect("(")
        yield from cursor.space()
        repairs: list[str] = []
        first = True
        while (char := (yield from cursor.peek())) != ")":
            if not first:
                if char == "" or (yield from cursor.looking_at(markers(*self.ends, "]"))) is not None:
                    repairs.append("missing closing bracket")
                    break
                yield from cursor.expect(",")
                yield from cursor.space()
                if (yield from cursor.peek()) == ")":
                    break
            repairs += yield from self._argument(session, name, first)
            first = False
            yield from cursor.space()
        if char != "" and (yield from cursor.peek()) == ")":
            cursor.take()
        if first:
            session.start(name)
        session.arguments("{}" if first else "}")
        session.end(list(dict.fromkeys(repairs)))

    def _argument(self, session: Session, name: str, first: bool) -> Wait[list[str]]:
        cursor = session.cursor
        key = yield from cursor.span(_KEY)
        yield from cursor.space()
        if not key or (yield from cursor.peek()) != "=":
            raise NotCallError(
                "an argument without a name" if (yield from cursor.peek()) else "the output ends"
            )
        cursor.take()
        yield from cursor.space()
        if first:
            session.start(name)
        session.arguments(("{" if first else ", ") + quoted(key) + ": ")
        copy = Copy(cursor, session.arguments, PYTHON, markers(*self.ends))
        yield from copy.value()
        if copy.cut:
            raise NotCallError("the output ends in a value")
        return copy.repairs
