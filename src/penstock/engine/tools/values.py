"""Grammars of one argument's value, in the notations that are not JSON: raw text, Python, marked, elements.

A value that follows one of these grammars is read by the family's parser as JSON that its schema allows. What
a notation can't be held to is an UnwritableError, which names it.
"""

from __future__ import annotations

import json
from collections.abc import Mapping
from typing import Any

from penstock.engine.tools.lark import ANYTHING, Lark, quoted, without
from penstock.engine.tools.schema import UnwritableError, branches, constraints

# Formats of strings as regular expressions. Other formats say nothing about validity here.
_FORMATS = {
    "date": r"[0-9]{4}-(0[1-9]|1[0-2])-(0[1-9]|1[0-9]|2[0-8])",
    "time": r"([01][0-9]|2[0-3]):[0-5][0-9]:[0-5][0-9](\.[0-9]{1,6})?(Z|[+-]([01][0-9]|2[0-3]):[0-5][0-9])",
    "uuid": r"[0-9a-fA-F]{8}(-[0-9a-fA-F]{4}){3}-[0-9a-fA-F]{12}",
    "ipv4": r"((25[0-5]|2[0-4][0-9]|1?[0-9]?[0-9])\.){3}(25[0-5]|2[0-4][0-9]|1?[0-9]?[0-9])",
    "email": r"[A-Za-z0-9_+-]+(\.[A-Za-z0-9_+-]+)*@[A-Za-z0-9-]+(\.[A-Za-z0-9-]+)+",
}
_FORMATS["date-time"] = _FORMATS["date"] + "T" + _FORMATS["time"]
# What a parser of raw values reads as something else than a string, where the schema allows that type.
_READ_AS = {
    "null": r"\s*(null|None)\s*",
    "boolean": r"\s*([Tt]rue|[Ff]alse)\s*",
    "integer": r"\s*[-+.]?[0-9][-+.0-9_eE]*\s*",
    "number": r"\s*[-+.]?[0-9][-+.0-9_eE]*\s*",
    "array": r"\s*(\[|`)(?s:.*)",
    "object": r"\s*(\{|`)(?s:.*)",
}


MAX_DEPTH = 24


class Values:
    """Grammars of values below one tool's schema, in one notation."""

    def __init__(self, lark: Lark, root: Mapping[str, Any]) -> None:
        self.lark, self.root = lark, root
        self._recursive: dict[str, str] = {}
        self._depth = 0

    def value(self, schema: Any) -> str:
        """An expression that matches the values of `schema`."""
        reference = schema.get("$ref") if isinstance(schema, Mapping) else None
        if isinstance(reference, str) and not constraints(schema):
            # A rule of its own, named before its body is known: what refers to itself ends here.
            if reference not in self._recursive:
                name = self._recursive[reference] = self.lark.made(f"reference {reference}", prefix="ref_")
                self.lark.rule(name, self._union(schema))
            return self._recursive[reference]
        return self._union(schema)

    def _union(self, schema: Any) -> str:
        self._depth += 1
        if self._depth > MAX_DEPTH:
            raise UnwritableError(f"a value nested deeper than {MAX_DEPTH}")
        found = [self.branch(one) for one in branches(schema, self.root)]
        self._depth -= 1
        return found[0] if len(found) == 1 else f"({' | '.join(dict.fromkeys(found))})"

    def branch(self, schema: Mapping[str, Any]) -> str:
        """Of one branch of a schema."""
        raise NotImplementedError

    def json(self, schema: Mapping[str, Any]) -> str:
        """JSON, with what it may refer to."""
        definitions = {word: self.root[word] for word in ("$defs", "definitions") if word in self.root}
        return self.lark.json({**definitions, **schema})

    def choice(self, values: list[str]) -> str:
        if not values:
            raise UnwritableError("an enum that has no value in this form")
        return self.lark.made(" | ".join(dict.fromkeys(values)))

    def sequence(self, schema: Mapping[str, Any], item: str, separator: str) -> str:
        """The items of an array, without its brackets."""
        for word in ("uniqueItems", "prefixItems", "contains"):
            if schema.get(word):
                raise UnwritableError(f"the keyword {word!r} of an array")
        least, most = int(schema.get("minItems", 0)), schema.get("maxItems")
        if most is not None and most < max(1, least):
            if most < least:
                raise UnwritableError("an array of more items than it may have")
            return ""
        more = self.lark.made(f"{separator} {item}" if separator else item)
        items = f"{item} {more}{{{max(0, least - 1)},{'' if most is None else most - 1}}}"
        return items if least else f"({items})?"


