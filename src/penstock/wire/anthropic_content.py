"""Messages, content blocks and tools of the Anthropic format ⇄ Message, ToolSpec.

Tool results stand at the head of a user message here and are messages of their own in a Call. Thinking that
this server signed reads as reasoning without a signature; all other keeps its own, for whoever wrote it.

What the format can't say: a speaker's name, the detail of an image, reasoning that nobody signed.
"""

from __future__ import annotations

import base64
import binascii
from typing import Annotated, Any, Literal, TypeVar

import msgspec
from msgspec import Meta, Struct

from penstock.call import (
    ImagePart,
    Message,
    Part,
    ReasoningPart,
    TextPart,
    ToolCallPart,
    ToolResultPart,
    ToolSpec,
)
from penstock.errors import InvalidRequest
from penstock.wire.anthropic_signature import Signer

B = TypeVar("B")
Name = Annotated[str, Meta(min_length=1, max_length=256)]
INVALID_JSON = "INVALID_JSON"  # Anthropic's key for a tool input that is no JSON object


class CacheControl(Struct, omit_defaults=True):
    type: Literal["ephemeral"]
    ttl: Literal["5m", "1h"] | None = None


class Base64Source(Struct, tag_field="type", tag="base64"):
    media_type: str
    data: str


class UrlSource(Struct, tag_field="type", tag="url"):
    url: str


class FileSource(Struct, tag_field="type", tag="file"):
    file_id: str


class TextSource(Struct, tag_field="type", tag="text"):
    data: str
    media_type: Literal["text/plain"] = "text/plain"


class TextBlock(Struct, tag_field="type", tag="text", omit_defaults=True):
    text: str
    cache_control: CacheControl | None = None


class TextOnly(Struct, omit_defaults=True):
    """A text block where no other kind may stand: there msgspec would not miss a tag."""

    type: Literal["text"]
    text: str
    cache_control: CacheControl | None = None


class ImageBlock(Struct, tag_field="type", tag="image", omit_defaults=True):
    source: Base64Source | UrlSource | FileSource
    cache_control: CacheControl | None = None


class ContentSource(Struct, tag_field="type", tag="content"):
    content: str | list[TextBlock | ImageBlock]


class DocumentBlock(Struct, tag_field="type", tag="document", omit_defaults=True):
    source: TextSource | ContentSource | Base64Source | UrlSource | FileSource
    title: str | None = None
    context: str | None = None
    cache_control: CacheControl | None = None


class SearchResultBlock(Struct, tag_field="type", tag="search_result", omit_defaults=True):
    source: str
    title: str
    content: list[TextOnly]
    cache_control: CacheControl | None = None


class ToolReferenceBlock(Struct, tag_field="type", tag="tool_reference", omit_defaults=True):
    tool_name: str
    cache_control: CacheControl | None = None


ResultBlock = TextBlock | ImageBlock | DocumentBlock | SearchResultBlock | ToolReferenceBlock


class ToolUseBlock(Struct, tag_field="type", tag="tool_use", omit_defaults=True):
    id: str
    name: Name
    input: dict[str, Any]
    cache_control: CacheControl | None = None


class ToolResultBlock(Struct, tag_field="type", tag="tool_result", omit_defaults=True):
    tool_use_id: str
    content: str | list[ResultBlock] | None = None
    is_error: bool | None = None
    cache_control: CacheControl | None = None


class ThinkingBlock(Struct, tag_field="type", tag="thinking"):
    thinking: str
    signature: str = ""


class RedactedThinkingBlock(Struct, tag_field="type", tag="redacted_thinking"):
    data: str


Block = (
    TextBlock
    | ImageBlock
    | DocumentBlock
    | SearchResultBlock
    | ToolUseBlock
    | ToolResultBlock
    | ThinkingBlock
    | RedactedThinkingBlock
)
BLOCK_TYPES = (
    "text, image, document, search_result, tool_use, tool_result, thinking, redacted_thinking in content; "
    "base64, url, text, content in a source (there are no server-side tools and files)"
)


class InputMessage(Struct):
    role: Literal["user", "assistant", "system"]
    content: str | list[Block]


class Tool(Struct, omit_defaults=True):
    """A tool of the caller's own. `type` of any other is refused by name."""

    name: Name
    input_schema: dict[str, Any] | None = None
    description: str | None = None
    strict: bool | None = None
    type: str | None = None
    cache_control: CacheControl | None = None


# --------------------------------------------------------------------------- in


