"""History: the turns before a call, as messages, so that the next turn reads only what it adds.

Items of a thread are read into messages once. What the assistant said last stays as items, because
neighbouring ones become one message: the next turn may go on with it.

Calls of tools are answered by their ids, in any order and in one turn or another's input, but before
anything else is said: an id that waits for no output, and a call without one, are refused by name.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import msgspec
from msgspec import Struct

from penstock.call import Message
from penstock.errors import InvalidRequest
from penstock.wire.openai_responses_items import item_type, read_items

Json = dict[str, Any]

_CALLS = ("function_call", "custom_tool_call")
_OUTPUTS = ("function_call_output", "custom_tool_call_output")


class History(Struct, frozen=True):
    """`messages` of the items but the last ones, which are the assistant's: `tail`. `waiting`: the tools of
    calls without an output, by call id. `prompt_tokens`: of the last turn's prompt, 0 if nobody knows.
    `num_bytes`: about what all of it takes in memory.
    """

    messages: tuple[Message, ...] = ()
    tail: tuple[Json, ...] = ()
    waiting: dict[str, str] = {}
    prompt_tokens: int = 0
    num_bytes: int = 0

    def extended(self, items: Sequence[Json], prompt_tokens: int = 0) -> History:
        """With items as they are stored, answered from a prompt of so many tokens. Raises InvalidRequest for
        those that can't be read."""
        every = [*self.tail, *items]
        cut = len(every)
        while cut and _is_assistants(every[cut - 1]):
            cut -= 1
        size = sum(len(msgspec.json.encode(item)) for item in items)
        return History(
            self.messages + read_items(every[:cut]),
            tuple(every[cut:]),
            _waiting(self.waiting, items),
            prompt_tokens,
            self.num_bytes + 3 * size,  # a message takes about twice its JSON, its dict as much again
        )

    def read(self, own: Sequence[Json]) -> tuple[Message, ...]:
        """All messages, with those of a call's own items. Raises InvalidRequest naming the item."""
        return self.messages + read_items([*self.tail, *own], first=-len(self.tail))

    def check_outputs(self, own: Sequence[Json]) -> None:
        """Raises InvalidRequest unless the call's own items answer every call that waits, and nothing
        else."""
        waiting = dict(self.waiting)
        for i, item in enumerate(own):
            kind, call_id = item_type(item), str(item.get("call_id"))
            if kind in _CALLS:
                waiting[call_id] = str(item.get("name"))
            elif kind in _OUTPUTS and waiting.pop(call_id, None) is None:
                open_ids = ", ".join(waiting) or "none"
                raise InvalidRequest(
                    f"input[{i}].call_id: no tool call {call_id[:100]!r} waits for an output; "
                    f"waiting: {open_ids}",
                    param=f"input[{i}].call_id",
                )
        if waiting:
            missing = ", ".join(f"{call_id} ({name})" for call_id, name in waiting.items())
            raise InvalidRequest(
                f"input: no tool output for {missing}; send an item of type function_call_output for each",
                param="input",
            )


def _is_assistants(item: Json) -> bool:
    """Whether what comes next may be one message with it. `additional_tools` are no message."""
    kind = item_type(item)
    return kind in ("reasoning", "additional_tools", *_CALLS) or (
        kind == "message" and item.get("role") == "assistant"
    )


def _waiting(before: dict[str, str], items: Sequence[Json]) -> dict[str, str]:
    """Calls that wait for an output. Those that were cut off can't have one, and those of a time before the
    user's last word were given up."""
    waiting = dict(before)
    for item in items:
        kind, call_id = item_type(item), str(item.get("call_id"))
        if kind in _CALLS:
            if item.get("status") != "incomplete":
                waiting[call_id] = str(item.get("name"))
        elif kind in _OUTPUTS:
            waiting.pop(call_id, None)
        elif not _is_assistants(item):
            waiting.clear()
    return waiting
