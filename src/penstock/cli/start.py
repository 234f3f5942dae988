"""Starting a model from a command line: pull it if it is not there, show what the time goes to."""

from __future__ import annotations

import logging
import os
import sys
import time
from collections.abc import AsyncIterator
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from penstock.call import Done, Event
    from penstock.llm import AsyncLLM


def ensure_model(name: str) -> None:
    """Pull a catalogue or remote model on first use, with a progress bar; a local path is left alone."""
    from penstock.cli import console
    from penstock.models import sources

    if sources.is_present(name):
        return
    with console.byte_progress() as progress:
        sources.pull(name, progress)


async def open_llm(model: str | None, engine: dict[str, Any]) -> AsyncLLM:
    """A started AsyncLLM; a spinner on stderr while it loads."""
    from penstock.cli import console
    from penstock.config import EngineSettings, build
    from penstock.llm import AsyncLLM

    given = engine if model is None else {**engine, "model": model}
    settings = build(EngineSettings, **given)
    ensure_model(settings.model)
    llm = AsyncLLM(**given)
    with console.err().status(f"loading {settings.model}"):
        await llm.start()
    return llm


async def print_stream(
    events: AsyncIterator[Event], said: list[str] | None = None, *, quiet: bool = False
) -> Done | None:
    """Write text deltas to stdout as they come, unless `quiet`; returns the Done event.

    said: gets every piece of text, so that the caller has it even if this is cancelled.
    Raises the PenstockError of a failed stream.
    """
    from penstock.call import Done, Failure, ReasoningDelta, TextDelta
    from penstock.cli import console
    from penstock.errors import from_kind

    done: Done | None = None
    wrote = False
    async for event in events:
        if isinstance(event, TextDelta | ReasoningDelta) and event.text:
            if not quiet:
                wrote = True
                console.write(event.text)
            if said is not None and isinstance(event, TextDelta):
                said.append(event.text)
        elif isinstance(event, Failure):
            if wrote:
                console.write("\n")
            raise from_kind(event.kind, event.message, param=event.param, retry_after_s=event.retry_after_s)
        elif isinstance(event, Done):
            done = event
    if wrote:
        console.write("\n")
    return done


class Clock:
    """Seconds since this process was started, split into laps."""

    def __init__(self) -> None:
        self.laps: dict[str, float] = {}
        self._started = time.monotonic() - _age_s()
        self._last = self._started

    @property
    def total_s(self) -> float:
        return time.monotonic() - self._started

    def lap(self, name: str) -> None:
        now = time.monotonic()
        self.laps[name] = now - self._last
        self._last = now


def _age_s() -> float:
    """How long this process has lived, interpreter start included; 0 where the system does not tell."""
    try:
        with open("/proc/self/stat", "rb") as file:
            ticks = int(file.read().rpartition(b")")[2].split()[19])  # field 22 of proc(5): starttime
        return max(0.0, time.clock_gettime(time.CLOCK_BOOTTIME) - ticks / os.sysconf("SC_CLK_TCK"))
    except (OSError, ValueError, AttributeError):
        return 0.0


class Phases:
    """What a start waits for: a spinner line on a terminal, nothing on a pipe (the log has the times)."""

    def __init__(self) -> None:
        from penstock.cli import console

        stream = console.err()
        self._status = stream.status("starting") if stream.is_terminal else None
        if self._status is not None:
            self._status.start()

    def show(self, text: str) -> None:
        if self._status is not None:
            self._status.update(text)

    def close(self) -> None:
        """Idempotent."""
        if self._status is not None:
            self._status.stop()
            self._status = None


def memory_plan(plan: dict[str, int]) -> str:
    """`weights 513 MiB + workspace 60.1 MiB + KV 5.5 GiB (128,000 tokens)`, from the engine's Ready."""
    from penstock.cli import console

    parts = [(label, plan.get(key, 0)) for key, label in (("weights", "weights"), ("workspace", "workspace"))]
    shown = [f"{label} {console.size(amount)}" for label, amount in parts]
    return f"{' + '.join(shown)} + KV {console.size(plan.get('kv', 0))} ({plan.get('kv_tokens', 0):,} tokens)"


def setup_logging(level: str) -> None:
    """Penstock's own log to stderr; libraries only from warnings on."""
    from penstock.observe import log

    logging.basicConfig(level=logging.WARNING, stream=sys.stderr)
    log.setup(level)
