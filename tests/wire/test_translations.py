"""A request of one format becomes one of another: what both can say is kept, the rest is refused by name.

A call is drawn as its own format can say it, written in the other, and read again there. What is compared is
what a model would get (`meaning`). Hints and labels that a format has no place for stay behind; each is
listed (`LEFT_BEHIND`), so that nothing else does. Unknown fields are out: they are of one format only.
"""

from __future__ import annotations

import base64
import json
from collections.abc import Iterable
from itertools import permutations
from types import ModuleType
from typing import Any

import msgspec
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from penstock.call import (
    CachePolicy,
    Call,
    ImagePart,
    Message,
    Part,
    ReasoningPart,
    SamplingParams,
    TextPart,
    ToolCallPart,
    ToolResultPart,
)
from penstock.errors import InvalidRequest
from penstock.wire import anthropic_messages, ollama_chat, openai_chat, openai_responses
from support import anthropic_strategies, ollama_strategies, wire_strategies

CODECS: dict[str, ModuleType] = {
    "chat": openai_chat,
    "responses": openai_responses,
    "anthropic": anthropic_messages,
    "ollama": ollama_chat,
}


def one_answer(call: Call) -> Call:
    return msgspec.structs.replace(call, sampling=msgspec.structs.replace(call.sampling, n=1))


CALLS = {
    "chat": wire_strategies.call("chat"),
    "responses": wire_strategies.call("chat").map(one_answer),
    "anthropic": anthropic_strategies.call(),
    "ollama": ollama_strategies.chat_call().filter(lambda call: call.messages),
}

# Hints and labels, by the format that has no place for them. "place": of images among text; "no limit": the
# format wants one.
LEFT_BEHIND = {
    "chat": {"is_error", "signature"},
    "responses": {"is_error", "redacted"},
    "anthropic": {"detail", "unsigned reasoning", "no limit"},
    "ollama": {"detail", "signature", "media_type", "place"},
}


# ---------------------------------------------------------------- what a call means


def meaning(call: Call, left: set[str]) -> dict[str, Any]:
    """What a model gets of `call`, without what is `left` behind, in one spelling."""
    form = call.response_format
    free = form is not None and not form.schema  # any JSON, whichever kind says so
    kind = None if form is None or form.kind == "text" else "json" if free else form.kind
    return {
        "model": call.model,
        "stream": call.stream,
        "turns": _turns(call, left),
        "tools": [
            (
                tool.name,
                tool.description or "",
                _parameters(tool.parameters),
                tool.strict,
            )
            for tool in call.tools
        ],
        "choice": call.tool_choice or "auto",
        "parallel": call.parallel_tool_calls is not False,
        "form": (kind, form.schema or {}) if form is not None and kind == "json_schema" else (kind, {}),
        "sampling": _sampling(call.sampling, left),
    }


def _sampling(sampling: SamplingParams, left: set[str]) -> SamplingParams:
    limit = sampling.max_tokens
    if limit is None and "no limit" in left:
        limit = anthropic_messages.MAX_TOKENS_UPSTREAM
    return msgspec.structs.replace(sampling, top_k=max(sampling.top_k, 0), max_tokens=limit)


def _parameters(schema: dict[str, Any] | None) -> dict[str, Any]:
    return {"type": "object", "properties": {}} if schema is None else schema


def _turns(call: Call, left: set[str]) -> list[tuple[str, list[Any]]]:
    """Neighbours of one role are one turn; a turn of the model is its reasoning, its text, then its calls."""
    turns: list[tuple[str, list[Any]]] = []
    for message in call.messages:
        role = "system" if message.role == "developer" else message.role
        atoms = _atoms(message.parts, left)
        if turns and turns[-1][0] == role:
            turns[-1][1].extend(atoms)
        elif atoms:
            turns.append((role, atoms))
    found = []
    for role, atoms in turns:
        order = {"reasoning": 0, "text": 1, "image": 1, "call": 2, "result": 0}
        joined = _joined(sorted(atoms, key=lambda atom: order[atom[0]]) if role == "assistant" else atoms)
        if joined:
            found.append((role, joined))
    return found


