"""Calls whose name stands before a JSON object of arguments: `<begin>NAME<end of name>{…}<end>`."""

from __future__ import annotations

from collections.abc import Callable

from penstock.text.output.calls import Calls
from penstock.text.output.copy_value import Copy
from penstock.text.output.scan import NotCallError, Wait, markers
from penstock.text.output.session import Session


class NamedCalls(Calls):
    """`name_ends`: the markers behind the name; `{` belongs to the arguments. `name_of`: the name in that
    text.

    `fence`: the arguments stand in a code fence by the format; elsewhere a fence is a repair.
    """

    def __init__(
        self,
        begins: tuple[str, ...],
        name_ends: tuple[str, ...],
        ends: tuple[str, ...],
        *,
        section: tuple[str, str] | None = None,
        between: tuple[str, ...] = (),
        name_of: Callable[[str], str] = str.strip,
        fence: bool = False,
        bare: tuple[str, ...] = (),
    ) -> None:
        self.begins, self.name_ends, self.ends = begins, name_ends, ends
        self.section, self.between, self.bare = section, between, bare
        self.name_of, self.fence = name_of, fence

    @property
    def all_markers(self) -> tuple[str, ...]:
        return (*super().all_markers, *(end for end in self.name_ends if end.strip() not in ("", "{")))

    def call(self, session: Session, marker: str) -> Wait[None]:
        cursor = session.cursor
        before, end = yield from cursor.head(markers(*self.name_ends), limit=512)
        if end == "{":
            cursor.give_back(end)
        name = self.name_of(before)
        if not name or "\n" in name:
            raise NotCallError("a call without a name")
        session.start(name)
        yield from object_arguments(session, self.ends, fenced=self.fence)


def object_arguments(session: Session, ends: tuple[str, ...], *, fenced: bool = False) -> Wait[None]:
    """Reads the arguments of the call that was started, and what ends it."""
    cursor, repairs = session.cursor, list[str]()
    yield from cursor.space()
    fence = yield from cursor.match(markers("```json", "```"))
    if fence is not None and not fenced:
        repairs.append("code fence")
    yield from cursor.space()
    marks = markers(*ends)
    char = yield from cursor.peek()
    if char == "{":
        copy = Copy(cursor, session.arguments, ends=markers(*ends, "```"))
        yield from copy.value()
        repairs += copy.repairs
    elif ends and (yield from cursor.looking_at(marks)) is not None:
        session.arguments("{}")
        repairs.append("missing arguments")
    else:
        raise NotCallError("arguments that are no object" if char else "the output ends in a call")
    space = yield from cursor.space()
    while ends and (yield from cursor.peek()) == "}":
        cursor.take()
        repairs.append("closing bracket too many")
        space = yield from cursor.space()
    if fence is not None and (yield from cursor.match(markers("```"))) is not None:
        space = yield from cursor.space()
    ended = (yield from cursor.match(marks)) is not None
    if ends and not ended and (yield from cursor.peek()):
        repairs.append("missing end of call")
    session.end(list(dict.fromkeys(repairs)))
    if not ended:
        session.text(space)
