"""What goes into the store and comes out: plain records, made without any SQL."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

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


class NewResponse(Struct, frozen=True):
    """A response to keep. At most one of `previous` and `conversation` says what came before."""

    id: str
    created_at: int  # Unix seconds
    body: str  # JSON
    input: Sequence[Json]
    output: Sequence[Json]
    previous: str | None = None
    conversation: str | None = None
