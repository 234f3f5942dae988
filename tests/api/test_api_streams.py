"""Clients that leave, that read slowly, and servers that stop: what happens to the call behind them."""

from __future__ import annotations

import asyncio
import json
import signal
import socket
import sys
from pathlib import Path

import pytest

from conftest import parse, request
from penstock.api.generate import GenerateRoute
from penstock.config import ServerSettings
from penstock.observe.metrics import Metrics
from penstock.wire import openai_chat
from support.scripted_service import MODEL

CHAT = "/v1/chat/completions"
SERVER = Path(__file__).resolve().parents[1] / "support" / "scripted_server.py"


def chat(text: str, stream: bool = True, *headers: str) -> bytes:
    body = {"model": MODEL, "messages": [{"role": "user", "content": text}], "stream": stream}
    return request("POST", CHAT, json.dumps(body).encode(), *headers)


@pytest.mark.parametrize("stream", [True, False])
@pytest.mark.parametrize("text", ["/hang", "/hang-after 3"], ids=["before the first token", "later"])
@pytest.mark.parametrize("leave", ["close", "reset"])
async def test_a_client_that_leaves_cancels_its_call(serve, stream, text, leave):
    """Red if a call runs on for a client that has gone: before the first token or after, in either mode."""
    server = await serve()
    reader, writer = await server.connect()
    writer.write(chat(text, stream))
    await server.service.seen(started=1)
    if stream and text != "/hang":
        await reader.readuntil(b' 2"')
    if leave == "reset":
        linger = b"\x01\x00\x00\x00\x00\x00\x00\x00"
        writer.get_extra_info("socket").setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, linger)
    writer.close()
    await server.service.seen(cancelled=1)
    await server.service.idle()
    _, _, metrics = await server.get("/metrics")
    assert b'penstock_cancelled_total{cause="disconnect"} 1.0' in metrics


async def test_a_client_that_leaves_within_its_body(serve):
    """Red if a request whose body never ends makes a call, or a server error."""
    server = await serve()
    _, writer = await server.connect()
    whole = chat("hello")
    writer.write(whole[:-5])
    await writer.drain()
    writer.close()
    assert (await server.get("/health"))[0] == 200
    assert server.service.calls == []


async def test_many_clients_that_leave_at_once(serve):
    """Red if a crowd that leaves before its first token blocks others or leaves calls behind."""
    server = await serve()
    writers = []
    for _ in range(200):
        _, writer = await server.connect()
        writer.write(chat("/hang"))
        writers.append(writer)
    await server.service.seen(started=200)
    for writer in writers:
        writer.close()
    status, _, body = parse(await server.send(chat("still here", False, "Connection: close")))
    assert (status, json.loads(body)["choices"][0]["message"]["content"]) == (200, "still here")
    await server.service.seen(cancelled=200)
    await server.service.idle()


async def test_a_reader_that_stops_reading_is_cut_off(serve):
    """Red if a client that does not read makes the server hold what it generates without bound."""
    server = await serve()
    with socket.socket() as sock:
        sock.setsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF, 4096)
        sock.setblocking(False)
        await asyncio.get_running_loop().sock_connect(sock, ("127.0.0.1", server.port))
        sock.send(chat("/flood 1000000"))
        await server.service.seen(cancelled=1)
        await server.service.idle()
        with pytest.raises(ConnectionResetError):  # not an end after all that the kernel holds
            while await asyncio.get_running_loop().sock_recv(sock, 2**16):
                pass
    # Kernel buffers of both ends hold a few MiB, the backlog four: a gigabyte was asked for.
    assert server.service.produced < 32 * 1024
    _, _, metrics = await server.get("/metrics")
    assert b'penstock_cancelled_total{cause="slow_reader"} 1.0' in metrics


async def test_a_slow_reader_gets_everything_in_order(serve):
    """Red if merging for a slow reader loses, repeats or reorders text."""
    server = await serve()
    reader, writer = await server.connect(limit=2**12)
    writer.write(chat("/hang-after 3000", True))
    text = ""
    while not text.endswith(" 2999"):
        line = (await reader.readuntil(b"\n\n")).strip()
        payload = line[line.index(b"{") : line.rindex(b"}") + 1] if b"{" in line else b""
        if payload:
            text += json.loads(payload)["choices"][0]["delta"].get("content") or ""
        await asyncio.sleep(0)
    assert text == "".join(f" {i}" for i in range(3000))


async def test_a_write_that_blocks_too_long_ends_the_call():
    """Red if a client whose socket takes nothing holds its call longer than slow_reader_s."""
    from penstock.api.errors import ClientGone
    from penstock.api.exchange import Exchange
    from support.scripted_service import ScriptedService

    service = ScriptedService()
    metrics = Metrics()
    route = GenerateRoute(service, ServerSettings(slow_reader_s=0.05), metrics, openai_chat)
    aborted = asyncio.Event()
    head, _, body = chat("/hang-after 3").partition(b"\r\n\r\n")
    assert head
    messages = [{"type": "http.request", "body": body, "more_body": False}]

    async def receive():
        if messages:
            return messages.pop()
        return await asyncio.Event().wait()

    async def send(message):
        if message["type"] == "http.response.body":
            await asyncio.Event().wait()  # a socket that takes nothing

    scope = {
        "type": "http",
        "method": "POST",
        "path": CHAT,
        "headers": [(b"content-type", b"application/json")],
        "penstock": Exchange(),
        "penstock.abort": aborted.set,
    }
    with pytest.raises(ClientGone):
        await route(scope, receive, send)
    assert aborted.is_set()
    await service.idle()
    assert service.cancelled == 1
    assert b'cause="slow_reader"} 1.0' in metrics.expose()


