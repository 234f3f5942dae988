"""The keywords of JSON Schema, drafts 3 to 2020-12: which are kept, and their values, checked.

Words that no draft defines say nothing about validity. Those that a draft defines and that are not kept are
refused by name.
"""

from __future__ import annotations

from collections.abc import Mapping
from decimal import Decimal
from typing import Any

from penstock.decoding.grammar.ebnf.numbers import Bounds
from penstock.decoding.grammar.ebnf.rules import UnkeptError
from penstock.decoding.grammar.ebnf.shapes import JSON_TYPES

UNKEPT = frozenset(
    [
        *("contains", "minContains", "maxContains", "unevaluatedItems", "unevaluatedProperties"),
        *("$dynamicRef", "$recursiveRef", "contentEncoding", "contentMediaType", "contentSchema"),
        *("extends", "disallow", "divisibleBy"),
    ]
)
_MAX_DIGITS = 40  # of a limit
Schema = Mapping[str, Any]


def check(schema: Schema, is_legacy: bool) -> None:
    """Raises UnkeptError for a keyword that is not kept."""
    for keyword in sorted(UNKEPT & schema.keys()):
        trivial = schema[keyword] in (True, {}) and keyword.startswith("unevaluated")
        if not trivial:
            raise UnkeptError(f"{keyword} can't be kept")
    if is_legacy and "prefixItems" in schema:
        raise UnkeptError("prefixItems is no keyword of the draft that $schema names")


def schemas(schema: Schema, keyword: str) -> list[Any]:
    """Of a keyword whose value is a list of schemas."""
    value = schema.get(keyword, [])
    if not isinstance(value, list) or not all(isinstance(item, dict | bool) for item in value):
        raise UnkeptError(f"{keyword}: {_short(value)} is not a list of schemas")
    return value


def one_schema(keyword: str, value: Any) -> Any:
    if not isinstance(value, dict | bool):
        raise UnkeptError(f"{keyword}: {_short(value)} is not a schema")
    return value


def named_schemas(schema: Schema, keyword: str) -> dict[str, Any]:
    """Of a keyword whose value holds schemas by name."""
    value = schema.get(keyword, {})
    if not isinstance(value, dict):
        raise UnkeptError(f"{keyword}: {_short(value)} is not an object")
    return {name: one_schema(keyword, inner) for name, inner in value.items()}


def names(keyword: str, value: Any) -> list[str]:
    if not isinstance(value, list) or not all(isinstance(name, str) for name in value):
        raise UnkeptError(f"{keyword}: {_short(value)} is not a list of names")
    return value


def texts(schema: Schema, keyword: str) -> list[str]:
    """The value of a keyword, if it is there."""
    if keyword not in schema:
        return []
    if not isinstance(schema[keyword], str):
        raise UnkeptError(f"{keyword}: {_short(schema[keyword])} is not a string")
    return [schema[keyword]]


def count(schema: Schema, keyword: str) -> int | None:
    """Of a keyword whose value is a number of things; None if it is not there."""
    value = schema.get(keyword)
    if value is None and keyword not in schema:
        return None
    if isinstance(value, bool) or not isinstance(value, int | float) or value < 0 or value != int(value):
        raise UnkeptError(f"{keyword}: {_short(value)} is not a count")
    return int(value)


def types(schema: Schema) -> set[str]:
    """The types that `type` names: JSON's and "integer"; all without it."""
    if "type" not in schema:
        return set(JSON_TYPES)
    value = schema["type"]
    found = value if isinstance(value, list) else [value]
    for name in found:
        if name not in JSON_TYPES and name != "integer":
            raise UnkeptError(f"type: {_short(name)} is no type")
    return set(found)


def literals(schema: Schema) -> list[list[Any]]:
    """The values that `const` and `enum` leave."""
    found = [[schema["const"]]] if "const" in schema else []
    if "enum" in schema:
        if not isinstance(schema["enum"], list):
            raise UnkeptError(f"enum: {_short(schema['enum'])} is not a list")
        found.append(schema["enum"])
    return found


def bounds(schema: Schema) -> Bounds:
    """Of minimum and maximum; draft 4 says with booleans whether they are exclusive."""
    found = Bounds()
    for keyword, exclusive in (("minimum", "exclusiveMinimum"), ("maximum", "exclusiveMaximum")):
        is_open = schema.get(exclusive) is True
        if keyword in schema:
            found = found.both(_bound(keyword, _limit(keyword, schema[keyword]), is_open))
        if exclusive in schema and not isinstance(schema[exclusive], bool):
            found = found.both(_bound(keyword, _limit(exclusive, schema[exclusive]), True))
    return found


def steps(schema: Schema) -> list[Decimal]:
    """The value of multipleOf, if it is there."""
    if "multipleOf" not in schema:
        return []
    value = _limit("multipleOf", schema["multipleOf"])
    if value <= 0:
        raise UnkeptError(f"multipleOf: {_short(schema['multipleOf'])} is not above 0")
    return [value]


def _bound(keyword: str, limit: Decimal, is_open: bool) -> Bounds:
    if keyword == "minimum":
        return Bounds(low=limit, open_low=is_open)
    return Bounds(high=limit, open_high=is_open)


def _limit(keyword: str, value: Any) -> Decimal:
    if isinstance(value, bool) or not isinstance(value, int | float):
        raise UnkeptError(f"{keyword}: {_short(value)} is not a number")
    exact = Decimal(repr(value))
    if not exact.is_finite() or len(f"{exact:f}") > _MAX_DIGITS:
        raise UnkeptError(f"{keyword}: {_short(value)} has more than {_MAX_DIGITS} digits")
    return exact


def _short(value: Any) -> str:
    return repr(value)[:80]
