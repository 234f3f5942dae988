"""Transport: how a caller reaches an engine, whichever process that engine lives in.

Three implementations: `inprocess.InProcessTransport` (a thread of this process, for `LLM`),
`client.ZmqTransport` (an engine started by `penstock engine`) and `supervisor.SupervisedTransport`
(an engine that this process starts, watches and restarts, for `serve`).

Invariants
- Everything here happens on one asyncio loop: the one `start` was called on. Listener methods are
  called on it, never from another thread, never from within `submit` or `abort`.
- Deltas of a request arrive in the engine's order. After `on_lost` no delta of an earlier request
  arrives: whatever was open is gone.
- `submit`, `abort` and `unpin` never block. `submit` raises EngineUnavailable unless the state is READY;
  `abort` of an unknown or finished request does nothing.
"""

from __future__ import annotations

import enum
from typing import Protocol

from msgspec import Struct

from penstock.engine.messages import Delta, Progress, Ready, Submit
from penstock.errors import PenstockError


class State(enum.Enum):
    STARTING = "starting"  # also: restarting, reconnecting
    READY = "ready"
    REFUSED = "refused"  # for good: the model can't be served, or the engine can't be started
    CLOSED = "closed"


class Status(Struct, frozen=True):
    """detail: one line for people. heard_s: seconds since the engine last said anything.

    retry_after_s: a guess of when READY comes, for callers that are turned away.
    """

    state: State
    detail: str
    restarts: int = 0
    heard_s: float = 0.0
    retry_after_s: float = 1.0


class Listener(Protocol):
    """Who owns the requests."""

    def on_ready(self, ready: Ready) -> None:
        """The engine accepts requests. Comes again after every restart."""
        ...

    def on_deltas(self, deltas: list[Delta]) -> None: ...

    def on_progress(self, progress: Progress) -> None:
        """After steps, at most every 100 ms, and about once a second while idle."""
        ...

    def on_lost(self, error: PenstockError) -> None:
        """Every open request is gone. ModelRefused if there will be no engine at all."""
        ...


class Transport(Protocol):
    async def start(self, listener: Listener) -> None:
        """Begin; returns at once. `on_ready` or `on_lost` tell how it went."""
        ...

    def submit(self, request: Submit) -> None: ...

    def abort(self, request_id: str, keep: int | None = None) -> None: ...

    def unpin(self, name: str) -> None: ...

    def status(self) -> Status: ...

    async def close(self) -> None:
        """Drop everything open and leave nothing behind. Idempotent; `on_lost` is not called."""
        ...
