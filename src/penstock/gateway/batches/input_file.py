"""An input file of OpenAI's batches, read as it comes: its lines, or everything that is wrong with it.

The codes are OpenAI's. What a request's body asks for is not read here: a line that its codec refuses is a
line with an error, not a batch that fails.
"""

from __future__ import annotations

from collections.abc import Collection

import msgspec
from msgspec import UNSET, Raw, Struct, UnsetType

from penstock.store.records import Json, NewLine
from penstock.wire.openai_batches import MAX_LINES, InputLine, LineError, body_model, decode_line

MAX_ERRORS = 100  # shown; a file with more is as wrong
MAX_CUSTOM_ID = 512  # characters


class _AnyLine(Struct):
    """A line that is no request, to see what it lacks."""

    custom_id: Raw | UnsetType = UNSET
    method: Raw | UnsetType = UNSET
    url: Raw | UnsetType = UNSET
    body: Raw | UnsetType = UNSET


_decode_any = msgspec.json.Decoder(_AnyLine).decode


class InputFile:
    """`feed` it the file piece by piece, then `end`; both return the lines that are complete, in order.

    models: those served. `model` is the one that all lines name. With `errors` the lines are worth nothing.
    """

    def __init__(self, endpoint: str, models: Collection[str]) -> None:
        self.model: str | None = None
        self.errors: list[LineError] = []
        self._endpoint = endpoint
        self._models = models
        self._seen: dict[str, int] = {}  # custom_id -> line
        self._rest = b""
        self._number = 0
        self._count = 0

    def feed(self, data: bytes) -> list[NewLine]:
        *lines, self._rest = (self._rest + data).split(b"\n")
        return self._read(lines)

    def end(self) -> list[NewLine]:
        rest, self._rest = self._rest, b""
        lines = self._read([rest])
        if not self._count:
            self._refuse("empty_file", "the input file holds no request", line=None)
        return lines

    def problems(self) -> list[Json]:
        """`errors` as JSON."""
        return [msgspec.to_builtins(error) for error in self.errors]

    def _read(self, lines: list[bytes]) -> list[NewLine]:
        found = []
        for line in lines:
            self._number += 1
            if not line.strip():
                continue
            self._count += 1
            if self._count == MAX_LINES + 1:
                self._refuse("too_many_tasks", f"the input file holds over {MAX_LINES} requests; split it")
            if (read := self._line(line)) is not None and not self.errors:
                found.append(read)
        return found

    def _line(self, data: bytes) -> NewLine | None:
        try:
            line = decode_line(data)
        except msgspec.ValidationError as error:
            self._not_a_request(data, str(error))
            return None
        except (msgspec.DecodeError, UnicodeDecodeError):
            self._refuse("invalid_json_line", "this line is not parseable as valid JSON")
            return None
        model = self._model(line)
        self._check(line, model)
        return NewLine(line.custom_id, bytes(line.body).decode())

    def _model(self, line: InputLine) -> str | None:
        try:
            model = body_model(line.body)
        except msgspec.ValidationError:
            self._refuse("invalid_request", "body: not a JSON object", "body")
            return None
        if isinstance(model, str):
            return model
        self._refuse("missing_required_parameter", "body.model: a request names its model", "body.model")
        return None

    def _check(self, line: InputLine, model: str | None) -> None:
        first = self._seen.setdefault(line.custom_id, self._number)
        if first != self._number:
            self._refuse(
                "duplicate_custom_id",
                f"custom_id: {line.custom_id[:100]!r} is that of line {first}; results are told apart by it",
                "custom_id",
            )
        if not 1 <= len(line.custom_id) <= MAX_CUSTOM_ID or "\x00" in line.custom_id:
            self._refuse(
                "invalid_request",
                f"custom_id: {len(line.custom_id)} characters; from 1 to {MAX_CUSTOM_ID}, none of them NUL",
                "custom_id",
            )
        if line.method != "POST":
            self._refuse("invalid_method", f"method: {line.method[:20]!r}; a line is a POST", "method")
        if line.url != self._endpoint:
            self._refuse(
                "url_mismatch",
                f"url: {line.url[:100]!r}, but the batch is for {self._endpoint}",
                "url",
            )
        if model is not None and model not in self._models:
            served = ", ".join(map(repr, sorted(self._models)))
            self._refuse(
                "model_not_found", f"body.model: {model[:100]!r} is not served here; {served}", "body.model"
            )
        elif model is not None and self.model not in (None, model):
            self._refuse(
                "model_mismatch",
                f"body.model: {model!r}, but lines before it name {self.model!r}; a batch has one model",
                "body.model",
            )
        self.model = self.model or model

    def _not_a_request(self, data: bytes, why: str) -> None:
        try:
            given = _decode_any(data)
        except msgspec.ValidationError:
            self._refuse("invalid_json_line", "this line is no JSON object")
            return
        missing = [name for name in InputLine.__struct_fields__ if getattr(given, name) is UNSET]
        for name in missing:
            self._refuse("missing_required_parameter", f"{name}: missing", name)
        if not missing:
            self._refuse("invalid_request", why)

    def _refuse(self, code: str, message: str, param: str | None = None, line: int | None = 0) -> None:
        """line: None for the whole file, 0 for the one that is read."""
        if len(self.errors) < MAX_ERRORS:
            self.errors.append(LineError(code, message, self._number if line == 0 else line, param))


def first_model(data: bytes) -> str | None:
    """The model that the first request of a file names; None if there is no telling."""
    for line in data.split(b"\n"):
        if line.strip():
            try:
                model = body_model(decode_line(line).body)
            except (msgspec.DecodeError, UnicodeDecodeError):
                return None
            return model if isinstance(model, str) else None
    return None
