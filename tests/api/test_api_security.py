"""Who may talk to the server: Host header, API key, CORS."""

from __future__ import annotations

import json

import pytest

from conftest import request
from penstock.api.app import create_app
from penstock.api.security import is_loopback, split_host, with_api_key
from penstock.config import ServerSettings
from penstock.errors import ConfigError
from support.scripted_service import ScriptedService

GOOD_HOSTS = [
    "localhost",
    "LOCALHOST:80",
    "127.0.0.1",
    "127.0.0.1:8000",
    "127.5.5.5",
    "[::1]:8000",
    "a.localhost",
    "localhost.",
]
BAD_HOSTS = [
    "evil.example",
    "evil.example:8000",
    "127.0.0.1.evil.example",
    "localhost.evil.example",
    "evil.example#localhost",
    "localhost@evil.example",
    "192.168.1.1",
    "0.0.0.0",
    "[::1",
    "[::1]x",
    "localhost:8000:1",
    "localhost:x",
    "",
]


@pytest.mark.parametrize("host", GOOD_HOSTS)
async def test_loopback_names_are_accepted(serve, host):
    """Red if a usual way to name this machine is refused."""
    server = await serve()
    assert (await server.get("/health", f"Host: {host}"))[0] == 200


@pytest.mark.parametrize("host", BAD_HOSTS)
async def test_foreign_hosts_are_refused(serve, host):
    """Red if a page that rebinds its name to 127.0.0.1 can talk to the server."""
    server = await serve()
    status, _, body = await server.get("/v1/models", f"Host: {host}")
    assert (status, json.loads(body)["error"]["code"]) == (403, "host_not_allowed")


async def test_exactly_one_host(serve):
    """Red if two Host headers, or none, leave open which one was checked."""
    server = await serve()
    assert (await server.get("/health", "Host: localhost", "Host: evil.example"))[0] == 400
    assert b" 400 " in await server.send(b"GET /health HTTP/1.1\r\nConnection: close\r\n\r\n")


async def test_allowed_hosts(serve):
    """Red if `allowed_hosts` is not honoured exactly, or a suffix allows more than below it."""
    server = await serve(allowed_hosts=("my.example", "*.lan"))
    for host, status in (
        ("my.example", 200),
        ("MY.example:1", 200),
        ("x.my.example", 403),
        ("a.b.lan", 200),
        ("lan", 403),
        ("evillan", 403),
        ("localhost", 200),
    ):
        assert (await server.get("/health", f"Host: {host}"))[0] == status, host


async def test_all_addresses_accept_literal_ips(serve):
    """Red if a server on all addresses refuses its own IPs, or accepts any name."""
    server = await serve(host="0.0.0.0", api_key="k")
    for host, status in (
        ("192.168.1.5:8000", 200),
        ("[fe80::1]", 200),
        ("localhost", 200),
        ("evil.example", 403),
    ):
        assert (await server.get("/health", f"Host: {host}"))[0] == status


def test_host_names():
    """Red if the port is cut off wrongly, or a name counts as loopback that can be resolved elsewhere."""
    assert split_host("Example.ORG:80") == "example.org"
    assert split_host("[::1]:80") == "::1"
    assert split_host("a:b") == ""
    assert [is_loopback(h) for h in ("127.0.0.1", "::1", "[::1]", "localhost", "x.localhost")] == [True] * 5
    assert [is_loopback(h) for h in ("0.0.0.0", "::", "10.0.0.1", "localhost.evil", "")] == [False] * 5


async def test_any_credential_on_loopback_without_a_key(serve):
    """Red if SDKs, which always send some key, or curl, which sends none, are refused on loopback."""
    server = await serve()
    assert (await server.get("/v1/models"))[0] == 200
    assert (await server.get("/v1/models", "Authorization: Bearer whatever"))[0] == 200


KEYED = [
    (("Authorization: Bearer right",), 200),
    (("authorization: bearer   right ",), 200),
    (("X-Api-Key: right",), 200),
    (("Authorization: Bearer right", "X-Api-Key: right"), 200),
    ((), 401),
    (("Authorization: Bearer wrong",), 401),
    (("Authorization: Bearer right2",), 401),
    (("Authorization: Bearer ",), 401),
    (("Authorization: Basic right",), 401),
    (("Authorization: right",), 401),
    (("X-Api-Key: wrong",), 401),
    (("Authorization: Bearer right", "X-Api-Key: wrong"), 401),
    (("Authorization: Bearer wrong", "Authorization: Bearer right"), 400),
]


@pytest.mark.parametrize("headers,status", KEYED, ids=[str(i) for i in range(len(KEYED))])
async def test_the_key_is_needed_once_set(serve, headers, status):
    """Red if a request without exactly the right key gets in, or one with it does not."""
    server = await serve(api_key="right")
    answered, answer_headers, _ = await server.get("/v1/models", *headers)
    assert answered == status
    assert ("www-authenticate" in answer_headers) == (status == 401)


async def test_which_routes_need_no_key(serve):
    """Red if a probe needs a key, or anything else off loopback does not."""
    local = await serve(api_key="k")
    wide = await serve(api_key="k", host="0.0.0.0")
    for path, on_loopback, elsewhere in (
        ("/health", 200, 200),
        ("/ready", 200, 200),
        ("/metrics", 200, 401),
        ("/v1/models", 401, 401),
        ("/openapi.json", 401, 401),
        ("/version", 401, 401),
        ("/nowhere", 401, 401),
    ):
        assert (await local.get(path))[0] == on_loopback, path
        assert (await wide.get(path))[0] == elsewhere, path


async def test_without_a_key_the_body_is_not_read(serve):
    """Red if a stranger can make the server read or parse a body."""
    server = await serve(api_key="k")
    reader, writer = await server.connect()
    headers = ("Content-Type: application/json", "Content-Length: 1000000")
    writer.write(request("POST", "/v1/chat/completions", b"", *headers))
    assert b" 401 " in await reader.readuntil(b"\r\n\r\n")


def test_no_open_server_beyond_loopback():
    """Red if a server on another address can be made without a key, or the key that is made repeats."""
    with pytest.raises(ConfigError, match="api_key"):
        create_app(ScriptedService(), ServerSettings(host="0.0.0.0"))
    first, made = with_api_key(ServerSettings(host="0.0.0.0"))
    second, _ = with_api_key(ServerSettings(host="::"))
    assert made
    assert len(first.api_key) > 40
    assert first.api_key != second.api_key
    assert with_api_key(ServerSettings()) == (ServerSettings(), False)
    assert with_api_key(first) == (first, False)


async def test_cors_is_off_until_asked_for(serve):
    """Red if any page may read answers by default, or an asked-for origin can't read errors too."""
    off = await serve()
    origin = "Origin: https://app.example"
    _, headers, _ = await off.get("/v1/models", origin)
    assert not [name for name in headers if name.startswith("access-control")]
    on = await serve(cors_origins=("https://app.example",), api_key="k")
    status, headers, _ = await on.get("/v1/models", origin)
    assert (status, headers["access-control-allow-origin"]) == (401, "https://app.example")
    _, headers, _ = await on.get("/v1/models", "Origin: https://evil.example")
    assert "access-control-allow-origin" not in headers
    preflight = request(
        "OPTIONS",
        "/v1/chat/completions",
        b"",
        origin,
        "Access-Control-Request-Method: POST",
        "Access-Control-Request-Headers: authorization,content-type",
        "Connection: close",
    )
    assert (await on.send(preflight)).startswith(b"HTTP/1.1 200"), "a preflight carries no key"
