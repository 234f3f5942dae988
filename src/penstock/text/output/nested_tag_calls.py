"""MiniMax M3's calls: an element for each argument, nested for objects and lists, every tag behind a prefix.

`]<]minimax[>[<invoke name="f">]<]minimax[>[<k>v]<]minimax[>[</k>]<]minimax[>[</invoke>`
"""

from __future__ import annotations

from typing import Any

from penstock.text.output.arguments import cast, item_schema, property_schema, quoted, types
from penstock.text.output.calls import Calls
from penstock.text.output.scan import NotCallError, Wait, markers
from penstock.text.output.session import Session
from penstock.text.output.tag_calls import attributes

MAX_DEPTH = 32  # read by recursion
_HEAD_END = markers(">")


class NestedTagCalls(Calls):
    alone = False

    def __init__(self, prefix: str) -> None:
        self.prefix = prefix
        self.section = (f"{prefix}<tool_call>", f"{prefix}</tool_call>")
        self.begins, self.ends = (f"{prefix}<invoke",), (f"{prefix}</invoke>",)
        self._tags = markers(f"{prefix}<", f"{prefix}</")

    @property
    def all_markers(self) -> tuple[str, ...]:
        return (self.prefix, *super().all_markers)

    def call(self, session: Session, marker: str) -> Wait[None]:
        cursor = session.cursor
        head, _ = yield from cursor.head(_HEAD_END)
        name = attributes(head).get("name", "").strip()
        session.start(name)
        root, repairs, first = session.schemas.root(name), list[str](), True
        while True:
            yield from cursor.space()
            if (yield from cursor.match(markers(*self.ends))) is not None:
                break
            if (yield from cursor.match(self._tags)) != f"{self.prefix}<":
                raise NotCallError("a parameter or the end of the call expected")
            key, _ = yield from cursor.head(_HEAD_END, limit=256)
            schema = session.schemas.parameter(name, key)
            value = yield from self._value(session, key, schema, root, repairs, 0)
            session.arguments(("{" if first else ", ") + quoted(key) + ": " + value)
            first = False
        session.arguments("{}" if first else "}")
        session.end(list(dict.fromkeys(repairs)))

    def _value(
        self, session: Session, tag: str, schema: Any, root: Any, repairs: list[str], depth: int
    ) -> Wait[str]:
        """The JSON of the element `tag`, whose opening was read."""
        cursor, pieces = session.cursor, list[str]()
        children: list[tuple[str, str]] = []
        if depth > MAX_DEPTH:
            raise NotCallError(f"nested deeper than {MAX_DEPTH}")
        wanted = types(schema, root)
        while True:
            found = yield from cursor.until(self._tags, pieces.append)
            if found is None:
                raise NotCallError("the output ends in a value")
            name, _ = yield from cursor.head(_HEAD_END, limit=256)
            if found.endswith("/"):
                break
            inner = item_schema(schema, root) if "array" in wanted else property_schema(schema, name, root)
            children.append((name, (yield from self._value(session, name, inner, root, repairs, depth + 1))))
        if name != tag:
            raise NotCallError(f"</{name}> closes <{tag}>")
        text = "".join(pieces)
        if children:
            if text.strip():
                raise NotCallError("text between elements")
            return _joined(children, wanted)
        if not text.strip() and "string" not in wanted and wanted & {"array", "object"}:
            return "[]" if "array" in wanted else "{}"
        value, more = cast(text, schema, root)
        repairs += more
        return value


def _joined(children: list[tuple[str, str]], wanted: set[str]) -> str:
    """A list if the schema wants one or all are `item`, else an object in which same names are a list."""
    if "array" in wanted or ("object" not in wanted and all(name == "item" for name, _ in children)):
        return "[" + ", ".join(value for _, value in children) + "]"
    named: dict[str, list[str]] = {}
    for name, value in children:
        named.setdefault(name, []).append(value)
    members = [
        quoted(name) + ": " + (values[0] if len(values) == 1 else "[" + ", ".join(values) + "]")
        for name, values in named.items()
    ]
    return "{" + ", ".join(members) + "}"
