"""Hostile and clumsy clients over raw sockets: each gets the right 4xx or a clean end, and no 5xx."""

from __future__ import annotations

import asyncio
import json

import pytest

from conftest import parse, request
from support.scripted_service import MODEL

CHAT = "/v1/chat/completions"


def chat(text: str = "hello", **fields) -> bytes:
    return json.dumps({"model": MODEL, "messages": [{"role": "user", "content": text}]} | fields).encode()


def error_of(body: bytes) -> dict:
    error = json.loads(body)["error"]
    assert error.keys() == {"message", "type", "param", "code"}
    return error


async def test_body_over_the_limit_by_its_header(serve):
    """Red if a declared size over the limit is read, or parsed, before it is refused."""
    server = await serve(max_body_bytes=1024)
    reader, writer = await server.connect()
    writer.write(request("POST", CHAT, b"", "Content-Type: application/json", "Content-Length: 100000000"))
    head = await reader.readuntil(b"\r\n\r\n")  # the answer comes though no byte of the body was sent
    assert b" 413 " in head
    assert b"connection: close" in head
    writer.write(b"x" * 200_000)  # a client that sends on can still read the whole answer
    writer.write_eof()
    error = error_of(await reader.read())
    assert error["code"] == "body_too_large"
    assert "100000000" in error["message"]
    assert "1024" in error["message"]


async def test_body_over_the_limit_by_its_chunks(serve):
    """Red if a chunked body, which declares no size, is collected beyond the limit."""
    server = await serve(max_body_bytes=1024)
    reader, writer = await server.connect()
    writer.write(request("POST", CHAT, b"", "Content-Type: application/json", "Transfer-Encoding: chunked"))
    writer.write(b"400\r\n" + b"x" * 1024 + b"\r\n")
    writer.write(b"1\r\nx\r\n")  # the byte that crosses; the body never ends
    head = await reader.readuntil(b"\r\n\r\n")
    assert b" 413 " in head
    writer.write_eof()
    assert "1024" in error_of(await reader.read())["message"]


async def test_a_body_of_exactly_the_limit_passes(serve):
    """Red if the limit is off by one."""
    body = chat(user="")
    body = chat(user="x" * (1024 - len(body)))
    assert len(body) == 1024
    server = await serve(max_body_bytes=1024)
    assert (await server.post(CHAT, body))[0] == 200
    assert (await server.post(CHAT, body + b" "))[0] == 413


async def test_expecting_client_is_refused_before_it_sends(serve):
    """Red if a client that waits for "100 Continue" is told to go on with a body that is refused."""
    server = await serve(max_body_bytes=1024)
    reader, writer = await server.connect()
    headers = ("Content-Type: application/json", "Content-Length: 5000", "Expect: 100-continue")
    writer.write(request("POST", CHAT, b"", *headers))
    answer = await reader.read()
    assert parse(answer)[0] == 413
    assert b"100 Continue" not in answer
    body = chat()
    reader, writer = await server.connect()
    expecting = request("POST", CHAT, body, "Expect: 100-continue", "Connection: close")
    writer.write(expecting.removesuffix(body))
    assert await reader.readuntil(b"\r\n\r\n") == b"HTTP/1.1 100 Continue\r\n\r\n"
    writer.write(body)
    assert parse(await reader.read())[0] == 200


HOSTILE = [
    ("broken UTF-8", chat("A").replace(b'"A"', b'"\xff\xfe"'), None),
    ("no JSON", b"{nope", None),
    ("nested", b'{"model":"m","x":' + b"[" * 200_000, None),
    ("10000 stops", chat(stop=["x"] * 10_000), "stop"),
    ("n=10000", chat(n=10_000), "n"),
    ("negative temperature", chat(temperature=-1), "temperature"),
    ("NaN", chat(temperature=0.5).replace(b"0.5", b"NaN"), None),
    ("infinite", chat(top_p=0.5).replace(b"0.5", b"1e999"), "top_p"),
    ("negative max_tokens", chat(max_tokens=-5), "max_tokens"),
    ("huge number", chat(max_tokens=7).replace(b"7", b"7" * 4000), "max_tokens"),
    (
        "image",
        chat(messages=[{"role": "user", "content": [{"type": "image_url", "image_url": {"url": "x"}}]}]),
        None,
    ),
    ("unknown form", chat(structured_outputs={"xml": "a"}), "structured_outputs"),
    ("forced without tools", chat(tool_choice="required"), "tool_choice"),
]


