"""What an API makes of a line's end: the one place that knows which APIs have batches."""

from __future__ import annotations

from typing import Protocol

from penstock.call import Failure
from penstock.wire import anthropic_batches, openai_batches


class BatchFormat(Protocol):
    """A module of `penstock.wire`. Lines come without newline."""

    def succeeded(self, custom_id: str, request_id: str, body: bytes) -> bytes:
        """`body`: the JSON body of the answer."""
        ...

    def errored(self, custom_id: str, request_id: str, failure: Failure) -> bytes: ...

    def ended(self, custom_id: str, request_id: str, state: str) -> bytes:
        """Of a line that never ran; state: "cancelled" or "expired"."""
        ...


FORMATS: dict[str, BatchFormat] = {
    openai_batches.API: openai_batches,
    anthropic_batches.API: anthropic_batches,
}
