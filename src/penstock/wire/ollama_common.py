"""What Ollama's two generating routes share: options, `think`, `format`, `keep_alive`, lines of JSON.

Source: Ollama's api/types.go and docs/api.md. Two things differ on purpose. Options that are left out are
neutral (temperature 1, no filters, no penalties), as in every other API of Penstock; `write_options` states
each of them, because an Ollama upstream would fill in its own. And what would change the answer but can't be
honoured is refused by name instead of being dropped.
"""

from __future__ import annotations

import re
from datetime import UTC, datetime
from typing import Any

import msgspec
from msgspec import UNSET, Struct, UnsetType

from penstock.call import Call, ResponseFormat, SamplingParams
from penstock.errors import InvalidRequest
from penstock.wire.openai_common import TopLogprobs, encode

MEDIA_TYPE = b"application/x-ndjson"
KEEP_ALIVE = b""  # an empty line is no JSON, and clients parse every line

# Characters that JSON allows inside strings and that Python's `str.splitlines` (so httpx, so the official
# client) takes for ends of lines.
_SPLITTERS = ((b"\xe2\x80\xa8", b"\\u2028"), (b"\xe2\x80\xa9", b"\\u2029"), (b"\xc2\x85", b"\\u0085"))


def line(value: Any) -> bytes:
    """One line of a stream. No character in it ends a line but the last."""
    text = encode(value)
    if not text.isascii():
        for raw, escaped in _SPLITTERS:
            text = text.replace(raw, escaped)
    return text + b"\n"


def rfc3339(seconds: int) -> str:
    """A Unix time as Ollama writes times."""
    return datetime.fromtimestamp(seconds, UTC).strftime("%Y-%m-%dT%H:%M:%SZ")


# --------------------------------------------------------------------------- options


class Options(Struct, omit_defaults=True):
    """Those of Ollama's options that say how to generate; the others stand in `Call.extra["options"]`."""

    temperature: float | None = None
    top_p: float | None = None
    top_k: int | None = None
    min_p: float | None = None
    typical_p: float | None = None
    repeat_penalty: float | None = None
    presence_penalty: float | None = None
    frequency_penalty: float | None = None
    seed: int | None = None
    num_predict: int | None = None
    stop: str | list[str] | None = None
    num_ctx: int | None = None
    mirostat: int | None = None
    tfs_z: float | None = None
    num_keep: int | None = None
    repeat_last_n: int | None = None


# Option → SamplingParams field, where the value is the same.
_SAMPLING = {
    "temperature": "temperature",
    "top_p": "top_p",
    "top_k": "top_k",
    "min_p": "min_p",
    "typical_p": "typical_p",
    "repeat_penalty": "repetition_penalty",
    "presence_penalty": "presence_penalty",
    "frequency_penalty": "frequency_penalty",
    "seed": "seed",
    "stop": "stop",
}
_OPTION_OF = {field: option for option, field in _SAMPLING.items()} | {"max_tokens": "num_predict"}
_UNLIMITED = (-2, -1, 0)  # num_predict: until the context is full
# Checked for their type, then kept for an upstream: they are about Ollama's own cache and windows.
_KEPT = ("num_ctx", "num_keep", "repeat_last_n")


def read_options(
    options: Options | None, raw: dict[str, Any] | None, logprobs: bool | None, top_logprobs: int | None
) -> tuple[SamplingParams, dict[str, Any]]:
    """(parameters, options that are kept as they came). `raw`: the same object, undecoded.

    Raises InvalidRequest naming the option, the value and the range.
    """
    if top_logprobs and not logprobs:
        raise InvalidRequest(
            f"top_logprobs: {top_logprobs} alternatives need `logprobs: true`", param="top_logprobs"
        )
    options = options or Options()
    if options.mirostat:
        raise _refused("mirostat", options.mirostat, "there is no Mirostat sampler; use min_p or temperature")
    if options.tfs_z not in (None, 1):
        raise _refused("tfs_z", options.tfs_z, "there is no tail-free sampling; use min_p or typical_p")
    if options.num_ctx is not None and options.num_ctx < 0:
        raise _refused("num_ctx", options.num_ctx, "a context has no negative size; leave it out")
    values: dict[str, Any] = {
        field: value for option, field in _SAMPLING.items() if (value := getattr(options, option)) is not None
    }
    if options.num_predict not in (None, *_UNLIMITED):
        values["max_tokens"] = options.num_predict
    if logprobs:
        values["logprobs"] = top_logprobs or 0
    try:
        sampling = SamplingParams(**values).validate()
    except InvalidRequest as error:
        option = _OPTION_OF.get(error.param or "")
        if option is None:
            raise
        told = error.message.removeprefix(f"{error.param}: ")
        raise InvalidRequest(f"options.{option}: {told}", param=f"options.{option}") from None
    known = frozenset(Options.__struct_fields__) - frozenset(_KEPT)
    return sampling, {name: value for name, value in (raw or {}).items() if name not in known}