@pytest.mark.parametrize("body,param", [h[1:] for h in HOSTILE], ids=[h[0] for h in HOSTILE])
async def test_hostile_bodies_are_400(serve, body, param):
    """Red if a hostile body is a 5xx, reaches the service, or its error does not name the field."""
    server = await serve()
    status, headers, answer = await server.post(CHAT, body)
    error = error_of(answer)
    assert status == 400
    assert error["type"] == "invalid_request_error"
    assert param is None or error["param"] == param
    assert headers["content-type"] == "application/json"
    assert server.service.calls == []


async def test_text_only_tools_are_not_refused(serve):
    """Red if tools that the model may call or not are refused: the template shows them."""
    server = await serve()
    tools = [{"type": "function", "function": {"name": "f"}}]
    assert (await server.post(CHAT, chat(tools=tools, tool_choice="auto", response_format={"type": "text"})))[
        0
    ] == 200
    assert server.service.calls[0].tools[0].name == "f"


@pytest.mark.parametrize(
    "media", ["text/plain", "application/x-www-form-urlencoded", "multipart/form-data; boundary=x"]
)
async def test_bodies_that_a_foreign_page_could_send_are_415(serve, media):
    """Red if a body that browsers send across origins unasked is accepted."""
    server = await serve()
    status, _, answer = await server.post(CHAT, chat(), f"Content-Type: {media}")
    assert (status, error_of(answer)["param"]) == (415, "content-type")
    assert (await server.post(CHAT, chat(), "Content-Type: application/JSON; charset=utf-8"))[0] == 200


async def test_ollamas_clients_need_not_declare_json(serve):
    """Red if Ollama's clients that declare nothing, or `curl -d`, get 415, or a browser's page does not."""
    server = await serve()
    path, body = "/api/chat", b'{"model": "scripted", "stream": false, "messages": []}'
    form = "Content-Type: application/x-www-form-urlencoded"
    for media in ("Content-Type:", "Content-Type: application/octet-stream", form):
        assert (await server.post(path, body, media))[0] == 200
        for told in ("Origin: null", "Sec-Fetch-Site: cross-site", "Referer: http://elsewhere/"):
            assert (await server.post(path, body, media, told))[0] in (403, 415)


async def test_unknown_routes_and_methods(serve):
    """Red if 404 or 405 come without the error envelope or the Allow header."""
    server = await serve()
    status, _, answer = await server.get("/v2/nothing")
    assert (status, error_of(answer)["code"]) == (404, "unknown_route")
    status, headers, answer = await server.get(CHAT)
    assert (status, headers["allow"], error_of(answer)["code"]) == (405, "POST", "method_not_allowed")
    status, headers, _ = await server.post("/v1/models", b"{}")
    assert status == 405
    assert set(headers["allow"].split(", ")) == {"GET", "HEAD"}
    assert (await server.get("/v1/models/"))[0] == 404


BAD_HTTP = [
    b"NONSENSE\r\n\r\n",
    b"GET / HTTP/9.9\r\nHost: localhost\r\n\r\n",
    b"POST /v1/models HTTP/1.1\r\nHost: localhost\r\nContent-Length: 1\r\nContent-Length: 2\r\n\r\nx",
    b"POST /v1/models HTTP/1.1\r\nHost: localhost\r\nContent-Length: -1\r\n\r\n",
    b"POST /v1/models HTTP/1.1\r\nHost: localhost\r\n"
    b"Content-Length: 1\r\nTransfer-Encoding: chunked\r\n\r\n0\r\n\r\n",
    b"POST " + CHAT.encode() + b" HTTP/1.1\r\nHost: localhost\r\nContent-Type: application/json\r\n"
    b"Transfer-Encoding: chunked\r\n\r\nZZ\r\n",
]


@pytest.mark.parametrize("data", BAD_HTTP, ids=[str(i) for i in range(len(BAD_HTTP))])
async def test_broken_http_is_a_400_and_a_close(serve, data):
    """Red if bytes that are no HTTP, or smuggle a second length, get anything but a 400 and a close."""
    server = await serve()
    status, headers, answer = parse(await server.send(data))
    assert (status, headers["connection"]) == (400, "close")
    error_of(answer)


async def test_oversized_headers_are_431(serve):
    """Red if request headers can grow without bound."""
    server = await serve()
    assert (await server.get("/health", "X: " + "a" * 70_000))[0] == 431
    assert (await server.get("/health?" + "a" * 70_000))[0] == 431
    assert (await server.get("/health", *[f"X{i}: y" * 100 for i in range(200)]))[0] == 431
    reader, writer = await server.connect()
    writer.write(b"GET /health HTTP/1.1\r\nHost: localhost\r\nX: ")
    while not reader._buffer:  # a header that never ends, sent until the server has had enough
        writer.write(b"a" * 4096)
        await writer.drain()
        await asyncio.sleep(0)
    assert parse(await reader.read())[0] == 431
    assert (await server.get("/health", "X: " + "a" * 60_000))[0] == 200


