"""What the OpenAI formats share: strict JSON in, sampling fields, usage, errors, log-probabilities.

Requests are msgspec structs whose constraints come from the one range table of SamplingParams, so
the codec, the error and the published schema can't disagree. Every field may be null, which means
"left alone". Unknown fields are kept as they are (`Call.extra`); a field that asks for something
which no part of Penstock does is refused by name (`refuse`), never dropped in silence.
"""

from __future__ import annotations

import math
import re
from collections.abc import Mapping
from typing import Annotated, Any, TypeVar

import msgspec
from msgspec import UNSET, Meta, Raw, Struct, UnsetType

from penstock.call import CachePolicy, Call, Failure, SamplingParams, TokenLogprob, Usage
from penstock.errors import InvalidRequest
from penstock.sampling_params import MAX_STOP_CHARS, MAX_STOP_STRINGS, MAX_TOKEN_SET, RANGES
from penstock.wire.openai_thinking import read_budget

R = TypeVar("R", bound=Struct)

MAX_INT = 2**31 - 1  # token counts and ids travel as 32-bit integers
LOWEST_LOGPROB = -9999.0  # JSON has no -inf; OpenAI's API uses this number for it


def _range(field: str) -> Meta:
    """The constraint of a sampling field, from the table that SamplingParams.validate uses."""
    low, high, low_is_open = RANGES[field]
    if field == "seed":  # its upper bound is beyond what Meta can say; validate() checks it
        return Meta(ge=int(low), extra_json_schema={"maximum": int(high)})
    high = MAX_INT if math.isinf(high) else high
    return Meta(gt=low, le=high) if low_is_open else Meta(ge=low, le=high)


def _int_range(field: str) -> Meta:
    low, high, _ = RANGES[field]
    return Meta(ge=int(low), le=MAX_INT if math.isinf(high) else int(high))


TokenId = Annotated[int, Meta(ge=0, le=MAX_INT)]
StopString = Annotated[str, Meta(min_length=1, max_length=MAX_STOP_CHARS)]
MaxTokens = Annotated[int, _int_range("max_tokens")]
TopLogprobs = Annotated[int, _int_range("logprobs")]


class StreamOptions(Struct, omit_defaults=True):
    include_usage: bool | None = None


class StructuredOutputs(Struct, omit_defaults=True, forbid_unknown_fields=True):
    """vLLM's field for what an answer must look like; one of them."""

    json: dict[str, Any] | bool | str | None = None
    regex: str | None = None
    choice: list[str] | None = None
    grammar: str | None = None
    structural_tag: dict[str, Any] | None = None


class CommonFields(Struct, kw_only=True, omit_defaults=True):
    """Fields of both request kinds: OpenAI's, then the common engine extensions."""

    model: str
    n: Annotated[int, _int_range("n")] | None = None
    stop: StopString | Annotated[list[StopString], Meta(max_length=MAX_STOP_STRINGS)] | None = None
    seed: Annotated[int, _range("seed")] | None = None
    stream: bool | None = None
    stream_options: StreamOptions | None = None
    temperature: Annotated[float, _range("temperature")] | None = None
    top_p: Annotated[float, _range("top_p")] | None = None
    presence_penalty: Annotated[float, _range("presence_penalty")] | None = None
    frequency_penalty: Annotated[float, _range("frequency_penalty")] | None = None
    logit_bias: (
        Annotated[dict[TokenId, Annotated[float, Meta(ge=-100, le=100)]], Meta(max_length=MAX_TOKEN_SET)]
        | None
    ) = None
    user: str | None = None
    metadata: dict[str, str] | None = None
    prompt_cache_key: str | None = None
    # extensions that vLLM and SGLang made common
    top_k: Annotated[int, _int_range("top_k")] | None = None
    min_p: Annotated[float, _range("min_p")] | None = None
    typical_p: Annotated[float, _range("typical_p")] | None = None
    repetition_penalty: Annotated[float, _range("repetition_penalty")] | None = None
    min_tokens: Annotated[int, _int_range("min_tokens")] | None = None
    stop_token_ids: Annotated[list[TokenId], Meta(max_length=MAX_TOKEN_SET)] | None = None
    allowed_token_ids: Annotated[list[TokenId], Meta(min_length=1)] | None = None
    bad_words: Annotated[list[StopString], Meta(max_length=MAX_TOKEN_SET)] | None = None
    include_stop_str_in_output: bool | None = None
    ignore_eos: bool | None = None
    thinking_budget: Annotated[int, _int_range("thinking_budget")] | None = None
    thinking_token_budget: Annotated[int, _int_range("thinking_budget")] | None = None  # vLLM's name for it
    skip_special_tokens: bool | None = None
    prompt_logprobs: Annotated[int, _int_range("prompt_logprobs")] | None = None
    priority: Annotated[int, Meta(ge=-2, le=2)] | None = None
    cache_salt: str | None = None
    return_token_ids: bool | None = None
    structured_outputs: StructuredOutputs | None = None