def _refused(option: str, value: object, reason: str) -> InvalidRequest:
    name = f"options.{option}"
    return InvalidRequest(f"{name}: {value}: {reason}", param=name, code="unsupported_parameter")


def write_options(call: Call) -> dict[str, Any]:
    """Every option that decides about tokens, also those at their defaults; then those that were kept."""
    sampling = call.sampling
    written = {option: getattr(sampling, field) for option, field in _SAMPLING.items()}
    written["stop"] = list(sampling.stop)
    written["num_predict"] = -1 if sampling.max_tokens is None else sampling.max_tokens
    if sampling.seed is None:
        del written["seed"]
    return written | call.extra.get("options", {})


# --------------------------------------------------------------------------- think, format, keep_alive

_LEVELS = {"low": "low", "medium": "medium", "high": "high", "max": "xhigh"}
_LEVEL_OF = {effort: level for level, effort in _LEVELS.items()}


def read_think(think: bool | str | None) -> dict[str, Any]:
    """Template arguments that say the same."""
    if think is None:
        return {}
    if isinstance(think, bool):
        return {"enable_thinking": think}
    if think not in _LEVELS:
        raise InvalidRequest(
            f"think: {think!r} is no level; use true, false, {', '.join(_LEVELS)}", param="think"
        )
    return {"reasoning_effort": _LEVELS[think]}


def write_think(args: dict[str, Any]) -> bool | str | None:
    """Raises InvalidRequest for a template argument that `think` can't say."""
    if not args:
        return None
    if args.keys() == {"enable_thinking"} and isinstance(args["enable_thinking"], bool):
        return args["enable_thinking"]
    if args.keys() == {"reasoning_effort"} and args["reasoning_effort"] == "none":
        return False
    if args.keys() == {"reasoning_effort"} and args["reasoning_effort"] in _LEVEL_OF:
        return _LEVEL_OF[args["reasoning_effort"]]
    raise unsayable(f"template_args.{min(args)}")


def asks_to_think(call: Call) -> bool:
    """Whether `think` was true or a level."""
    return call.template_args.get("enable_thinking") is True or "reasoning_effort" in call.template_args


def read_format(form: str | dict[str, Any] | None) -> ResponseFormat | None:
    if form is None or form == "":
        return None
    if isinstance(form, dict):
        return ResponseFormat("json_schema", form)
    if form != "json":
        raise InvalidRequest(f'format: {form!r}; send "json" or a JSON schema', param="format")
    return ResponseFormat("json_object")


def write_format(form: ResponseFormat | None) -> str | dict[str, Any] | None:
    """A schema's name and `strict` are not said: here every schema is enforced."""
    if form is None or form.kind == "text":
        return None
    return "json" if form.schema is None else form.schema


_DURATION = re.compile(r"(?P<sign>[+-]?)(?P<parts>(?:\d+(?:\.\d*)?|\.\d+)(?:ns|us|µs|ms|s|m|h))+")
_PART = re.compile(r"(\d+(?:\.\d*)?|\.\d+)(ns|us|µs|ms|s|m|h)")
_UNITS_S = {"ns": 1e-9, "us": 1e-6, "µs": 1e-6, "ms": 1e-3, "s": 1.0, "m": 60.0, "h": 3600.0}


def keep_alive_s(value: Any) -> float | None:
    """Seconds that a model shall stay loaded after a request; None: for ever (a negative value).

    value: a number of seconds, or a duration as Go writes it ("5m", "1h30m", "-1s"), or a number as text.
    Raises InvalidRequest for anything else.
    """
    seconds = _seconds(value)
    if seconds is None:
        raise InvalidRequest(
            f'keep_alive: {value!r}; send seconds or a duration such as "5m", 0 for not at all, -1 for ever',
            param="keep_alive",
        )
    return seconds if seconds >= 0 else None


