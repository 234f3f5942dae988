"""A server that keeps what agents send, and what of that is stored: shapes, not the agents' own texts."""

from __future__ import annotations

import asyncio
import json
import re
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from penstock.api.app import create_app
from penstock.api.server import serve_app
from penstock.config import ServerSettings
from penstock.gateway.service import ModelService
from support.agent_sessions import FILE, LAST_WORDS, TASK, THOUGHT, Agent

Json = dict[str, Any]

# Texts of the session itself: short, with one of these in them. All others are the agent's own, not stored.
OF_SESSION, SHORT_CHARS = (FILE, LAST_WORDS, THOUGHT, "I will look.", "found"), 240
KEPT_HEADERS = ("user-agent", "accept", "content-type", "x-session-affinity")
PATCH_GRAMMAR = 'start: "*** Begin Patch" LF /(.|\\n)+/ "*** End Patch" LF?\n%import common.LF'
_ID = re.compile(r"[0-9a-f]{8}(-[0-9a-f]{4}){3}-[0-9a-f]{12}")


class Exchange(dict[str, Any]):
    """path, headers, body (of the request), status, answer."""


class Recorder:
    """An ASGI app around another; `exchanges` in the order of their ends."""

    def __init__(self, app: Any) -> None:
        self._app = app
        self.exchanges: list[Exchange] = []

    def __getattr__(self, name: str) -> Any:
        return getattr(self._app, name)

    async def __call__(self, scope: Any, receive: Any, send: Any) -> None:
        if scope["type"] != "http":
            await self._app(scope, receive, send)
            return
        seen = Exchange(path=scope["path"], body=b"", status=0, answer=b"")
        seen["headers"] = {name.decode(): value.decode() for name, value in scope["headers"]}

        async def kept_receive() -> Any:
            message = await receive()
            seen["body"] += message.get("body", b"")
            return message

        async def kept_send(message: Any) -> None:
            seen["status"] = message.get("status", seen["status"])
            seen["answer"] += message.get("body", b"")
            await send(message)

        try:
            await self._app(scope, kept_receive, kept_send)
        finally:
            self.exchanges.append(seen)

    def of_agent(self, agent: Agent) -> list[Exchange]:
        """Those with the agent's own requests, without the question of `penstock launch`."""
        found = [exchange for exchange in self.exchanges if exchange["path"] == agent.path]
        return [exchange for exchange in found if b'"ping"' not in exchange["body"]]


@contextmanager
def recording_server(service: ModelService, folder: Path) -> Iterator[tuple[str, Recorder]]:
    """(URL, recorder) of a server over `service` in a thread of its own."""
    config = ServerSettings(port=0, drain_s=0, database_url=f"sqlite:///{folder}/turns.db")
    found: list[Any] = []
    listening = threading.Event()

    async def main() -> None:
        stop = asyncio.Event()
        recorder = Recorder(create_app(service, config))

        def ready(url: str) -> None:
            found.extend((url, recorder, asyncio.get_running_loop(), stop))
            listening.set()

        await serve_app(recorder, config, ready, stop=stop, signals=False)  # type: ignore[arg-type]

    thread = threading.Thread(target=lambda: asyncio.run(main()), name="recording-server", daemon=True)
    thread.start()
    assert listening.wait(20), "the server does not listen"
    url, recorder, loop, stop = found
    try:
        yield url, recorder
    finally:
        loop.call_soon_threadsafe(stop.set)
        thread.join(20)
    assert not thread.is_alive(), "the server does not end"


def trimmed_session(agent: Agent, version: str, exchanges: list[Exchange], paths: dict[str, str]) -> Json:
    """What is stored of a session. `paths`: folders of this machine, and what stands for them."""
    bodies = [_Trimmer(paths).body(exchange["body"]) for exchange in exchanges]
    longest = max(bodies, key=lambda body: len(body[agent.items]))
    turns = [body for body in bodies if _begins(longest[agent.items], body[agent.items])]
    others = [body for body in bodies if body not in turns]
    headers = {name: exchanges[-1]["headers"].get(name) for name in KEPT_HEADERS}
    return {
        "agent": f"{agent.name} {version}",
        "path": agent.path,
        "headers": {name: _Trimmer(paths).text(value) for name, value in headers.items() if value},
        "body": longest,
        "ends": [len(body[agent.items]) for body in turns],
        "others": others,
    }


def _begins(whole: list[Any], part: list[Any]) -> bool:
    return whole[: len(part)] == part


class _Trimmer:
    def __init__(self, paths: dict[str, str]) -> None:
        self._paths = paths
        self._ids: dict[str, str] = {}

    def body(self, data: bytes) -> Json:
        body = json.loads(data)
        for tool in body.get("tools", ()):
            self._tool(tool)
        body.pop("client_metadata", None)
        found: Json = self._value(body)
        return found

    def text(self, value: str) -> str:
        for path, name in self._paths.items():
            value = value.replace(path, name)
        return _ID.sub(self._id, value)

    def _id(self, match: re.Match[str]) -> str:
        number = len(self._ids) + 1
        return self._ids.setdefault(match[0], f"00000000-0000-7000-8000-{number:012d}")

    def _value(self, value: Any, key: str = "") -> Any:
        if isinstance(value, dict):
            return {name: self._value(item, name) for name, item in value.items()}
        if isinstance(value, list):
            return [self._value(item, key) for item in value]
        if not isinstance(value, str):
            return value
        of_session = len(value) <= SHORT_CHARS and any(mark in value for mark in OF_SESSION)
        if key in ("text", "content") and value and not of_session:
            return f"{TASK if TASK in value else ''}({len(value)} characters of the agent's)"
        return self.text(value)

    def _tool(self, tool: Any) -> None:
        """Descriptions go, in place; what is described stays."""
        if isinstance(tool, list):
            for item in tool:
                self._tool(item)
        elif isinstance(tool, dict):
            if isinstance(tool.get("description"), str):
                tool["description"] = "…"
            if isinstance(tool.get("definition"), str):
                tool["definition"] = PATCH_GRAMMAR
            for item in tool.values():
                self._tool(item)
