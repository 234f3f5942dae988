"""Codec of the Anthropic Messages API: `POST /v1/messages`.

Serving side: `read_request`, `Encoder`. Upstream side: `write_request`, `Decoder`.
`claude-penstock/MODEL` names MODEL: clients that list models keep those names only that begin with "claude".

Hints that may be ignored and are kept in `Call.extra`: context_management, container, service_tier, speed,
diagnostics, inference_geo, betas of any name, and how thinking is shown.
"""

from __future__ import annotations

from typing import Annotated, Any, Literal

import msgspec
from msgspec import Meta, Struct

from penstock.call import CachePolicy, Call, ResponseFormat, SamplingParams
from penstock.errors import InvalidRequest
from penstock.sampling_params import MAX_STOP_STRINGS
from penstock.wire import anthropic_content as ac
from penstock.wire.anthropic_signature import SIGNER
from penstock.wire.anthropic_stream import Decoder, Encoder
from penstock.wire.anthropic_thinking import AnyThinking, Effort, read_thinking, write_thinking
from penstock.wire.openai_common import MAX_INT, StopString, decode_request, encode, refuse

__all__ = ["Decoder", "Encoder", "PATH", "MessagesRequest", "read_count", "read_request", "write_request"]

PATH = "/v1/messages"
COUNT_PATH = "/v1/messages/count_tokens"
ALIAS = "claude-penstock/"
# The format wants a number where others may leave it out; each Claude model since 3.5 can write as much.
MAX_TOKENS_UPSTREAM = 8192


class AutoChoice(Struct, tag_field="type", tag="auto", omit_defaults=True):
    disable_parallel_tool_use: bool | None = None


class AnyChoice(Struct, tag_field="type", tag="any", omit_defaults=True):
    disable_parallel_tool_use: bool | None = None


class NoChoice(Struct, tag_field="type", tag="none"):
    pass


class ToolChoice(Struct, tag_field="type", tag="tool", omit_defaults=True):
    name: ac.Name
    disable_parallel_tool_use: bool | None = None


class JsonSchemaFormat(Struct):
    type: Literal["json_schema"]
    schema: dict[str, Any]


class OutputConfig(Struct, omit_defaults=True):
    effort: Effort | None = None
    format: JsonSchemaFormat | None = None


class Metadata(Struct, omit_defaults=True):
    user_id: str | None = None


class CountRequest(Struct, kw_only=True, omit_defaults=True):
    """Body of a count of tokens: what of a request stands in its prompt."""

    model: str
    messages: Annotated[list[ac.InputMessage], Meta(min_length=1)]
    system: str | list[ac.TextOnly] | None = None
    tools: list[ac.Tool] | None = None
    tool_choice: AutoChoice | AnyChoice | NoChoice | ToolChoice | None = None
    thinking: AnyThinking | None = None
    output_config: OutputConfig | None = None
    output_format: JsonSchemaFormat | None = None  # the beta's name for output_config.format
    cache_control: ac.CacheControl | None = None


class MessagesRequest(CountRequest, kw_only=True, omit_defaults=True):
    """Body of a message request."""

    max_tokens: Annotated[int, Meta(ge=1, le=MAX_INT)]
    stop_sequences: Annotated[list[StopString], Meta(max_length=MAX_STOP_STRINGS)] | None = None
    temperature: Annotated[float, Meta(ge=0, le=1)] | None = None
    top_p: Annotated[float, Meta(gt=0, le=1)] | None = None
    top_k: Annotated[int, Meta(ge=0, le=MAX_INT)] | None = None
    stream: bool | None = None
    metadata: Metadata | None = None


_decoder = msgspec.json.Decoder(MessagesRequest)
_count_decoder = msgspec.json.Decoder(CountRequest)
_KNOWN = frozenset(MessagesRequest.__struct_fields__)
_REFUSED = {"mcp_servers": "this server calls no MCP servers; offer their tools in `tools`"}
_HARMLESS: dict[str, tuple[Any, ...]] = {"mcp_servers": ([],)}
_ALLOWED = {
    "role": "user, assistant, system",
    "type": f"{ac.BLOCK_TYPES}; auto, any, tool, none in tool_choice; enabled, disabled, adaptive, "
    "between_tools in thinking; json_schema in output_config.format; ephemeral in cache_control",
    "effort": "low, medium, high, xhigh, max",
    "ttl": "5m, 1h",
    "media_type": "text/plain in a source of type text",
}


def read_request(body: bytes) -> Call:
    """The Call in a request body. Raises InvalidRequest naming the field, the value and the limit."""
    request, extra = decode_request(body, _decoder, _KNOWN, _ALLOWED)
    refuse(extra, _REFUSED, _HARMLESS)
    fields = _read_prompt(request, extra)
    sampling = SamplingParams(
        max_tokens=request.max_tokens,
        stop=tuple(request.stop_sequences or ()),
        temperature=1.0 if request.temperature is None else request.temperature,
        top_p=1.0 if request.top_p is None else request.top_p,
        top_k=request.top_k or 0,
        thinking_budget=fields.pop("thinking_budget"),
    )
    return Call(
        sampling=sampling.validate(),
        stream=bool(request.stream),
        user=request.metadata.user_id if request.metadata else None,
        fit_context=True,
        extra=extra,
        **fields,
    )