def string_terminal(schema: Mapping[str, Any], forbidden: tuple[str, ...], not_read_as: set[str]) -> str:
    """A terminal's body: the raw strings of `schema` in which no text of `forbidden` occurs.

    `not_read_as`: types that the string may not be mistaken for.
    """
    least, most = int(schema.get("minLength", 0)), schema.get("maxLength")
    body = ANYTHING
    if least or most is not None:
        body = f"/(?s:.{{{least},{'' if most is None else most}}})/"
    if (found := schema.get("pattern")) is not None:
        body += f" & /{_unanchored(found)}/"
    if (form := _FORMATS.get(schema.get("format", ""))) is not None:
        body += f" & /{form}/"
    for name in sorted(not_read_as & _READ_AS.keys()):
        body += f" & ~/{_READ_AS[name]}/"
    return without(forbidden, body)


def _unanchored(found: str) -> str:
    """A schema's `pattern`, which may match anywhere, as an expression of the whole text."""
    begins, ends = found.startswith("^"), found.endswith("$") and not found.endswith("\\$")
    inner = found[begins : len(found) - ends]
    if "|" in inner:
        if begins or ends:  # an anchor may belong to one alternative alone
            raise UnwritableError(f"the pattern {found!r}: put its alternatives in brackets")
        inner = f"({inner})"
    return f"{'' if begins else '(?s:.*)'}{inner}{'' if ends else '(?s:.*)'}".replace("/", "\\x2f")


class RawValues(Values):
    """The text between two tags: strings as they are, JSON for the rest. Values end with what ends them.

    `end`: the text behind a value, of which `marker` is where a parser stops.
    """

    def __init__(self, lark: Lark, root: Mapping[str, Any], end: str) -> None:
        super().__init__(lark, root)
        self.end, self.marker = end, end.strip()

    def strings(self, schema: Any, hinted: bool) -> list[str]:
        """Of the strings that `schema` allows, with their end. `hinted`: the parser is told what is one."""
        found, every = [], branches(schema, self.root)
        others = set() if hinted else {name for one in every for name in _types_of(one)} - {"string"}
        for one in every:
            if "enum" in one:
                texts = [
                    value for value in one["enum"] if isinstance(value, str) and self.marker not in value
                ]
                found += [self.lark.text(value, self.end) for value in texts]
            elif one.get("type", "string") == "string":
                found.append(self.ended(string_terminal(one, (self.marker,), others if one else set())))
        return list(dict.fromkeys(found))

    def others(self, schema: Any) -> list[str]:
        """Of everything else that `schema` allows, with its end."""
        found = []
        for one in branches(schema, self.root):
            values = [value for value in one.get("enum", ()) if not isinstance(value, str)]
            if "enum" in one:
                found += [self.lark.text(json.dumps(value), self.end) for value in values]
            elif one.get("type", "string") != "string":
                found.append(f"{self.json(one)} {self.lark.text(self.end)}")
        return list(dict.fromkeys(found))

    def ended(self, body: str) -> str:
        """Text of a terminal and the end behind it: one terminal, or the text would swallow the end."""
        parts = self.lark.specials.split(self.end)
        text = self.lark.terminal(body)
        if isinstance(parts[0], int):
            return f"{text} {self.lark.text(self.end)}"
        rest = self.lark.text(self.end[len(parts[0]) :])
        return f"{self.lark.made(f'{text} {quoted(parts[0])}', lazy=True, prefix='end_')} {rest}".rstrip()


