"""Gemma's calls: `call:NAME{key:<|"|>text<|"|>,n:1}`, strings between a marker instead of quotation marks.

Arguments are given per finished value, because a string may stand for another type (`<escape>42<escape>`).
"""

from __future__ import annotations

import re

from penstock.text.output.arguments import cast, decode, quoted, types
from penstock.text.output.calls import Calls
from penstock.text.output.copy_value import Copy, Dialect
from penstock.text.output.scan import NotCallError, Wait, markers
from penstock.text.output.session import Session

_CALL = markers("call:")
_NAME = re.compile(r"[^\s{}<]+")


class MarkedCalls(Calls):
    def __init__(self, begin: str, end: str, quote: str) -> None:
        self.begins, self.ends = (begin,), (end,)
        self.quote = quote

    @property
    def all_markers(self) -> tuple[str, ...]:
        return (*super().all_markers, self.quote)

    def call(self, session: Session, marker: str) -> Wait[None]:
        cursor, end = session.cursor, markers(*self.ends)
        yield from cursor.space()
        yield from cursor.match(_CALL)
        name = yield from cursor.span(_NAME)
        yield from cursor.space()
        yield from cursor.expect("{")
        session.start(name)
        repairs: list[str] = []
        first = True
        while True:
            yield from cursor.space()
            char = yield from cursor.peek()
            if char == "}":
                cursor.take()
                break
            if char == "" and first:
                raise NotCallError("the output ends in a call")
            if char == "" or (yield from cursor.looking_at(end)) is not None:
                repairs.append("missing closing bracket")
                break
            if char == "," and not first:
                cursor.take()
                continue
            repairs += yield from self._argument(session, name, first)
            first = False
        session.arguments("{}" if first else "}")
        space = yield from cursor.space()
        missing = (yield from cursor.match(end)) is None
        if missing and (yield from cursor.peek()):
            repairs.append("missing end of call")
        session.end(list(dict.fromkeys(repairs)))
        if missing:
            session.text(space)

    def _argument(self, session: Session, name: str, first: bool) -> Wait[list[str]]:
        pieces: list[str] = []
        copy = Copy(session.cursor, pieces.append, Dialect("marked", self.quote), markers(*self.ends))
        yield from copy.key()
        key = decode("".join(pieces)[:-1].strip())
        pieces.clear()
        yield from copy.value()
        schema, root = session.schemas.parameter(name, key), session.schemas.root(name)
        text = "".join(pieces).strip()
        if text.startswith('"') and (wanted := types(schema, root)) and "string" not in wanted:
            text, repairs = cast(decode(text), schema, root)
            copy.repairs += repairs
        session.arguments(("{" if first else ", ") + quoted(key) + ": " + text)
        if copy.cut:
            raise NotCallError("the output ends in a value")
        return copy.repairs