def _seconds(value: Any) -> float | None:
    if isinstance(value, bool) or not isinstance(value, int | float | str):
        return None
    if not isinstance(value, str):
        return float(value)
    if _DURATION.fullmatch(value):
        total = sum(float(number) * _UNITS_S[unit] for number, unit in _PART.findall(value))
        return -total if value.startswith("-") else total
    try:
        return float(int(value))
    except ValueError:
        return None


# --------------------------------------------------------------------------- what the format can't say

_DEFAULTS = SamplingParams()
_SAYABLE = frozenset(_OPTION_OF) | {"logprobs", "max_tokens"}


def unsayable(field: str) -> InvalidRequest:
    return InvalidRequest(f"{field}: Ollama's API has no such field; leave it out", param=field)


def check_sayable(call: Call) -> None:
    """Raises InvalidRequest for the first field of `call` that is set and that the format has no place for.

    Labels and hints (user, metadata, priority, cache key) stay here, as tenant and deadline do.
    """
    for field in SamplingParams.__struct_fields__:
        if field not in _SAYABLE and getattr(call.sampling, field) != getattr(_DEFAULTS, field):
            raise unsayable(field)
    if call.parallel_tool_calls is False:
        raise unsayable("parallel_tool_calls")
    if call.tool_choice not in (None, "auto"):
        raise unsayable("tool_choice")
    if call.echo:
        raise unsayable("echo")
    if call.cache.salt:
        raise unsayable("cache_salt")


# --------------------------------------------------------------------------- both requests


class CommonFields(Struct, kw_only=True, omit_defaults=True):
    """Fields of both requests. `stream` left out means true: this is the one API where it does."""

    model: str
    stream: bool | None = None
    format: str | dict[str, Any] | None = None
    options: dict[str, Any] | None = None
    keep_alive: Any = None
    think: bool | str | None = None
    logprobs: bool | None = None
    top_logprobs: TopLogprobs | None = None


def read_common(request: CommonFields, extra: dict[str, Any]) -> dict[str, Any]:
    """The Call fields that both requests fill alike. Raises InvalidRequest."""
    try:
        options = None if request.options is None else msgspec.convert(request.options, Options)
    except msgspec.ValidationError as error:
        what, _, path = str(error).partition(" - at `$")
        name = f"options{path.removesuffix('`')}"
        raise InvalidRequest(f"{name}: {what.replace('`', '')}", param=name) from None
    sampling, kept = read_options(options, request.options, request.logprobs, request.top_logprobs)
    if kept:
        extra["options"] = kept
    if request.keep_alive is not None:
        keep_alive_s(request.keep_alive)
        extra["keep_alive"] = request.keep_alive
    return {
        "model": request.model,
        "stream": request.stream is not False,
        "response_format": read_format(request.format),
        "sampling": sampling,
        "template_args": read_think(request.think),
        "extra": extra,
    }


def write_common(call: Call) -> dict[str, Any]:
    """The inverse of `read_common`. Raises InvalidRequest for what can't be said."""
    check_sayable(call)
    return {
        "model": call.model,
        "stream": call.stream,
        "format": write_format(call.response_format),
        "options": write_options(call),
        "think": write_think(call.template_args),
        "logprobs": None if call.sampling.logprobs is None else True,
        "top_logprobs": call.sampling.logprobs or None,
        "keep_alive": call.extra.get("keep_alive"),
    }


def write_body(request: CommonFields, call: Call) -> bytes:
    """`request` and the unknown fields that `call` came with."""
    unknown = {name: value for name, value in call.extra.items() if name not in ("options", "keep_alive")}
    fields = {name: value for name, value in msgspec.structs.asdict(request).items() if value is not None}
    return encode(fields | unknown)


def is_load(call: Call) -> bool:
    """Whether a request has nothing to answer: it asks to load its model, with keep_alive 0 to unload it."""
    return not call.messages and not call.prompts


def is_unload(call: Call) -> bool:
    return is_load(call) and "keep_alive" in call.extra and keep_alive_s(call.extra["keep_alive"]) == 0


class ErrorLine(Struct):
    error: str | UnsetType = UNSET
