"""Message batches with the official `anthropic` package, over sockets."""

from __future__ import annotations

import asyncio
from typing import Any

import pytest

from support.scripted_service import MODEL

anthropic = pytest.importorskip("anthropic", reason="needs the official SDK: pip install penstock[test]")
from anthropic.types.messages import MessageBatch


@pytest.fixture
async def client(serve):
    server = await serve()
    async with anthropic.AsyncAnthropic(base_url=server.url, api_key="any", max_retries=0) as sdk:
        sdk.server = server
        yield sdk


def ask(custom_id: str, text: str, **fields: Any) -> dict[str, Any]:
    messages = [{"role": "user", "content": text}]
    return {
        "custom_id": custom_id,
        "params": {"model": MODEL, "max_tokens": 50, "messages": messages, **fields},
    }


async def ended(client: Any, batch: MessageBatch) -> MessageBatch:
    async with asyncio.timeout(20):
        while batch.processing_status != "ended":
            batch = await client.messages.batches.retrieve(batch.id)
    return batch


async def results(client: Any, batch: MessageBatch) -> dict[str, Any]:
    found = [one async for one in await client.messages.batches.results(batch.id)]
    assert len({one.custom_id for one in found}) == len(found)
    return {one.custom_id: one.result for one in found}


async def test_a_batch_from_its_making_to_its_deletion(client):
    """Red if an object or a result is not of the SDK's type, or the counts are not those of its reference."""
    requests = [ask(f"r{i}", f"hello {i}") for i in range(150)]
    requests += [ask("gone", "x", model="claude-9"), ask("bad", "x", max_tokens=0)]
    raw = await client.messages.batches.with_raw_response.create(requests=requests)
    made = MessageBatch.model_validate_json(await raw.text())
    assert made.request_counts.processing == 152 and made.results_url is None
    with pytest.raises(anthropic.AnthropicError, match="results_url"):
        await client.messages.batches.results(made.id)
    batch = await ended(client, made)
    counts = batch.request_counts
    assert (counts.processing, counts.succeeded, counts.errored) == (0, 150, 2)
    assert batch.ended_at is not None and batch.expires_at > batch.created_at
    found = await results(client, batch)
    for i in range(150):
        result = found[f"r{i}"]
        assert result.type == "succeeded"
        assert result.message.content[0].text == f"hello {i}"
        assert result.message.stop_reason == "end_turn"
    assert {name: found[name].error.error.type for name in ("gone", "bad")} == {
        "gone": "not_found_error",
        "bad": "invalid_request_error",
    }
    assert (await client.messages.batches.delete(batch.id)).id == batch.id
    with pytest.raises(anthropic.NotFoundError):
        await client.messages.batches.retrieve(batch.id)


async def test_a_cancelled_batch(client):
    """Red if a request of a cancelled batch has no result, or a running batch can be deleted."""
    requests = [ask("done", "hello"), *(ask(f"h{i}", "/hang") for i in range(30))]
    made = await client.messages.batches.create(requests=requests)
    await client.server.service.seen(finished=1, started=2)
    with pytest.raises(anthropic.APIStatusError, match="still runs"):
        await client.messages.batches.delete(made.id)
    cancelled = await client.messages.batches.cancel(made.id)
    assert cancelled.processing_status == "canceling" and cancelled.cancel_initiated_at is not None
    batch = await ended(client, cancelled)
    found = await results(client, batch)
    assert {found[f"h{i}"].type for i in range(30)} == {"canceled"}
    assert len(found) == 31 and batch.request_counts.canceled >= 30


@pytest.mark.parametrize(
    ("requests", "said"),
    [
        ([], "requests"),
        ([ask("a", "x"), ask("a", "y")], "given twice"),
        ([ask("a b", "x")], "custom_id"),
        ([{"custom_id": "a"}], "params"),
    ],
)
async def test_what_create_refuses(client, requests, said):
    """Red if results could not be told apart, or a batch of nothing is made."""
    with pytest.raises(anthropic.BadRequestError, match=said):
        await client.messages.batches.create(requests=requests)


async def test_pages_go_both_ways(client):
    """Red if a page loses or repeats a batch in either direction, or OpenAI's are among them."""
    names = []
    for _ in range(5):
        names.append((await client.messages.batches.create(requests=[ask("a", "x")])).id)
    assert [batch.id async for batch in client.messages.batches.list(limit=2)] == names[::-1]
    page = await client.messages.batches.list(limit=2, before_id=names[0])
    assert [batch.id for batch in page.data] == [names[2], names[1]] and page.has_more
    with pytest.raises(anthropic.BadRequestError):
        await client.messages.batches.list(after_id="msgbatch_none")