# SamplingParams fields that the wire spells alike; the others are mapped by each codec.
_SAME_NAME = (
    "n",
    "seed",
    "temperature",
    "top_p",
    "presence_penalty",
    "frequency_penalty",
    "logit_bias",
    "top_k",
    "min_p",
    "typical_p",
    "repetition_penalty",
    "min_tokens",
    "stop_token_ids",
    "allowed_token_ids",
    "bad_words",
    "include_stop_str_in_output",
    "ignore_eos",
    "skip_special_tokens",
    "prompt_logprobs",
)
# SamplingParams fields and those of StructuredOutputs.
_FORMS = {
    "json_schema": "json",
    "regex": "regex",
    "choice": "choice",
    "grammar": "grammar",
    "structural_tag": "structural_tag",
}
_DEFAULTS = SamplingParams()


def read_sampling(request: CommonFields, **own: Any) -> SamplingParams:
    """SamplingParams of a request; `own` are the fields that this codec names differently."""
    values = {name: value for name in _SAME_NAME if (value := getattr(request, name)) is not None}
    if request.stop is not None:
        values["stop"] = request.stop
    values["thinking_budget"] = read_budget(request.thinking_budget, request.thinking_token_budget)
    if not request.logit_bias:
        values.pop("logit_bias", None)
    if request.structured_outputs is not None:
        form = request.structured_outputs
        values |= {name: getattr(form, field) for name, field in _FORMS.items()}
    return SamplingParams(**values | own).validate()


def read_common(request: CommonFields) -> dict[str, Any]:
    """The Call fields that both kinds fill alike."""
    options = request.stream_options
    return {
        "model": request.model,
        "stream": bool(request.stream),
        "stream_usage": bool(options and options.include_usage),
        "cache": CachePolicy(salt=request.cache_salt or "", key=request.prompt_cache_key),
        "priority": request.priority or 0,
        "user": request.user,
        "metadata": request.metadata or {},
    }


def write_common(call: Call) -> dict[str, Any]:
    """The inverse of `read_sampling` and `read_common`: only what differs from the default."""
    sampling = call.sampling
    fields: dict[str, Any] = {"model": call.model}
    for name in _SAME_NAME:
        value = getattr(sampling, name)
        if value != getattr(_DEFAULTS, name):
            fields[name] = list(value) if isinstance(value, tuple) else value
    fields["thinking_token_budget"] = sampling.thinking_budget
    if sampling.stop:
        fields["stop"] = list(sampling.stop)
    form = StructuredOutputs(**{field: getattr(sampling, name) for name, field in _FORMS.items()})
    if form != StructuredOutputs():
        fields["structured_outputs"] = form
    if call.stream:
        fields["stream"] = True
    if call.stream_usage:
        fields["stream_options"] = StreamOptions(include_usage=True)
    if call.cache.salt:
        fields["cache_salt"] = call.cache.salt
    if call.metadata:
        fields["metadata"] = call.metadata
    fields["prompt_cache_key"] = call.cache.key
    fields["priority"] = call.priority or None
    fields["user"] = call.user
    return fields


# --------------------------------------------------------------------------- strict JSON


