"""The OpenAI API's errors: `{"error": {"message", "type", "param", "code"}}`."""

from __future__ import annotations

from penstock.call import Failure
from penstock.wire.openai_common import failure_bytes


class OpenAIDialect:
    """See `penstock.wire.dialect.Dialect`."""

    name = "openai"

    def status(self, failure: Failure) -> int:
        return failure.status

    def error_body(self, failure: Failure, request_id: str) -> bytes:
        return failure_bytes(failure)

    def headers(self, request_id: str) -> list[tuple[bytes, bytes]]:
        return []


OPENAI = OpenAIDialect()