async def test_a_large_body_is_no_large_header(serve):
    """Red if the header limit counts bytes of a body, or of the request before on the connection."""
    server = await serve()
    body = chat(user="x" * 300_000)
    reader, writer = await server.connect()
    for last in (False, True):
        writer.write(request("POST", CHAT, body, *(["Connection: close"] if last else [])))
    answers = await reader.read()
    assert answers.count(b"HTTP/1.1 200 OK") == 2


async def test_pipelined_requests_are_answered_in_order(serve):
    """Red if several requests in one packet are lost, mixed, or answered out of order."""
    server = await serve()
    first = request("POST", CHAT, chat("one", stream=True))
    second = request("GET", "/health")
    third = request("POST", CHAT, chat("three"), "Connection: close")
    answers = await server.send(first + second + third)
    assert answers.count(b"HTTP/1.1 200 OK") == 3
    assert (
        answers.index(b'"one"')
        < answers.index(b"[DONE]")
        < answers.index(b'"alive"')
        < answers.index(b"three")
    )


async def test_request_ids(serve):
    """Red if a sane inbound id is not kept, a hostile one is, or two calls share an id inside."""
    server = await serve()
    _, headers, body = await server.post(CHAT, chat(), "X-Request-Id: my-id.1")
    assert headers["x-request-id"] == "my-id.1"
    _, _, again = await server.post(CHAT, chat(), "X-Request-Id: my-id.1")
    assert json.loads(body)["id"] != json.loads(again)["id"]
    for bad in ("a b", "x" * 200, '"><script>', "\xff"):
        _, headers, _ = await server.get("/nowhere", f"X-Request-Id: {bad}")
        assert len(headers["x-request-id"]) == 32, "errors have an id too, and a bad one is replaced"


async def test_tokenize_and_detokenize(serve):
    """Red if the token routes lose their shapes or let wrong bodies through."""
    server = await serve()
    status, _, body = await server.post("/tokenize", json.dumps({"model": MODEL, "prompt": "a b"}).encode())
    assert status == 200
    assert json.loads(body) == {"tokens": [1, 97, 228], "count": 3, "max_model_len": 512}
    _, _, body = await server.post(
        "/tokenize", json.dumps({"prompt": "a", "add_special_tokens": False}).encode()
    )
    assert json.loads(body)["tokens"] == [97]
    ask = {"messages": [{"role": "user", "content": "a"}], "add_generation_prompt": True}
    assert json.loads((await server.post("/tokenize", json.dumps(ask).encode()))[2])["tokens"] == [97, 2]
    _, _, body = await server.post("/detokenize", json.dumps({"tokens": [5, 6]}).encode())
    assert json.loads(body) == {"prompt": "5 6"}
    for path, bad in (
        ("/tokenize", {}),
        ("/tokenize", {"prompt": "a", "messages": ask["messages"]}),
        ("/detokenize", {"tokens": [-1]}),
        ("/detokenize", {"tokens": ["a"]}),
    ):
        assert (await server.post(path, json.dumps(bad).encode()))[0] == 400
    assert (await server.post("/tokenize", json.dumps({"model": "x", "prompt": "a"}).encode()))[0] == 404


async def test_health_and_ready_follow_the_service(serve):
    """Red if probes stay green while the engine is not alive, or while it drains."""
    server = await serve()
    assert (await server.get("/health"))[0] == (await server.get("/ready"))[0] == 200
    server.service.draining = True
    assert (await server.get("/health"))[0] == 200
    status, headers, body = await server.get("/ready")
    assert (status, headers["retry-after"], json.loads(body)["ready"]) == (503, "1", False)
    server.service.alive = False
    assert (await server.get("/health"))[0] == 503


async def test_a_body_that_stops_coming_is_408(serve, monkeypatch):
    """Red if a client that sends half a body holds its connection for ever."""
    from penstock.api import body

    monkeypatch.setattr(body, "IDLE_S", 0.01)
    monkeypatch.setattr(body, "DRAIN_S", 0.01)
    server = await serve()
    status, headers, answer = parse(await server.send(request("POST", CHAT, chat())[:-3]))
    assert (status, headers["connection"]) == (408, "close")
    error_of(answer)


@pytest.mark.parametrize("data", [b"", b"GET /health HTTP/1.1\r\nX: "])
async def test_headers_that_stop_coming_end_the_connection(serve, monkeypatch, data):
    """Red if connections that never finish a request's headers are held for ever."""
    from penstock.api import server as module

    monkeypatch.setattr(module, "HEADERS_S", 0.01)
    server = await serve()
    assert await server.send(data) == b""