def _types_of(one: Mapping[str, Any]) -> set[str]:
    if "enum" in one:
        return {_type_of(value) for value in one["enum"]}
    return {str(one["type"])} if "type" in one else set()


def _type_of(value: Any) -> str:
    names = {bool: "boolean", int: "integer", float: "number", str: "string", list: "array", dict: "object"}
    return names.get(type(value), "null")


class NestedValues(Values):
    """What Python and the marked notation have in common: brackets that hold values of the same notation."""

    comma = ", "

    def branch(self, schema: Mapping[str, Any]) -> str:
        if "enum" in schema:
            return self.choice([self.constant(value) for value in schema["enum"]])
        kind = schema.get("type")
        if kind == "array":
            item = self.value(schema.get("items", {}))
            return f'"[" {self.sequence(schema, item, quoted(self.comma))} "]"'
        if kind == "object" and schema.get("properties"):
            for word in ("patternProperties", "propertyNames", "minProperties", "maxProperties"):
                if word in schema:
                    raise UnwritableError(f"the keyword {word!r} of an object")
            return f'"{{" {self.object_members(schema)} "}}"'
        return self.scalar(schema)

    def object_members(self, schema: Mapping[str, Any]) -> str:
        written = [
            (f"{self.key(name)} {self.value(inner)}", name in schema.get("required", ()))
            for name, inner in schema["properties"].items()
        ]
        return members(self.lark, written, quoted(self.comma))

    def constant(self, value: Any) -> str:
        raise NotImplementedError

    def key(self, name: str) -> str:
        raise NotImplementedError

    def scalar(self, schema: Mapping[str, Any]) -> str:
        """Of strings, numbers, words, objects of any members, and anything."""
        raise NotImplementedError


def members(lark: Lark, written: list[tuple[str, bool]], separator: str) -> str:
    """Members in order with separators between them. written: (expression, whether it must be there)."""
    more = [""]  # what may follow a member, from the last one backwards
    for member, required in reversed(written):
        follows = f"{separator} {member}".strip()
        more.append(lark.made(f"{follows if required else f'({follows})?'} {more[-1]}".strip()))
    more.reverse()
    first = []
    for at, (member, required) in enumerate(written):
        first.append(f"{member} {more[at + 1]}".strip())
        if required:
            return lark.made(" | ".join(first))
    return f"({lark.made(' | '.join(first))})?" if first else ""


class PythonValues(NestedValues):
    """Python literals. Objects of any members are JSON, which the parser reads as well."""

    def constant(self, value: Any) -> str:
        return quoted(_python(value))

    def key(self, name: str) -> str:
        return quoted(json.dumps(name, ensure_ascii=False) + ": ")

    def scalar(self, schema: Mapping[str, Any]) -> str:
        if schema.get("type") == "boolean":
            return '("True" | "False")'
        return '"None"' if schema.get("type") == "null" else self.json(schema)


def _python(value: Any) -> str:
    if value is None or isinstance(value, bool):
        return repr(value)
    if isinstance(value, list):
        return "[" + ", ".join(map(_python, value)) + "]"
    if isinstance(value, dict):
        return "{" + ", ".join(f"{json.dumps(key)}: {_python(inner)}" for key, inner in value.items()) + "}"
    return json.dumps(value, ensure_ascii=False)


