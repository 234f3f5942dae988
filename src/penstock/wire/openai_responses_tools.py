"""Tools of the Responses format ⇄ ToolSpec.

Functions and custom (freeform) tools may stand alone or in a namespace. For a model all of them are
functions: a custom tool has one argument, `input`; a tool of a namespace is called NAMESPACE__NAME. A regex
format becomes the pattern of `input`, a Lark one is told in the description: a JSON schema can't hold it.

Tools that the server itself would have to run (web search and the like) are declared by clients by default.
They are not offered to the model, and refused only where a choice demands one or where leaving them out
would answer another question than was asked.
"""

from __future__ import annotations

import json
import re
from collections.abc import Iterable
from typing import Annotated, Any, Literal

import msgspec
from msgspec import Meta, Struct

from penstock.call import CustomFormat, ToolNamespace, ToolSpec
from penstock.errors import InvalidRequest
from penstock.wire.openai_messages import Name

SEPARATOR = "__"
INPUT = "input"  # the one argument of a custom tool
# Declared by clients whether or not anyone uses them; without them the model answers by itself.
OPTIONAL = ("web_search", "image_generation", "tool_search", "programmatic_tool_calling", "local_shell")

Json = dict[str, Any]


class FunctionTool(Struct, tag_field="type", tag="function", omit_defaults=True):
    name: Name
    description: str | None = None
    parameters: Json | None = None
    strict: bool | None = None


class TextInput(Struct, tag_field="type", tag="text"):
    pass


class GrammarInput(Struct, tag_field="type", tag="grammar"):
    syntax: Literal["lark", "regex"]
    definition: Annotated[str, Meta(min_length=1)]


class CustomTool(Struct, tag_field="type", tag="custom", omit_defaults=True):
    name: Name
    description: str | None = None
    format: TextInput | GrammarInput | None = None


class NamespaceTool(Struct, tag_field="type", tag="namespace"):
    name: Name
    tools: list[FunctionTool | CustomTool]
    description: str = ""


_TYPES: dict[str, type[Struct]] = {
    "function": FunctionTool,
    "custom": CustomTool,
    "namespace": NamespaceTool,
}


def convert(value: Any, cls: Any, path: str) -> Any:
    """`value` as a `cls`. Raises InvalidRequest naming the field inside `path`."""
    try:
        return msgspec.convert(value, cls)
    except msgspec.ValidationError as error:
        what, _, inner = str(error).partition(" - at `$")
        name = path + inner.removesuffix("`")
        what = what.replace("`", "").replace("Expected", "expected", 1)
        raise InvalidRequest(f"{name}: {what}", param=name) from None


def read_tools(tools: Iterable[Json], path: str = "tools") -> tuple[list[ToolSpec], list[Json]]:
    """(what the model is offered, what is left out). Raises InvalidRequest naming the tool."""
    specs: list[ToolSpec] = []
    left_out: list[Json] = []
    for i, tool in enumerate(tools):
        kind, where = tool.get("type"), f"{path}[{i}]"
        cls = _TYPES.get(kind) if isinstance(kind, str) else None
        if cls is not None:
            specs.extend(_specs(convert(tool, cls, where)))
        elif isinstance(kind, str) and kind.startswith(OPTIONAL):
            left_out.append(tool)
        else:
            raise InvalidRequest(
                f"{where}.type: {kind!r} is a tool that this server can't run; offer a function instead",
                param=f"{where}.type",
                code="unsupported_parameter",
            )
    return specs, left_out


def _specs(tool: Any) -> list[ToolSpec]:
    if isinstance(tool, NamespaceTool):
        namespace = ToolNamespace(tool.name, tool.description)
        return [_spec(inner, namespace) for inner in tool.tools]
    return [_spec(tool, None)]


def _spec(tool: FunctionTool | CustomTool, namespace: ToolNamespace | None) -> ToolSpec:
    name = flat_name(namespace.name if namespace else None, tool.name)
    if isinstance(tool, FunctionTool):
        return ToolSpec(name, tool.description, tool.parameters, bool(tool.strict), namespace=namespace)
    form = CustomFormat()
    if isinstance(tool.format, GrammarInput):
        form = CustomFormat(tool.format.syntax, tool.format.definition)
    return ToolSpec(name, tool.description, _input_schema(form), False, form, namespace)


def _input_schema(form: CustomFormat) -> Json:
    """JSON schema of a custom tool's arguments."""
    text: Json = {"type": "string"}
    if form.syntax == "regex":
        text["pattern"] = f"^(?:{form.definition})$"
    elif form.syntax == "lark":
        text["description"] = f"Text of this grammar, in Lark's notation:\n{form.definition}"
    return {"type": "object", "properties": {INPUT: text}, "required": [INPUT], "additionalProperties": False}


def write_tools(tools: Iterable[ToolSpec]) -> list[Json]:
    """The inverse of `read_tools`. Neighbours of one namespace make one namespace tool."""
    written: list[Json] = []
    last: ToolNamespace | None = None
    for spec in tools:
        body = msgspec.to_builtins(_body(spec))
        if spec.namespace is None:
            written.append(body)
        elif spec.namespace == last:
            written[-1]["tools"].append(body)
        else:
            head = {
                "type": "namespace",
                "name": spec.namespace.name,
                "description": spec.namespace.description,
            }
            written.append(head | {"tools": [body]})
        last = spec.namespace
    return written


def _body(spec: ToolSpec) -> FunctionTool | CustomTool:
    name = local_name(spec)
    if spec.custom is None:
        return FunctionTool(name, spec.description, spec.parameters, spec.strict or None)
    form = spec.custom
    grammar = None if form.syntax == "text" else GrammarInput(form.syntax, form.definition)
    return CustomTool(name, spec.description, grammar)


