"""Batch files: OpenAI batch lines in, result lines out, resumable after a kill at any moment.

Input line: `{"custom_id", "method": "POST", "url": "/v1/chat/completions", "body": {…}}`.
Output line: `{"id", "custom_id", "response": {"status_code", "request_id", "body"}, "error"}`; a request
that was refused has its error body and status there, a line that is no request has `response: null`.

Invariants
- One output line per custom_id, appended whole by one write; what stands in the file is finished.
- A torn last line (the process died inside the write) is completed if only its newline is missing,
  else cut off; nothing else of the output is ever changed.
- Two processes never write one output: it is locked while open.
"""

from __future__ import annotations

import asyncio
import fcntl
import os
from collections.abc import Awaitable, Callable, Iterator
from pathlib import Path
from typing import Any

import msgspec
from msgspec import Raw, Struct

from penstock.errors import ConfigError, InvalidRequest, PenstockError

URLS = ("/v1/chat/completions", "/v1/completions")


class BatchLine(Struct, frozen=True):
    """`body` is kept as the bytes it came in: the wire codec reads it."""

    custom_id: str
    method: str = "POST"
    url: str = URLS[0]
    body: Raw = Raw(b"{}")


class Response(Struct, frozen=True):
    status_code: int
    request_id: str
    body: Raw


class LineError(Struct, frozen=True):
    code: str
    message: str


class ResultLine(Struct, frozen=True):
    id: str
    custom_id: str
    response: Response | None
    error: LineError | None


class _Written(Struct):
    custom_id: str


_decode_line = msgspec.json.Decoder(BatchLine).decode
_decode_written = msgspec.json.Decoder(_Written).decode

Answer = Callable[[BatchLine], Awaitable[ResultLine]]


def read_lines(path: Path) -> Iterator[BatchLine]:
    """Lines of the input, lazily; blank ones are skipped.

    Raises InvalidRequest naming file and line for what is no batch line.
    """
    with path.open("rb") as file:
        for number, line in enumerate(file, start=1):
            if not line.strip():
                continue
            try:
                yield _decode_line(line)
            except (msgspec.ValidationError, msgspec.DecodeError, UnicodeDecodeError) as error:
                raise InvalidRequest(f"{path}:{number}: not a batch line: {error}") from None


def check_input(path: Path) -> dict[str, int]:
    """custom_id → line number of the whole input: it is refused as a whole before anything runs.

    Raises InvalidRequest for a line that can't be read, a custom_id given twice, or an empty file.
    """
    seen: dict[str, int] = {}
    for count, line in enumerate(read_lines(path), start=1):
        if line.custom_id in seen:
            raise InvalidRequest(
                f"{path}: custom_id {line.custom_id!r} of request {count} is already that of request "
                f"{seen[line.custom_id]}; results are told apart by it"
            )
        seen[line.custom_id] = count
    if not seen:
        raise InvalidRequest(f"{path}: holds no request")
    return seen


class ResultFile:
    """The output, open for appending. Use as a context manager."""

    def __init__(self, path: Path) -> None:
        """Opens (or makes) and locks the file, repairs its end and reads what is finished."""
        self._path = path
        self._file = os.open(path, os.O_RDWR | os.O_CREAT | os.O_APPEND | os.O_CLOEXEC, 0o644)
        try:
            fcntl.flock(self._file, fcntl.LOCK_EX | fcntl.LOCK_NB)
            self._repair()
            self.finished = self._read_finished()
        except BlockingIOError:
            os.close(self._file)
            raise ConfigError(
                f"{path}: another process is writing it; wait for it or choose another file"
            ) from None
        except BaseException:
            os.close(self._file)
            raise

    def __enter__(self) -> ResultFile:
        return self

    def __exit__(self, *exc: object) -> None:
        os.fsync(self._file)
        os.close(self._file)

    def append(self, result: ResultLine) -> None:
        """One whole line, handed to the operating system before this returns."""
        data = memoryview(msgspec.json.encode(result) + b"\n")
        while data:
            data = data[os.write(self._file, data) :]

    def _repair(self) -> None:
        end = os.fstat(self._file).st_size
        if end == 0 or os.pread(self._file, 1, end - 1) == b"\n":
            return
        start = end
        while start > 0:  # find the last newline, block by block
            first = max(0, start - 65536)
            found = os.pread(self._file, start - first, first).rfind(b"\n")
            if found >= 0:
                start = first + found + 1
                break
            start = first
        try:
            _decode_written(os.pread(self._file, end - start, start))
        except (msgspec.ValidationError, msgspec.DecodeError, UnicodeDecodeError):
            os.ftruncate(self._file, start)
        else:
            os.write(self._file, b"\n")

    def _read_finished(self) -> set[str]:
        finished = set()
        with self._path.open("rb") as file:
            for number, line in enumerate(file, start=1):
                try:
                    finished.add(_decode_written(line).custom_id)
                except (msgspec.ValidationError, msgspec.DecodeError, UnicodeDecodeError) as error:
                    raise ConfigError(
                        f"{self._path}:{number}: not a result line ({error}); choose another output file"
                    ) from None
        return finished


async def run_batch(
    source: Path,
    results: ResultFile,
    answer: Answer,
    *,
    concurrency: int,
    on_done: Callable[[ResultLine], None] = lambda result: None,
) -> None:
    """Answer every line of `source` that is not finished, at most `concurrency` at once.

    What `answer` raises ends the batch: the lines in flight are given up, the file stays resumable.
    """
    places = asyncio.Semaphore(concurrency)

    async def one(line: BatchLine) -> None:
        try:
            result = await answer(line)
        finally:
            places.release()
        results.append(result)
        on_done(result)

    try:
        async with asyncio.TaskGroup() as group:
            for line in read_lines(source):
                if line.custom_id not in results.finished:
                    await places.acquire()
                    group.create_task(one(line))
    except* PenstockError as errors:
        raise _first(errors) from None


def _first(error: BaseException) -> BaseException:
    while isinstance(error, BaseExceptionGroup):
        error = error.exceptions[0]
    return error


def refusal(line: BatchLine, code: str, message: str) -> ResultLine:
    """A line that never became a request."""
    return ResultLine(f"batch_req_{line.custom_id}", line.custom_id, None, LineError(code, message))


def response(line: BatchLine, status: int, request_id: str, body: bytes) -> ResultLine:
    """`body`: JSON, as the HTTP API would have sent it."""
    answer = Response(status, request_id, Raw(body))
    return ResultLine(f"batch_req_{line.custom_id}", line.custom_id, answer, None)


def body_model(line: BatchLine) -> str | None:
    """The model that a line's body names, if it names one."""

    class _Body(Struct):
        model: Any = None

    try:
        model = msgspec.json.decode(line.body, type=_Body).model
    except (msgspec.ValidationError, msgspec.DecodeError):
        return None
    return model if isinstance(model, str) else None
