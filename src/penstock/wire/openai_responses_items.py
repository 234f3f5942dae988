"""Items of the Responses format ⇄ Message: what stands in `input`, in `output` and in stored turns.

Neighbouring reasoning, assistant text and calls are one assistant message, in that order: chat templates
know nothing smaller. What the format can't say: a sender's name, an error flag on a tool result, image
bytes without a media type.

`encrypted_content` of ours holds the text itself, encoded, not encrypted: nothing in it is secret from the
caller, who got it before. Clients that store nothing send it back in place of the text. That of another
server can't be read: it stays the signature of its reasoning.
"""

from __future__ import annotations

import base64
from collections.abc import Iterable, Sequence
from typing import Any, Literal

from msgspec import Struct

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
from penstock.wire.openai_messages import Name, image_url
from penstock.wire.openai_responses_tools import convert, flat_name, local_name, read_input, write_input

Json = dict[str, Any]
SEAL = "penstock.1."  # before the text in `encrypted_content`

_TEXTS = {
    "input_text": "text",
    "output_text": "text",
    "text": "text",
    "summary_text": "text",
    "refusal": "refusal",
}
_PREFIXES = {
    "message": "msg",
    "function_call": "fc",
    "function_call_output": "fco",
    "custom_tool_call": "ctc",
    "custom_tool_call_output": "ctco",
    "reasoning": "rs",
    "compaction": "cmp",
}


class MessageItem(Struct):
    role: Literal["user", "assistant", "system", "developer"]
    content: str | list[Json]


class FunctionCallItem(Struct):
    call_id: str
    name: Name
    arguments: str
    namespace: str | None = None


class CustomCallItem(Struct):
    call_id: str
    name: Name
    input: str
    namespace: str | None = None


class CallOutputItem(Struct):
    call_id: str
    output: str | list[Json]


class TextPiece(Struct):
    text: str


class ReasoningItem(Struct):
    summary: list[TextPiece] = []
    content: list[TextPiece] | None = None
    encrypted_content: str | None = None


class CompactionItem(Struct):
    encrypted_content: str


class AgentMessageItem(Struct):
    content: str | list[Json]


def item_type(item: Json) -> str:
    """Its type; "message" and "item_reference" may go without saying."""
    kind = item.get("type")
    if kind is None:
        kind = "message" if "role" in item else "item_reference"
    return str(kind)


def read_items(items: Sequence[Json], path: str = "input", first: int = 0) -> tuple[Message, ...]:
    """Messages of items; `additional_tools` add none. Raises InvalidRequest naming the item, `first` being
    the number of the first one."""
    messages: list[Message] = []
    turn: list[Part] = []  # of the assistant, so far

    def end_turn() -> None:
        if turn:
            messages.append(Message("assistant", tuple(turn)))
            turn.clear()

    for i, item in enumerate(items, first):
        kind, where = item_type(item), f"{path}[{i}]"
        if kind == "additional_tools":
            continue
        if kind == "message" and item.get("role") == "assistant":
            content = _content(convert(item, MessageItem, where).content, where)
            if not content:
                end_turn()
                messages.append(Message("assistant"))
                continue
            if any(not isinstance(part, ReasoningPart) for part in turn):
                end_turn()
            turn.extend(content)
        elif kind == "reasoning":
            if turn:
                end_turn()
            turn.append(_reasoning(convert(item, ReasoningItem, where)))
        elif kind in ("function_call", "custom_tool_call"):
            turn.append(_call(item, kind, where))
        else:
            end_turn()
            messages.append(_other(item, kind, where))
    end_turn()
    return tuple(messages)


def _other(item: Json, kind: str, where: str) -> Message:
    if kind == "message":
        message = convert(item, MessageItem, where)
        return Message(message.role, _content(message.content, where))
    if kind in ("function_call_output", "custom_tool_call_output"):
        result = convert(item, CallOutputItem, where)
        return Message("tool", (ToolResultPart(result.call_id, _content(result.output, where, "output")),))
    if kind == "compaction":
        text = unseal(convert(item, CompactionItem, where).encrypted_content)
        if text is None:
            raise _refused(f"{where}.encrypted_content", "not a compaction of this server")
        return Message("user", (TextPart(text),))
    if kind == "agent_message":
        return Message("user", _content(convert(item, AgentMessageItem, where).content, where))
    if kind == "item_reference":
        raise _refused(f"{where}.id", f"{item.get('id')!r} is not the id of a stored item")
    raise _refused(f"{where}.type", f"{kind!r} is no item that this server can read; leave it out")


def _refused(param: str, reason: str) -> InvalidRequest:
    return InvalidRequest(f"{param}: {reason}", param=param)


def _call(item: Json, kind: str, where: str) -> ToolCallPart:
    if kind == "function_call":
        call = convert(item, FunctionCallItem, where)
        return ToolCallPart(call.call_id, flat_name(call.namespace, call.name), call.arguments)
    custom = convert(item, CustomCallItem, where)
    return ToolCallPart(custom.call_id, flat_name(custom.namespace, custom.name), write_input(custom.input))


