"""Streaming completions over HTTP/1.1 on plain asyncio sockets, timed chunk by chunk.

A client library would cost more per token than a fast server: this one reads lines. It speaks what
the benchmark needs and no more: one POST per connection, chunked or length-delimited answers,
server-sent events.
"""

from __future__ import annotations

import asyncio
import ssl
import time
from collections.abc import AsyncIterator
from typing import Any
from urllib.parse import urlsplit

import msgspec

from penstock.bench.metrics import Drafts, Record
from penstock.bench.workloads import Item, prompt_tokens
from penstock.errors import ConfigError

_LINE_LIMIT = 1 << 20


class Target(msgspec.Struct, frozen=True, kw_only=True):
    """A server of the OpenAI completions API. `extra` is merged into every request body."""

    url: str
    model: str
    api_key: str | None = None
    vocab_size: int = 8192
    timeout_s: float = 600.0
    extra: dict[str, Any] = {}


async def complete(target: Target, item: Item) -> Record:
    """Send one item to /v1/completions as token ids and time its stream. Failures land in `error`."""
    record = Record(index=item.index, sent_s=time.monotonic(), input_tokens=item.input_len)
    body = {
        "model": target.model,
        "prompt": prompt_tokens(item, target.vocab_size).tolist(),
        "max_tokens": item.output_len,
        "min_tokens": item.output_len,
        "temperature": 0.0,
        "ignore_eos": True,
        "stream": True,
        "stream_options": {"include_usage": True},
        **target.extra,
    }
    record.sent_s = time.monotonic()
    try:
        async with asyncio.timeout(target.timeout_s):
            async for data in _events(target, msgspec.json.encode(body)):
                _take(record, data)
    except TimeoutError:
        record.error = f"no end within {target.timeout_s:g} s"
    except (OSError, asyncio.IncompleteReadError, ValueError) as error:
        record.error = f"{type(error).__name__}: {error}" if str(error) else type(error).__name__
    record.end_s = record.arrivals_s[-1] if record.ok and record.arrivals_s else time.monotonic()
    if not record.output_tokens:
        record.output_tokens = len(record.arrivals_s)
    return record


def _take(record: Record, data: bytes) -> None:
    if data == b"[DONE]":
        return
    chunk = msgspec.json.decode(data)
    if "error" in chunk:
        record.error = str(chunk["error"].get("message", chunk["error"]))
        return
    # A chunk without text may still carry a token (half a character is held back): it counts, the last
    # chunk (finish_reason alone) does not.
    choice = next(iter(chunk.get("choices") or []), None)
    if choice is not None and (choice.get("text") or choice.get("finish_reason") is None):
        record.arrivals_s.append(time.monotonic())
    if usage := chunk.get("usage"):
        record.output_tokens = usage["completion_tokens"]
        record.input_tokens = usage["prompt_tokens"]
        details = usage.get("prompt_tokens_details") or {}
        record.cached_tokens = details.get("cached_tokens") or 0
        if drafts := usage.get("speculation"):  # Penstock's own field
            counts = (drafts.get(f"num_{name}") or 0 for name in ("steps", "draft_tokens", "accepted_tokens"))
            record.drafts = Drafts(*counts)


async def _events(target: Target, body: bytes) -> AsyncIterator[bytes]:
    """The `data:` payloads of the answer's event stream. ValueError for any status but 200."""
    reader, writer = await _open(target.url, body, "/v1/completions", target.api_key)
    try:
        status, headers = await _head(reader)
        lines = _body_lines(reader, headers)
        if status != 200:
            text = b"".join([line async for line in lines])
            raise ValueError(f"HTTP {status}: {text[:300].decode(errors='replace').strip()}")
        async for line in lines:
            if line.startswith(b"data:"):
                yield line[5:].strip()
    finally:
        writer.close()


async def get_json(url: str, path: str, api_key: str | None = None) -> Any:
    """GET `path`; OSError if nobody answers, ValueError for any status but 200."""
    reader, writer = await _open(url, None, path, api_key)
    try:
        status, headers = await _head(reader)
        text = b"".join([line async for line in _body_lines(reader, headers)])
        if status != 200:
            raise ValueError(f"HTTP {status}: {text[:300].decode(errors='replace')}")
        return msgspec.json.decode(text)
    finally:
        writer.close()


async def _open(
    url: str, body: bytes | None, path: str, api_key: str | None
) -> tuple[asyncio.StreamReader, asyncio.StreamWriter]:
    parts = urlsplit(url)
    if parts.scheme not in ("http", "https") or not parts.hostname:
        raise ConfigError(f"url: {url} is not of the form http://host:port")
    context = ssl.create_default_context() if parts.scheme == "https" else None
    port = parts.port or (443 if context else 80)
    reader, writer = await asyncio.open_connection(parts.hostname, port, ssl=context, limit=_LINE_LIMIT)
    prefix = parts.path.rstrip("/").removesuffix("/v1")
    head = [
        f"{'GET' if body is None else 'POST'} {prefix}{path} HTTP/1.1",
        f"host: {parts.netloc}",
        "connection: close",
        "accept: text/event-stream, application/json",
    ]
    if api_key:
        head.append(f"authorization: Bearer {api_key}")
    if body is not None:
        head += ["content-type: application/json", f"content-length: {len(body)}"]
    writer.write("\r\n".join([*head, "", ""]).encode() + (body or b""))
    await writer.drain()
    return reader, writer


async def _head(reader: asyncio.StreamReader) -> tuple[int, dict[str, str]]:
    status_line = await reader.readline()
    fields = status_line.split(b" ", 2)
    if len(fields) < 2 or not fields[1].isdigit():
        raise ValueError(f"not an HTTP answer: {status_line[:80]!r}")
    headers: dict[str, str] = {}
    while line := (await reader.readline()).strip():
        name, _, value = line.decode("latin-1").partition(":")
        headers[name.lower()] = value.strip()
    return int(fields[1]), headers


async def _body_lines(reader: asyncio.StreamReader, headers: dict[str, str]) -> AsyncIterator[bytes]:
    """Lines of the body, newline included; the last may lack it. A cut body is an IncompleteReadError."""
    pending = b""
    async for piece in _body_pieces(reader, headers):
        *lines, pending = (pending + piece).split(b"\n")
        for line in lines:
            yield line + b"\n"
    if pending:
        yield pending


async def _body_pieces(reader: asyncio.StreamReader, headers: dict[str, str]) -> AsyncIterator[bytes]:
    if headers.get("transfer-encoding", "").lower() == "chunked":
        while True:
            size = int((await reader.readline()).split(b";")[0] or b"-1", 16)
            if size < 0:
                raise asyncio.IncompleteReadError(b"", None)
            piece = await reader.readexactly(size + 2)
            if size == 0:
                return
            yield piece[:-2]
    elif "content-length" in headers:
        yield await reader.readexactly(int(headers["content-length"]))
    else:
        while piece := await reader.read(65536):
            yield piece
