"""Dialect: what one API says apart from its calls: its errors, their status, the headers that name a request.

A client's SDK makes typed exceptions of these, so each API gets its own, also for what fails before a route
is known (no key, body too large) and inside a stream.
"""

from __future__ import annotations

from typing import Protocol

from penstock.call import Failure


class Dialect(Protocol):
    """Implemented by a module of `penstock.wire` per API."""

    name: str

    def status(self, failure: Failure) -> int:
        """HTTP status that stands for the failure in this API."""
        ...

    def error_body(self, failure: Failure, request_id: str) -> bytes:
        """JSON of an error response."""
        ...

    def headers(self, request_id: str) -> list[tuple[bytes, bytes]]:
        """Of every response, beside `x-request-id`."""
        ...
