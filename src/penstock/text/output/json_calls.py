"""Calls written as JSON objects that hold the name and the arguments, one or a list of them.

Arguments are given while they come. Where a name is not known yet, or the text may be no call (a bare
object), they wait for the name.
"""

from __future__ import annotations

from penstock.text.output.arguments import decode, repair_json
from penstock.text.output.calls import ListCalls
from penstock.text.output.copy_value import Copy
from penstock.text.output.scan import NotCallError, Wait, markers
from penstock.text.output.session import Session, void

_OTHER = ("type", "id", "index", "function")


class JsonCalls(ListCalls):
    """`names`, `arguments`: the keys of both. `keyed`: the name is the only key, the arguments its value."""

    def __init__(
        self,
        begins: tuple[str, ...] = (),
        ends: tuple[str, ...] = (),
        *,
        bare: tuple[str, ...] = (),
        names: tuple[str, ...] = ("name",),
        arguments: tuple[str, ...] = ("arguments", "parameters"),
        keyed: bool = False,
    ) -> None:
        self.begins, self.ends, self.bare = begins, ends, bare
        self.names, self.argument_keys, self.keyed = names, arguments, keyed

    def item_begins(self, char: str) -> bool:
        return char == "{"

    def item(self, session: Session, quiet: bool, listed: bool) -> Wait[None]:
        call = _Object(self, session, quiet)
        yield from call.members(nested=False)
        call.complete()
        if not listed and not quiet and self.ends:
            yield from self._close(session, call.repairs)
        session.end(call.repairs)

    def _close(self, session: Session, repairs: list[str]) -> Wait[None]:
        """Brackets too many, and whether the end of the call is there at all."""
        cursor = session.cursor
        space = yield from cursor.space()
        while (yield from cursor.peek()) == "}":
            cursor.take()
            repairs.append("closing bracket too many")
            space = yield from cursor.space()
        repairs[:] = list(dict.fromkeys(repairs))
        follows = markers(*self.ends, *self.separators, "{", "```")
        if (yield from cursor.peek()) and (yield from cursor.looking_at(follows)) is None:
            repairs.append("missing end of call")
            cursor.give_back(space)


class _Object:
    """One call object being read."""

    def __init__(self, calls: JsonCalls, session: Session, quiet: bool) -> None:
        self._calls, self._session, self._quiet = calls, session, quiet
        self._ends = markers(*calls.ends)
        self._name: str | None = None
        self._started = False
        self._early: list[str] | None = None  # arguments that came before the name
        self._given = False
        self.repairs: list[str] = []

    def members(self, nested: bool) -> Wait[None]:
        """The members of the object that comes next, closing bracket included."""
        cursor = self._session.cursor
        yield from cursor.expect("{")
        while True:
            yield from cursor.space()
            if (yield from cursor.peek()) == "}":
                cursor.take()
                return
            key = yield from self._text()
            yield from cursor.space()
            yield from cursor.expect(":")
            yield from cursor.space()
            yield from self._member(key, nested)
            yield from cursor.space()
            char = yield from cursor.peek()
            if char == ",":
                cursor.take()
            elif char != "}":
                if char and (yield from cursor.looking_at(self._ends)) is None:
                    raise NotCallError(f"{char!r} where a member should end")
                self._note(["missing closing bracket"])
                return

    def complete(self) -> None:
        if self._name is None or (self._quiet and not self._given):
            raise NotCallError("an object without name and arguments")
        self._start()
        if not self._given:
            self._session.arguments("{}")

    def _member(self, key: str, nested: bool) -> Wait[None]:
        calls, cursor = self._calls, self._session.cursor
        if calls.keyed or key in calls.names:
            if self._name is not None:
                raise NotCallError("a call has two names")
            self._name = key if calls.keyed else (yield from self._text()).strip()
            if not self._quiet and not calls.keyed:
                self._start()
        if calls.keyed or key in calls.argument_keys:
            yield from self._arguments()
        elif key == "function" and not nested and (yield from cursor.peek()) == "{":
            yield from self.members(nested=True)
        elif key not in calls.names:
            if self._quiet and key not in _OTHER:
                raise NotCallError(f"{key[:40]!r} is no part of a call")
            yield from self._copy(None)

    def _start(self) -> None:
        if not self._started and self._name is not None:
            self._session.start(self._name)
            self._started = True
            self._session.arguments("".join(self._early or ()))

    def _arguments(self) -> Wait[None]:
        if self._given:
            raise NotCallError("a call has its arguments twice")
        self._given = True
        self._early = []
        char = yield from self._session.cursor.peek()
        if char == "{":
            self._start()
            yield from self._copy(self._session.arguments if self._started else self._early.append)
            return
        pieces: list[str] = []
        yield from self._copy(pieces.append)
        text = "".join(pieces)
        if char in ('"', "'"):
            found = repair_json(decode(text)) if decode(text).strip() else ("{}", [])
            text, repairs = found if found is not None else ("", [])
            self._note(["arguments in a string", *repairs])
        elif text == "null":
            self._note(["arguments null"])
            text = "{}"
        if text[:1] != "{":
            raise NotCallError("arguments that are no object")
        if self._started:
            self._session.arguments(text)
        self._early.append(text)
        self._start()

    def _copy(self, emit: object) -> Wait[None]:
        copy = Copy(self._session.cursor, emit if callable(emit) else void, ends=self._ends)
        yield from copy.value()
        self._note(copy.repairs)

    def _text(self) -> Wait[str]:
        """The content of the string that comes next."""
        pieces: list[str] = []
        copy = Copy(self._session.cursor, pieces.append)
        yield from copy.string()
        self._note(copy.repairs)
        return decode("".join(pieces))

    def _note(self, repairs: list[str]) -> None:
        self.repairs += [repair for repair in repairs if repair not in self.repairs]
