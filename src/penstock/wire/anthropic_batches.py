"""Anthropic's message batches: their objects, and the lines of their results.

A result line is `{"custom_id", "result"}`, the result one of succeeded (with the message), errored (with the
error's envelope), canceled and expired.
"""

from __future__ import annotations

from datetime import UTC, datetime
from typing import Annotated, Any, Literal

import msgspec
from msgspec import Meta, Raw, Struct

from penstock.call import Failure
from penstock.store.records import StoredBatch
from penstock.wire.anthropic_dialect import ANTHROPIC
from penstock.wire.anthropic_messages import ALIAS
from penstock.wire.openai_common import encode

API = "anthropic"
PATH = "/v1/messages/batches"
WINDOW_S = 24 * 3600
MAX_LINES = 100_000


class BatchRequest(Struct):
    """`params`: the body of a message request, read when its turn comes."""

    custom_id: Annotated[str, Meta(pattern="^[a-zA-Z0-9_-]{1,64}$")]
    params: Raw


class NewMessageBatch(Struct):
    requests: Annotated[list[BatchRequest], Meta(min_length=1, max_length=MAX_LINES)]


class MessageCounts(Struct):
    processing: int
    succeeded: int
    errored: int
    canceled: int
    expired: int


class MessageBatchBody(Struct):
    """Times are RFC 3339."""

    id: str
    processing_status: Literal["in_progress", "canceling", "ended"]
    request_counts: MessageCounts
    created_at: str
    expires_at: str
    ended_at: str | None
    cancel_initiated_at: str | None
    results_url: str | None
    archived_at: None = None
    type: Literal["message_batch"] = "message_batch"


class MessageBatchList(Struct):
    data: list[MessageBatchBody]
    has_more: bool
    first_id: str | None
    last_id: str | None


class DeletedMessageBatch(Struct):
    id: str
    type: Literal["message_batch_deleted"] = "message_batch_deleted"


class _Params(Struct):
    model: Any = None


class _Succeeded(Struct, tag="succeeded"):
    message: Raw


class _Errored(Struct, tag="errored"):
    error: Raw


class _NotRun(Struct):
    type: str


class _ResultLine(Struct):
    custom_id: str
    result: _Succeeded | _Errored | Any


_decode_params = msgspec.json.Decoder(_Params).decode


def params_model(params: Raw) -> str | None:
    """The model that a request names, under its own name; None if none."""
    try:
        model = _decode_params(params).model
    except msgspec.ValidationError:  # no object
        return None
    return model.removeprefix(ALIAS) if isinstance(model, str) else None


def succeeded(custom_id: str, request_id: str, body: bytes) -> bytes:
    """The result line of an answer."""
    return encode(_ResultLine(custom_id, _Succeeded(Raw(body))))


def errored(custom_id: str, request_id: str, failure: Failure) -> bytes:
    """The result line of a request that was refused, or broke."""
    return encode(_ResultLine(custom_id, _Errored(Raw(ANTHROPIC.error_body(failure, request_id)))))


def ended(custom_id: str, request_id: str, state: str) -> bytes:
    """The result line of a request that never ran: its batch is "cancelled" or "expired"."""
    return encode(_ResultLine(custom_id, _NotRun("canceled" if state == "cancelled" else state)))


def batch_body(batch: StoredBatch, origin: str) -> MessageBatchBody:
    """origin: scheme and host of this server, as the client knows it."""
    times, counts = batch.times, batch.counts
    status: Literal["in_progress", "canceling", "ended"] = "in_progress" if batch.is_open else "ended"
    if batch.status == "cancelling":
        status = "canceling"
    ended_at = times.get(batch.status) if status == "ended" else None
    shown = dict.fromkeys(counts, 0) | {"waiting": batch.total} if batch.is_open else counts
    return MessageBatchBody(
        id=batch.id,
        processing_status=status,
        request_counts=MessageCounts(
            shown.get("waiting", 0),
            shown.get("succeeded", 0),
            shown.get("errored", 0),
            shown.get("cancelled", 0),
            shown.get("expired", 0),
        ),
        created_at=_rfc3339(batch.created_at),
        expires_at=_rfc3339(batch.expires_at),
        ended_at=None if ended_at is None else _rfc3339(ended_at),
        cancel_initiated_at=_rfc3339(times["cancelling"]) if "cancelling" in times else None,
        results_url=f"{origin}{PATH}/{batch.id}/results" if status == "ended" else None,
    )


def _rfc3339(seconds: int) -> str:
    return datetime.fromtimestamp(seconds, UTC).strftime("%Y-%m-%dT%H:%M:%SZ")
