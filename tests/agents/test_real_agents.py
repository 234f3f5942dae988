"""Real coding agents, started by `penstock launch`, mend a typo in a file: `make test-agents`.

The model's part of the conversation is fixed (`support.agent_sessions`), everything else is real: the tool,
its configuration, the server. `--record` stores what the tool sent, for `test_recorded_agents.py`.
"""

from __future__ import annotations

import json
import os
import shutil
import signal
import subprocess
import sys
from collections.abc import Callable, Iterator
from dataclasses import replace
from pathlib import Path

import pytest

from penstock.cli.launch.tools import TOOLS
from support.agent_recording import recording_server, trimmed_session
from support.agent_sessions import (
    AFTER,
    AGENTS,
    BEFORE,
    CLINE,
    CODEX,
    FILE,
    LAST_WORDS,
    OPENCODE,
    Agent,
    AgentModel,
    tool_call,
)

pytestmark = pytest.mark.network
LIMIT_S = 300

Launch = Callable[..., subprocess.CompletedProcess[str]]


def of_every(agents: tuple[Agent, ...]) -> pytest.MarkDecorator:
    return pytest.mark.parametrize("agent", agents, ids=[agent.name for agent in agents])


@pytest.fixture
def project(tmp_path: Path) -> Path:
    folder = tmp_path / "project"
    folder.mkdir()
    (folder / FILE).write_text(BEFORE)
    subprocess.run(["git", "init", "-q", folder], check=True)
    return folder


@pytest.fixture
def launch(tmp_path: Path, project: Path) -> Iterator[Launch]:
    """`penstock launch` in a home of its own; what a tool leaves running there is ended."""
    home = tmp_path / "home"
    home.mkdir()
    gone = ("XDG_CONFIG_HOME", "XDG_STATE_HOME", "XDG_DATA_HOME", "XDG_CACHE_HOME")
    environment = {name: value for name, value in os.environ.items() if name not in gone}
    environment |= {"HOME": str(home), "PWD": str(project)}  # OpenCode asks PWD where it is

    def run(agent: Agent, url: str, *flags: str) -> subprocess.CompletedProcess[str]:
        if shutil.which(TOOLS[agent.name].executable) is None:
            pytest.skip(f"{agent.name} is not installed; make test-agents installs it")
        command = ["launch", agent.name, "--url", url, "--yes", *flags, "--", *agent.arguments]
        return subprocess.run(
            [sys.executable, "-m", "penstock", *command],
            cwd=project,
            env=environment,
            stdin=subprocess.DEVNULL,
            capture_output=True,
            text=True,
            timeout=LIMIT_S,
            check=False,
        )

    yield run
    for process in _with_home(home):
        os.kill(process, signal.SIGTERM)


def _with_home(home: Path) -> list[int]:
    """Processes that were started in that home."""
    found = []
    for folder in Path("/proc").glob("[0-9]*"):
        try:
            variables = (folder / "environ").read_bytes().split(b"\0")
        except OSError:
            continue
        if f"HOME={home}".encode() in variables:
            found.append(int(folder.name))
    return found


@pytest.fixture(scope="module")
def smollm2_url(smollm2_path: Path) -> Iterator[str]:
    """A real model, of 8,192 tokens: what most agents say before the user does fills most of that."""
    command = [
        sys.executable,
        "-m",
        "penstock",
        "serve",
        str(smollm2_path),
        "--port",
        "0",
        "--output",
        "json",
    ]
    with subprocess.Popen(command, stdout=subprocess.PIPE, stderr=subprocess.DEVNULL, text=True) as process:
        assert process.stdout
        yield json.loads(process.stdout.readline())["url"]
        process.terminate()


