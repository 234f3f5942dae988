"""Identify: who sends a call. The first stage of the gateway.

Rules: with a key configured, exactly that key is accepted, compared in constant time; without one,
which only a loopback address may have, any credential or none is (SDKs insist on sending one). A
credential stands in `Authorization: Bearer` or `x-api-key`; never in the URL, which gets logged.
"""

from __future__ import annotations

import hmac
from collections.abc import Iterable

from msgspec import Struct

from penstock.errors import InvalidRequest, Unauthorized

_HEADERS = (b"authorization", b"x-api-key")


class Identity(Struct, frozen=True):
    """Whose limits and fair share a call counts against."""

    tenant: str = ""


class Identify:
    """Made once per server from its key; called per request with the raw ASGI headers."""

    def __init__(self, api_key: str | None) -> None:
        self._key = None if api_key is None else api_key.encode()

    def __call__(self, headers: Iterable[tuple[bytes, bytes]]) -> Identity:
        """Raises Unauthorized (no key, wrong key) or InvalidRequest (a credential header twice)."""
        if self._key is None:
            return Identity()
        given = _credentials(headers)
        if not given:
            raise Unauthorized(
                "no API key: send `Authorization: Bearer KEY` or `x-api-key: KEY`", code="missing_api_key"
            )
        # All are compared, without stopping early: the time tells nothing about which one was right.
        right = [hmac.compare_digest(credential, self._key) for credential in given]
        if not all(right):
            raise Unauthorized("the API key is not the one of this server", code="invalid_api_key")
        return Identity()


def _credentials(headers: Iterable[tuple[bytes, bytes]]) -> list[bytes]:
    found: dict[bytes, bytes] = {}
    for name, value in headers:
        if name not in _HEADERS:
            continue
        if name in found:
            raise InvalidRequest(
                f"{name.decode()}: this header came twice; send it once", param=name.decode()
            )
        found[name] = value
    bearer = found.pop(b"authorization", b"")
    scheme, _, token = bearer.partition(b" ")
    given = [value for value in found.values() if value]  # a variable that is set to nothing is no key
    if scheme.lower() == b"bearer" and token.strip():
        given.append(token.strip())
    return given
