"""Backlog: what a slow consumer gets is what a fast one would get, within bounds."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator

import pytest
from hypothesis import given
from hypothesis import strategies as st

from penstock.api.coalesce import Backlog
from penstock.api.errors import ClientGone, SlowReader
from penstock.call import Event, Finish, TextDelta
from penstock.wire.fold import Fold
from support import anthropic_strategies
from support.wire_strategies import stream


class Source:
    """An event iterator under the test's control that notes its closing."""

    def __init__(self, events: list[Event], error: Exception | None = None, hang: bool = False) -> None:
        self.events, self.error, self.hang, self.closed, self.taken = events, error, hang, False, 0

    async def __call__(self) -> AsyncIterator[Event]:
        try:
            for event in self.events:
                await asyncio.sleep(0)
                self.taken += 1
                yield event
            if self.error:
                raise self.error
            if self.hang:
                await asyncio.Event().wait()
        finally:
            self.closed = True


def nothing(*_: object) -> None: ...


@given(anthropic_strategies.stream(), st.integers(1, 5))
async def test_merging_keeps_where_sections_end(events, at_once):
    """Red if a signature, a redacted section or the order of sections is lost for a slow reader."""
    taken: list[Event] = []
    async with Backlog(Source(events)(), nothing, nothing) as backlog:
        while (batch := await backlog.take()) is not None:
            taken += batch
            for _ in range(at_once):
                await asyncio.sleep(0)

    def sections(found: list[Event]) -> list:
        (choice,) = Fold(found).choices()
        return [(run.kind, run.text, run.call_index, run.signature, run.redacted) for run in choice.runs]

    assert sections(taken) == sections(events)


@given(stream("chat"), st.lists(st.integers(0, 5), max_size=40))
def test_merging_changes_no_answer(events, pauses):
    """Red if merging loses, repeats or reorders anything, whenever the consumer comes."""

    async def consume() -> list[Event]:
        taken: list[Event] = []
        waits = iter(pauses)
        async with Backlog(Source(events)(), nothing, nothing) as backlog:
            while (batch := await backlog.take()) is not None:
                taken += batch
                for _ in range(next(waits, 0)):
                    await asyncio.sleep(0)
        return taken

    taken = asyncio.run(consume())
    assert len(taken) <= len(events)
    whole, merged = Fold(events), Fold(taken)
    assert [
        (c.text, c.reasoning, c.token_ids, c.logprobs, c.tool_calls, c.finish) for c in merged.choices()
    ] == [(c.text, c.reasoning, c.token_ids, c.logprobs, c.tool_calls, c.finish) for c in whole.choices()]
    assert merged.usage == whole.usage
    assert [type(e) for e in taken if not hasattr(e, "text")] == [
        type(e) for e in events if not hasattr(e, "text") and getattr(e, "id", 1) is not None
    ] or any(type(e).__name__ == "ToolCallDelta" for e in events)


async def test_deltas_of_a_choice_become_one():
    """Red if deltas that pile up stay apart: a slow reader would cost an object per token."""
    events = [TextDelta(i % 2, "x", (i,)) for i in range(1000)]
    source = Source([*events, Finish(0, "stop")])
    async with Backlog(source(), nothing, nothing) as backlog:
        while source.taken < 1001:
            await asyncio.sleep(0)
        await asyncio.sleep(0)
        batch = await backlog.take()
    assert [type(event).__name__ for event in batch] == ["TextDelta", "TextDelta", "Finish"]
    assert [len(batch[0].token_ids), len(batch[1].text)] == [500, 500]


async def test_leaving_closes_the_source_at_once():
    """Red if the service's iterator outlives the call: its request would generate for nobody."""
    source = Source([], hang=True)
    async with Backlog(source(), nothing, nothing) as backlog:
        assert await backlog.take(0.001) == []
    assert source.closed


async def test_fail_after_the_services_end_is_no_whole_answer():
    """Red if a client that leaves with the last events untaken looks like a service that broke."""
    source = Source([TextDelta(0, "x", (1,)), Finish(0, "stop")])
    async with Backlog(source(), nothing, nothing) as backlog:
        while not source.closed:
            await asyncio.sleep(0)
        backlog.fail(ClientGone())
        with pytest.raises(ClientGone):
            await backlog.take()


async def test_the_first_failure_stands():
    """Red if the departure that follows an abort hides why the call was aborted."""
    source = Source([], hang=True)
    async with Backlog(source(), nothing, nothing) as backlog:
        backlog.fail(SlowReader())
        backlog.fail(ClientGone())
        with pytest.raises(SlowReader):
            await backlog.take()


async def test_fail_wakes_the_consumer_and_closes_the_source():
    """Red if a consumer that waits does not learn that its client has gone."""
    source = Source([], hang=True)
    async with Backlog(source(), nothing, nothing) as backlog:
        waiting = asyncio.create_task(backlog.take())
        await asyncio.sleep(0)
        backlog.fail(ClientGone())
        with pytest.raises(ClientGone):
            await waiting
        while not source.closed:
            await asyncio.sleep(0)


async def test_what_came_before_an_error_is_delivered_first():
    """Red if an error overtakes the events before it."""
    source = Source([TextDelta(0, "a")], error=ZeroDivisionError())
    async with Backlog(source(), nothing, nothing) as backlog:
        while not source.closed:
            await asyncio.sleep(0)
        assert await backlog.take() == [TextDelta(0, "a")]
        with pytest.raises(ZeroDivisionError):
            await backlog.take()


async def test_a_full_backlog_waits_for_a_consumer_that_is_only_busy():
    """Red if a burst counts as a slow reader, or the backlog grows beyond its bound."""
    source = Source([TextDelta(0, "x" * 100)] * 50 + [Finish(0, "stop")])
    async with Backlog(source(), nothing, nothing, max_bytes=1000) as backlog:
        for _ in range(500):
            await asyncio.sleep(0)
        assert source.taken < 10
        text = ""
        while (batch := await backlog.take()) is not None:
            text += "".join(event.text for event in batch if isinstance(event, TextDelta))
    assert text == "x" * 5000


@pytest.mark.parametrize("limit", [{"max_bytes": 1000}, {"max_events": 5}])
async def test_a_full_backlog_ends_the_call_of_a_client_that_does_not_read(limit):
    """Red if a client that does not read keeps its request running."""
    slow = asyncio.Event()
    events: list[Event] = [TextDelta(0, "x" * 100), Finish(0, "stop")]
    source = Source(events * 50)
    async with Backlog(source(), nothing, slow.set, **limit) as backlog:
        backlog.sending = True
        await slow.wait()
        with pytest.raises(SlowReader):
            await backlog.take()
    assert source.closed
    assert source.taken < 20
