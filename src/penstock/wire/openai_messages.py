"""Chat messages and tools of the OpenAI format ⇄ Message, ToolSpec.

What the format can't say: where reasoning or a tool call stood between pieces of text (an assistant
message reads as reasoning, text, calls), an error flag on a tool result, a signature on reasoning.
"""

from __future__ import annotations

from typing import Annotated, Any, Literal

from msgspec import Meta, Struct

from penstock.call import (
    ImagePart,
    Message,
    Part,
    ReasoningPart,
    ResponseFormat,
    TextPart,
    ToolCallPart,
    ToolResultPart,
    ToolSpec,
)
from penstock.errors import InvalidRequest

Name = Annotated[str, Meta(min_length=1, max_length=256)]


class TextContent(Struct, tag_field="type", tag="text"):
    text: str


class RefusalContent(Struct, tag_field="type", tag="refusal"):
    refusal: str


class ImageUrl(Struct, omit_defaults=True):
    url: str
    detail: str | None = None


class ImageContent(Struct, tag_field="type", tag="image_url"):
    image_url: ImageUrl


class CalledFunction(Struct):
    name: Name
    arguments: str = ""


class AssistantToolCall(Struct):
    id: str
    function: CalledFunction
    type: Literal["function"] = "function"


class ChatMessage(Struct, omit_defaults=True):
    """`reasoning` and `reasoning_content` are the two spellings in use; the second wins."""

    role: Literal["system", "developer", "user", "assistant", "tool"]
    content: str | list[TextContent | ImageContent | RefusalContent] | None = None
    name: str | None = None
    tool_calls: list[AssistantToolCall] | None = None
    tool_call_id: str | None = None
    refusal: str | None = None
    reasoning: str | None = None
    reasoning_content: str | None = None


class FunctionSpec(Struct, omit_defaults=True):
    name: Name
    description: str | None = None
    parameters: dict[str, Any] | None = None
    strict: bool | None = None


class Tool(Struct):
    function: FunctionSpec
    type: Literal["function"]


class NamedFunction(Struct):
    name: Name


class NamedToolChoice(Struct):
    function: NamedFunction
    type: Literal["function"]


class TextFormat(Struct, tag_field="type", tag="text"):
    pass


class JsonObjectFormat(Struct, tag_field="type", tag="json_object"):
    pass


class JsonSchema(Struct, omit_defaults=True):
    name: Name
    schema: dict[str, Any] | None = None
    strict: bool | None = None
    description: str | None = None


class JsonSchemaFormat(Struct, tag_field="type", tag="json_schema"):
    json_schema: JsonSchema


AnyFormat = TextFormat | JsonObjectFormat | JsonSchemaFormat


def read_messages(messages: list[ChatMessage]) -> tuple[Message, ...]:
    return tuple(_read_message(message, f"messages[{i}]") for i, message in enumerate(messages))


def _read_message(message: ChatMessage, path: str) -> Message:
    content = _read_content(message.content)
    if message.role == "tool":
        if message.tool_call_id is None:
            raise InvalidRequest(
                f"{path}.tool_call_id: a tool message needs the id of the call that it answers",
                param=f"{path}.tool_call_id",
            )
        result = tuple(part for part in content if isinstance(part, TextPart | ImagePart))
        return Message("tool", (ToolResultPart(message.tool_call_id, result),), message.name)
    if message.role != "assistant":
        return Message(message.role, content, message.name)
    parts: list[Part] = []
    reasoning = message.reasoning if message.reasoning_content is None else message.reasoning_content
    if reasoning is not None:
        parts.append(ReasoningPart(reasoning))
    parts.extend(content)
    if message.refusal:
        parts.append(TextPart(message.refusal))
    for call in message.tool_calls or ():
        parts.append(ToolCallPart(call.id, call.function.name, call.function.arguments))
    return Message("assistant", tuple(parts), message.name)


