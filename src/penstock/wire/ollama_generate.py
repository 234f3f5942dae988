"""Codec of Ollama's generate: `POST /api/generate`.

A prompt is a conversation of one turn (`system`, `prompt`, `images`), rendered by the model's template; with
`raw: true` it is the model's very input. An empty prompt means: load the model (`is_load`).
"""

from __future__ import annotations

from typing import Any

import msgspec
from msgspec import UNSET, UnsetType

from penstock.call import Call, ImagePart, Message, TextPart
from penstock.errors import InvalidRequest
from penstock.wire import ollama_messages as om
from penstock.wire.ollama_common import CommonFields, read_common, unsayable, write_body, write_common
from penstock.wire.ollama_stream import (
    AnswerFields,
    Content,
    LineEncoder,
    LineStream,
    UpstreamCall,
    UpstreamLine,
)
from penstock.wire.openai_common import decode_request, refuse

PATH = "/api/generate"


class GenerateRequest(CommonFields, kw_only=True, omit_defaults=True):
    """Body of a generate request."""

    prompt: str | None = None
    suffix: str | None = None
    system: str | None = None
    images: list[str] | None = None
    raw: bool | None = None


_decoder = msgspec.json.Decoder(GenerateRequest)
_KNOWN = frozenset(GenerateRequest.__struct_fields__)
_REFUSED = {
    "template": "templates in Go's language can't be used; send the finished text with `raw: true`",
    "context": "ids of earlier answers are not kept; send the conversation to /api/chat",
    "width": "this model makes no images",
    "height": "this model makes no images",
    "steps": "this model makes no images",
}
_HARMLESS: dict[str, tuple[Any, ...]] = {
    "template": ("",),
    "context": ([],),
    "width": (0,),
    "height": (0,),
    "steps": (0,),
}


def read_request(body: bytes) -> Call:
    """The Call in a request body. Raises InvalidRequest naming the field, the value and the limit."""
    request, extra = decode_request(body, _decoder, _KNOWN)
    refuse(extra, _REFUSED, _HARMLESS)
    extra = {name: value for name, value in extra.items() if name not in _REFUSED}
    common = read_common(request, extra)
    if request.suffix:
        return _read_insertion(request, common)
    if request.raw:
        for field in ("system", "images", "think"):
            if getattr(request, field) not in (None, "", []):
                raise InvalidRequest(
                    f"{field}: a raw prompt is the model's whole input; leave out `raw` or `{field}`",
                    param=field,
                )
        return Call(kind="completion", prompts=(request.prompt,) if request.prompt else (), **common)
    return Call(kind="chat", messages=_read_turn(request), **common)


def _read_insertion(request: GenerateRequest, common: dict[str, Any]) -> Call:
    """What stands between prompt and suffix. Models are trained for it without a system text: as in Ollama's
    own templates there is no place for one."""
    for field in ("images", "think"):
        if getattr(request, field) not in (None, "", [], False):
            raise InvalidRequest(
                f"{field}: with suffix the answer is the text in between; leave out `{field}`", param=field
            )
    common = {**common, "template_args": {}}
    return Call(kind="completion", prompts=(request.prompt or "",), suffix=request.suffix or "", **common)


def _read_turn(request: GenerateRequest) -> tuple[Message, ...]:
    """() where there is no prompt: then nothing is to be answered, whatever the system text is."""
    images = om.read_images(request.images, "images")
    if not request.prompt and not images:
        return ()
    system = (Message("system", (TextPart(request.system),)),) if request.system else ()
    text = (TextPart(request.prompt),) if request.prompt else ()
    return (*system, Message("user", (*text, *images)))


def write_request(call: Call) -> bytes:
    """The request body for an upstream of this format: a prompt, or one turn with or without system text.

    Raises InvalidRequest for what it can't say.
    """
    if call.tools:
        raise unsayable("tools")
    request = GenerateRequest(**write_common(call))
    if call.kind == "completion":
        request.raw = None if call.suffix else True
        request.suffix = call.suffix or None
        if len(call.prompts) > 1 or not all(isinstance(prompt, str) for prompt in call.prompts):
            raise InvalidRequest(
                "prompt: Ollama's API takes one prompt as text; send one request for each", param="prompt"
            )
        request.prompt = "".join(prompt for prompt in call.prompts if isinstance(prompt, str)) or None
    else:
        _write_turn(call.messages, request)
    return write_body(request, call)


def _write_turn(messages: tuple[Message, ...], request: GenerateRequest) -> None:
    *before, turn = messages or (Message("user"),)
    roles = [message.role for message in before]
    if turn.role != "user" or roles not in ([], ["system"]):
        raise InvalidRequest(
            "messages: /api/generate takes a system message and one of the user; send others to /api/chat",
            param="messages",
        )
    for message in messages:
        if message.name is not None:
            raise unsayable("messages.name")
    request.system = before[0].text if before else None
    request.prompt = turn.text or None
    request.images = om.write_images([part for part in turn.parts if isinstance(part, ImagePart)], "messages")


class GenerateAnswer(AnswerFields, kw_only=True):
    """A line, or the whole body."""

    response: str
    thinking: str | UnsetType = UNSET


def _answer(content: Content, **common: Any) -> GenerateAnswer:
    answer = GenerateAnswer(response=content.text, **common)
    if content.thinking:
        answer.thinking = content.thinking
    return answer


class Encoder(LineEncoder):
    """See LineEncoder. `request_id` has no place in this format."""

    def __init__(self, call: Call, request_id: str, created: int, model: str) -> None:
        super().__init__(call, created, model, _answer)


class GenerateLine(UpstreamLine, kw_only=True):
    response: str | None = None
    thinking: str | None = None


def _read(found: GenerateLine) -> tuple[str, str, list[UpstreamCall]]:
    return found.response or "", found.thinking or "", []


class Decoder(LineStream):
    """See LineStream."""

    def __init__(self) -> None:
        super().__init__(msgspec.json.Decoder(GenerateLine).decode, _read)