def read_count(body: bytes) -> Call:
    """The Call whose prompt is to be counted; fields of a message request beyond it are left aside."""
    request, extra = decode_request(body, _count_decoder, _KNOWN, _ALLOWED)
    fields = _read_prompt(request, extra)
    return Call(sampling=SamplingParams(thinking_budget=fields.pop("thinking_budget")), **fields)


def _read_prompt(request: CountRequest, extra: dict[str, Any]) -> dict[str, Any]:
    model = request.model.removeprefix(ALIAS)
    reader = ac.Reader(SIGNER, model)
    reader.mark(request.cache_control)
    messages = reader.messages(request.system, request.messages)
    tools = reader.tools(request.tools)
    choice, parallel = _read_choice(request.tool_choice, tools)
    config = request.output_config or OutputConfig()
    thinking = read_thinking(request.thinking, config.effort, messages[-1].role == "tool")
    if thinking.shown is not None:
        extra["thinking"] = thinking.shown
    form = config.format or request.output_format
    return {
        "kind": "chat",
        "model": model,
        "messages": messages,
        "tools": tools,
        "tool_choice": choice,
        "parallel_tool_calls": parallel,
        "continue_final": messages[-1].role == "assistant",
        "response_format": ResponseFormat("json_schema", form.schema, None, True) if form else None,
        "template_args": thinking.template_args,
        "thinking_budget": thinking.budget,
        "cache": CachePolicy(ttl_s=reader.ttl_s),
    }


def _read_choice(choice: Any, tools: tuple[Any, ...]) -> tuple[str | None, bool | None]:
    if choice is None:
        return None, None
    if isinstance(choice, NoChoice):
        return "none", None
    disabled = choice.disable_parallel_tool_use
    parallel = None if disabled is None else not disabled
    if isinstance(choice, AutoChoice):
        return "auto", parallel
    if isinstance(choice, AnyChoice):
        if not tools:
            raise InvalidRequest(
                "tool_choice: 'any' needs at least one entry in `tools`", param="tool_choice"
            )
        return "required", parallel
    if choice.name not in {tool.name for tool in tools}:
        raise InvalidRequest(
            f"tool_choice.name: {choice.name!r} is not among the tools", param="tool_choice.name"
        )
    return f"tool:{choice.name}", parallel


# --------------------------------------------------------------------------- upstream side

# What the format has a field for. All else of SamplingParams has to be as if it had not been asked for.
_SAID = {"max_tokens", "stop", "temperature", "top_p", "top_k", "thinking_budget"}
_DEFAULTS = SamplingParams()


def write_request(call: Call) -> bytes:
    """The request body for an upstream of this format. Tenant, deadline, priority and read/store policy stay
    here. Raises InvalidRequest naming what the format can't say."""
    _check_sayable(call)
    sampling = call.sampling
    extra = dict(call.extra)
    thinking, effort = write_thinking(sampling.thinking_budget, call.template_args)
    form = call.response_format
    system, messages = ac.write_messages(call.messages)
    config = OutputConfig(
        effort,
        JsonSchemaFormat("json_schema", form.schema or {}) if form and form.kind == "json_schema" else None,
    )
    ttl = call.cache.ttl_s
    request = MessagesRequest(
        model=call.model,
        max_tokens=sampling.max_tokens or MAX_TOKENS_UPSTREAM,
        messages=messages,
        system=system,
        tools=ac.write_tools(call.tools),
        tool_choice=_write_choice(call),
        thinking=None if "thinking" in extra else thinking,
        output_config=None if config == OutputConfig() else config,
        cache_control=None if ttl is None else ac.CacheControl("ephemeral", "1h" if ttl > 300 else None),
        stop_sequences=list(sampling.stop) or None,
        temperature=None if sampling.temperature == 1 else sampling.temperature,
        top_p=None if sampling.top_p == 1 else sampling.top_p,
        top_k=max(sampling.top_k, 0) or None,
        stream=call.stream or None,
        metadata=None if call.user is None else Metadata(call.user),
    )
    return encode(msgspec.to_builtins(request) | extra) if extra else encode(request)


def _check_sayable(call: Call) -> None:
    if call.kind != "chat":
        raise _unsayable("prompt", "there are only conversations")
    for name in SamplingParams.__struct_fields__:
        value = getattr(call.sampling, name)
        if name not in _SAID and value != getattr(_DEFAULTS, name):
            raise _unsayable(name, f"no field says {value!r}")
    if call.sampling.temperature > 1:
        raise _unsayable("temperature", f"{call.sampling.temperature} is above 1")
    form = call.response_format
    if form is not None and form.kind == "json_object":
        raise _unsayable("response_format", "JSON needs a schema there; use json_schema")


def _unsayable(name: str, reason: str) -> InvalidRequest:
    return InvalidRequest(
        f"{name}: not in the Anthropic format: {reason}", param=name, code="unsupported_parameter"
    )


def _write_choice(call: Call) -> Any:
    parallel, choice = call.parallel_tool_calls, call.tool_choice
    disabled = None if parallel is None else not parallel
    if choice == "none":
        return NoChoice()
    if choice == "required":
        return AnyChoice(disabled)
    if choice is not None and choice.startswith("tool:"):
        return ToolChoice(choice.removeprefix("tool:"), disabled)
    return None if choice is None and disabled is None else AutoChoice(disabled)