def _read_content(
    content: str | list[TextContent | ImageContent | RefusalContent] | None,
) -> tuple[Part, ...]:
    if content is None:
        return ()
    if isinstance(content, str):
        return (TextPart(content),)
    parts: list[Part] = []
    for item in content:
        if isinstance(item, TextContent):
            parts.append(TextPart(item.text))
        elif isinstance(item, RefusalContent):
            parts.append(TextPart(item.refusal))
        else:
            parts.append(ImagePart(url=item.image_url.url, detail=item.image_url.detail))
    return tuple(parts)


def write_messages(messages: tuple[Message, ...]) -> list[ChatMessage]:
    """One wire message per Message, and one more for each further tool result in it."""
    written: list[ChatMessage] = []
    for message in messages:
        results = [part for part in message.parts if isinstance(part, ToolResultPart)]
        for result in results:
            written.append(
                ChatMessage("tool", _write_content(result.content), message.name, tool_call_id=result.id)
            )
        if not results:
            written.append(_write_message(message))
    return written


def _write_message(message: Message) -> ChatMessage:
    content = tuple(part for part in message.parts if isinstance(part, TextPart | ImagePart))
    calls = [
        AssistantToolCall(part.id, CalledFunction(part.name, part.arguments))
        for part in message.parts
        if isinstance(part, ToolCallPart)
    ]
    reasoning = [part.text for part in message.parts if isinstance(part, ReasoningPart)]
    return ChatMessage(
        role=message.role,
        content=_write_content(content),
        name=message.name,
        tool_calls=calls or None,
        reasoning_content="".join(reasoning) if reasoning else None,
    )


def _write_content(
    parts: tuple[TextPart | ImagePart, ...],
) -> str | list[TextContent | ImageContent | RefusalContent] | None:
    if not parts:
        return None
    if len(parts) == 1 and isinstance(parts[0], TextPart):
        return parts[0].text
    return [
        TextContent(part.text)
        if isinstance(part, TextPart)
        else ImageContent(ImageUrl(image_url(part), part.detail))
        for part in parts
    ]


def image_url(part: ImagePart) -> str:
    """Its URL; bytes become a data: URL."""
    if part.url is not None:
        return part.url
    import base64

    data = base64.b64encode(part.data or b"").decode()
    return f"data:{part.media_type or 'application/octet-stream'};base64,{data}"


def read_tools(tools: list[Tool] | None) -> tuple[ToolSpec, ...]:
    return tuple(
        ToolSpec(
            tool.function.name,
            tool.function.description,
            tool.function.parameters,
            bool(tool.function.strict),
        )
        for tool in tools or ()
    )


def write_tools(tools: tuple[ToolSpec, ...]) -> list[Tool] | None:
    return [
        Tool(FunctionSpec(tool.name, tool.description, tool.parameters, tool.strict or None), "function")
        for tool in tools
    ] or None


def read_tool_choice(choice: str | NamedToolChoice | None, tools: tuple[ToolSpec, ...]) -> str | None:
    if isinstance(choice, NamedToolChoice):
        name = choice.function.name
        if name not in {tool.name for tool in tools}:
            raise InvalidRequest(
                f"tool_choice.function.name: {name!r} is not among the tools", param="tool_choice"
            )
        return f"tool:{name}"
    if choice == "required" and not tools:
        raise InvalidRequest(
            "tool_choice: 'required' needs at least one entry in `tools`", param="tool_choice"
        )
    return choice


def write_tool_choice(choice: str | None) -> Any:
    """ "none", "auto", "required", or the object that names a function."""
    if choice is not None and choice.startswith("tool:"):
        return NamedToolChoice(NamedFunction(choice.removeprefix("tool:")), "function")
    return choice


def read_format(form: AnyFormat | None) -> ResponseFormat | None:
    if form is None:
        return None
    if isinstance(form, JsonSchemaFormat):
        spec = form.json_schema
        return ResponseFormat("json_schema", spec.schema, spec.name, bool(spec.strict))
    return ResponseFormat("json_object" if isinstance(form, JsonObjectFormat) else "text")


def write_format(form: ResponseFormat | None) -> AnyFormat | None:
    if form is None:
        return None
    if form.kind == "json_schema":
        return JsonSchemaFormat(JsonSchema(form.name or "answer", form.schema, form.strict or None))
    return JsonObjectFormat() if form.kind == "json_object" else TextFormat()
