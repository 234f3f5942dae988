"""The server that a tool is pointed at: one that runs, or one started for the tool and ended with it."""

from __future__ import annotations

import contextlib
import subprocess
import sys
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from penstock.cli.launch.tool import Target, Tool, state_home
from penstock.cli.remote import DEFAULT_URL, Server
from penstock.errors import ConfigError, EngineUnavailable, InvalidRequest, NotFound, PenstockError

POLL_S = 0.2
LOAD_S = 600.0  # for a model to be ready, its download included
END_S = 40.0  # drain_s of a server by default, and what its end takes
LOCAL = ("127.0.0.1", "localhost", "::1")
PROBE_TOOL = {
    "type": "function",
    "function": {"name": "ping", "description": "Answer a ping.", "parameters": {"type": "object"}},
}


def answers(server: Server) -> bool:
    """Whether anything listens there."""
    try:
        server.get("/health")
    except EngineUnavailable as error:
        return "nobody answers" not in error.message  # 503: somebody does, who is not ready
    except PenstockError:
        return True
    return True


def start_command(server: Server, model: str | None) -> list[str]:
    """`penstock serve` at the server's address. EngineUnavailable for an address of another machine."""
    if server.host not in LOCAL or server.secure:
        raise EngineUnavailable(
            f"{server.url}: nobody answers, and a server can be started on this machine only"
        )
    port = ["--port", str(server.port)] if server.url != DEFAULT_URL else []
    key = ["--api-key", server.api_key] if server.api_key else []
    return [sys.executable, "-m", "penstock", "serve", *([model] if model else []), *port, *key]


@contextlib.contextmanager
def started(server: Server, model: str | None) -> Iterator[None]:
    """A server of our own while inside; its log is in the state folder."""
    path = state_home() / "penstock" / "launch-serve.log"
    path.parent.mkdir(parents=True, exist_ok=True)
    with path.open("wb") as log:
        # In a group of its own: Ctrl-C is the tool's, and must not end its server.
        process = subprocess.Popen(
            start_command(server, model),
            stdin=subprocess.DEVNULL,
            stdout=log,
            stderr=log,
            process_group=0,
        )
    try:
        _wait_ready(server, process, path)
        yield
    finally:
        process.terminate()
        try:
            process.wait(END_S)
        except subprocess.TimeoutExpired:
            process.kill()
            process.wait()


def _wait_ready(server: Server, process: subprocess.Popen[bytes], log: Path) -> None:
    limit = time.monotonic() + LOAD_S
    while time.monotonic() < limit:
        with contextlib.suppress(EngineUnavailable):
            server.get("/ready")
            return
        with contextlib.suppress(subprocess.TimeoutExpired):
            process.wait(POLL_S)
            last = log.read_text(errors="replace").strip().rpartition("\n")[2]
            raise EngineUnavailable(f"penstock serve ended: {last.removeprefix('error: ')} (its log: {log})")
    raise EngineUnavailable(f"penstock serve is not ready after {LOAD_S:g} s (its log: {log})")


def find_target(server: Server, model: str | None) -> Target:
    """The model to use, the server's first unless named."""
    found = {str(card["id"]): card for card in server.models()}
    if not found:
        raise ConfigError(f"{server.url}: serves no model")
    name = model or next(iter(found))
    if name not in found:
        raise NotFound(f"--model: {name} is not served at {server.url}; served are {', '.join(found)}")
    context = int(found[name].get("max_model_len") or 0)
    if not context:
        raise EngineUnavailable(
            f"{server.url}: does not say how long {name}'s context is; is it still loading?"
        )
    return Target(server.url, name, context, server.api_key)


def check_context(tool: Tool, target: Target) -> None:
    if target.context < tool.min_context:
        raise InvalidRequest(
            f"{target.model}: a context of {target.context:,} tokens, {tool.name} needs about "
            f"{tool.min_context:,} to work; choose another model, or go on with --force",
            param="--force",
        )


def check_tools(server: Server, target: Target) -> None:
    """One token of a chat with a tool: the only question that every server answers the same way."""
    body: dict[str, Any] = {
        "model": target.model,
        "messages": [{"role": "user", "content": "ping"}],
        "tools": [PROBE_TOOL],
        "max_tokens": 1,
    }
    try:
        server.post("/v1/chat/completions", body)
    except InvalidRequest as error:
        raise InvalidRequest(f"{target.model}: takes no chat with tools ({error.message})") from None
