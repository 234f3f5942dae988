"""What Claude Code asks of a gateway, by its documented protocol: with raw sockets, since it is about bytes.

The program itself is proprietary and not run here. Bodies and headers are of the kind that it sends.
"""

from __future__ import annotations

import json
from typing import Any

import pytest

from penstock.text.nonces import without_nonces
from support.live_server import Running, parse, request
from support.scripted_service import MODEL

PATH = "/v1/messages?beta=true"
HEADERS = (
    "anthropic-version: 2023-06-01",
    "anthropic-beta: claude-code-20250219,context-management-2025-06-27,some-beta-of-2031",
    "x-app: cli",
    "User-Agent: claude-cli/2.1.190 (external, cli)",
    "x-claude-code-session-id: 5f0c1d1e-0000-4000-8000-000000000001",
)
NONCE = "x-anthropic-billing-header: cc_version=2.1.150.a1b; cc_entrypoint=cli; cch=%s;"


def body(text: str, **fields: Any) -> bytes:
    """A request as the program sends it to a model that it does not know."""
    tool = {
        "name": "Read",
        "description": "Reads a file",
        "input_schema": {
            "$schema": "https://json-schema.org/draft/2020-12/schema",
            "type": "object",
            "properties": {"file_path": {"type": "string"}},
            "required": ["file_path"],
            "additionalProperties": False,
        },
        "strict": True,
        "defer_loading": False,
        "eager_input_streaming": True,
    }
    cached = {"cache_control": {"type": "ephemeral", "ttl": "1h"}}
    full = {
        "model": MODEL,
        "max_tokens": 32000,
        "stream": True,
        "system": [
            {"type": "text", "text": NONCE % "0af31"},
            {"type": "text", "text": "You are an agent.", **cached},
        ],
        "messages": [
            {
                "role": "user",
                "content": [{"type": "text", "text": "<system-reminder>be kind</system-reminder>"}],
            },
            {"role": "assistant", "content": [{"type": "text", "text": "ok", **cached}]},
            {"role": "system", "content": [{"type": "text", "text": "the plan changed"}]},
            {"role": "user", "content": [{"type": "text", "text": text, **cached}]},
        ],
        "tools": [tool],
        "metadata": {"user_id": "user_1_account__session_2"},
        "thinking": {"type": "adaptive"},
        "output_config": {"effort": "high"},
        "context_management": {"edits": [{"type": "clear_thinking_20251015", "keep": "all"}]},
        "temperature": 1,
    }
    return json.dumps(full | fields).encode()


async def read_until(reader: Any, mark: bytes) -> bytes:
    data = b""
    while mark not in data:
        piece = await reader.read(65536)
        assert piece, data
        data += piece
    return data


async def post(server: Running, payload: bytes, *headers: str) -> tuple[int, dict[str, str], bytes]:
    return await server.post(PATH, payload, *HEADERS, *headers)


async def test_a_whole_request_is_accepted(serve):
    """Red if anything that the program sends today is a 400: users see that as a broken server."""
    server = await serve()
    status, headers, answer = await post(
        server, body("hello there"), "Authorization: Bearer t", "x-api-key: t"
    )
    assert status == 200, answer
    assert headers["content-type"].startswith("text/event-stream")
    assert headers["request-id"] == headers["x-request-id"]
    assert b"event: message_stop\n" in answer
    (call,) = server.service.calls
    assert [message.role for message in call.messages] == ["system", "user", "assistant", "system", "user"]
    assert (call.tools[0].name, call.tools[0].strict) == ("Read", True)
    assert call.template_args == {"enable_thinking": True, "reasoning_effort": "high"}
    assert call.extra["context_management"] == {"edits": [{"type": "clear_thinking_20251015", "keep": "all"}]}
    assert (call.fit_context, call.cache.ttl_s) == (True, 3600)


async def test_a_stream_is_not_held_back(serve):
    """Red if events wait in a buffer, here or in a proxy, while the model goes on thinking."""
    server = await serve()
    reader, writer = await server.connect()
    writer.write(request("POST", PATH, body("/hang-after 1"), *HEADERS))
    data = await read_until(reader, b"text_delta")
    assert b"x-accel-buffering: no" in data.lower() and b"cache-control: no-cache" in data.lower()
    assert b"message_stop" not in data
    writer.close()
    await server.service.seen(cancelled=1)


async def test_a_silent_stream_is_kept_alive_by_pings(serve):
    """Red if a proxy or the client gives up on an answer that takes its time."""
    server = await serve(keepalive_s=0.02)
    reader, writer = await server.connect()
    writer.write(request("POST", PATH, body("/hang-after 1"), *HEADERS))
    data = await read_until(reader, b'event: ping\ndata: {"type":"ping"}\n\n')
    assert b"\n: " not in data
    writer.close()


