"""Every error that crosses a boundary of Penstock, as one tree.

PenstockError
├── InvalidRequest      400  the caller can mend it; `param` names the field
│   ├── ContextOverflow 400  prompt longer than the context; names both numbers
│   └── BodyTooLarge    413
├── Unauthorized        401
├── Forbidden           403
├── NotFound            404  unknown model, unknown route
├── Overloaded          429  queue full; `retry_after_s` says when to come back
├── EngineUnavailable   503  engine starting, restarting, or died under the request
├── DeadlineExceeded    504  the request's own deadline passed
├── ModelRefused        —    a model that can't be served: reason and numbers, before memory is taken
└── ConfigError         —    a setting: path, given value, what is allowed

`kind` is the stable string used in error bodies, logs and metric labels; `status` is the HTTP status.
"""

from __future__ import annotations


class PenstockError(Exception):
    """Base class. `message` names the value, the limit and what to do."""

    kind: str = "internal_error"
    status: int = 500

    def __init__(
        self,
        message: str,
        *,
        param: str | None = None,
        code: str | None = None,
        retry_after_s: float | None = None,
    ) -> None:
        super().__init__(message)
        self.message = message
        self.param = param
        self.code = code
        self.retry_after_s = retry_after_s


class InvalidRequest(PenstockError):
    kind = "invalid_request_error"
    status = 400


class ContextOverflow(InvalidRequest):
    """A prompt (or prompt + requested output) that can't fit in the model's context."""


class BodyTooLarge(InvalidRequest):
    status = 413


class Unauthorized(PenstockError):
    kind = "authentication_error"
    status = 401


class Forbidden(PenstockError):
    kind = "permission_error"
    status = 403


class NotFound(PenstockError):
    kind = "not_found_error"
    status = 404


class Overloaded(PenstockError):
    kind = "rate_limit_error"
    status = 429


class EngineUnavailable(PenstockError):
    kind = "service_unavailable_error"
    status = 503


class DeadlineExceeded(PenstockError):
    kind = "timeout_error"
    status = 504


class ModelRefused(PenstockError):
    kind = "model_refused"
    status = 503


class ConfigError(PenstockError):
    kind = "config_error"


_BY_KIND: dict[str, type[PenstockError]] = {
    cls.kind: cls
    for cls in (
        PenstockError,
        InvalidRequest,
        Unauthorized,
        Forbidden,
        NotFound,
        Overloaded,
        EngineUnavailable,
        DeadlineExceeded,
        ModelRefused,
        ConfigError,
    )
}


def from_kind(kind: str, message: str, **fields: object) -> PenstockError:
    """Rebuild an error that crossed a process boundary as (kind, message)."""
    return _BY_KIND.get(kind, PenstockError)(message, **fields)  # type: ignore[arg-type]