def decode_request(
    body: bytes,
    decoder: msgspec.json.Decoder[R],
    known: frozenset[str],
    allowed: Mapping[str, str] | None = None,
) -> tuple[R, dict[str, Any]]:
    """(request, unknown fields). Raises InvalidRequest naming the field, the value and the limit.

    `allowed`: the choices of fields that have some, by name, as an error shows them; None: OpenAI's.
    """
    try:
        request = decoder.decode(body)
        fields = _fields_decoder.decode(body)
        extra = {name: msgspec.json.decode(raw) for name, raw in fields.items() if name not in known}
    except msgspec.ValidationError as error:
        raise _explain(str(error), body, _ALLOWED if allowed is None else allowed) from None
    except (msgspec.DecodeError, UnicodeDecodeError, RecursionError) as error:
        raise _malformed(error, body) from None
    return request, extra


_fields_decoder = msgspec.json.Decoder(dict[str, Raw])
_AT = re.compile(r"(?P<what>.*?)(?: - at (?:`key` in )?`(?P<path>\$[^`]*)`)?", re.DOTALL)
_STEP = re.compile(r"\.(?P<name>[^.\[]+)|\[(?P<index>\d+|\.\.\.)\]")
_MISSING = re.compile(r"Object missing required field `(?P<name>[^`]+)`")
_SHOWN_CHARS = 60
_ALLOWED = {  # what msgspec's "Invalid value" leaves out, by the last name of the path
    "role": "system, developer, user, assistant, tool",
    "type": "text, image_url, refusal in content (audio and files can't be read); function in tools; "
    "enabled, adaptive, disabled in thinking; text, json_object, json_schema in response_format",
    "tool_choice": "none, auto, required or a function",
}


def _malformed(error: Exception, body: bytes) -> InvalidRequest:
    if isinstance(error, RecursionError):
        return InvalidRequest("body: JSON nested too deeply; flatten it")
    try:
        body.decode()
    except UnicodeDecodeError as broken:
        return InvalidRequest(f"body: not UTF-8: byte 0x{body[broken.start]:02x} at position {broken.start}")
    return InvalidRequest(f"body: not valid JSON: {error}")


def _explain(text: str, body: bytes, choices: Mapping[str, str]) -> InvalidRequest:
    """msgspec's "Expected X - at `$.path`" as a message with the value that was given."""
    match = _AT.fullmatch(text)
    assert match is not None  # the pattern's parts are all optional
    what = match["what"].replace("`", "").replace("Expected", "expected", 1).replace(" | null", " or null")
    path = (match["path"] or "$")[1:].removeprefix(".")
    missing = _MISSING.match(match["what"])
    if missing:
        name = f"{path}.{missing['name']}" if path else missing["name"]
        return InvalidRequest(f"{name}: this field is required", param=name)
    if not path:
        return InvalidRequest(f"body: {what}")
    if what.startswith("Invalid"):
        allowed = choices.get(path.rpartition(".")[2])
        what = f"expected one of {allowed}" if allowed else "no such choice"
    given = _value_at(body, match["path"])
    shown = f"got {given}; " if given else ""
    return InvalidRequest(f"{path}: {shown}{what}", param=path)


def _value_at(body: bytes, path: str) -> str | None:
    """The JSON text of the value at msgspec's `path`, shortened; None where the path has a wildcard."""
    try:
        value: Any = msgspec.json.decode(body)
    except (msgspec.DecodeError, UnicodeDecodeError, RecursionError):
        return None
    for step in _STEP.finditer(path):
        if step["index"] == "...":
            return None
        value = value[step["name"]] if step["name"] is not None else value[int(step["index"])]
    if isinstance(value, list):
        return f"{len(value)} entries"
    shown = msgspec.json.encode(value).decode()
    return shown if len(shown) <= _SHOWN_CHARS else f"{shown[:_SHOWN_CHARS]}… ({len(shown)} characters)"


def refuse(
    extra: dict[str, Any], reasons: dict[str, str], harmless: dict[str, tuple[Any, ...]] | None = None
) -> None:
    """400 for the first unknown field that asks for what can't be done, unless its value asks for nothing."""
    for name in sorted(extra.keys() & reasons.keys()):
        value = extra[name]
        if value is None or (harmless and value in harmless.get(name, ())):
            continue
        raise InvalidRequest(f"{name}: {reasons[name]}", param=name, code="unsupported_parameter")