@pytest.mark.parametrize(
    "headers,status",
    [
        (("Authorization: Bearer k",), 200),
        (("x-api-key: k",), 200),
        (("Authorization: Bearer k", "x-api-key: k"), 200),
        (("Authorization: Bearer k", "x-api-key: "), 200),
        (("x-api-key: ",), 401),
        ((), 401),
        (("Authorization: Bearer x",), 401),
    ],
)
async def test_a_credential_may_stand_in_either_header(serve, headers, status):
    """Red if the key is not found where the program's settings put it."""
    server = await serve(api_key="k")
    got, answer_headers, answer = await post(server, body("a"), *headers)
    assert got == status
    if status == 401:
        error = json.loads(answer)
        assert (error["type"], error["error"]["type"]) == ("error", "authentication_error")
        assert error["request_id"] == answer_headers["request-id"]


async def test_reaching_the_server(serve):
    """Red if the program's first look at the server, which has no key, fails or has a body."""
    server = await serve(api_key="k")
    status, _, answer = await server.ask("HEAD", "/")
    assert (status, answer) == (200, b"")


async def test_discovery(serve):
    """Red if `GET /v1/models?limit=1000` redirects, refuses x-api-key, or offers nothing to show."""
    server = await serve(api_key="k")
    status, _, answer = await server.get("/v1/models?limit=1000", *HEADERS, "x-api-key: k")
    assert status == 200
    models = {model["id"]: model["display_name"] for model in json.loads(answer)["data"]}
    shown = {name: label for name, label in models.items() if name.startswith(("claude", "anthropic"))}
    assert shown == {f"claude-penstock/{MODEL}": MODEL, "claude-penstock/org/name": "org/name"}
    for name in shown:
        assert (await post(server, body("a", model=name), "x-api-key: k"))[0] == 200
    assert {call.model for call in server.service.calls} == set(shown.values())


async def test_other_clients_see_no_aliases(serve):
    """Red if the names made for this program show up for everybody."""
    server = await serve()
    listed = json.loads((await server.get("/v1/models"))[2])
    assert [model["id"] for model in listed["data"]] == [MODEL, "org/name"]
    aliased = json.dumps(
        {"model": f"claude-penstock/{MODEL}", "messages": [{"role": "user", "content": "a"}]}
    )
    assert (await server.post("/v1/chat/completions", aliased.encode()))[0] == 404


async def test_sessions_and_agents_are_affinity_keys(serve):
    """Red if requests of one agent can't be kept where its prefix is, or two agents look like one."""
    server = await serve()
    await post(server, body("a"))
    await post(server, body("a"), "x-claude-code-agent-id: agent-7")
    await server.post(PATH, body("a"))
    session = HEADERS[-1].partition(": ")[2]
    assert [call.cache.key for call in server.service.calls] == [session, f"{session}/agent-7", None]


async def test_a_nonce_in_the_system_prompt_is_no_part_of_the_prompt(serve):
    """Red if two sessions of the same instructions share no prefix, or an upstream gets no nonce."""
    server = await serve()
    for nonce in ("00000", "fffff"):
        system = [{"type": "text", "text": NONCE % nonce}, {"type": "text", "text": "You are an agent."}]
        await post(server, body("a", system=system))
    first, second = (call.messages for call in server.service.calls)
    assert first != second
    assert without_nonces(first) == without_nonces(second)


async def test_counting(serve):
    """Red if the program has to guess how full the context is."""
    server = await serve()
    counted = json.loads(body("hello there"))
    for name in ("max_tokens", "stream", "metadata", "temperature"):
        del counted[name]
    url = "/v1/messages/count_tokens?beta=true"
    status, _, answer = await server.post(url, json.dumps(counted).encode(), *HEADERS)
    assert status == 200, answer
    assert json.loads(answer)["input_tokens"] > 5


async def test_overload_is_529_with_a_time_to_come_back(serve):
    """Red if the program does not retry what will work in a moment."""
    server = await serve()
    status, headers, answer = await post(server, body("/fail rate_limit_error"))
    assert (status, headers["retry-after"]) == (529, "3")
    assert json.loads(answer)["error"]["type"] == "overloaded_error"


async def test_errors_of_every_layer_are_in_the_apis_own_form(serve):
    """Red if what fails before or beside the route answers in another API's envelope."""
    server = await serve(max_body_bytes=4096)
    cases = [
        (request("GET", PATH), 405, "invalid_request_error"),
        (request("POST", PATH, b"{", "Connection: close"), 400, "invalid_request_error"),
        (request("POST", PATH, b"{}", "Content-Type: text/plain"), 415, "invalid_request_error"),
        (request("POST", PATH, b" " * 5000), 413, "request_too_large"),
        (request("POST", PATH, b"{}", "Host: evil.example"), 403, "permission_error"),
        (request("POST", "/v1/messages/nowhere", b"{}"), 404, "not_found_error"),
    ]
    for data, status, kind in cases:
        sent = data.replace(b"\r\n\r\n", b"\r\nConnection: close\r\n\r\n", 1)
        got, headers, answer = parse(await server.send(sent))
        error = json.loads(answer)
        assert (got, error["type"], error["error"]["type"]) == (status, "error", kind), answer
        assert error["request_id"] == headers["request-id"]
