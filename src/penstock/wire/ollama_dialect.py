"""The Ollama API's errors: `{"error": "message"}` and the status."""

from __future__ import annotations

from penstock.call import Failure
from penstock.wire.ollama_common import ErrorLine
from penstock.wire.openai_common import encode


class OllamaDialect:
    """See `penstock.wire.dialect.Dialect`."""

    name = "ollama"

    def status(self, failure: Failure) -> int:
        return failure.status

    def error_body(self, failure: Failure, request_id: str) -> bytes:
        return encode(ErrorLine(failure.message))

    def headers(self, request_id: str) -> list[tuple[bytes, bytes]]:
        return []


OLLAMA = OllamaDialect()
