"""The Anthropic API's errors: `{"type": "error", "error": {"type", "message"}, "request_id"}`.

Types and status are those of its reference ("Errors"): no capacity is 529 `overloaded_error`, a body over the
limit `request_too_large`, a defect `api_error`. Clients tell a prompt that is too long, which they mend by
compacting the conversation, by the wording, so that is kept as well.
"""

from __future__ import annotations

import re

from msgspec import Struct

from penstock.call import Failure
from penstock.wire.openai_common import encode

OVERLOADED = 529
_TYPES = {
    400: "invalid_request_error",
    401: "authentication_error",
    403: "permission_error",
    404: "not_found_error",
    413: "request_too_large",
    429: "rate_limit_error",
    504: "timeout_error",
    OVERLOADED: "overloaded_error",
}
# A queue that is full and an engine that is away: both are over without the caller's doing.
_NO_CAPACITY = frozenset({"rate_limit_error", "service_unavailable_error"})
_NUMBERS = re.compile(r"(\d+) tokens\b.*?\b(?:is|are) (\d+)")


class ErrorDetail(Struct):
    type: str
    message: str


class ErrorEnvelope(Struct):
    error: ErrorDetail
    request_id: str | None = None
    type: str = "error"


class AnthropicDialect:
    """See `penstock.wire.dialect.Dialect`."""

    name = "anthropic"

    def status(self, failure: Failure) -> int:
        return OVERLOADED if failure.kind in _NO_CAPACITY else failure.status

    def error_body(self, failure: Failure, request_id: str | None) -> bytes:
        status = self.status(failure)
        kind = _TYPES.get(status) or ("api_error" if status >= 500 else "invalid_request_error")
        return encode(ErrorEnvelope(ErrorDetail(kind, _message(failure)), request_id))

    def headers(self, request_id: str) -> list[tuple[bytes, bytes]]:
        return [(b"request-id", request_id.encode("ascii"))]


def _message(failure: Failure) -> str:
    if failure.code != "context_length_exceeded":
        return failure.message
    numbers = _NUMBERS.search(failure.message)
    shown = f"{numbers[1]} tokens > {numbers[2]} maximum; " if numbers else ""
    return f"prompt is too long: {shown}{failure.message}"


ANTHROPIC = AnthropicDialect()