def _atoms(parts: Iterable[Part], left: set[str]) -> list[Any]:
    atoms = [atom for part in parts if (atom := _atom(part, left)) is not None]
    return sorted(atoms, key=lambda atom: atom[0] == "image") if "place" in left else atoms


def _atom(part: Part, left: set[str]) -> Any:
    if isinstance(part, TextPart):
        return ("text", part.text)
    if isinstance(part, ReasoningPart):
        if part.signature is None and "unsigned reasoning" in left:
            return None
        if "signature" in left:
            return None if part.redacted else ("reasoning", part.text)
        return ("reasoning", part.text, part.signature, part.redacted and "redacted" not in left)
    if isinstance(part, ToolCallPart):
        return ("call", part.id, part.name, _json(part.arguments))
    if isinstance(part, ToolResultPart):
        return (
            "result",
            part.id,
            _joined(_atoms(part.content, left)),
            part.is_error and "is_error" not in left,
        )
    return ("image", *_image(part, left), None if "detail" in left else part.detail)


def _image(part: ImagePart, left: set[str]) -> tuple[Any, Any]:
    """(URL or bytes, media type)."""
    data, media, url = part.data, part.media_type, part.url
    if url is not None and url.startswith("data:") and ";base64," in url:
        media, _, encoded = url.removeprefix("data:").partition(";base64,")
        data, url = base64.b64decode(encoded), None
    return (url if data is None else data), (None if "media_type" in left else media or OCTETS)


OCTETS = "application/octet-stream"


def _joined(atoms: list[Any]) -> list[Any]:
    """Texts and plain reasoning side by side are one; empty ones are none."""
    found: list[Any] = []
    for atom in atoms:
        plain = atom[0] == "text" or (
            atom[0] == "reasoning" and (len(atom) == 2 or atom[2:] == (None, False))
        )
        if plain and not atom[1]:
            continue
        if plain and found and found[-1][0] == atom[0] and found[-1][2:] == atom[2:]:
            found[-1] = (atom[0], found[-1][1] + atom[1], *atom[2:])
        else:
            found.append(atom)
    return found


def _json(text: str) -> Any:
    try:
        return json.loads(text)
    except ValueError:
        return text


# ---------------------------------------------------------------- what a format can't say

NO_ANTHROPIC = set(SamplingParams.__struct_fields__) - {
    "max_tokens",
    "temperature",
    "top_p",
    "top_k",
    "stop",
    "thinking_budget",
}
OLLAMA_SAYS = {
    "max_tokens",
    "temperature",
    "top_p",
    "top_k",
    "min_p",
    "typical_p",
    "repetition_penalty",
    "presence_penalty",
    "frequency_penalty",
    "stop",
    "seed",
    "logprobs",
}


def unsayable(call: Call, target: str) -> set[str]:
    """The fields of `call` that `target` has no place for, as a refusal names them."""
    set_fields = {
        name
        for name in SamplingParams.__struct_fields__
        if getattr(call.sampling, name) != getattr(SamplingParams(), name)
    }
    if target == "responses":
        return set_fields & {"n"}
    if target == "anthropic":
        return (set_fields & NO_ANTHROPIC) | _not_anthropic(call)
    if target == "ollama":
        return (set_fields - OLLAMA_SAYS) | _not_ollama(call)
    return set()


def _not_anthropic(call: Call) -> set[str]:
    found = set()
    if call.sampling.temperature > 1:
        found.add("temperature")
    if call.response_format is not None and call.response_format.kind == "json_object":
        found.add("response_format")
    for i, message in enumerate(call.messages):
        if message.role in ("system", "developer", "assistant") and _images(message.parts):
            found.add(f"messages[{i}]")
    return found


