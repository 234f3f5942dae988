"""Arguments as JSON text: values cast by a tool's schema, and JSON that models wrote almost right.

Everything here takes and gives text, so that numbers keep the digits that the model wrote.
"""

from __future__ import annotations

import json
import re
from collections.abc import Mapping, Sequence
from typing import Any

from penstock.call import ToolSpec
from penstock.text.output.copy_value import JSON, Copy, Dialect, escape, number
from penstock.text.output.scan import Cursor, NotCallError, finish

_FENCE = re.compile(r"```[a-zA-Z0-9_]*\s*(.*?)\s*```", re.DOTALL)
_WHOLE = re.compile(r"[-+]?[0-9][0-9_]*(?:\.0*)?")
_TYPES = ("null", "boolean", "integer", "number", "object", "array", "string")
_WORDS = {"true": "true", "false": "false", "True": "true", "False": "false"}
_NULLS = ("null", "None")


def normalize(text: str, dialect: Dialect = JSON) -> tuple[str, list[str]] | None:
    """(one value as JSON, what was repaired); None if `text` is not one value."""
    pieces: list[str] = []
    cursor = Cursor(text.strip(), closed=True)
    copy = Copy(cursor, pieces.append, dialect)
    try:
        finish(copy.value())
    except NotCallError:
        return None
    return ("".join(pieces), copy.repairs) if cursor.at == len(cursor.buffer) else None


def repair_json(text: str) -> tuple[str, list[str]] | None:
    """As `normalize`, and a code fence around the value is taken off."""
    found = normalize(text)
    fence = _FENCE.fullmatch(text.strip()) if found is None else None
    if fence is not None and (found := normalize(fence[1])) is not None:
        return found[0], ["code fence", *found[1]]
    return found


# --------------------------------------------------------------------------- schemas


class Schemas:
    """The parameter schemas of the tools of a call."""

    def __init__(self, tools: Sequence[ToolSpec]) -> None:
        self._tools = {tool.name: tool.parameters or {} for tool in tools}

    def root(self, tool: str) -> Mapping[str, Any]:
        return self._tools.get(tool) or {}

    def parameter(self, tool: str, key: str) -> Any:
        """The schema of one parameter; None if the tool does not know it."""
        root = self.root(tool)
        return property_schema(root, key, root)


def resolve(schema: Any, root: Mapping[str, Any]) -> Mapping[str, Any]:
    """`schema` with a local `$ref` followed."""
    for _ in range(8):  # a chain of references is short; a circle is not followed for ever
        if not isinstance(schema, Mapping) or not isinstance(schema.get("$ref"), str):
            break
        target: Any = root
        for name in schema["$ref"].removeprefix("#").strip("/").split("/"):
            target = target.get(name) if isinstance(target, Mapping) else None
        schema = target
    return schema if isinstance(schema, Mapping) else {}


def alternatives(schema: Any, root: Mapping[str, Any], depth: int = 0) -> list[Mapping[str, Any]]:
    """The schemas of which one holds, `anyOf`, `oneOf` and `allOf` opened."""
    schema = resolve(schema, root)
    found = [schema]
    if depth < 4:
        for word in ("anyOf", "oneOf", "allOf"):
            inner = schema.get(word)
            for one in inner if isinstance(inner, list) else ():
                found.extend(alternatives(one, root, depth + 1))
    return found


def property_schema(schema: Any, key: str, root: Mapping[str, Any]) -> Any:
    """The schema of an object's member; None if it is not declared."""
    for one in alternatives(schema, root):
        properties = one.get("properties")
        if isinstance(properties, Mapping) and key in properties:
            return properties[key]
    for one in alternatives(schema, root):
        if isinstance(one.get("additionalProperties"), Mapping):
            return one["additionalProperties"]
    return None


def item_schema(schema: Any, root: Mapping[str, Any]) -> Any:
    return next((one["items"] for one in alternatives(schema, root) if "items" in one), None)


def types(schema: Any, root: Mapping[str, Any]) -> set[str]:
    """The JSON types that a schema allows; empty if it does not say."""
    found: set[str] = set()
    for one in alternatives(schema, root):
        given = one.get("type")
        found.update(given if isinstance(given, list) else [given] if isinstance(given, str) else [])
        values = one["enum"] if isinstance(one.get("enum"), list) else []
        if given is None:
            found.update(_type_of(value) for value in [*values, *([one["const"]] if "const" in one else [])])
        if one.get("nullable") is True:
            found.add("null")
    return {name for name in found if name in _TYPES}


def _type_of(value: Any) -> str:
    if value is None or isinstance(value, bool):
        return "null" if value is None else "boolean"
    if isinstance(value, int | float):
        return "integer" if isinstance(value, int) else "number"
    return "string" if isinstance(value, str) else "array" if isinstance(value, list) else "object"


# --------------------------------------------------------------------------- casting


def quoted(text: str) -> str:
    return f'"{escape(text)}"'


def cast(
    text: str, schema: Any, root: Mapping[str, Any] | None = None, *, is_string: bool = False
) -> tuple[str, list[str]]:
    """(an untyped value as JSON, what was repaired).

    A type that the schema names is taken if the text reads as it, strings last; a parameter without a schema
    is JSON if its text is, unless `is_string` says that the model wrote a string. Text that is none of it
    stays a string: whoever checks the arguments will say so better than a lost call.
    """
    wanted = types(schema, root or {})
    if not wanted:
        found = None if is_string else normalize(text)
        return found if found is not None and not found[1] else (quoted(text), [])
    if "string" in wanted and is_string:
        return quoted(text), []
    if "string" in wanted and text in _string_values(schema, root or {}):
        return quoted(text), []
    for name in _TYPES[:-1]:
        if name in wanted and (read := _read(name, text.strip())) is not None:
            return read
    return quoted(text), []


def _string_values(schema: Any, root: Mapping[str, Any]) -> list[Any]:
    return [value for one in alternatives(schema, root) for value in (one.get("enum") or ())]


def _read(name: str, text: str) -> tuple[str, list[str]] | None:
    """`text` as a value of one type; None if it does not read as one."""
    plain = None
    if name == "null":
        plain = "null" if text in _NULLS else None
    elif name == "boolean":
        plain = _WORDS.get(text)
    elif name == "integer":
        plain = number(text.partition(".")[0]) if _WHOLE.fullmatch(text) else None
    elif name == "number":
        plain = number(text)
    else:
        found = repair_json(text)
        return found if found is not None and found[0][0] == ("{" if name == "object" else "[") else None
    return None if plain is None else (plain, [])


def decode(text: str) -> str:
    """The content of a JSON string. Raises NotCallError for half of a surrogate pair, which is no text."""
    content: str = json.loads(text)
    if any("\ud800" <= char <= "\udfff" for char in content):
        raise NotCallError("half of a surrogate pair")
    return content
