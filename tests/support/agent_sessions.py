"""Coding agents that mend a typo in a file: how each is told to, and the model's fixed part of the talk.

`RECORDED / NAME.json` holds what the real agent sent (`tests/agents/test_real_agents.py --record` writes it,
trimmed): the last request of the conversation, and at which of its items each request ended.
"""

from __future__ import annotations

import asyncio
import json
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from penstock.call import Call
from penstock.simulate.scripted.script import parse_script
from penstock.simulate.scripted.service import ScriptedModelService

Json = dict[str, Any]

RECORDED = Path(__file__).resolve().parents[1] / "data" / "agents"
MODEL = "helper"
FILE, BEFORE, AFTER = "greet.py", 'def greet():\n    return "helo"\n', 'def greet():\n    return "hello"\n'
TASK = f"Mend the typo in {FILE}."
LAST_WORDS = "The typo is mended."
THOUGHT = "There may be a typo in it."


@dataclass(frozen=True)
class Agent:
    """`arguments` of one session without a terminal. `rules`: what the model says, see docs/scripted.md.
    `items`: where the requests of its API hold the conversation. `names_session`: whether it does,
    by a header or in the body. `returns_reasoning`: whether it sends the model's reasoning back."""

    name: str
    arguments: tuple[str, ...]
    rules: tuple[Json, ...]
    path: str = "/v1/chat/completions"
    items: str = "messages"
    names_session: bool = False
    returns_reasoning: bool = True

    @property
    def recorded(self) -> Path:
        return RECORDED / f"{self.name}.json"

    def script(self, max_context: int = 131_072) -> str:
        rules = [*self.rules, {"text": "A short answer"}]
        return json.dumps({"name": MODEL, "max_context": max_context, "rules": rules})


def tool_call(number: int, name: str, **arguments: Any) -> Json:
    return {"id": f"call_{number}", "name": name, "arguments": arguments}


def _edit_session(tools: tuple[Json, Json, Json]) -> tuple[Json, ...]:
    """Two calls at once that look, a call that edits when their results are there, the last words."""
    look, look_too, edit = tools
    return (
        {"result_of": edit["name"], "text": LAST_WORDS},
        {"result_of": look["name"], "result": "helo(.|\n)*found|found(.|\n)*helo", "tool_calls": [edit]},
        {
            "user": "typo",
            "offers": edit["name"],
            "reasoning": THOUGHT,
            "text": "I will look.",
            "tool_calls": [look, look_too],
        },
    )


PATCH = """*** Begin Patch
*** Update File: greet.py
@@
 def greet():
-    return "helo"
+    return "hello"
*** End Patch"""

CODEX = Agent(
    "codex",
    ("exec", "--skip-git-repo-check", "--sandbox", "workspace-write", TASK),
    _edit_session(
        (
            tool_call(1, "exec_command", cmd=f"cat {FILE}"),
            tool_call(2, "exec_command", cmd="echo found"),
            tool_call(3, "apply_patch", input=PATCH),
        )
    ),
    path="/v1/responses",
    items="input",
    names_session=True,
)
OPENCODE = Agent(
    "opencode",
    ("run", TASK),
    _edit_session(
        (
            tool_call(1, "read", filePath=FILE),
            tool_call(2, "bash", command="echo found", description="Says something"),
            tool_call(3, "edit", filePath=FILE, oldString='"helo"', newString='"hello"'),
        )
    ),
    names_session=True,
)
CLINE = Agent(
    "cline",
    (TASK,),
    _edit_session(
        (
            tool_call(1, "read_files", files=[{"path": FILE}]),
            tool_call(2, "run_commands", commands=["echo found"]),
            tool_call(3, "editor", path=FILE, old_text='"helo"', new_text='"hello"'),
        )
    ),
)
CONTINUE = Agent(
    "continue",
    ("--auto", "-p", TASK),
    _edit_session(
        (
            tool_call(1, "Read", filepath=FILE),
            tool_call(2, "Bash", command="echo found"),
            tool_call(3, "Edit", file_path=FILE, old_string='"helo"', new_string='"hello"'),
        )
    ),
    returns_reasoning=False,
)
AIDER = Agent(
    "aider",
    ("--yes-always", "--no-check-update", "--no-show-release-notes", "--no-git", "--message", TASK, FILE),
    ({"user": "typo", "text": f"{LAST_WORDS}\n\n{FILE}\n```\n{AFTER}```\n"},),
)
AGENTS = (CODEX, OPENCODE, CLINE, CONTINUE, AIDER)


class AgentModel(ScriptedModelService):
    """The scripted model, with the calls that it was asked."""

    def __init__(self, agent: Agent, max_context: int = 131_072) -> None:
        super().__init__(parse_script(agent.script(max_context)))
        self.calls: list[Call] = []
        self.closed = False

    def stream(self, call: Call, request_id: str) -> Any:
        self.calls.append(call)
        return super().stream(call, request_id)

    async def idle(self) -> None:
        await asyncio.wait_for(self._idle.wait(), 20)

    async def close(self) -> None:
        await super().close()
        self.closed = True
