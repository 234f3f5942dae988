"""Grammars of a call's arguments, one for each style in which a family writes them."""

from __future__ import annotations

import re
from collections.abc import Mapping
from typing import Any

from penstock.call import ToolSpec
from penstock.decoding.grammar.spec import WHITESPACE
from penstock.engine.tools.lark import Lark, pattern, quoted, without
from penstock.engine.tools.schema import UnwritableError, argument_schema, branches
from penstock.engine.tools.values import (
    ElementValues,
    MarkedValues,
    NestedValues,
    PythonValues,
    RawValues,
    members,
)
from penstock.text.output.format import CallSyntax

MOST_OTHERS = 16  # arguments that a schema does not list, of one call
_LOOSE = {"whitespace_pattern": WHITESPACE}
_PLAIN_NAME = re.compile(r"[\w.:/ -]*[\w.-]")
_IDENTIFIER = re.compile(r"\w+")
_PYTHON_NAME = re.compile(r"[^\W\d][\w.-]*")
_UNHELD = ("patternProperties", "propertyNames", "minProperties", "maxProperties")


def check_name(syntax: CallSyntax, name: str) -> None:
    """Raises UnwritableError for a tool's name that the family can't write."""
    if syntax.arguments != "json" and not _PLAIN_NAME.fullmatch(name):
        raise UnwritableError(f"the name {name!r}")
    if syntax.arguments == "pythonic" and not _PYTHON_NAME.fullmatch(name):
        raise UnwritableError(f"the name {name!r}")


def arguments(lark: Lark, syntax: CallSyntax, tool: ToolSpec) -> str:
    """An expression of the arguments, without what stands around them. Raises UnwritableError."""
    schema = argument_schema(tool)
    if syntax.arguments == "json":
        return lark.json(schema, _LOOSE)
    found = branches(schema, schema)
    if len(found) != 1 or found[0].get("type") != "object":
        raise UnwritableError("arguments that are not one object")
    (one,) = found
    for word in _UNHELD:
        if word in one:
            raise UnwritableError(f"the keyword {word!r} of the arguments")
    properties = dict(one.get("properties", {}))
    for name in one.get("required", ()):
        properties.setdefault(name, {})
    write = _WRITERS[syntax.arguments](lark, syntax, schema)
    needed = one.get("required", ())
    written = [(write.member(name, inner), name in needed) for name, inner in properties.items()]
    separator = lark.text(syntax.between_parameters)
    expression = members(lark, written, separator)
    others = one.get("additionalProperties", not properties)
    if others is False:
        return expression
    more = lark.made(f"{write.other(list(properties), {} if others is True else others)}")
    if not properties:
        return f"({more} {lark.made(f'{separator} {more}')}{{0,{MOST_OTHERS - 1}}})?"
    return f"{expression} {lark.made(f'{separator} {more}')}{{0,{MOST_OTHERS}}}" if needed else expression


class _Parameters:
    """Tags with raw values."""

    def __init__(self, lark: Lark, syntax: CallSyntax, root: Mapping[str, Any]) -> None:
        assert syntax.parameter is not None
        self.lark, self.syntax = lark, syntax
        self.before, self.between, end = syntax.parameter
        self.values = RawValues(lark, root, end)
        self.hinted = "{hint}" in self.between

    def member(self, name: str, schema: Any) -> str:
        if not _PLAIN_NAME.fullmatch(name):
            raise UnwritableError(f"the name {name!r}")
        return self._of(lambda hint: self.lark.text(self.before, name, self._between(hint)), schema)

    def other(self, known: list[str], schema: Any) -> str:
        body = without((), "/[A-Za-z_][A-Za-z0-9_]{0,63}/")
        if known:
            body += f" & ~/{'|'.join(map(pattern, known))}/"
        name = self.lark.terminal(body)
        return self._of(
            lambda hint: f"{self.lark.text(self.before)} {name} {self.lark.text(self._between(hint))}", schema
        )

    def _between(self, hint: str) -> str:
        return self.between.replace("{hint}", hint)

    def _of(self, head: Any, schema: Any) -> str:
        string, other = self.syntax.string_hint
        found = [f"{head(string)} {value}" for value in self.values.strings(schema, self.hinted)]
        found += [f"{head(other)} {value}" for value in self.values.others(schema)]
        if not found:
            raise UnwritableError("a value that this form can't write")
        return self.lark.made(" | ".join(dict.fromkeys(found)))


class _Keywords:
    """Keys with values of a notation that nests."""

    def __init__(self, lark: Lark, syntax: CallSyntax, root: Mapping[str, Any]) -> None:
        assert syntax.parameter is not None
        self.lark, self.between = lark, syntax.parameter[1]
        self.identifiers = syntax.arguments == "pythonic"
        self.values: NestedValues = (
            PythonValues(lark, root) if self.identifiers else MarkedValues(lark, root, syntax.string_quote)
        )

    def member(self, name: str, schema: Any) -> str:
        if self.identifiers and not _IDENTIFIER.fullmatch(name):
            raise UnwritableError(f"the name {name!r}")
        key = quoted(name + self.between) if self.identifiers else self.values.key(name)
        return self.lark.made(f"{key} {self.values.value(schema)}")

    def other(self, known: list[str], schema: Any) -> str:
        body = "/[A-Za-z_][A-Za-z0-9_]{0,63}/"
        if known:
            body += f" & ~/{'|'.join(map(pattern, known))}/"
        return f"{self.lark.terminal(body)} {quoted(self.between)} {self.values.value(schema)}"


class _Elements:
    """An element for each argument, nested."""

    def __init__(self, lark: Lark, syntax: CallSyntax, root: Mapping[str, Any]) -> None:
        assert syntax.parameter is not None
        self.values = ElementValues(lark, root, syntax.parameter[0])

    def member(self, name: str, schema: Any) -> str:
        return self.values.element(name, schema)

    def other(self, known: list[str], schema: Any) -> str:
        raise UnwritableError("arguments that its schema does not list")


_WRITERS: Mapping[str, type[_Parameters] | type[_Keywords] | type[_Elements]] = {
    "xml_parameters": _Parameters,
    "pythonic": _Keywords,
    "marked": _Keywords,
    "elements": _Elements,
}
