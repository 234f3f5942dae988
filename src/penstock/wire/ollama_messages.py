"""Messages and tools of Ollama's chat ⇄ Message, ToolSpec.

Arguments of a call are an object, never text. A tool's answer may name its tool only (`tool_name`): then it
answers the first call of that tool which has no answer yet. What the format can't say: where reasoning or
images stood between pieces of text, an error flag on a tool's answer, images in it.
"""

from __future__ import annotations

import base64
import binascii
from typing import Any, Literal

import msgspec
from msgspec import UNSET, Raw, Struct, UnsetType

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
from penstock.wire.ollama_common import unsayable


class CalledFunction(Struct, omit_defaults=True):
    name: str
    arguments: Raw = Raw(b"{}")
    index: int | None = None


class ToolCallBody(Struct, omit_defaults=True):
    function: CalledFunction
    id: str | None = None


class ChatMessage(Struct, omit_defaults=True):
    role: Literal["system", "developer", "user", "assistant", "tool"]
    content: str | None = None
    thinking: str | None = None
    images: list[str] | None = None
    tool_calls: list[ToolCallBody] | None = None
    tool_name: str | None = None
    tool_call_id: str | None = None


class FunctionSpec(Struct, omit_defaults=True):
    name: str
    description: str | None = None
    parameters: dict[str, Any] | None = None


class _OpenCall(Struct, frozen=True):
    """A call that no answer was read for yet. `has_id`: the client gave the id, it was not made here."""

    id: str
    name: str
    has_id: bool


class Tool(Struct):
    function: FunctionSpec
    type: Literal["function"] = "function"


class AnswerFunction(Struct):
    name: str
    arguments: Raw
    index: int


class AnswerToolCall(Struct):
    id: str
    function: AnswerFunction


class AnswerMessage(Struct):
    """`content` is "" where there is none."""

    content: str = ""
    role: Literal["assistant"] = "assistant"
    thinking: str | UnsetType = UNSET
    tool_calls: list[AnswerToolCall] | UnsetType = UNSET


_object_decoder = msgspec.json.Decoder(dict[str, Raw])


def object_text(text: str) -> Raw | None:
    """JSON text as one line; None unless it is an object. White space outside strings alone holds raw ends of
    lines, so numbers and keys stay as they were written."""
    try:
        _object_decoder.decode(text)
    except (msgspec.DecodeError, UnicodeError, RecursionError):
        return None
    return Raw(text.replace("\r", " ").replace("\n", " ").encode())


def answer_calls(calls: list[ToolCallPart]) -> tuple[list[AnswerToolCall], str]:
    """(the calls, text of those whose arguments are no object: a cut or broken call is content here)."""
    found: list[AnswerToolCall] = []
    rest: list[str] = []
    for call in calls:
        arguments = object_text(call.arguments or "{}")
        if arguments is None:
            rest.append(f"{call.name} {call.arguments}")
        else:
            found.append(AnswerToolCall(call.id, AnswerFunction(call.name, arguments, len(found))))
    return found, "\n".join(rest)


# --------------------------------------------------------------------------- requests


def read_messages(messages: list[ChatMessage]) -> tuple[Message, ...]:
    """Raises InvalidRequest naming the message."""
    open_calls: list[_OpenCall] = []  # (id, name) of calls without an answer
    count = 0
    found: list[Message] = []
    for i, message in enumerate(messages):
        path = f"messages[{i}]"
        if message.role == "tool":
            found.append(_tool_answer(message, open_calls, path))
            continue
        parts: list[Part] = []
        if message.thinking is not None:
            parts.append(ReasoningPart(message.thinking))
        if message.content:
            parts.append(TextPart(message.content))
        parts.extend(read_images(message.images, f"{path}.images"))
        for call in message.tool_calls or ():
            identity = call.id or f"call_{count}"
            count += 1
            parts.append(ToolCallPart(identity, call.function.name, _arguments(call, path)))
            open_calls.append(_OpenCall(identity, call.function.name, bool(call.id)))
        found.append(Message(message.role, tuple(parts)))
    return tuple(found)


def _arguments(call: ToolCallBody, path: str) -> str:
    raw = bytes(call.function.arguments)
    if raw.startswith(b"{"):
        return raw.decode()
    given = msgspec.json.decode(raw)
    if given is None:
        return "{}"
    if isinstance(given, str) and object_text(given) is not None:  # as the OpenAI format writes them
        return given
    name = f"{path}.tool_calls.function.arguments"
    raise InvalidRequest(f"{name}: expected an object, got {raw[:60].decode(errors='replace')}", param=name)


