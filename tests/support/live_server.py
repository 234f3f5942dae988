"""A real server on a free port, in the test's own event loop, over a ScriptedService."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator, Awaitable, Callable
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import pytest

from penstock.api.app import App, create_app
from penstock.api.server import serve_app
from penstock.config import ServerSettings
from penstock.gateway.service import EmbeddingService
from support.scripted_service import ScriptedService


@dataclass
class Running:
    url: str
    app: App
    service: Any
    stop: asyncio.Event
    task: asyncio.Task[None]
    writers: list[asyncio.StreamWriter] = field(default_factory=list)

    @property
    def port(self) -> int:
        return int(self.url.rpartition(":")[2])

    async def connect(self, **options: Any) -> tuple[asyncio.StreamReader, asyncio.StreamWriter]:
        reader, writer = await asyncio.open_connection("127.0.0.1", self.port, **options)
        self.writers.append(writer)
        return reader, writer

    async def send(self, data: bytes) -> bytes:
        """Everything the server answers to `data` until it closes the connection."""
        reader, writer = await self.connect()
        writer.write(data)
        answer = await reader.read()
        writer.close()
        return answer

    async def post(self, path: str, body: bytes, *headers: str) -> tuple[int, dict[str, str], bytes]:
        """(status, headers, body) of one POST on a connection of its own."""
        return parse(await self.send(request("POST", path, body, *headers, "Connection: close")))

    async def get(self, path: str, *headers: str) -> tuple[int, dict[str, str], bytes]:
        return await self.ask("GET", path, *headers)

    async def ask(self, method: str, path: str, *headers: str) -> tuple[int, dict[str, str], bytes]:
        return parse(await self.send(request(method, path, b"", *headers, "Connection: close")))

    async def finish(self) -> None:
        for writer in self.writers:
            writer.close()
        self.stop.set()
        await self.task


def request(method: str, path: str, body: bytes = b"", *headers: str) -> bytes:
    """The bytes of a request; Host, Content-Type and Content-Length unless `headers` give them."""
    given = {header.partition(":")[0].lower() for header in headers}
    lines = [f"{method} {path} HTTP/1.1", *headers]
    if "host" not in given:
        lines.append("Host: localhost")
    if body and "content-type" not in given:
        lines.append("Content-Type: application/json")
    if body and not given & {"content-length", "transfer-encoding"}:
        lines.append(f"Content-Length: {len(body)}")
    return "\r\n".join(lines).encode("latin-1") + b"\r\n\r\n" + body


def parse(answer: bytes) -> tuple[int, dict[str, str], bytes]:
    """One response; a chunked body is joined."""
    head, _, body = answer.partition(b"\r\n\r\n")
    status_line, *lines = head.decode("latin-1").split("\r\n")
    headers = {name.lower(): value for name, _, value in (line.partition(": ") for line in lines)}
    if headers.get("transfer-encoding") == "chunked":
        joined = b""
        while body:
            size, _, body = body.partition(b"\r\n")
            joined += body[: int(size, 16)]
            body = body[int(size, 16) + 2 :]
        body = joined
    return int(status_line.split()[1]), headers, body


Serve = Callable[..., Awaitable[Running]]


@pytest.fixture
async def serve(tmp_path: Path) -> AsyncIterator[Serve]:
    """`await serve(service, api_key=…)` starts a server; at the end none has a call or a task left."""
    running: list[Running] = []

    async def start(
        service: Any = None, embeddings: EmbeddingService | None = None, **settings: Any
    ) -> Running:
        service = service or ScriptedService()
        fixed = {"port": 0, "drain_s": 0, "database_url": f"sqlite:///{tmp_path}/turns.db"}
        config = ServerSettings(**(fixed | settings))
        app = create_app(service, config, embeddings=embeddings)
        stop = asyncio.Event()
        ready: asyncio.Future[str] = asyncio.get_running_loop().create_future()
        task = asyncio.create_task(serve_app(app, config, ready.set_result, stop=stop, signals=False))
        await asyncio.wait((task, ready), return_when=asyncio.FIRST_COMPLETED)
        if task.done():
            await task
        server = Running(await ready, app, service, stop, task)
        running.append(server)
        return server

    yield start
    async with asyncio.timeout(20):
        for server in running:
            await server.finish()
            await server.service.idle()
            assert server.service.closed
    left = [task.get_name() for task in asyncio.all_tasks() if task.get_name().startswith("penstock")]
    assert left == [], "tasks outlive their server"
