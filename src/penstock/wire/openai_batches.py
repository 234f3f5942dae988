"""OpenAI's files and batches: their objects, the lines of an input file, the lines of an output file.

An output line is `{"id", "custom_id", "response": {"status_code", "request_id", "body"}, "error"}`; a request
that was refused has its error body and status there, one that never ran has `response: null`.
"""

from __future__ import annotations

from typing import Annotated, Any, Literal

import msgspec
from msgspec import Meta, Raw, Struct

from penstock.call import Failure
from penstock.store.records import StoredBatch, StoredFile
from penstock.wire.openai_common import encode, failure_bytes

API = "openai"
WINDOW_S = 24 * 3600
MAX_LINES = 50_000
PURPOSES = ("assistants", "batch", "fine-tune", "vision", "user_data", "evals")  # of uploaded files
Lifetime = Annotated[int, Meta(ge=3600, le=30 * 24 * 3600)]  # seconds
Metadata = Annotated[
    dict[Annotated[str, Meta(max_length=64)], Annotated[str, Meta(max_length=512)]], Meta(max_length=16)
]


class ExpiresAfter(Struct):
    seconds: Lifetime
    anchor: Literal["created_at"] = "created_at"


class NewBatch(Struct, omit_defaults=True):
    input_file_id: str
    endpoint: str
    completion_window: Literal["24h"]
    metadata: Metadata | None = None
    output_expires_after: ExpiresAfter | None = None


class FileBody(Struct):
    id: str
    bytes: int
    created_at: int
    filename: str
    purpose: str
    expires_at: int | None
    object: Literal["file"] = "file"
    status: Literal["processed"] = "processed"
    status_details: None = None


class FileList(Struct):
    data: list[FileBody]
    first_id: str | None
    last_id: str | None
    has_more: bool
    object: Literal["list"] = "list"


class DeletedFile(Struct):
    id: str
    object: Literal["file"] = "file"
    deleted: bool = True


class LineError(Struct):
    """Why a batch was refused. `line` counts from 1."""

    code: str
    message: str
    line: int | None = None
    param: str | None = None


class LineErrors(Struct):
    data: list[LineError]
    object: Literal["list"] = "list"


class RequestCounts(Struct):
    total: int
    completed: int
    failed: int


class CachedTokens(Struct):
    cached_tokens: int


class ReasoningTokens(Struct):
    reasoning_tokens: int


class BatchUsage(Struct):
    input_tokens: int
    input_tokens_details: CachedTokens
    output_tokens: int
    output_tokens_details: ReasoningTokens
    total_tokens: int


class BatchBody(Struct):
    """Times are Unix seconds, None for what did not happen."""

    id: str
    endpoint: str
    errors: LineErrors | None
    input_file_id: str
    completion_window: str
    status: str
    output_file_id: str | None
    error_file_id: str | None
    created_at: int
    in_progress_at: int | None
    expires_at: int
    finalizing_at: int | None
    completed_at: int | None
    failed_at: int | None
    expired_at: int | None
    cancelling_at: int | None
    cancelled_at: int | None
    request_counts: RequestCounts
    metadata: dict[str, str] | None
    model: str | None
    usage: BatchUsage
    object: Literal["batch"] = "batch"


class BatchList(Struct):
    data: list[BatchBody]
    first_id: str | None
    last_id: str | None
    has_more: bool
    object: Literal["list"] = "list"


class InputLine(Struct):
    """One request of an input file. `body` is kept as the bytes it came in: its codec reads it."""

    custom_id: str
    method: str
    url: str
    body: Raw


class _Body(Struct):
    model: Any = None


class _Response(Struct):
    status_code: int
    request_id: str
    body: Raw


class _NotRun(Struct):
    code: str
    message: str


class _OutputLine(Struct):
    id: str
    custom_id: str
    response: _Response | None
    error: _NotRun | None


_NOT_RUN = {
    "expired": _NotRun("batch_expired", "the request was not run before the completion window ended"),
    "cancelled": _NotRun("batch_cancelled", "the batch was cancelled before the request was answered"),
}
decode_line = msgspec.json.Decoder(InputLine).decode
_decode_body = msgspec.json.Decoder(_Body).decode


def body_model(body: Raw) -> Any:
    """What a request's body names as its model; None if nothing."""
    return _decode_body(body).model


def succeeded(custom_id: str, request_id: str, body: bytes) -> bytes:
    """The output line of an answer."""
    return _line(custom_id, request_id, _Response(200, request_id, Raw(body)), None)


def errored(custom_id: str, request_id: str, failure: Failure) -> bytes:
    """The output line of a request that was refused, or broke."""
    return _line(
        custom_id, request_id, _Response(failure.status, request_id, Raw(failure_bytes(failure))), None
    )


def ended(custom_id: str, request_id: str, state: str) -> bytes:
    """The output line of a request that never ran: its batch is "cancelled" or "expired"."""
    return _line(custom_id, request_id, None, _NOT_RUN[state])


def _line(custom_id: str, request_id: str, response: _Response | None, error: _NotRun | None) -> bytes:
    return encode(_OutputLine(f"batch_req_{request_id}", custom_id, response, error))


def file_body(file: StoredFile) -> FileBody:
    return FileBody(file.id, file.bytes, file.created_at, file.filename, file.purpose, file.expires_at)


def batch_body(batch: StoredBatch) -> BatchBody:
    times, counts = batch.times, batch.counts
    failed = sum(counts.get(state, 0) for state in ("errored", "expired", "cancelled"))
    errors = [msgspec.convert(error, LineError) for error in batch.errors]
    return BatchBody(
        id=batch.id,
        endpoint=batch.endpoint,
        errors=LineErrors(errors) if errors else None,
        input_file_id=batch.input_file or "",
        completion_window="24h",
        status=batch.status,
        output_file_id=batch.output_file,
        error_file_id=batch.error_file,
        created_at=batch.created_at,
        in_progress_at=times.get("in_progress"),
        expires_at=batch.expires_at,
        finalizing_at=times.get("completed"),  # the files appear in the transaction that ends it
        completed_at=times.get("completed"),
        failed_at=times.get("failed"),
        expired_at=times.get("expired"),
        cancelling_at=times.get("cancelling"),
        cancelled_at=times.get("cancelled"),
        request_counts=RequestCounts(batch.total, counts.get("succeeded", 0), failed),
        metadata=batch.metadata or None,
        model=batch.model,
        usage=BatchUsage(
            batch.prompt_tokens,
            CachedTokens(batch.cached_tokens),
            batch.completion_tokens,
            ReasoningTokens(batch.reasoning_tokens),
            batch.prompt_tokens + batch.completion_tokens,
        ),
    )
