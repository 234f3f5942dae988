"""Tools for models whose chat template knows none: told of in the system message, in the Hermes form.

The wording is ours; the form, a JSON object between `<tool_call>` tags, is the one that most models have seen
(Hermes 2 Pro, Qwen 2.5). Results go back as user messages between `<tool_response>` tags.
"""

from __future__ import annotations

import json
from collections.abc import Sequence

from penstock.call import Message, TextPart, ToolCallPart, ToolResultPart, ToolSpec
from penstock.text.template_messages import tool_dicts

_HEAD = """You may call functions to help with the user's request. These are the functions, each as JSON:
<tools>
"""
_TAIL = """
</tools>
To call one, write its name and its arguments as JSON between tags, one pair of tags per call:
<tool_call>
{"name": "function name", "arguments": {"argument": "value"}}
</tool_call>"""


def knows_tools(source: str) -> bool:
    """Whether a chat template (Jinja) shows tools to its model."""
    return "tools" in source


def with_tool_prompt(messages: Sequence[Message], tools: Sequence[ToolSpec]) -> list[Message]:
    """`messages` for a template that knows no tools: told of them, calls and results as text."""
    told = _HEAD + "\n".join(json.dumps(tool, ensure_ascii=False) for tool in tool_dicts(tools)) + _TAIL
    found = [_plain(message) for message in messages]
    if found and found[0].role in ("system", "developer"):
        first = found.pop(0)
        told = f"{first.text}\n\n{told}"
    return [Message("system", (TextPart(told),)), *found]


def _plain(message: Message) -> Message:
    texts = [message.text] if message.text else []
    role = message.role
    for part in message.parts:
        if isinstance(part, ToolCallPart):
            call = {"name": part.name, "arguments": _arguments(part.arguments)}
            texts.append(f"<tool_call>\n{json.dumps(call, ensure_ascii=False)}\n</tool_call>")
        elif isinstance(part, ToolResultPart):
            role = "user"
            content = "".join(inner.text for inner in part.content if isinstance(inner, TextPart))
            texts.append(f"<tool_response>\n{content}\n</tool_response>")
    kept = tuple(
        part for part in message.parts if not isinstance(part, TextPart | ToolCallPart | ToolResultPart)
    )
    return Message(role, (TextPart("\n".join(texts)), *kept), message.name)


def _arguments(text: str) -> object:
    try:
        return json.loads(text or "{}")
    except (ValueError, RecursionError):
        return text
