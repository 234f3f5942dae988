"""A live server in a thread of its own: for SDKs that block, over a socket, as in life."""

from __future__ import annotations

import asyncio
import tempfile
import threading
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any

from penstock.api.app import create_app
from penstock.api.server import serve_app
from penstock.config import ServerSettings
from penstock.gateway.service import EmbeddingService, ModelLibrary
from support.scripted_service import ScriptedService


@dataclass
class Live:
    """A server that runs; `wait(coroutine)` runs something on its loop."""

    url: str
    service: Any
    loop: asyncio.AbstractEventLoop
    thread: threading.Thread
    stop: asyncio.Event

    def wait(self, coroutine: Any, timeout_s: float = 20.0) -> Any:
        return asyncio.run_coroutine_threadsafe(coroutine, self.loop).result(timeout_s)

    def end(self) -> None:
        self.loop.call_soon_threadsafe(self.stop.set)
        self.thread.join(20)
        assert not self.thread.is_alive(), "the server does not end"


@contextmanager
def live_servers() -> Iterator[Callable[..., Live]]:
    """A function that starts servers, `start(library=…, make=…, embeddings=…, api_key=…)`, over the service
    that `make` makes on the server's loop; they end with the block, and none has a call open then."""
    running: list[Live] = []
    folder = tempfile.TemporaryDirectory(prefix="penstock-turns-")
    fixed = {"port": 0, "drain_s": 0, "database_url": f"sqlite:///{folder.name}/turns.db"}

    def start(
        library: ModelLibrary | None = None,
        make: Callable[[], Any] = ScriptedService,
        embeddings: EmbeddingService | None = None,
        **settings: Any,
    ) -> Live:
        running.append(_start(library, make, embeddings, ServerSettings(**(fixed | settings))))
        return running[-1]

    with folder:
        yield start
        for live in running:
            live.end()


def _start(
    library: ModelLibrary | None,
    make: Callable[[], Any],
    embeddings: EmbeddingService | None,
    config: ServerSettings,
) -> Live:
    found: list[Live] = []
    listening, stop = threading.Event(), asyncio.Event()

    async def main() -> None:
        service = make()
        app = create_app(service, config, library=library, embeddings=embeddings)
        loop = asyncio.get_running_loop()

        def ready(url: str) -> None:
            found.append(Live(url, service, loop, thread, stop))
            listening.set()

        await serve_app(app, config, ready, stop=stop, signals=False)
        await service.idle()

    thread = threading.Thread(target=lambda: asyncio.run(main()), name="live-server", daemon=True)
    thread.start()
    assert listening.wait(20), "the server does not listen"
    return found[0]
