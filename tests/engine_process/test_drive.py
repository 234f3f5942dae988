"""The engine's loop over its inbox, step by step in this thread."""

from __future__ import annotations

import queue

import pytest

from penstock.config import EngineSettings
from penstock.decoding.params import TokenSampling
from penstock.engine.drive import ClientGone, Inbox, drive
from penstock.engine.messages import Abort, Delta, Progress, Shutdown, Submit, pack_tokens
from support.sim_engine import build_sim


def submit(name: str, max_tokens: int = 1000) -> Submit:
    sampling = TokenSampling(max_tokens=max_tokens, seed=1, temperature=0.0)
    return Submit(id=name, tokens=pack_tokens([1, 2, 3]), sampling=sampling)


@pytest.mark.parametrize("depth", [0, 1])
@pytest.mark.parametrize("command", [Abort("r"), ClientGone()])
def test_an_abort_frees_the_slot_within_one_step(depth: int, command: Abort | ClientGone) -> None:
    """Red if an abort, or a caller that went away, waits behind further steps."""
    inbox = Inbox()
    steps: list[int] = []

    def sink(client: str, deltas: list[Delta]) -> None:
        if not steps:
            steps.append(core.progress().steps)
            inbox.put((client, command))

    def publish(progress: Progress) -> None:
        if steps and progress.running == 0:
            steps.append(progress.steps)
            inbox.put(("c", Shutdown()))

    core, _ = build_sim(EngineSettings(model="sim:step_ms=0", async_depth=depth), sink, lambda _: None)
    inbox.put(("c", submit("r")))
    drive(core, inbox, publish)
    assert steps[1] - steps[0] <= 1
    core.check_idle()  # type: ignore[attr-defined]


def test_only_the_callers_own_requests_are_touched() -> None:
    """Red if one caller can abort another's request of the same id, or its leaving takes them along."""
    inbox = Inbox()
    finished: list[tuple[str, str]] = []

    def sink(client: str, deltas: list[Delta]) -> None:
        finished.extend((client, delta.id) for delta in deltas if delta.finish)
        if len(finished) == 1:
            inbox.put(("c", Shutdown()))

    core, _ = build_sim(EngineSettings(model="sim:step_ms=0"), sink, lambda _: None)
    for client in ("mine", "other"):
        inbox.put((client, submit("same", 50)))
    inbox.put(("other", Abort("same")))
    inbox.put(("third", Abort("same")))
    inbox.put(("third", ClientGone()))
    drive(core, inbox, lambda _: None)
    assert finished == [("mine", "same")]


def test_idle_means_blocked() -> None:
    """Red if the loop spins, or publishes again and again, while there is nothing to do."""
    published: list[Progress] = []

    class Waiting(Inbox):
        """An inbox whose reader is counted; the second blocking read ends the loop."""

        reads = 0

        def get(self, block: bool = True) -> tuple[str, Shutdown | Abort]:
            if not block:
                raise queue.Empty
            self.reads += 1
            return ("c", Abort("nothing")) if self.reads == 1 else ("c", Shutdown())

    core, _ = build_sim(EngineSettings(model="sim:step_ms=0"), lambda *_: None, lambda _: None)
    waiting = Waiting()
    drive(core, waiting, published.append)
    assert waiting.reads == 2
    assert len(published) == 1
