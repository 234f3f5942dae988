"""The schemas of tools' arguments, in JSON Schema's own names and as grammars take them.

An object that lists its properties and does not say whether it takes others takes none: what comes is valid
all the same, and a small model ends.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from penstock.call import ToolSpec
from penstock.decoding.grammar.llguidance_backend import FORMATS
from penstock.text.output.arguments import resolve

# Names that clients write in schemas for the types of their own language.
_ALIASES = {
    "dict": "object",
    "HashMap": "object",
    "Hashtable": "object",
    "float": "number",
    "double": "number",
    "int": "integer",
    "long": "integer",
    "short": "integer",
    "Bigint": "integer",
    "str": "string",
    "String": "string",
    "char": "string",
    "bool": "boolean",
    "Boolean": "boolean",
    "list": "array",
    "tuple": "array",
    "Array": "array",
    "ArrayList": "array",
}
_NESTED = ("properties", "$defs", "definitions", "patternProperties")
_DATA = ("enum", "const", "default", "examples", "required", "description", "title")


def argument_schema(tool: ToolSpec) -> dict[str, Any]:
    """The schema of a tool's arguments, in JSON Schema's own names."""
    schema = _normal(tool.parameters or {})
    assert isinstance(schema, dict)
    schema.setdefault("type", "object")
    if schema["type"] == "object":
        schema.setdefault("properties", {})
        schema.setdefault("additionalProperties", False)
    return schema


def _normal(schema: Any) -> Any:
    if isinstance(schema, list):
        return [_normal(item) for item in schema]
    if not isinstance(schema, dict):
        return schema
    found: dict[str, Any] = {}
    for keyword, value in schema.items():
        if keyword == "type":
            names = [_ALIASES.get(name, name) for name in (value if isinstance(value, list) else [value])]
            if "any" not in names:
                found["type"] = names if isinstance(value, list) else names[0]
        elif keyword in _DATA:
            found[keyword] = value
        elif keyword == "format" and value not in FORMATS:
            continue  # a word of another standard says nothing about validity
        elif keyword in _NESTED and isinstance(value, dict):
            found[keyword] = {name: _normal(inner) for name, inner in value.items()}
        else:
            found[keyword] = _normal(value)
    if found.get("type") == "object" and found.get("properties"):
        found.setdefault("additionalProperties", False)
    return found


# --------------------------------------------------------------------------- one type at a time

# What says more than a grammar of one value can hold. Other keywords that are not below are notes.
_REFUSED = frozenset(
    {"not", "if", "then", "else", "dependentRequired", "dependentSchemas", "dependencies"}
    | {"unevaluatedProperties", "unevaluatedItems", "$dynamicRef", "$recursiveRef"}
)
_OF_TYPE: dict[str, set[str]] = {
    "string": {"minLength", "maxLength", "pattern", "format"},
    "integer": {"minimum", "maximum", "exclusiveMinimum", "exclusiveMaximum", "multipleOf", "format"},
    "array": {"items", "minItems", "maxItems", "uniqueItems", "prefixItems", "contains"},
    "object": {"properties", "required", "additionalProperties", "patternProperties", "propertyNames"}
    | {"minProperties", "maxProperties"},
    "boolean": set(),
    "null": set(),
}
_OF_TYPE["number"] = _OF_TYPE["integer"]
_CONSTRAINTS = frozenset(word for words in _OF_TYPE.values() for word in words) | frozenset(
    ["type", "enum", "const", "anyOf", "oneOf", "allOf"]
)
MAX_BRANCHES = 64


class UnwritableError(Exception):
    """A schema that the form of a model's calls can't be held to: why, in words."""


def branches(schema: Any, root: Mapping[str, Any]) -> list[dict[str, Any]]:
    """Schemas of one type each (or of an `enum`, or {} for anything) whose union `schema` allows.

    `root`: where references point into. Raises UnwritableError for keywords that can't be split so.
    """
    found = _branches(schema, root, 0)
    if len(found) > MAX_BRANCHES:
        raise UnwritableError(f"a value with {len(found)} alternatives, at most {MAX_BRANCHES} are possible")
    return found


def constraints(schema: Mapping[str, Any]) -> set[str]:
    """The keywords of `schema` that say what is valid, other than references."""
    return {word for word in schema if word in _CONSTRAINTS or word in _REFUSED}


def _branches(schema: Any, root: Mapping[str, Any], depth: int) -> list[dict[str, Any]]:
    if depth > 8:
        raise UnwritableError("alternatives nested deeper than 8")
    if schema is True or schema is None:
        return [{}]
    if not isinstance(schema, Mapping):
        raise UnwritableError(f"the schema {schema!r}")
    if refused := sorted(_REFUSED & schema.keys()):
        raise UnwritableError(f"the keyword {refused[0]!r}")
    own = {word: value for word, value in schema.items() if word in _CONSTRAINTS or word == "nullable"}
    if "$ref" in schema:
        return _branches(_both(own, dict(resolve(schema, root))), root, depth + 1)
    for word in ("anyOf", "oneOf"):
        if word in own:
            rest = {keyword: value for keyword, value in own.items() if keyword != word}
            alternatives = [_both(rest, dict(resolve(one, root))) for one in own[word]]
            return [one for found in alternatives for one in _branches(found, root, depth + 1)]
    if "allOf" in own:
        merged = {keyword: value for keyword, value in own.items() if keyword != "allOf"}
        for one in own["allOf"]:
            merged = _both(merged, dict(resolve(one, root)))
        return _branches(merged, root, depth + 1)
    return _plain(own)


def _plain(own: Mapping[str, Any]) -> list[dict[str, Any]]:
    """The branches of a schema without references and alternatives."""
    if "const" in own:
        return [{"enum": [own["const"]]}]
    if "enum" in own:
        return [{"enum": list(own["enum"])}]
    names = own.get("type")
    if names is None:
        names = next((name for name, words in _OF_TYPE.items() if (words - {"format"}) & own.keys()), None)
    if names is None:
        return [{}]
    listed = names if isinstance(names, list) else [names]
    return [_typed(name, own) for name in (*listed, *(["null"] if own.get("nullable") is True else []))]


def _typed(name: Any, schema: Mapping[str, Any]) -> dict[str, Any]:
    if name not in _OF_TYPE:
        raise UnwritableError(f"the type {name!r}")
    return {"type": name} | {word: schema[word] for word in schema if word in _OF_TYPE[name]}


def _both(first: dict[str, Any], second: dict[str, Any]) -> dict[str, Any]:
    """A schema that asks for both."""
    found = dict(first)
    for word, value in second.items():
        if word not in _CONSTRAINTS or word not in found or found[word] == value:
            found[word] = value
        elif word == "properties":
            found[word] = {**found[word], **value}
        elif word == "required":
            found[word] = list(dict.fromkeys([*found[word], *value]))
        else:
            raise UnwritableError(f"two values of the keyword {word!r}")
    return found
