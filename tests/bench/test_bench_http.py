"""The benchmark's HTTP client against a socket that answers byte by byte as it likes."""

from __future__ import annotations

import asyncio
import json
from collections.abc import AsyncIterator, Awaitable, Callable
from contextlib import asynccontextmanager
from itertools import pairwise

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from penstock.bench.http_client import Target, complete, get_json
from penstock.bench.metrics import Record
from penstock.bench.workloads import Item

ITEM = Item(index=0, arrival_s=0.0, input_len=4, output_len=3)
Reply = Callable[[asyncio.StreamWriter], Awaitable[None]]


@asynccontextmanager
async def server(reply: Reply, seen: list[bytes] | None = None) -> AsyncIterator[str]:
    async def handle(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        head = await reader.readuntil(b"\r\n\r\n")
        length = next(
            (int(h[15:]) for h in head.lower().split(b"\r\n") if h.startswith(b"content-length:")), 0
        )
        body = await reader.readexactly(length)
        if seen is not None:
            seen.extend([head, body])
        await reply(writer)
        writer.close()

    listening = await asyncio.start_server(handle, "127.0.0.1", 0)
    async with listening:
        yield f"http://127.0.0.1:{listening.sockets[0].getsockname()[1]}"


def sse(chunks: list[dict]) -> bytes:
    return b"".join(b"data: %s\n\n" % json.dumps(c).encode() for c in chunks) + b"data: [DONE]\n\n"


def text_chunk(text: str, finish: str | None = None) -> dict:
    return {"choices": [{"index": 0, "text": text, "finish_reason": finish}]}


USAGE = {
    "choices": [],
    "usage": {"prompt_tokens": 4, "completion_tokens": 3, "prompt_tokens_details": {"cached_tokens": 2}},
}
STREAM = sse([text_chunk("a"), text_chunk(""), text_chunk("b"), text_chunk("", "length"), USAGE])


async def measured(reply: Reply) -> Record:
    async with server(reply) as url:
        return await complete(Target(url=url, model="m"), ITEM)


@settings(max_examples=30)
@given(st.lists(st.integers(1, len(STREAM) - 1), max_size=12), st.booleans())
def test_any_cut_of_the_stream_counts_the_same(cuts: list[int], chunked: bool) -> None:
    """Red if tokens are lost or doubled where a chunk border falls inside a line."""

    async def reply(writer: asyncio.StreamWriter) -> None:
        extra = b"transfer-encoding: chunked" if chunked else b"connection: close"
        writer.write(b"HTTP/1.1 200 OK\r\ncontent-type: text/event-stream\r\n" + extra + b"\r\n\r\n")
        points = [0, *sorted(set(cuts)), len(STREAM)]
        for start, end in pairwise(points):
            piece = STREAM[start:end]
            writer.write(b"%x\r\n%s\r\n" % (len(piece), piece) if chunked else piece)
            await writer.drain()
        if chunked:
            writer.write(b"0\r\n\r\n")

    record = asyncio.run(measured(reply))
    assert record.error is None
    assert len(record.arrivals_s) == 3
    assert (record.input_tokens, record.output_tokens, record.cached_tokens) == (4, 3, 2)
    assert record.end_s == record.arrivals_s[-1]


async def test_a_cut_connection_is_a_failed_request() -> None:
    """Red if a server that dies in the middle of an answer is counted as fast."""

    async def reply(writer: asyncio.StreamWriter) -> None:
        writer.write(b"HTTP/1.1 200 OK\r\ntransfer-encoding: chunked\r\n\r\n")
        piece = sse([text_chunk("a")])[:-16]
        writer.write(b"%x\r\n%s\r\n" % (len(piece), piece))
        await writer.drain()

    record = await measured(reply)
    assert record.error is not None
    assert not record.ok


async def test_an_error_answer_keeps_status_and_reason() -> None:
    """Red if a refused request is reported without the server's reason."""

    async def reply(writer: asyncio.StreamWriter) -> None:
        body = b'{"error": {"message": "queue full"}}'
        writer.write(b"HTTP/1.1 429 Too Many Requests\r\ncontent-length: %d\r\n\r\n" % len(body) + body)

    record = await measured(reply)
    assert record.error is not None
    assert "429" in record.error
    assert "queue full" in record.error


async def test_an_error_event_is_a_failed_request() -> None:
    """Red if a stream that ends in an error event counts as answered."""

    async def reply(writer: asyncio.StreamWriter) -> None:
        writer.write(b"HTTP/1.1 200 OK\r\nconnection: close\r\n\r\n")
        writer.write(sse([text_chunk("a"), {"error": {"message": "the engine died"}}]))

    record = await measured(reply)
    assert record.error == "the engine died"


async def test_nobody_there() -> None:
    """Red if a refused connection ends the whole benchmark instead of counting as failed."""
    record = await complete(Target(url="http://127.0.0.1:9", model="m"), ITEM)
    assert record.error is not None


async def test_request_asks_for_exactly_the_work() -> None:
    """Red if a server may stop early or stream without usage: its tokens per second would be guesses."""
    seen: list[bytes] = []

    async def reply(writer: asyncio.StreamWriter) -> None:
        writer.write(b"HTTP/1.1 200 OK\r\nconnection: close\r\n\r\n" + STREAM)

    async with server(reply, seen) as url:
        await complete(Target(url=url + "/v1", model="m", api_key="secret"), ITEM)
    head, body = seen[0].decode(), json.loads(seen[1])
    assert head.startswith("POST /v1/completions HTTP/1.1\r\n")
    assert "authorization: Bearer secret" in head
    assert len(body["prompt"]) == 4
    assert body["max_tokens"] == body["min_tokens"] == 3
    assert body["ignore_eos"] is True
    assert body["stream_options"] == {"include_usage": True}


async def test_get_json() -> None:
    """Red if the model list can't be read, or an error status passes for one."""

    async def reply(writer: asyncio.StreamWriter) -> None:
        writer.write(b'HTTP/1.1 200 OK\r\ncontent-length: 8\r\n\r\n{"a": 1}')

    async def refuse(writer: asyncio.StreamWriter) -> None:
        writer.write(b"HTTP/1.1 401 Unauthorized\r\ncontent-length: 2\r\n\r\n{}")

    async with server(reply) as url:
        assert await get_json(url, "/v1/models") == {"a": 1}
    async with server(refuse) as url:
        with pytest.raises(ValueError, match="401"):
            await get_json(url, "/v1/models")