def _tool_answer(message: ChatMessage, open_calls: list[_OpenCall], path: str) -> Message:
    """A client may drop the ids of calls and still send one with an answer: the first such call's."""
    name, identity = message.tool_name, message.tool_call_id
    if all(call.id != identity for call in open_calls):
        candidates = (
            call for call in open_calls if name in (None, call.name) and (identity is None or not call.has_id)
        )
        identity = next((call.id for call in candidates), identity)
    if identity is None:
        named = f" of {name!r}" if name else ""
        raise InvalidRequest(
            f"{path}: a tool's answer without a call{named} before it; send tool_call_id or tool_name",
            param=f"{path}.tool_name",
        )
    open_calls[:] = [call for call in open_calls if call.id != identity]
    content: tuple[TextPart | ImagePart, ...] = (TextPart(message.content),) if message.content else ()
    content += tuple(read_images(message.images, f"{path}.images"))
    return Message("tool", (ToolResultPart(identity, content),), name)


def read_images(images: list[str] | None, path: str) -> list[ImagePart]:
    """Images as base64 text. Raises InvalidRequest for what is none."""
    found = []
    for i, text in enumerate(images or ()):
        try:
            found.append(ImagePart(data=base64.b64decode(text, validate=True)))
        except (binascii.Error, ValueError):
            raise InvalidRequest(f"{path}[{i}]: not base64; send the image's bytes so", param=path) from None
    return found


def write_images(images: list[ImagePart], path: str) -> list[str] | None:
    """Raises InvalidRequest for an image by URL, unless the URL holds its bytes."""
    found = []
    for image in images:
        if image.data is not None:
            found.append(base64.b64encode(image.data).decode())
        elif image.url is not None and image.url.startswith("data:") and ";base64," in image.url:
            found.append(image.url.partition(";base64,")[2])
        else:
            raise unsayable(f"{path}.image_url")
    return found or None


def write_messages(messages: tuple[Message, ...]) -> list[ChatMessage]:
    """One wire message per Message, and one more for each further tool result in it."""
    written: list[ChatMessage] = []
    for i, message in enumerate(messages):
        path = f"messages[{i}]"
        results = [part for part in message.parts if isinstance(part, ToolResultPart)]
        for result in results:
            if result.is_error:
                raise unsayable(f"{path}.is_error")
            images = [part for part in result.content if isinstance(part, ImagePart)]
            text = "".join(part.text for part in result.content if isinstance(part, TextPart))
            written.append(
                ChatMessage(
                    "tool",
                    text,
                    images=write_images(images, path),
                    tool_name=message.name,
                    tool_call_id=result.id,
                )
            )
        if not results:
            written.append(_write_message(message, path))
    return written


def _write_message(message: Message, path: str) -> ChatMessage:
    if message.name is not None:
        raise unsayable(f"{path}.name")
    reasoning = [part.text for part in message.parts if isinstance(part, ReasoningPart)]
    calls = []
    for part in message.parts:
        if isinstance(part, ToolCallPart):
            arguments = object_text(part.arguments or "{}")
            if arguments is None:
                raise InvalidRequest(
                    f"{path}.tool_calls: arguments of {part.name!r} are no JSON object, which Ollama needs",
                    param=f"{path}.tool_calls",
                )
            calls.append(ToolCallBody(CalledFunction(part.name, arguments), part.id))
    return ChatMessage(
        message.role,
        message.text,
        thinking="".join(reasoning) if reasoning else None,
        images=write_images([part for part in message.parts if isinstance(part, ImagePart)], path),
        tool_calls=calls or None,
    )


def read_tools(tools: list[Tool] | None) -> tuple[ToolSpec, ...]:
    return tuple(
        ToolSpec(tool.function.name, tool.function.description, tool.function.parameters)
        for tool in tools or ()
    )


def write_tools(tools: tuple[ToolSpec, ...]) -> list[Tool] | None:
    for i, tool in enumerate(tools):
        if tool.strict:
            raise unsayable(f"tools[{i}].strict")
    return [Tool(FunctionSpec(tool.name, tool.description, tool.parameters)) for tool in tools] or None