@of_every(AGENTS)
def test_an_agent_edits_a_file(
    agent: Agent, launch: Launch, project: Path, tmp_path: Path, request: pytest.FixtureRequest
) -> None:
    """Red if a tool, set up by `penstock launch`, can't call tools, understand answers or finish."""
    service = AgentModel(agent)
    with recording_server(service, tmp_path) as (url, recorder):
        result = launch(agent, url)
    said = result.stdout + result.stderr
    assert result.returncode == 0, said
    assert (project / FILE).read_text() == AFTER, said
    assert LAST_WORDS in said
    exchanges = recorder.of_agent(agent)
    assert [exchange["status"] for exchange in exchanges] == [200] * len(exchanges), said
    keys = {call.cache.key for call in service.calls if len(call.messages) > 1}
    assert len(keys) == 1
    assert (None in keys) is not agent.names_session
    if request.config.getoption("--record"):
        version = TOOLS[agent.name].version(TOOLS[agent.name].find())
        paths = {str(project): "/project", str(tmp_path): "/agent"}
        session = trimmed_session(agent, version, exchanges, paths)
        agent.recorded.write_text(json.dumps(session, indent=1, ensure_ascii=False) + "\n")


@of_every(AGENTS)
def test_an_agent_comes_back_to_a_server_that_was_busy(
    agent: Agent, launch: Launch, project: Path, tmp_path: Path
) -> None:
    """Red if a 429 ends the session: its status, its form or retry-after are not what the agent knows."""
    busy: dict[str, object] = {"kind": "rate_limit_error", "message": "all are busy", "retry_after_s": 1}
    *_, first = agent.rules
    asked = {name: first[name] for name in ("user", "offers") if name in first}
    service = AgentModel(replace(agent, rules=(asked | {"times": 1, "error": busy}, *agent.rules)))
    with recording_server(service, tmp_path) as (url, recorder):
        result = launch(agent, url)
    assert result.returncode == 0, result.stdout + result.stderr
    assert (project / FILE).read_text() == AFTER
    assert 429 in [exchange["status"] for exchange in recorder.of_agent(agent)]


def test_codex_runs_agents_of_its_own(launch: Launch, tmp_path: Path) -> None:
    """Red if a tool of a namespace can't be called, or its result isn't known as that tool's."""
    spawn, wait = "multi_agent_v1__spawn_agent", "multi_agent_v1__wait_agent"
    found_id = '"agent_id": ?"(?P<id>[^"]+)"'
    rules = (
        {"user": "^a small part$", "text": "The part is done."},
        {"result_of": wait, "result": "The part is done.", "text": LAST_WORDS},
        {"result_of": spawn, "result": found_id, "tool_calls": [tool_call(2, wait, targets=["{{id}}"])]},
        {"user": "typo", "tool_calls": [tool_call(1, spawn, message="a small part")]},
    )
    agent = replace(CODEX, rules=rules)
    with recording_server(AgentModel(agent), tmp_path) as (url, _):
        result = launch(agent, url)
    assert result.returncode == 0, result.stderr
    assert LAST_WORDS in result.stdout


def test_codex_makes_a_long_conversation_short(launch: Launch, tmp_path: Path) -> None:
    """Red if the usage that Codex reads does not tell it when the context is nearly full."""
    look = tool_call(1, "exec_command", cmd="echo found")
    full = {"user": "typo", "times": 1, "tool_calls": [look], "usage": {"prompt_tokens": 19_500}}
    agent = replace(CODEX, rules=(full, {"text": LAST_WORDS}))
    with recording_server(AgentModel(agent, 20_000), tmp_path) as (url, recorder):
        result = launch(agent, url)
    assert result.returncode == 0, result.stderr
    first, summary, last = (json.loads(exchange["body"])["input"] for exchange in recorder.of_agent(agent))
    assert len(first) < len(summary) and "found" in json.dumps(summary)
    assert LAST_WORDS in json.dumps(last) and "function_call" not in json.dumps(last)


@of_every((CODEX, OPENCODE, CLINE))
def test_a_context_that_is_too_small_is_told_before_the_agent_runs(
    agent: Agent, launch: Launch, smollm2_url: str
) -> None:
    """Red if an agent starts with a model that its own prompt fills."""
    result = launch(agent, smollm2_url)
    assert result.returncode == 2
    assert "a context of 8,192 tokens" in result.stderr and "--force" in result.stderr


@of_every(AGENTS)
def test_an_agent_ends_with_a_real_model(agent: Agent, launch: Launch, smollm2_url: str) -> None:
    """Red if an agent hangs, or ends with neither an answer nor the reason: a prompt that is too long."""
    result = launch(agent, smollm2_url, "--force")
    said = result.stdout + result.stderr
    assert "context of this model is 8192" in said or (result.returncode == 0 and result.stdout.strip()), said