async def test_keep_alive_comments(serve):
    """Red if a stream that waits long sends nothing, and proxies give it up."""
    server = await serve(keepalive_s=0.01)
    reader, writer = await server.connect()
    writer.write(chat("/hang-after 1"))
    head = await reader.readuntil(b"\r\n\r\n")
    assert b"content-type: text/event-stream" in head
    assert b"cache-control: no-cache" in head
    assert b"x-accel-buffering: no" in head
    await reader.readuntil(b": keep-alive\n\n")
    await reader.readuntil(b": keep-alive\n\n")


async def test_a_stream_is_kept_alive_before_its_first_token(serve):
    """Red if a client, or a proxy before it, hears nothing while a long prompt is computed."""
    server = await serve(keepalive_s=0.01)
    reader, writer = await server.connect()
    writer.write(chat("/release"))
    await reader.readuntil(b": keep-alive\n\n")
    server.service.release.set()
    rest = await reader.readuntil(b"data: [DONE]\n\n")
    assert b"released" in rest


async def test_an_error_behind_the_first_keep_alive_stands_in_the_stream(serve):
    """Red if what goes wrong after that long is lost: its status can't be told any more."""
    server = await serve(keepalive_s=0.01, drain_s=0)
    reader, writer = await server.connect()
    writer.write(chat("/hang"))
    await reader.readuntil(b": keep-alive\n\n")
    server.stop.set()
    rest = await reader.read()
    assert b'"error"' in rest and b"stopping" in rest


async def test_a_stop_lets_running_answers_finish(serve):
    """Red if a stopping server cuts an answer off, or takes new connections meanwhile."""
    server = await serve(drain_s=30)
    reader, writer = await server.connect()
    writer.write(chat("/release"))
    idle_reader, _ = await server.connect()
    await server.service.seen(started=1)
    server.stop.set()
    await server.service.seen(drains=1)
    assert await idle_reader.read() == b"", "idle connections are closed"
    with pytest.raises(ConnectionError):
        await server.connect()
    server.service.release.set()
    answer = await reader.read()
    assert b"released" in answer
    assert b"[DONE]" in answer
    await server.task
    assert server.service.closed


async def test_a_stop_tells_those_whose_time_is_over(serve):
    """Red if a stream that outlives the drain is cut without a word."""
    server = await serve(drain_s=0)
    reader, writer = await server.connect()
    writer.write(chat("/hang-after 1"))
    await reader.readuntil(b'" 0"')
    server.stop.set()
    rest = await reader.read()
    assert b"the server is stopping" in rest
    assert rest.endswith(b"data: [DONE]\n\n\r\n0\r\n\r\n")
    await server.service.idle()


async def _spawn(*settings: str) -> tuple[asyncio.subprocess.Process, int]:
    pipe = asyncio.subprocess.PIPE
    process = await asyncio.create_subprocess_exec(
        sys.executable, str(SERVER), *settings, stdout=pipe, stderr=pipe
    )
    assert process.stdout is not None
    url = (await process.stdout.readline()).decode().strip()
    return process, int(url.rpartition(":")[2])


async def _stream_from(port: int, text: str) -> tuple[asyncio.StreamReader, asyncio.StreamWriter]:
    reader, writer = await asyncio.open_connection("127.0.0.1", port)
    writer.write(chat(text))
    await reader.readuntil(b'" 0"')
    return reader, writer


async def test_sigterm_ends_well():
    """Red if SIGTERM kills the process, loses the last word, or ends with an error code."""
    process, port = await _spawn("drain_s=0.0")
    reader, writer = await _stream_from(port, "/hang-after 1")
    process.send_signal(signal.SIGTERM)
    rest = await reader.read()
    writer.close()
    assert b"the server is stopping" in rest
    assert b"[DONE]" in rest
    assert await process.wait() == 0


@pytest.mark.parametrize("first", [signal.SIGTERM, signal.SIGINT])
async def test_a_second_signal_ends_now(first):
    """Red if a second signal waits for the drain of the first."""
    process, port = await _spawn("drain_s=600.0")
    reader, writer = await _stream_from(port, "/hang-after 1")
    process.send_signal(first)
    assert process.stderr is not None
    while b"stopping" not in await process.stderr.readline():
        continue
    process.send_signal(signal.SIGTERM)
    assert b"[DONE]" in await reader.read()
    writer.close()
    async with asyncio.timeout(60):
        assert await process.wait() == 0


async def test_a_taken_address_is_named(serve):
    """Red if a port in use ends in a traceback instead of a setting to change."""
    from penstock.errors import ConfigError

    server = await serve()
    with pytest.raises(ConfigError, match=f"127.0.0.1:{server.port}"):
        await serve(port=server.port)
