"""Driving an EngineCore from an inbox: the loop that the engine process and `LLM` share.

One thread owns the core and runs `drive`; other threads only put commands into the inbox.
Idle means blocked: without work the thread waits in `inbox.get()`, without a timeout.
"""

from __future__ import annotations

import queue
import time
from collections.abc import Callable
from typing import Protocol

from penstock.config import EngineSettings
from penstock.engine.messages import Abort, Delta, Loading, Progress, Ready, Shutdown, Submit, Unpin

PROGRESS_INTERVAL_S = 0.1  # fast enough for a dashboard, slow enough to cost nothing beside a step


class Core(Protocol):
    """What `drive` needs of `penstock.engine.loop.EngineCore`."""

    def submit(self, client: str, request: Submit) -> None: ...

    def abort(self, client: str, request_id: str, keep: int | None = None) -> None: ...

    def unpin(self, name: str) -> None: ...

    def drop_client(self, client: str) -> None: ...

    @property
    def has_work(self) -> bool: ...

    def step(self) -> None: ...

    def on_ready(self, wake: Callable[[], None]) -> None:
        """Call `wake`, from whatever thread, when what a request waits for outside the core is there."""
        ...

    def interrupt(self) -> None:
        """A command came: a `step` that waits for more than it must returns. From any thread."""
        ...

    def progress(self) -> Progress: ...

    def close(self) -> None: ...


Sink = Callable[[str, list[Delta]], None]
BuildEngine = Callable[[EngineSettings, Sink, Callable[[Loading], None]], tuple[Core, Ready]]


class ClientGone:
    """Inbox message: abort everything of this client."""


class Wake:
    """Inbox message: look at what there is to do."""


Command = Submit | Abort | Unpin | ClientGone | Shutdown | Wake


class Inbox:
    """Commands for the thread that drives a core, with their senders."""

    def __init__(self) -> None:
        self._commands: queue.SimpleQueue[tuple[str, Command]] = queue.SimpleQueue()
        self._on_put: Callable[[], None] = _ignore

    def put(self, item: tuple[str, Command]) -> None:
        """From any thread and from signal handlers."""
        self._commands.put(item)
        self._on_put()

    def get(self, block: bool = True) -> tuple[str, Command]:
        """Raises queue.Empty if there is none and it must not `block`."""
        return self._commands.get(block)

    def tell(self, on_put: Callable[[], None]) -> None:
        """Call `on_put` after every `put` from now on."""
        self._on_put = on_put


def _ignore() -> None:
    pass


def drive(core: Core, inbox: Inbox, publish: Callable[[Progress], None]) -> None:
    """Serve commands and run steps until a Shutdown. Raises what the core raises."""
    published_at = 0.0
    inbox.tell(core.interrupt)
    core.on_ready(lambda: inbox.put(("", Wake())))
    while True:
        if not _obey(core, inbox):
            return
        if core.has_work:
            core.step()
        now = time.monotonic()
        if now - published_at >= PROGRESS_INTERVAL_S or not core.has_work:
            published_at = now
            publish(core.progress())


def _obey(core: Core, inbox: Inbox) -> bool:
    """Carry out what is in the inbox, waiting for a first command when idle. False on Shutdown."""
    try:
        client, command = inbox.get(block=not core.has_work)
        while True:
            match command:
                case Submit():
                    core.submit(client, command)
                case Abort():
                    core.abort(client, command.id, command.keep)
                case Unpin():
                    core.unpin(command.name)
                case ClientGone():
                    core.drop_client(client)
                case Shutdown():
                    return False
            client, command = inbox.get(block=False)
    except queue.Empty:
        return True