class MarkedValues(NestedValues):
    """Strings between two `quote`, keys without quotation marks, brackets of them, the rest as in JSON."""

    comma = ","

    def __init__(self, lark: Lark, root: Mapping[str, Any], quote: str) -> None:
        super().__init__(lark, root)
        self.quote = quote

    def constant(self, value: Any) -> str:
        return self.lark.text(self._written(value))

    def _written(self, value: Any) -> str:
        if isinstance(value, str):
            if self.quote in value:
                raise UnwritableError(f"{self.quote} in a string")
            return self.quote + value + self.quote
        if isinstance(value, list):
            return "[" + ",".join(map(self._written, value)) + "]"
        if isinstance(value, dict):
            return (
                "{" + ",".join(f"{_bare(key)}:{self._written(inner)}" for key, inner in value.items()) + "}"
            )
        return json.dumps(value)

    def key(self, name: str) -> str:
        return quoted(_bare(name) + ":")

    def scalar(self, schema: Mapping[str, Any]) -> str:
        kind = schema.get("type")
        if kind == "string":
            return self._string(schema)
        if kind == "object":
            of_any = schema.get("additionalProperties", True)
            return self._open_object(self.value({} if isinstance(of_any, bool) else of_any))
        if kind is not None:
            return self.json(schema)
        scalars = " | ".join([self._string({}), self.json({"type": ["number", "boolean", "null"]})])
        anything = self.lark.made("anything", prefix="any_")
        array = f'"[" ({anything} ("," {anything})*)? "]"'
        return self.lark.rule(anything, f"{scalars} | {array} | {self._open_object(anything)}")

    def _open_object(self, value: str) -> str:
        member = f'{self.lark.terminal("/[A-Za-z_][A-Za-z0-9_]{0,63}/")} ":" {value}'
        return f'"{{" ({member} ("," {member}){{0,63}})? "}}"'

    def _string(self, schema: Mapping[str, Any]) -> str:
        quote = self.lark.text(self.quote)
        text = self.lark.terminal(string_terminal(schema, (self.quote,), set()))
        if self.quote in self.lark.specials.ids:
            return f"{quote} {text} {quote}"
        return f"{quote} {self.lark.made(f'{text} {quoted(self.quote)}', lazy=True, prefix='end_')}"


def _bare(key: str) -> str:
    if not key or any(char.isspace() or char in ':,{}[]<"' for char in key):
        raise UnwritableError(f"the name {key!r}")
    return key


class ElementValues(Values):
    """An element for each member, nested, every tag behind a prefix. Values stand between their tags."""

    def __init__(self, lark: Lark, root: Mapping[str, Any], prefix: str) -> None:
        super().__init__(lark, root)
        self.prefix = prefix

    def element(self, name: str, schema: Any) -> str:
        if not name or any(char.isspace() or char in "<>/" for char in name):
            raise UnwritableError(f"the name {name!r}")
        self._depth += 1
        if self._depth > MAX_DEPTH:
            raise UnwritableError(f"a value nested deeper than {MAX_DEPTH}")
        begin, end = f"{self.prefix}<{name}>", f"{self.prefix}</{name}>"
        every = branches(schema, self.root)
        kinds = {kind for one in every for kind in _types_of(one)}
        if len(kinds & {"string", "array", "object"}) > 1:  # an empty element could be each of them
            raise UnwritableError("a value that is one of several of: a string, an array, an object")
        found = [f"{self.lark.text(begin)} {self._content(one, end, kinds - {'string'})}" for one in every]
        self._depth -= 1
        return self.lark.made(" | ".join(dict.fromkeys(found)))

    def _content(self, one: Mapping[str, Any], end: str, others: set[str]) -> str:
        if "enum" in one:
            return self.choice([self.lark.text(self._constant(value), end) for value in one["enum"]])
        kind = one.get("type", "string")
        if kind == "string":
            return RawValues(self.lark, self.root, end).ended(string_terminal(one, (self.prefix,), others))
        if kind == "array":
            content = self.sequence(one, self.element("item", one.get("items", {})), "")
        elif kind == "object" and one.get("properties"):
            written = [
                (self.element(name, inner), name in one.get("required", ()))
                for name, inner in one["properties"].items()
            ]
            content = members(self.lark, written, "")
        else:
            content = self.json(one)
        return f"{content} {self.lark.text(end)}".strip()

    def _constant(self, value: Any) -> str:
        text = value if isinstance(value, str) else json.dumps(value)
        if self.prefix in text:
            raise UnwritableError(f"{self.prefix} in a string")
        return text