def _reasoning(item: ReasoningItem) -> ReasoningPart:
    pieces = item.content or item.summary
    own = unseal(item.encrypted_content)
    text = "".join(piece.text for piece in pieces) if pieces else own or ""
    return ReasoningPart(text, item.encrypted_content if own is None else None)


def _content(content: str | list[Json], where: str, field: str = "content") -> tuple[Any, ...]:
    if isinstance(content, str):
        return (TextPart(content),)
    return tuple(_part(part, f"{where}.{field}[{i}]") for i, part in enumerate(content))


def _part(part: Json, where: str) -> TextPart | ImagePart:
    kind = part.get("type")
    if isinstance(kind, str) and kind in _TEXTS:
        text = part.get(_TEXTS[kind])
        if not isinstance(text, str):
            raise _refused(f"{where}.{_TEXTS[kind]}", "expected str")
        return TextPart(text)
    if kind == "input_image":
        url, detail = part.get("image_url"), part.get("detail")
        if not isinstance(url, str):
            raise _refused(f"{where}.image_url", "an image needs a URL here; stored files can't be read")
        return ImagePart(url=url, detail=detail if isinstance(detail, str) else None)
    raise _refused(
        f"{where}.type", f"{kind!r} is no content that this server can read; send input_text or input_image"
    )


def seal(text: str) -> str:
    """`encrypted_content` that stands for `text`."""
    return SEAL + base64.b64encode(text.encode()).decode()


def unseal(sealed: str | None) -> str | None:
    """The text in `encrypted_content`; None if it is not one of ours."""
    if sealed is None or not sealed.startswith(SEAL):
        return None
    try:
        return base64.b64decode(sealed.removeprefix(SEAL), validate=True).decode()
    except ValueError:
        return None


# --------------------------------------------------------------------------- writing


def write_items(messages: Iterable[Message], tools: Iterable[ToolSpec]) -> list[Json]:
    """Items of messages; `tools` tell which calls are of custom tools or of a namespace."""
    specs = {spec.name: spec for spec in tools}
    custom_calls: set[str] = set()
    items: list[Json] = []
    for message in messages:
        content: list[Json] = []
        start = len(items)
        for part in message.parts:
            if isinstance(part, TextPart | ImagePart):
                if not content:
                    items.append({"type": "message", "role": _role(message), "content": content})
                content.append(_write_part(part, message.role == "assistant"))
            elif isinstance(part, ToolCallPart):
                items.append(_write_call(part, specs.get(part.name), custom_calls))
            elif isinstance(part, ToolResultPart):
                items.append(_write_result(part, part.id in custom_calls))
            else:
                items.append(_write_reasoning(part))
        if len(items) == start:
            items.append({"type": "message", "role": _role(message), "content": []})
    return items


def _role(message: Message) -> str:
    return "user" if message.role == "tool" else message.role


def _write_part(part: TextPart | ImagePart, is_output: bool) -> Json:
    if isinstance(part, TextPart):
        kind: Json = {"type": "output_text", "annotations": []} if is_output else {"type": "input_text"}
        return kind | {"text": part.text}
    return {"type": "input_image", "image_url": image_url(part), "detail": part.detail}


def _write_call(part: ToolCallPart, spec: ToolSpec | None, custom_calls: set[str]) -> Json:
    name: Json = {"call_id": part.id, "name": local_name(spec) if spec else part.name}
    if spec is not None and spec.namespace is not None:
        name["namespace"] = spec.namespace.name
    if spec is not None and spec.custom is not None:
        text = read_input(part.arguments)
        if write_input(text) == part.arguments:
            custom_calls.add(part.id)
            return {"type": "custom_tool_call", "input": text} | name
    return {"type": "function_call", "arguments": part.arguments} | name


def _write_result(part: ToolResultPart, is_custom: bool) -> Json:
    kind = "custom_tool_call_output" if is_custom else "function_call_output"
    output: str | list[Json] = [_write_part(item, False) for item in part.content]
    if len(part.content) == 1 and isinstance(part.content[0], TextPart):
        output = part.content[0].text
    return {"type": kind, "call_id": part.id, "output": output}


def _write_reasoning(part: ReasoningPart) -> Json:
    item: Json = {
        "type": "reasoning",
        "summary": [],
        "content": [{"type": "reasoning_text", "text": part.text}],
    }
    return item | ({"encrypted_content": part.signature} if part.signature is not None else {})


# --------------------------------------------------------------------------- stored items


def stored(item: Json, number: str) -> Json:
    """The item as it is listed: with an id, a status, and content as a list. `number` makes the id."""
    kind = item_type(item)
    kept = {"type": kind, "id": item.get("id") or f"{_PREFIXES.get(kind, 'item')}_{number}"}
    kept |= {name: value for name, value in item.items() if name != "id"}
    kept["type"] = kind
    if kind == "message":
        kept.setdefault("status", "completed")
        if isinstance(kept["content"], str):
            text = "output_text" if kept["role"] == "assistant" else "input_text"
            kept["content"] = [
                {"type": text, "text": kept["content"]}
                | ({"annotations": []} if text == "output_text" else {})
            ]
    elif kind in ("function_call", "function_call_output"):
        kept.setdefault("status", "completed")
    return kept
