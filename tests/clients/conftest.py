"""Official SDKs against a live server in a thread of its own, over a socket, as in life."""

from __future__ import annotations

import asyncio
import threading
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pytest

from penstock.api.app import create_app
from penstock.api.server import serve_app
from penstock.config import ServerSettings
from penstock.gateway.service import ModelLibrary
from support.scripted_service import ScriptedService


@dataclass
class Live:
    """A server that runs; `wait(coroutine)` runs something on its loop."""

    url: str
    service: ScriptedService
    loop: asyncio.AbstractEventLoop

    def wait(self, coroutine: Any, timeout_s: float = 20.0) -> Any:
        return asyncio.run_coroutine_threadsafe(coroutine, self.loop).result(timeout_s)


Serve = Callable[..., Live]


@pytest.fixture
def live_server() -> Iterator[Serve]:
    """`live_server(library=…, api_key=…)` starts one over a ScriptedService; it ends with the test."""
    ends: list[Callable[[], None]] = []

    def start(library: ModelLibrary | None = None, **settings: Any) -> Live:
        config = ServerSettings(**({"port": 0, "drain_s": 0} | settings))
        found: list[Live] = []
        listening, stop = threading.Event(), asyncio.Event()

        async def main() -> None:
            service = ScriptedService()
            app = create_app(service, config, library=library)
            loop = asyncio.get_running_loop()

            def ready(url: str) -> None:
                found.append(Live(url, service, loop))
                listening.set()

            await serve_app(app, config, ready, stop=stop, signals=False)
            await service.idle()

        thread = threading.Thread(target=lambda: asyncio.run(main()), name="live-server", daemon=True)
        thread.start()
        assert listening.wait(20), "the server does not listen"

        def end() -> None:
            found[0].loop.call_soon_threadsafe(stop.set)
            thread.join(20)
            assert not thread.is_alive(), "the server does not end"

        ends.append(end)
        return found[0]

    yield start
    for end in ends:
        end()


@pytest.fixture
def model_store(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """An empty model store of the test's own."""
    from penstock.models.store import store_folder

    monkeypatch.setenv("XDG_DATA_HOME", str(tmp_path / "data"))
    return store_folder()