# --------------------------------------------------------------------------- answers


class PromptDetails(Struct):
    cached_tokens: int = 0


class CompletionDetails(Struct):
    """`accepted_prediction_tokens`, `rejected_prediction_tokens`: drafts that were right, and wrong."""

    reasoning_tokens: int = 0
    accepted_prediction_tokens: int = 0
    rejected_prediction_tokens: int = 0


class SpeculationBody(Struct):
    """A field of ours. `num_steps`: steps that verified drafts. `synthetic`: drafts counted by chance, the
    answer is not the model's."""

    num_steps: int
    num_draft_tokens: int
    num_accepted_tokens: int
    mean_acceptance_length: float
    draft_acceptance_rate: float
    synthetic: bool


class UsageBody(Struct):
    """Counts of tokens, as in `usage` of every OpenAI body."""

    prompt_tokens: int = 0
    completion_tokens: int = 0
    total_tokens: int = 0
    prompt_tokens_details: PromptDetails | None = None
    completion_tokens_details: CompletionDetails | None = None
    speculation: SpeculationBody | UnsetType = UNSET


def usage_body(usage: Usage) -> UsageBody:
    found = usage.speculation
    accepted, drafted = (found.accepted_tokens, found.drafted_tokens) if found else (0, 0)
    return UsageBody(
        usage.prompt_tokens,
        usage.completion_tokens,
        usage.total_tokens,
        PromptDetails(usage.cached_tokens),
        CompletionDetails(usage.reasoning_tokens, accepted, drafted - accepted),
        SpeculationBody(
            found.steps,
            drafted,
            accepted,
            found.mean_acceptance_length,
            accepted / drafted if drafted else 0.0,
            found.synthetic,
        )
        if found
        else UNSET,
    )


def usage_event(body: UsageBody) -> Usage:
    return Usage(
        body.prompt_tokens,
        body.completion_tokens,
        body.prompt_tokens_details.cached_tokens if body.prompt_tokens_details else 0,
        body.completion_tokens_details.reasoning_tokens if body.completion_tokens_details else 0,
    )


class ErrorDetail(Struct):
    """`type` and `code` are stable strings; `param` is the path of the field at fault."""

    message: str
    type: str = "internal_error"
    param: str | None = None
    code: str | int | None = None


class ErrorBody(Struct):
    error: ErrorDetail


def error_bytes(message: str, kind: str, param: str | None = None, code: str | int | None = None) -> bytes:
    return encode(ErrorBody(ErrorDetail(message, kind, param, code)))


def failure_bytes(failure: Failure) -> bytes:
    return error_bytes(failure.message, failure.kind, failure.param, failure.code)


def failure_event(detail: ErrorDetail) -> Failure:
    """An error that an upstream sent inside its stream. The stream has no status: 502 would be ours."""
    code = None if detail.code is None else str(detail.code)
    return Failure(detail.type, detail.message, 503, detail.param, code)


class PromptTokenLogprob(Struct):
    """One alternative of one prompt position, keyed by token id (vLLM's shape).

    `rank` is 1 for the likeliest token and null where the token is below the alternatives asked for.
    """

    logprob: float
    rank: int | None
    decoded_token: str


PromptLogprobs = list[dict[str, PromptTokenLogprob] | None]


def prompt_logprobs_body(logprobs: tuple[TokenLogprob, ...]) -> PromptLogprobs:
    rows: PromptLogprobs = []
    for item in logprobs:
        if item.logprob is None:
            rows.append(None)
            continue
        row: dict[str, PromptTokenLogprob] = {}
        ranked = {top.token_id: rank for rank, top in enumerate(item.top, 1)}
        row[str(item.token_id)] = PromptTokenLogprob(
            finite(item.logprob), ranked.get(item.token_id), item.token
        )
        for rank, top in enumerate(item.top, 1):
            row.setdefault(str(top.token_id), PromptTokenLogprob(finite(top.logprob), rank, top.token))
        rows.append(row)
    return rows


def finite(logprob: float) -> float:
    return logprob if logprob > LOWEST_LOGPROB else LOWEST_LOGPROB


encode = msgspec.json.Encoder().encode