def _not_ollama(call: Call) -> set[str]:
    found = set()
    if call.parallel_tool_calls is False:
        found.add("parallel_tool_calls")
    if call.tool_choice not in (None, "auto"):
        found.add("tool_choice")
    if call.cache.salt:
        found.add("cache_salt")
    found |= {f"tools[{i}].strict" for i, tool in enumerate(call.tools) if tool.strict}
    thinks = set(call.template_args)
    if thinks and thinks not in ({"enable_thinking"}, {"reasoning_effort"}):
        found |= {f"template_args.{name}" for name in thinks}
    for i, message in enumerate(call.messages):
        path = f"messages[{i}]"
        if message.name is not None and message.role != "tool":
            found.add(f"{path}.name")
        for part in message.parts:
            inner = part.content if isinstance(part, ToolResultPart) else ()
            if isinstance(part, ToolResultPart) and part.is_error:
                found.add(f"{path}.is_error")
            if isinstance(part, ToolCallPart) and not isinstance(_json(part.arguments or "{}"), dict):
                found.add(f"{path}.tool_calls")
            for image in _images((part, *inner)):
                if image.data is None and ";base64," not in (image.url or ""):
                    found.add(f"{path}.image_url")
    return found


def _images(parts: tuple[Any, ...]) -> list[ImagePart]:
    return [part for part in parts if isinstance(part, ImagePart)]


def plain(call: Call) -> Call:
    """The call without most of what some format can't say, so that enough of them are not refused."""
    sampling = call.sampling
    form = call.response_format
    return msgspec.structs.replace(
        call,
        messages=tuple(_plain_message(message) for message in call.messages),
        sampling=SamplingParams(
            max_tokens=sampling.max_tokens,
            temperature=min(sampling.temperature, 1.0),
            top_p=sampling.top_p,
            stop=sampling.stop,
        ),
        tools=tuple(msgspec.structs.replace(tool, strict=False) for tool in call.tools),
        tool_choice=None,
        parallel_tool_calls=None,
        response_format=None if form is not None and form.kind == "json_object" else form,
        template_args={},
        cache=CachePolicy(),
    )


def _plain_message(message: Message) -> Message:
    """Images by their bytes and of the user only, arguments an object, no name, no error flag."""
    parts: list[Part] = []
    for part in message.parts:
        if isinstance(part, ImagePart):
            parts += [ImagePart(data=b"i", media_type="image/png")] * (message.role == "user")
        elif isinstance(part, ToolCallPart):
            parts.append(ToolCallPart(part.id, part.name, json.dumps({"a": part.arguments})))
        elif isinstance(part, ToolResultPart):
            texts = tuple(item for item in part.content if isinstance(item, TextPart))
            parts.append(ToolResultPart(part.id, texts))
        else:
            parts.append(part)
    return Message(message.role, tuple(parts))


def with_ids(call: Call) -> Call:
    """An empty id is none in Ollama's format, so there is no empty one."""
    messages = tuple(
        msgspec.structs.replace(
            message,
            parts=tuple(
                msgspec.structs.replace(part, id=f"id{part.id}")
                if isinstance(part, ToolCallPart | ToolResultPart)
                else part
                for part in message.parts
            ),
        )
        for message in call.messages
    )
    return msgspec.structs.replace(call, messages=messages)


# ---------------------------------------------------------------- the matrix


@pytest.mark.parametrize(("source", "target"), list(permutations(CODECS, 2)))
@settings(max_examples=40)
@given(data=st.data())
def test_a_request_means_the_same_in_another_format(source, target, data):
    """Red if a format drops or changes in silence what it could say, or refuses what it can say."""
    call = msgspec.structs.replace(data.draw(CALLS[source]), extra={})
    call = with_ids(plain(call) if data.draw(st.booleans()) else call)
    names = unsayable(call, target)
    try:
        body = CODECS[target].write_request(call)
    except InvalidRequest as error:
        assert error.param in names, (error.param, names)
        assert error.param in error.message
        return
    assert not names, f"{names} were let go in silence"
    left = LEFT_BEHIND[target]
    assert meaning(CODECS[target].read_request(body), left) == meaning(call, left)
