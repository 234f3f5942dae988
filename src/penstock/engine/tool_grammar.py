"""Forced tool calls: the grammar of an answer that is one call or several, in the model's own form.

Arguments follow each tool's schema. An object that lists its properties and does not say whether it takes
others takes none: what comes is valid all the same, and a small model ends.
"""

from __future__ import annotations

import json
from collections.abc import Callable, Sequence
from typing import Any

from penstock.call import ToolSpec
from penstock.decoding.grammar.spec import WHITESPACE, GrammarSpec, spec_of_text
from penstock.errors import InvalidRequest
from penstock.text.output.format import CallSyntax, OutputFormat

MOST_CALLS = 4  # of one answer that must call: small models do not find the end by themselves
# Names that clients write in schemas for the types of their own language.
_ALIASES = {
    "dict": "object",
    "float": "number",
    "double": "number",
    "int": "integer",
    "long": "integer",
    "str": "string",
    "String": "string",
    "bool": "boolean",
    "Boolean": "boolean",
    "list": "array",
    "tuple": "array",
    "Array": "array",
}
_NESTED = ("properties", "$defs", "definitions", "patternProperties")
_DATA = ("enum", "const", "default", "examples", "required", "description", "title")


def forced_calls(
    form: OutputFormat,
    tools: Sequence[ToolSpec],
    choice: str,
    parallel: bool,
    special: Callable[[str], int | None],
) -> GrammarSpec:
    """Of an answer that must call one of `tools` ("required"), or the one of "tool:NAME" once.

    `special`: id of the special token that a text is, None if it is ordinary text. Raises InvalidRequest for
    a tool that does not exist, and for formats whose calls are no JSON.
    """
    if not tools:
        raise InvalidRequest(f"tool_choice: {choice!r} needs tools", param="tool_choice")
    name = choice.removeprefix("tool:") if choice.startswith("tool:") else None
    chosen = [tool for tool in tools if name is None or tool.name == name]
    if not chosen:
        known = ", ".join(tool.name for tool in tools)
        raise InvalidRequest(
            f"tool_choice: there is no tool {name!r}; there are {known}", param="tool_choice"
        )
    syntax = form.syntax
    if syntax is None or syntax.arguments != "json":
        raise InvalidRequest(
            f"tool_choice: calls of this model's form ({form.name}) can't be forced yet; use 'auto'",
            param="tool_choice",
            code="unsupported_parameter",
        )
    several = parallel and name is None
    return spec_of_text("grammar", _lark(syntax, chosen, several, special), "tools")


def _lark(
    syntax: CallSyntax, tools: Sequence[ToolSpec], several: bool, special: Callable[[str], int | None]
) -> str:
    def text(*parts: str) -> str:
        return " ".join(shown for part in parts if (shown := _literal(part, special)))

    more = f" ({text(syntax.separator)} call){{0,{MOST_CALLS - 1}}}" if several else ""
    rules = [f"start: {text(syntax.begin)} call{more} {text(syntax.end)}"]
    rules.append("call: " + " | ".join(f"call_{i}" for i in range(len(tools))))
    before, behind = syntax.call_begin
    for i, tool in enumerate(tools):
        name = json.dumps(tool.name, ensure_ascii=False)[1:-1]  # it stands between quotes, or alone
        begin = text(before + name + behind) if special(before) is None else text(before, name + behind)
        rules.append(f"call_{i}: {begin} arguments_{i} {text(syntax.call_end)}")
        schema = argument_schema(tool) | {"x-guidance": {"whitespace_pattern": WHITESPACE}}
        rules.append(f"arguments_{i}: %json {json.dumps(schema, ensure_ascii=False)}")
    return "\n".join(rules)


def _literal(text: str, special: Callable[[str], int | None]) -> str:
    token = special(text)
    if token is not None:
        return f"<[{token}]>"
    return json.dumps(text, ensure_ascii=False) if text else ""


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
        elif keyword in _NESTED and isinstance(value, dict):
            found[keyword] = {name: _normal(inner) for name, inner in value.items()}
        else:
            found[keyword] = _normal(value)
    if found.get("type") == "object" and found.get("properties"):
        found.setdefault("additionalProperties", False)
    return found
