"""Codec of Ollama's chat: `POST /api/chat`.

Serving side: `read_request`, `Encoder`. Upstream side: `write_request`, `Decoder`. No messages means:
load the model (`is_load`). Fields that nobody here knows are kept in `Call.extra`.
"""

from __future__ import annotations

from typing import Any

import msgspec
from msgspec import UNSET, Struct

from penstock.call import Call
from penstock.wire import ollama_messages as om
from penstock.wire.ollama_common import CommonFields, read_common, write_body, write_common
from penstock.wire.ollama_stream import (
    AnswerFields,
    Content,
    LineEncoder,
    LineStream,
    UpstreamCall,
    UpstreamLine,
)
from penstock.wire.openai_common import decode_request

PATH = "/api/chat"


class ChatRequest(CommonFields, kw_only=True, omit_defaults=True):
    """Body of a chat request."""

    messages: list[om.ChatMessage] | None = None
    tools: list[om.Tool] | None = None


_decoder = msgspec.json.Decoder(ChatRequest)
_KNOWN = frozenset(ChatRequest.__struct_fields__)


def read_request(body: bytes) -> Call:
    """The Call in a request body. Raises InvalidRequest naming the field, the value and the limit."""
    request, extra = decode_request(body, _decoder, _KNOWN)
    return Call(
        kind="chat",
        messages=om.read_messages(request.messages or []),
        tools=om.read_tools(request.tools),
        **read_common(request, extra),
    )


def write_request(call: Call) -> bytes:
    """The request body for an upstream of this format. Raises InvalidRequest for what it can't say."""
    request = ChatRequest(
        messages=om.write_messages(call.messages), tools=om.write_tools(call.tools), **write_common(call)
    )
    return write_body(request, call)


class ChatAnswer(AnswerFields, kw_only=True):
    """A line, or the whole body."""

    message: om.AnswerMessage


def _answer(content: Content, **common: Any) -> ChatAnswer:
    message = om.AnswerMessage(content.text)
    if content.thinking:
        message.thinking = content.thinking
    if content.calls:
        message.tool_calls = content.calls
    return ChatAnswer(message=message, **common)


class Encoder(LineEncoder):
    """See LineEncoder. `request_id` has no place in this format."""

    def __init__(self, call: Call, request_id: str, created: int, model: str) -> None:
        super().__init__(call, created, model, _answer)


class UpstreamMessage(Struct):
    content: str | None = None
    thinking: str | None = None
    tool_calls: list[UpstreamCall] | None = None


class ChatLine(UpstreamLine, kw_only=True):
    message: UpstreamMessage | msgspec.UnsetType | None = UNSET


def _read(found: ChatLine) -> tuple[str, str, list[UpstreamCall]]:
    message = found.message or UpstreamMessage()
    return message.content or "", message.thinking or "", message.tool_calls or []


class Decoder(LineStream):
    """See LineStream."""

    def __init__(self) -> None:
        super().__init__(msgspec.json.Decoder(ChatLine).decode, _read)
