"""Live servers for the official clients: a real socket, a scripted service, turns in the test's own file."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator, Awaitable, Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pytest

from penstock.api.app import App, create_app
from penstock.api.server import serve_app
from penstock.config import ServerSettings
from support.scripted_service import ScriptedService


@dataclass
class Running:
    url: str
    app: App
    service: Any
    stop: asyncio.Event
    task: asyncio.Task[None]

    async def finish(self) -> None:
        self.stop.set()
        await self.task


Serve = Callable[..., Awaitable[Running]]


@pytest.fixture
async def serve(tmp_path: Path) -> AsyncIterator[Serve]:
    """`await serve(service, api_key=…)` starts a server; at the end none has a call or a task left."""
    running: list[Running] = []

    async def start(service: Any = None, **settings: Any) -> Running:
        service = service or ScriptedService()
        fixed = {"port": 0, "drain_s": 0, "database_url": f"sqlite:///{tmp_path}/turns.db"}
        config = ServerSettings(**(fixed | settings))
        app = create_app(service, config)
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
    left = [task.get_name() for task in asyncio.all_tasks() if task.get_name().startswith("penstock")]
    assert left == [], "tasks outlive their server"
