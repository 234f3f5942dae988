"""What goes into the store and comes out: plain records, made without any SQL."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any, Literal

from msgspec import Struct

Json = dict[str, Any]


class Page(Struct, frozen=True):
    items: list[Json]
    has_more: bool


class Cut(Struct, frozen=True):
    """Which items of a list: `limit` of them behind the one with id `after`, newest first or oldest."""

    after: str | None = None
    limit: int = 20
    descending: bool = True


class Conversation(Struct, frozen=True):
    id: str
    created_at: int  # Unix seconds
    metadata: dict[str, str]


class Range(Struct, frozen=True):
    """Where items stand in their thread: positions [start, end). `end` is the thread's version then: it grows
    with whatever is added or deleted."""

    start: int
    end: int


class NewResponse(Struct, frozen=True):
    """A response to keep. At most one of `previous` and `conversation` says what came before."""

    id: str
    created_at: int  # Unix seconds
    body: str  # JSON
    input: Sequence[Json]
    output: Sequence[Json]
    previous: str | None = None
    conversation: str | None = None


class StoredFile(Struct, frozen=True, kw_only=True):
    """`batch`: the file holds results of its lines, `holds_errors`: those that are no answers."""

    id: str
    tenant: str
    purpose: str
    filename: str
    bytes: int
    created_at: int  # Unix seconds
    expires_at: int | None = None
    batch: str | None = None
    holds_errors: bool = False


BatchStatus = Literal[
    "validating", "failed", "in_progress", "completed", "expired", "cancelling", "cancelled"
]
LineState = Literal["waiting", "succeeded", "errored", "cancelled", "expired"]
OPEN: tuple[BatchStatus, ...] = ("validating", "in_progress", "cancelling")


class StoredBatch(Struct, frozen=True, kw_only=True):
    """times: when each status was reached, Unix seconds. counts: lines by state."""

    id: str
    tenant: str
    api: str
    endpoint: str
    status: BatchStatus
    times: dict[str, int]
    created_at: int
    expires_at: int
    metadata: dict[str, str] = {}
    errors: list[Json] = []
    model: str | None = None
    input_file: str | None = None
    output_file: str | None = None
    error_file: str | None = None
    output_ttl_s: int | None = None
    prompt_tokens: int = 0
    cached_tokens: int = 0
    completion_tokens: int = 0
    reasoning_tokens: int = 0
    counts: dict[str, int] = {}

    @property
    def is_open(self) -> bool:
        return self.status in OPEN

    @property
    def total(self) -> int:
        return sum(self.counts.values())


class NewLine(Struct, frozen=True):
    """request: JSON, the body of a call in the batch's format."""

    custom_id: str
    request: str


class WaitingLine(Struct, frozen=True):
    number: int
    custom_id: str
    request: str


class LineResult(Struct, frozen=True):
    """result: the line of the output, without newline. The counts are tokens."""

    number: int
    state: LineState
    result: str
    prompt_tokens: int = 0
    cached_tokens: int = 0
    completion_tokens: int = 0
    reasoning_tokens: int = 0