class Reader:
    """Reads the messages of one request. `ttl_s` is then the longest time that a cache_control asked for."""

    def __init__(self, signer: Signer, model: str) -> None:
        self._signer = signer
        self._model = model
        self.ttl_s: int | None = None

    def mark(self, control: CacheControl | None) -> None:
        if control is not None:
            self.ttl_s = max(self.ttl_s or 0, 3600 if control.ttl == "1h" else 300)

    def messages(
        self, system: str | list[TextOnly] | None, messages: list[InputMessage]
    ) -> tuple[Message, ...]:
        found: list[Message] = []
        if system:
            texts = [TextOnly("text", system)] if isinstance(system, str) else system
            found.append(Message("system", tuple(self._plain(text) for text in texts)))
        for i, message in enumerate(messages):
            path = f"messages[{i}].content"
            blocks: list[Any] = (
                [TextBlock(message.content)] if isinstance(message.content, str) else message.content
            )
            if message.role == "user":
                found.extend(self._user(blocks, path))
            elif message.role == "assistant":
                found.append(Message("assistant", tuple(self._assistant(blocks, path))))
            else:
                parts = tuple(self._plain(_one_of(b, TextBlock, path, "system")) for b in blocks)
                found.append(Message("system", parts))
        return tuple(found)

    def tools(self, tools: list[Tool] | None) -> tuple[ToolSpec, ...]:
        found = []
        for i, tool in enumerate(tools or ()):
            if tool.type not in (None, "custom"):
                raise InvalidRequest(
                    f"tools[{i}].type: {tool.type!r} is a tool of Anthropic's own; describe it as a custom "
                    "tool with an input_schema",
                    param=f"tools[{i}].type",
                    code="unsupported_parameter",
                )
            if tool.input_schema is None:
                name = f"tools[{i}].input_schema"
                raise InvalidRequest(f"{name}: this field is required", param=name)
            self.mark(tool.cache_control)
            found.append(ToolSpec(tool.name, tool.description, tool.input_schema, bool(tool.strict)))
        return tuple(found)

    def _user(self, blocks: list[Any], path: str) -> list[Message]:
        """Tool results first, whatever order they were sent in, each a message; then the rest as one."""
        results: list[Message] = []
        parts: list[Part] = []
        for j, block in enumerate(blocks):
            at = f"{path}[{j}]"
            if isinstance(block, ToolResultBlock):
                results.append(Message("tool", (self._result(block, at),)))
            elif isinstance(block, ToolUseBlock | ThinkingBlock | RedactedThinkingBlock):
                raise _misplaced(block, at, "user")
            else:
                parts.extend(self._given(block, at))
        return [*results, Message("user", tuple(parts))] if parts or not results else results

    def _assistant(self, blocks: list[Any], path: str) -> list[Part]:
        parts: list[Part] = []
        for j, block in enumerate(blocks):
            at = f"{path}[{j}]"
            if isinstance(block, ToolUseBlock):
                self.mark(block.cache_control)
                parts.append(ToolCallPart(block.id, block.name, _arguments(block.input)))
            elif isinstance(block, ThinkingBlock):
                parts.extend(self._thinking(block))
            elif isinstance(block, RedactedThinkingBlock):
                parts.append(ReasoningPart("", block.data, True))
            else:
                parts.append(self._plain(_one_of(block, TextBlock, at, "assistant")))
        return parts

    def _thinking(self, block: ThinkingBlock) -> list[Part]:
        """Without a signature it is nobody's and goes; so does what the answer was asked not to show."""
        if self._signer.verifies(self._model, block.thinking, block.signature):
            return [ReasoningPart(block.thinking)] if block.thinking else []
        return [ReasoningPart(block.thinking, block.signature)] if block.signature else []

    def _result(self, block: ToolResultBlock, path: str) -> ToolResultPart:
        self.mark(block.cache_control)
        parts: list[TextPart | ImagePart] = []
        if isinstance(block.content, str):
            parts.append(TextPart(block.content))
        else:
            for j, inner in enumerate(block.content or ()):
                parts.extend(self._given(inner, f"{path}.content[{j}]"))
        return ToolResultPart(block.tool_use_id, tuple(parts), bool(block.is_error))

    def _given(self, block: Any, path: str) -> list[TextPart | ImagePart]:
        """What a user or a tool shows: text, images, and documents as text."""
        self.mark(block.cache_control)
        if isinstance(block, TextBlock):
            return [TextPart(block.text)]
        if isinstance(block, ImageBlock):
            return [_image(block.source, f"{path}.source")]
        if isinstance(block, ToolReferenceBlock):
            return [TextPart(block.tool_name)]
        if isinstance(block, SearchResultBlock):
            text = "".join(part.text for part in block.content)
            return _document([TextPart(text)], block.title, block.source)
        return _document(self._source(block, path), block.title, block.context)

    def _source(self, block: DocumentBlock, path: str) -> list[TextPart | ImagePart]:
        source = block.source
        if isinstance(source, TextSource):
            return [TextPart(source.data)]
        if isinstance(source, ContentSource):
            if isinstance(source.content, str):
                return [TextPart(source.content)]
            return [
                part
                for j, inner in enumerate(source.content)
                for part in self._given(inner, f"{path}.source.content[{j}]")
            ]
        raise InvalidRequest(
            f"{path}.source: this server reads no PDF and no files; send the document's text in a source "
            "of type text",
            param=f"{path}.source",
            code="unsupported_parameter",
        )

    def _plain(self, block: TextBlock | TextOnly) -> TextPart:
        self.mark(block.cache_control)
        return TextPart(block.text)


