"""A session as Claude Code leads one, by its documented protocol and the official SDK; it is not run itself.

Single requests are in tests/clients/test_claude_code_contract.py; this is what only shows over several turns.
"""

from __future__ import annotations

import asyncio
from dataclasses import replace
from typing import Any

import pytest

from penstock.call import Message, ReasoningPart, ToolResultPart
from penstock.text.nonces import without_nonces
from support.agent_sessions import CODEX, LAST_WORDS, MODEL, TASK, THOUGHT, AgentModel, tool_call

anthropic = pytest.importorskip("anthropic", reason="needs the official SDK: pip install penstock[test]")

Json = dict[str, Any]
CACHED = {"cache_control": {"type": "ephemeral"}}
NONCE = "x-anthropic-billing-header: cc_version=2.1.150; cc_entrypoint=cli; cch=%05d;"
READ, GREP, EDIT = "Read", "Grep", "Edit"
RULES: tuple[Json, ...] = (
    {"result_of": EDIT, "text": LAST_WORDS},
    {"result_of": GREP, "result": "no such pattern", "tool_calls": [tool_call(3, EDIT, path="greet.py")]},
    {
        "user": "typo",
        "reasoning": THOUGHT,
        "text": "I will look.",
        "tool_calls": [tool_call(1, READ, path="greet.py"), tool_call(2, GREP, pattern="helo")],
    },
)
# Results as they come: of two calls in one message, in any order, an error, blocks instead of a string.
RESULTS: dict[str, Json] = {
    READ: {"content": [{"type": "text", "text": "1 return helo"}]},
    GREP: {"content": "no such pattern", "is_error": True},
    EDIT: {"content": "done"},
}


class Program:
    """Asks, calls the tools that the model calls, and asks again, until the model calls none."""

    def __init__(self, url: str, session: str) -> None:
        headers = {"x-claude-code-session-id": session, "anthropic-beta": "claude-code-20250219"}
        self._sdk = anthropic.AsyncAnthropic(
            base_url=url, auth_token="t", default_headers=headers, max_retries=0
        )
        self._messages: list[Json] = []
        self._asked = 0
        self.answers: list[Any] = []

    async def run(self, task: str) -> str:
        async with self._sdk:
            return await self._run(task)

    async def _run(self, task: str) -> str:
        self._messages.append({"role": "user", "content": [{"type": "text", "text": task}]})
        while True:
            answer = await self._ask()
            self.answers.append(answer)
            self._messages.append(
                {"role": "assistant", "content": [block.to_dict() for block in answer.content]}
            )
            calls = [block for block in answer.content if block.type == "tool_use"]
            if not calls:
                return "".join(block.text for block in answer.content if block.type == "text")
            results = [
                {"type": "tool_result", "tool_use_id": c.id} | RESULTS[c.name] for c in reversed(calls)
            ]
            self._messages.append({"role": "user", "content": results})

    async def _ask(self) -> Any:
        self._asked += 1
        # The nonce is another each time, and the mark of the cache is on the last block, whichever that is.
        *before, last = self._messages
        marked = {**last, "content": [*last["content"][:-1], last["content"][-1] | CACHED]}
        async with self._sdk.messages.stream(
            model=MODEL,
            max_tokens=32_000,
            system=[
                {"type": "text", "text": NONCE % self._asked},
                {"type": "text", "text": "You are an agent.", **CACHED},
            ],
            messages=[*before, marked],
            tools=[{"name": name, "input_schema": {"type": "object"}} for name in (READ, GREP, EDIT)],
            extra_query={"beta": "true"},
            extra_body={
                "thinking": {"type": "adaptive"},
                "context_management": {"edits": [{"type": "clear_thinking_20251015", "keep": "all"}]},
            },
        ) as events:
            return await events.get_final_message()


def model() -> AgentModel:
    return AgentModel(replace(CODEX, rules=RULES))


async def test_a_session_with_calls_at_once_thinking_and_an_error(serve: Any) -> None:
    """Red if thinking, calls at once and their results do not come back as they were said."""
    server = await serve(model())
    program = Program(server.url, "s-1")
    assert await program.run(TASK) == LAST_WORDS
    first, second, third = program.answers
    assert [block.type for block in first.content] == ["thinking", "text", "tool_use", "tool_use"]
    assert [answer.stop_reason for answer in program.answers] == ["tool_use", "tool_use", "end_turn"]
    assert [block.name for block in second.content] == [EDIT] and third.usage.output_tokens > 0
    calls = server.service.calls
    assert [len(call.messages) for call in calls] == [2, 5, 7]
    said = calls[-1].messages[2].parts
    thoughts = [part for part in said if isinstance(part, ReasoningPart)]
    assert thoughts == [ReasoningPart(THOUGHT)], "our own signature verifies: the text is the model's again"
    results = [p for m in calls[-1].messages for p in m.parts if isinstance(p, ToolResultPart)]
    assert [(part.id, part.is_error) for part in results] == [
        ("call_2", True),
        ("call_1", False),
        ("call_3", False),
    ]


async def test_a_session_never_loses_its_prefix(serve: Any) -> None:
    """Red if a turn is another one when it comes back: by a nonce, a mark of the cache, a signature. Its
    prefix would be computed anew with every request."""
    server = await serve(model())
    await Program(server.url, "s-1").run(TASK)
    before: tuple[Message, ...] = ()
    for call in server.service.calls:
        prompt = tuple(without_nonces(call.messages))
        assert prompt[: len(before)] == before
        before = prompt
    first = server.service.calls[0]
    assert all(call.tools == first.tools for call in server.service.calls)


async def test_two_programs_share_the_prefix_and_no_session(serve: Any) -> None:
    """Red if two sessions of the same instructions have prompts that differ before their user speaks."""
    server = await serve(model())
    await asyncio.gather(Program(server.url, "s-1").run(TASK), Program(server.url, "s-2").run(f"{TASK} Now!"))
    calls = server.service.calls
    assert {call.cache.key for call in calls} == {"s-1", "s-2"}
    assert len({without_nonces(call.messages)[0] for call in calls}) == 1
