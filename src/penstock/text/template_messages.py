"""Messages and tools as the dicts that chat templates expect.

Templates are written against the OpenAI message form, with small differences between families; what
is normalized here, once:

- content is one string; several text parts are joined.
- tool call arguments are an object. Text that is no JSON object (a model's own slip, sent back in the
  history) stays text, so that the conversation can go on.
- each tool result is a message of role "tool" with `tool_call_id` and the tool's `name`.
- results that follow each other stand in the order of their calls: many templates show no ids.
- reasoning is `reasoning_content` (and `thinking`, gpt-oss' word for it). What carries a signature is another
  server's, which alone can check it, and is left out.
- an assistant message with tool calls and no text has content "" (many templates join strings), or
  None where the template asks for it (`content is none`, DeepSeek's).
- "developer" becomes "system" unless the template speaks of developers.
"""

from __future__ import annotations

import json
import re
from collections.abc import Sequence
from itertools import groupby
from typing import Any

from penstock.call import ImagePart, Message, ReasoningPart, TextPart, ToolCallPart, ToolResultPart, ToolSpec
from penstock.errors import InvalidRequest

_ASKS_FOR_NONE = re.compile(r"content['\"]?\]?\s+is\s+(not\s+)?none\b", re.IGNORECASE)


def message_dicts(
    messages: Sequence[Message], source: str, names: dict[str, str] | None = None
) -> list[dict[str, Any]]:
    """One dict per message and tool result, in order. `source` is the template they are for.

    names: tools by the ids of earlier calls; those of `messages` are added.
    """
    if not messages:
        raise InvalidRequest("messages: empty; send at least one", param="messages")
    names = {} if names is None else names
    found: list[dict[str, Any]] = []
    empty = None if _ASKS_FOR_NONE.search(source) else ""
    for message in _in_order_of_calls(messages):
        names.update({part.id: part.name for part in message.parts if isinstance(part, ToolCallPart)})
        results = [part for part in message.parts if isinstance(part, ToolResultPart)]
        found.extend(_result(part, message.name or names.get(part.id)) for part in results)
        if not results or len(results) < len(message.parts):
            found.append(_message(message, empty, "developer" in source))
    return found


def plain_turns(messages: Sequence[Message]) -> list[Message]:
    """The same for a template that takes one system message, at the head, and turns that alternate: later
    system messages are the user's, and what the user says in several messages is one."""
    found: list[Message] = []
    for message in messages:
        if found and message.role in ("system", "developer"):
            message = Message("user", message.parts)
        last = found[-1] if found else None
        if last is not None and last.role == message.role == "user" and last.name == message.name:
            found[-1] = Message("user", (*last.parts, TextPart("\n\n"), *message.parts), message.name)
        else:
            found.append(message)
    return found


def last_unbound(messages: Sequence[Message]) -> int:
    """Index of the last message that is no tool result, 0 if there is none: whatever follows it, the dicts
    before it stay as they are."""
    for index in range(len(messages) - 1, 0, -1):
        if _answered(messages[index]) is None:
            return index
    return 0


def _in_order_of_calls(messages: Sequence[Message]) -> list[Message]:
    """Results that follow a message with their calls, each a message, in the order of those calls; results
    whose call is not there stay behind the others."""
    found: list[Message] = []
    order: dict[str, int] = {}
    for are_results, group in groupby(messages, lambda message: _answered(message) is not None):
        run = list(group)
        if not are_results:
            calls = [part.id for part in run[-1].parts if isinstance(part, ToolCallPart)]
            order = {call: place for place, call in reversed(list(enumerate(calls)))}
        found.extend(_sorted(run, order) if are_results else run)
    return found


def _sorted(results: list[Message], order: dict[str, int]) -> list[Message]:
    return sorted(results, key=lambda message: order.get(_answered(message) or "", len(order)))


def _answered(message: Message) -> str | None:
    """The id of the call whose one result a message is."""
    part = message.parts[0] if len(message.parts) == 1 else None
    return part.id if isinstance(part, ToolResultPart) else None


def _message(message: Message, empty: str | None, knows_developer: bool) -> dict[str, Any]:
    role = "system" if message.role == "developer" and not knows_developer else message.role
    calls = [_call(part) for part in message.parts if isinstance(part, ToolCallPart)]
    text = _text(message.parts)
    found: dict[str, Any] = {"role": role, "content": empty if calls and not text else text}
    thoughts = (part for part in message.parts if isinstance(part, ReasoningPart))
    reasoning = "".join(part.text for part in thoughts if part.signature is None)
    if reasoning:
        found["thinking"] = found["reasoning_content"] = reasoning
    if message.name is not None:
        found["name"] = message.name
    if calls:
        found["tool_calls"] = calls
    return found


def _result(part: ToolResultPart, name: str | None) -> dict[str, Any]:
    found = {"role": "tool", "content": _text(part.content), "tool_call_id": part.id}
    return found if name is None else {**found, "name": name}


def _call(part: ToolCallPart) -> dict[str, Any]:
    try:
        arguments = json.loads(part.arguments or "{}")
    except (ValueError, RecursionError):
        arguments = part.arguments
    if not isinstance(arguments, dict):
        arguments = part.arguments
    return {"id": part.id, "type": "function", "function": {"name": part.name, "arguments": arguments}}


def _text(parts: Sequence[Any]) -> str:
    if any(isinstance(part, ImagePart) for part in parts):
        raise InvalidRequest("messages: this model takes no images; send text", param="messages")
    return "".join(part.text for part in parts if isinstance(part, TextPart))


def tool_dicts(tools: Sequence[ToolSpec]) -> list[dict[str, Any]]:
    """Tools in the OpenAI form; no parameters means an object without any."""
    return [{"type": "function", "function": _function(tool)} for tool in tools]


def _function(tool: ToolSpec) -> dict[str, Any]:
    found: dict[str, Any] = {"name": tool.name}
    if tool.description is not None:
        found["description"] = tool.description
    nothing = {"type": "object", "properties": {}}
    found["parameters"] = nothing if tool.parameters is None else tool.parameters
    return found
