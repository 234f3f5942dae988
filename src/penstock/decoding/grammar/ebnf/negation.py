"""What a schema does not allow, as schemas one of which must hold (De Morgan)."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from typing import Any

from penstock.decoding.grammar.ebnf import keywords
from penstock.decoding.grammar.ebnf.rules import UnkeptError
from penstock.decoding.grammar.ebnf.shapes import JSON_TYPES, canonical, type_of

# A keyword of our own that no document can have: strings that must not come.
EXCLUDED: Any = object()
_ANNOTATIONS = frozenset(
    [
        *("title", "description", "default", "examples", "example", "$comment", "$schema", "$id", "id"),
        *("$anchor", "deprecated", "readOnly", "writeOnly", "$defs", "definitions"),
    ]
)
_MAX_DEPTH = 16
# keyword -> (the type it speaks of, the keyword that says the opposite, what its value changes by)
_COUNTS = {
    "minLength": ("string", "maxLength", -1),
    "maxLength": ("string", "minLength", 1),
    "minItems": ("array", "maxItems", -1),
    "maxItems": ("array", "minItems", 1),
    "minProperties": ("object", "maxProperties", -1),
    "maxProperties": ("object", "minProperties", 1),
}
_LIMITS = {
    "minimum": "exclusiveMaximum",
    "maximum": "exclusiveMinimum",
    "exclusiveMinimum": "maximum",
    "exclusiveMaximum": "minimum",
}


def negated(schema: Any, resolve: Callable[[dict[str, Any]], Any], depth: int = 0) -> list[Any]:
    """Schemas whose union is what `schema` does not allow. Raises UnkeptError where that can't be said.

    resolve: what the `$ref` of a schema points to.
    """
    if depth > _MAX_DEPTH:
        raise UnkeptError(f"not: nested deeper than {_MAX_DEPTH}")
    if schema is True or schema is False:
        return [] if schema else [True]
    found: list[Any] = []
    for keyword in schema:
        found += _Negation(schema, resolve, depth).of(keyword)
    return found


class _Negation:
    def __init__(self, schema: dict[str, Any], resolve: Callable[[dict[str, Any]], Any], depth: int) -> None:
        self._schema, self._resolve, self._depth = schema, resolve, depth

    def of(self, keyword: Any) -> Iterator[Any]:
        """What this one keyword does not allow."""
        schema = self._schema
        if keyword in _ANNOTATIONS:
            return
        if keyword in _COUNTS:
            yield from self._count(keyword)
        elif keyword in _LIMITS:
            if isinstance(schema[keyword], bool) or isinstance(schema.get(_exclusive(keyword)), bool):
                raise UnkeptError(f"not: {keyword} beside a boolean exclusive limit")
            yield {"type": "number", _LIMITS[keyword]: schema[keyword]}
        elif keyword == "type":
            yield from self._types()
        elif keyword in ("const", "enum"):
            yield from _without(keywords.literals({keyword: schema[keyword]})[0])
        elif keyword in ("required", "properties"):
            yield from self._members(keyword)
        else:
            yield from self._combined(keyword)

    def _members(self, keyword: str) -> Iterator[Any]:
        schema = self._schema
        if keyword == "required":
            for name in keywords.names(keyword, schema[keyword]):
                yield {"type": "object", "properties": {name: False}}
        else:
            for name, inner in keywords.named_schemas(schema, keyword).items():
                for other in self._negated(inner):
                    yield {"type": "object", "required": [name], "properties": {name: other}}

    def _combined(self, keyword: str) -> Iterator[Any]:
        schema = self._schema
        if keyword == "$ref":
            yield from self._negated(self._resolve(schema))
        elif keyword == "allOf":
            for inner in keywords.schemas(schema, keyword):
                yield from self._negated(inner)
        elif keyword == "anyOf":
            yield {"allOf": [{"anyOf": self._negated(inner)} for inner in keywords.schemas(schema, keyword)]}
        elif keyword == "not":
            yield keywords.one_schema(keyword, schema[keyword])
        else:
            raise UnkeptError(f"not: {keyword} inside of it can't be kept")

    def _negated(self, schema: Any) -> list[Any]:
        return negated(schema, self._resolve, self._depth + 1)

    def _count(self, keyword: str) -> Iterator[Any]:
        kind, opposite, change = _COUNTS[keyword]
        value = keywords.count(self._schema, keyword)
        assert value is not None
        if value + change >= 0:
            yield {"type": kind, opposite: value + change}

    def _types(self) -> Iterator[Any]:
        named = keywords.types(self._schema)
        if "integer" in named and "number" not in named:
            raise UnkeptError("not: type integer inside of it can't be kept")
        others = [kind for kind in JSON_TYPES if kind not in named]
        if others:
            yield {"type": others}


def _without(values: list[Any]) -> Iterator[Any]:
    """What equals none of `values`."""
    kinds = {type_of(value) for value in values}
    if kinds & {"number", "array", "object"}:
        raise UnkeptError("not: enum or const of numbers, lists or objects inside of it can't be kept")
    others = [kind for kind in JSON_TYPES if kind not in kinds]
    if others:
        yield {"type": others}
    if "string" in kinds:
        yield {"type": "string", EXCLUDED: [value for value in values if isinstance(value, str)]}
    if "boolean" in kinds:
        known = {canonical(value) for value in values}
        yield {"enum": [value for value in (True, False) if canonical(value) not in known]}


def _exclusive(keyword: str) -> str:
    return {"minimum": "exclusiveMinimum", "maximum": "exclusiveMaximum"}.get(keyword, "")
