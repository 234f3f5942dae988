"""Calls written with tags: `<invoke name="f"><parameter name="k">v</parameter></invoke>` and its relatives.

Values are raw text and get their type from the tool's schema. Arguments are given per finished parameter.
"""

from __future__ import annotations

import re

from msgspec import Struct

from penstock.text.output.arguments import cast, normalize, quoted
from penstock.text.output.calls import Calls
from penstock.text.output.scan import Markers, NotCallError, Wait, markers
from penstock.text.output.session import Session

_ATTRIBUTE = re.compile(r'\s*([\w.:-]+)\s*=\s*"([^"]*)"\s*')


class Tag(Struct, frozen=True):
    """`begin`, then text up to `close`; `attribute` in it is what the tag names, without one all of it is.

    With `close` empty the text goes on up to whatever may come next (GLM's name).
    """

    begin: str
    close: str
    end: str
    attribute: str | None = None

    def named(self, head: str) -> str:
        if self.attribute is None:
            return head.strip().strip("\"'")
        return attributes(head).get(self.attribute, "").strip()


def attributes(head: str) -> dict[str, str]:
    """The attributes of a tag. Raises NotCallError if it has anything else."""
    found, at = dict[str, str](), 0
    while at < len(head):
        one = _ATTRIBUTE.match(head, at)
        if one is None:
            raise NotCallError(f"{head[at : at + 40]!r} is no attribute")
        found[one[1]] = one[2].replace("&quot;", '"').replace("&amp;", "&")
        at = one.end()
    return found


class TagCalls(Calls):
    """`value_begin`: a marker between key and value. `hint`: the attribute of a parameter that tells its
    type, and the value that means a string. `trim`: the template puts a value on lines of its own. `whole`: a
    tag around all arguments as one JSON object.
    """

    def __init__(
        self,
        call: Tag,
        parameter: Tag,
        *,
        section: tuple[str, str] | None = None,
        alone: bool = True,
        between: tuple[str, ...] = (),
        value_begin: str | None = None,
        hint: tuple[str, str] | None = None,
        trim: bool = False,
        whole: Tag | None = None,
    ) -> None:
        self.tag, self.parameter, self.section, self.alone, self.between = (
            call,
            parameter,
            section,
            alone,
            between,
        )
        self.begins, self.ends = (call.begin,), (call.end,)
        self.value_begin, self.hint, self.trim, self.whole = value_begin, hint, trim, whole

    @property
    def all_markers(self) -> tuple[str, ...]:
        tags = [self.tag, self.parameter, *([self.whole] if self.whole else [])]
        found = [text for tag in tags for text in (tag.begin, tag.close, tag.end) if len(text) > 2]
        return (*super().all_markers, *found, *([self.value_begin] if self.value_begin else []))

    def call(self, session: Session, marker: str) -> Wait[None]:
        name = self.tag.named((yield from self._name(session)))
        if not name or "\n" in name:
            raise NotCallError("a call without a name")
        session.start(name)
        call = _Arguments(session, name)
        begins = markers(self.parameter.begin, self.tag.end, *([self.whole.begin] if self.whole else []))
        while True:
            yield from session.cursor.space()
            found = yield from session.cursor.match(begins)
            if found == self.parameter.begin:
                yield from self._parameter(session, call)
            elif found == self.tag.end:
                break
            elif found is not None:
                yield from self._whole(session, call)
            else:
                yield from self._cut(session, call)
                break
        call.end()

    def _name(self, session: Session) -> Wait[str]:
        cursor = session.cursor
        if self.tag.close:
            head, _ = yield from cursor.head(markers(self.tag.close))
            return head
        yield from cursor.space()
        ends = (self.parameter.begin, self.tag.end)
        head, found = yield from cursor.head(markers("\n", *ends), limit=512)
        if found in ends:
            cursor.give_back(found)
        return head

    def _parameter(self, session: Session, call: _Arguments) -> Wait[None]:
        head, _ = yield from session.cursor.head(markers(self.parameter.close))
        key = self.parameter.named(head)
        if not key:
            raise NotCallError("a parameter without a name")
        if self.value_begin is not None:
            yield from session.cursor.space()
            if (yield from session.cursor.match(markers(self.value_begin))) is None:
                raise NotCallError(f"{self.value_begin} expected")
        value = yield from _content(session, markers(self.parameter.end))
        if self.trim:
            value = value.removeprefix("\n").removesuffix("\n")
        hint = attributes(head).get(self.hint[0]) if self.hint is not None else None
        call.add(key, value, None if hint is None or self.hint is None else hint == self.hint[1])

    def _whole(self, session: Session, call: _Arguments) -> Wait[None]:
        assert self.whole is not None
        yield from session.cursor.head(markers(self.whole.close))
        call.set_all((yield from _content(session, markers(self.whole.end))))

    def _cut(self, session: Session, call: _Arguments) -> Wait[None]:
        """The call ends without its end: right if the section ends, or the output after a parameter."""
        section = markers(*(self.section or ())[1:])
        if (yield from session.cursor.peek()) == "":
            if call.empty:
                raise NotCallError("the output ends in a call")
        elif (yield from session.cursor.looking_at(section)) is None:
            raise NotCallError("a parameter or the end of the call expected")
        call.repairs.append("missing end of call")


def _content(session: Session, end: Markers) -> Wait[str]:
    pieces: list[str] = []
    if (yield from session.cursor.until(end, pieces.append)) is None:
        raise NotCallError("the output ends in a value")
    return "".join(pieces)


class _Arguments:
    """The arguments of one call as they are found."""

    def __init__(self, session: Session, name: str) -> None:
        self._session, self._name = session, name
        self.empty = True
        self._complete = False
        self.repairs: list[str] = []

    def add(self, key: str, value: str, is_string: bool | None) -> None:
        if self._complete:
            raise NotCallError("a parameter behind all arguments")
        schemas = self._session.schemas
        schema, root = schemas.parameter(self._name, key), schemas.root(self._name)
        text, repairs = cast(value, schema, root, is_string=is_string is True)
        if schema is None and is_string is False and (found := normalize(value)) is not None:
            text, repairs = found
        self._session.arguments(("{" if self.empty else ", ") + quoted(key) + ": " + text)
        self.empty = False
        self.repairs += [repair for repair in repairs if repair not in self.repairs]

    def set_all(self, text: str) -> None:
        found = normalize(text)
        if not self.empty or self._complete or found is None or found[0][0] != "{":
            raise NotCallError("arguments that are no object")
        self._session.arguments(found[0])
        self.empty, self._complete = False, True
        self.repairs += found[1]

    def end(self) -> None:
        if not self._complete:
            self._session.arguments("{}" if self.empty else "}")
        self._session.end(self.repairs)