def flat_name(namespace: str | None, name: str) -> str:
    return name if namespace is None else f"{namespace}{SEPARATOR}{name}"


def local_name(spec: ToolSpec) -> str:
    """The tool's name inside its namespace."""
    return spec.name.removeprefix(spec.namespace.name + SEPARATOR) if spec.namespace else spec.name


# --------------------------------------------------------------------------- the choice


class AllowedTools(Struct, tag_field="type", tag="allowed_tools"):
    mode: Literal["auto", "required"]
    tools: list[Json]


def read_choice(choice: Any, specs: list[ToolSpec]) -> tuple[str | None, list[ToolSpec]]:
    """(choice as Call says it, the tools that remain). Raises InvalidRequest."""
    if choice is None or choice in ("none", "auto"):
        return choice, specs
    if choice == "required":
        if not specs:
            raise _bad_choice("'required' needs a function or custom tool in `tools`")
        return choice, specs
    if not isinstance(choice, dict):
        raise _bad_choice(f"{choice!r}; use none, auto, required or an object that names a tool")
    kind = choice.get("type")
    if kind in ("function", "custom"):
        return f"tool:{_named(choice, specs).name}", specs
    if kind == "allowed_tools":
        allowed = convert(choice, AllowedTools, "tool_choice")
        names = {
            _named(tool, specs).name for tool in allowed.tools if tool.get("type") in ("function", "custom")
        }
        if not names and allowed.mode == "required":
            raise _bad_choice("no function or custom tool is allowed, but one is required")
        return allowed.mode, [spec for spec in specs if spec.name in names]
    raise _bad_choice(f"{kind!r} is a tool that this server can't run")


def _named(choice: Json, specs: list[ToolSpec]) -> ToolSpec:
    wanted = flat_name(choice.get("namespace"), str(choice.get("name")))
    custom = choice.get("type") == "custom"
    for spec in specs:
        if spec.name == wanted and (spec.custom is not None) == custom:
            return spec
    raise _bad_choice(f"{choice.get('type')} {wanted!r} is not among the tools")


def _bad_choice(reason: str) -> InvalidRequest:
    return InvalidRequest(f"tool_choice: {reason}", param="tool_choice")


def write_choice(choice: str | None, tools: Iterable[ToolSpec]) -> Any:
    """The inverse of `read_choice`, which may be any string or an object."""
    if choice is None or not choice.startswith("tool:"):
        return choice
    name = choice.removeprefix("tool:")
    spec = next((spec for spec in tools if spec.name == name), ToolSpec(name))
    written: Json = {"type": "function" if spec.custom is None else "custom", "name": local_name(spec)}
    return written | ({"namespace": spec.namespace.name} if spec.namespace else {})


# --------------------------------------------------------------------------- custom input in JSON


class InputReader:
    """The text of a custom tool's `input` while its JSON arguments arrive in pieces.

    `feed` returns what more of the text is known. Arguments that don't begin as `{"input": "` are the input
    themselves, given by `close`: a model may forget the wrapping.
    """

    _HEADS = ("{", f'"{INPUT}"', ":", '"')

    def __init__(self) -> None:
        self._given = ""  # arguments so far, while the head is incomplete; then the undecoded rest
        self._inside = False
        self._ended = False

    def feed(self, piece: str) -> str:
        if self._ended:
            return ""
        self._given += piece
        if not self._inside:
            rest = self._after_head()
            if rest is None:
                return ""
            self._inside, self._given = True, rest
        return self._take()

    def close(self) -> str:
        """What is left: all of it where the arguments had another form, else nothing that is whole."""
        return "" if self._inside else self._given

    def _after_head(self) -> str | None:
        rest = self._given
        for token in self._HEADS:
            rest = rest.lstrip()
            if not rest.startswith(token):
                return None
            rest = rest[len(token) :]
        return rest

    def _take(self) -> str:
        end = 0
        text = self._given
        while end < len(text):
            if text[end] == '"':
                self._ended = True
                break
            step = _escape_length(text, end) if text[end] == "\\" else 1
            if step is None or end + step > len(text):
                break
            end += step
        whole, self._given = text[:end], text[end:]
        return _ESCAPE.sub(_unescape, whole)


_ESCAPE = re.compile(r"\\u[dD][89abAB]..\\u....|\\u....|\\.", re.DOTALL)


def _unescape(match: re.Match[str]) -> str:
    """The character of one escape; one that JSON does not have stays as it is."""
    try:
        found: str = json.loads(f'"{match[0]}"')
    except ValueError:
        return match[0]
    return found.encode("utf-16", "surrogatepass").decode("utf-16", "replace")


def _escape_length(text: str, at: int) -> int | None:
    """Characters of the escape at `at`; a pair of surrogates counts as one. None: not all there yet."""
    if at + 1 >= len(text):
        return None
    if text[at + 1] != "u":
        return 2
    if at + 6 > len(text):
        return None
    if text[at + 2 : at + 4].lower() not in ("d8", "d9", "da", "db"):
        return 6
    if len(text) < at + 8:  # its second half may still come
        return None
    return 12 if text[at + 6 : at + 8] == "\\u" else 6


def read_input(arguments: str) -> str:
    """The text of a custom tool's `input` in its whole arguments."""
    reader = InputReader()
    return reader.feed(arguments) + reader.close()


def write_input(text: str) -> str:
    """The arguments of a custom tool for that text."""
    return json.dumps({INPUT: text}, ensure_ascii=False, separators=(",", ":"))