def _document(
    parts: list[TextPart | ImagePart], title: str | None, context: str | None
) -> list[TextPart | ImagePart]:
    head = "\n".join(text for text in (title, context) if text)
    return [TextPart(f"{head}\n\n"), *parts] if head else parts


def _image(source: Base64Source | UrlSource | FileSource, path: str) -> ImagePart:
    if isinstance(source, UrlSource):
        return ImagePart(url=source.url)
    if isinstance(source, FileSource):
        raise InvalidRequest(
            f"{path}: there are no files on this server; send the image as base64",
            param=path,
            code="unsupported_parameter",
        )
    try:
        data = base64.b64decode(source.data, validate=True)
    except (binascii.Error, ValueError) as error:
        raise InvalidRequest(f"{path}.data: not base64: {error}", param=f"{path}.data") from None
    return ImagePart(data=data, media_type=source.media_type)


def _arguments(value: dict[str, Any]) -> str:
    if value.keys() == {INVALID_JSON} and isinstance(value[INVALID_JSON], str):
        return str(value[INVALID_JSON])
    return msgspec.json.encode(value).decode()


def _one_of(block: Any, kind: type[B], path: str, role: str) -> B:
    if not isinstance(block, kind):
        raise _misplaced(block, path, role)
    return block


def _misplaced(block: Any, path: str, role: str) -> InvalidRequest:
    tag = type(block).__struct_config__.tag
    return InvalidRequest(
        f"{path}.type: {tag!r} has no place in a message of role {role!r}", param=f"{path}.type"
    )


# --------------------------------------------------------------------------- out


def input_of(arguments: str) -> dict[str, Any]:
    """A tool's input. What a model wrote that is no JSON object stands under `INVALID_JSON`."""
    if not arguments.strip():
        return {}
    try:
        value = msgspec.json.decode(arguments)
    except (msgspec.DecodeError, RecursionError):
        value = None
    return value if isinstance(value, dict) else {INVALID_JSON: arguments}


def write_messages(
    messages: tuple[Message, ...],
) -> tuple[str | list[TextOnly] | None, list[InputMessage]]:
    """(system, messages). Raises InvalidRequest for a part that the format has no place for."""
    system: str | list[TextOnly] | None = None
    written: list[InputMessage] = []
    results: list[Block] | None = None  # of the user message that takes the next results
    for i, message in enumerate(messages):
        path = f"messages[{i}]"
        if message.role in ("system", "developer"):
            texts = [_text(part, path) for part in message.parts]
            if i == 0 and len(messages) > 1:  # a conversation of nothing else is no conversation there
                system = [TextOnly("text", block.text) for block in texts]
            else:
                written.append(InputMessage("system", list(texts)))
            results = None
        elif message.role == "assistant":
            written.append(InputMessage("assistant", _assistant_blocks(message, path)))
            results = None
        else:
            parts = [_user_block(part, path) for part in message.parts]
            if results is None:
                results = []
                written.append(InputMessage("user", results))
            results.extend(parts)
            if message.role == "user":
                results = None
    return system, written


def write_tools(tools: tuple[ToolSpec, ...]) -> list[Tool] | None:
    nothing: dict[str, Any] = {"type": "object", "properties": {}}
    return [
        Tool(
            tool.name,
            nothing if tool.parameters is None else tool.parameters,
            tool.description,
            tool.strict or None,
        )
        for tool in tools
    ] or None


def _assistant_blocks(message: Message, path: str) -> list[Block]:
    blocks: list[Block] = []
    for part in message.parts:
        if isinstance(part, ToolCallPart):
            blocks.append(ToolUseBlock(part.id, part.name, input_of(part.arguments)))
        elif isinstance(part, ReasoningPart):
            if part.signature is None:
                continue
            if part.redacted:
                blocks.append(RedactedThinkingBlock(part.signature))
            else:
                blocks.append(ThinkingBlock(part.text, part.signature))
        else:
            blocks.append(_text(part, path))
    return blocks


def _user_block(part: Part, path: str) -> Block:
    if isinstance(part, ToolResultPart):
        content: list[ResultBlock] = [
            TextBlock(inner.text) if isinstance(inner, TextPart) else _image_block(inner)
            for inner in part.content
        ]
        return ToolResultBlock(part.id, content or None, part.is_error or None)
    return _image_block(part) if isinstance(part, ImagePart) else _text(part, path)


def _text(part: Part, path: str) -> TextBlock:
    if not isinstance(part, TextPart):
        raise InvalidRequest(
            f"{path}: this format has no {type(part).__struct_config__.tag} in a message of that role",
            param=path,
        )
    return TextBlock(part.text)


def _image_block(part: ImagePart) -> ImageBlock:
    if part.url is None:
        data = base64.b64encode(part.data or b"").decode()
        return ImageBlock(Base64Source(part.media_type or "application/octet-stream", data))
    head, comma, data = part.url.partition(",")
    if comma and head.startswith("data:") and head.endswith(";base64"):
        return ImageBlock(Base64Source(head.removeprefix("data:").removesuffix(";base64"), data))
    return ImageBlock(UrlSource(part.url))
