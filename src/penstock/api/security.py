"""Who may talk to this server: the Host header, the API key, and which routes need none.

A page of any web site can make a browser send requests to 127.0.0.1, and with DNS rebinding even
read the answers. So the Host header must name this server, nothing crosses origins unless
`cors_origins` says so, and a body must be declared as JSON, which a foreign page can't do unasked.
"""

from __future__ import annotations

import ipaddress
import secrets

import msgspec
from starlette.types import ASGIApp, Receive, Scope, Send

from penstock.api.exchange import exchange_of
from penstock.config import ServerSettings
from penstock.errors import ConfigError, Forbidden, InvalidRequest
from penstock.gateway.identify import Identify

_LOOPBACK_NAMES = {"localhost", "ip6-localhost"}


def is_loopback(host: str) -> bool:
    """Whether an address to listen on, or a name in a Host header, can only mean this machine."""
    name = host.strip("[]").lower()
    if name in _LOOPBACK_NAMES or name.endswith(".localhost"):
        return True
    try:
        return ipaddress.ip_address(name).is_loopback
    except ValueError:
        return False


def with_api_key(settings: ServerSettings) -> tuple[ServerSettings, bool]:
    """(settings with a key where one is needed, whether it was made here: print it once)."""
    if settings.api_key is not None or is_loopback(settings.host):
        return settings, False
    key = "sk-penstock-" + secrets.token_urlsafe(32)
    return msgspec.structs.replace(settings, api_key=key), True


def split_host(value: str) -> str:
    """The name in a Host header without its port, lower case; "" if it is no host at all."""
    value = value.strip().lower()
    if value.startswith("["):
        name, bracket, rest = value[1:].partition("]")
        return name if bracket and (not rest or _is_port(rest)) else ""
    name, colon, port = value.partition(":")
    if colon and not _is_port(":" + port):
        return ""
    return name.removesuffix(".")


def _is_port(text: str) -> bool:
    return text.startswith(":") and (text[1:].isdigit() or text == ":")


class HostCheck:
    """The layer: 403 unless the Host header names this server, 400 unless there is exactly one.

    Named are: on a loopback address every loopback name; the address listened on; `allowed_hosts`
    (exact, or `*.example.org`). Listening on all addresses, any literal IP is this server too:
    rebinding needs a name.
    """

    def __init__(self, app: ASGIApp, settings: ServerSettings) -> None:
        self._app = app
        self._loopback = is_loopback(settings.host)
        self._bound = settings.host.strip("[]").lower()
        self._any_address = self._bound in ("", "0.0.0.0", "::")
        self._exact = {name.lower() for name in settings.allowed_hosts if not name.startswith("*.")}
        self._suffixes = tuple(name[1:].lower() for name in settings.allowed_hosts if name.startswith("*."))

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        hosts = [value for name, value in scope["headers"] if name == b"host"]
        if len(hosts) != 1:
            raise InvalidRequest(f"host: {len(hosts)} Host headers; send exactly one", param="host")
        name = split_host(hosts[0].decode("latin-1"))
        if not self._allowed(name):
            raise Forbidden(
                f"host: {name[:100]!r} is no name of this server; if it should be, add it to allowed_hosts",
                param="host",
                code="host_not_allowed",
            )
        await self._app(scope, receive, send)

    def _allowed(self, name: str) -> bool:
        if name == self._bound or name in self._exact:
            return bool(name)
        if self._suffixes and name.endswith(self._suffixes):
            return True
        if self._any_address:
            return is_loopback(name) or _is_ip(name)
        return self._loopback and is_loopback(name)


def _is_ip(name: str) -> bool:
    try:
        ipaddress.ip_address(name)
    except ValueError:
        return False
    return True


class AuthLayer:
    """The layer: the key, except for probes. Metrics need none on loopback: scrapers rarely have one."""

    def __init__(self, app: ASGIApp, settings: ServerSettings) -> None:
        loopback = is_loopback(settings.host)
        if settings.api_key is None and not loopback:
            raise ConfigError(
                f"api_key: none is set, and {settings.host} is not a loopback address; "
                "set one (api.security.with_api_key makes one)"
            )
        self._app = app
        self._identify = Identify(settings.api_key)
        self._open = {"/", "/health", "/ready", *(("/metrics",) if loopback else ())}

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        if scope["path"] not in self._open:
            exchange_of(scope).identity = self._identify(scope["headers"])
        await self._app(scope, receive, send)
