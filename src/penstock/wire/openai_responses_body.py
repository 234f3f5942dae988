"""The response object, its output items and its usage: what a non-streaming answer, the last event of a
stream and a stored response all show.
"""

from __future__ import annotations

from typing import Any, Literal

import msgspec
from msgspec import UNSET, Struct, UnsetType

from penstock.call import Call, Failure, PrefixMiss, TokenLogprob, Usage
from penstock.wire.openai_common import finite
from penstock.wire.openai_responses_tools import write_choice, write_tools

Json = dict[str, Any]
Status = Literal["in_progress", "completed", "incomplete", "failed", "cancelled"]


class TopLogprob(Struct):
    token: str
    logprob: float
    bytes: list[int]


class Logprob(Struct):
    token: str
    logprob: float
    bytes: list[int]
    top_logprobs: list[TopLogprob]


class OutputText(Struct, tag_field="type", tag="output_text"):
    text: str
    annotations: list[Json] = []
    logprobs: list[Logprob] = []


class OutputMessage(Struct, tag_field="type", tag="message"):
    id: str
    status: Status
    content: list[OutputText]
    role: Literal["assistant"] = "assistant"


class SummaryText(Struct, tag_field="type", tag="summary_text"):
    text: str


class ReasoningText(Struct, tag_field="type", tag="reasoning_text"):
    text: str


class ReasoningOutput(Struct, tag_field="type", tag="reasoning"):
    id: str
    status: Status
    summary: list[SummaryText] = []
    content: list[ReasoningText] = []
    encrypted_content: str | UnsetType = UNSET


class FunctionCall(Struct, tag_field="type", tag="function_call"):
    id: str
    status: Status
    call_id: str
    name: str
    arguments: str
    namespace: str | UnsetType = UNSET


class CustomToolCall(Struct, tag_field="type", tag="custom_tool_call"):
    id: str
    status: Status
    call_id: str
    name: str
    input: str
    namespace: str | UnsetType = UNSET


OutputItem = OutputMessage | ReasoningOutput | FunctionCall | CustomToolCall


class InputDetails(Struct):
    cached_tokens: int = 0
    cache_write_tokens: int = 0  # nobody is charged for those here
    evicted_tokens: int | UnsetType = UNSET  # that the turn before had left in the cache
    prefix_miss: PrefixMiss | UnsetType = UNSET


class OutputDetails(Struct):
    reasoning_tokens: int = 0


class ResponseUsage(Struct):
    input_tokens: int = 0
    output_tokens: int = 0
    total_tokens: int = 0
    input_tokens_details: InputDetails | None = None
    output_tokens_details: OutputDetails | None = None


class ResponseError(Struct):
    code: str
    message: str


class IncompleteDetails(Struct):
    reason: str


class ResponseBody(Struct, kw_only=True):
    """`output_text` is made by clients. `tools` are those that the model was offered."""

    id: str
    created_at: int
    status: Status
    model: str
    output: list[OutputItem]
    completed_at: int | None = None
    error: ResponseError | None = None
    incomplete_details: IncompleteDetails | None = None
    instructions: str | None = None
    max_output_tokens: int | None = None
    max_tool_calls: int | None = None
    parallel_tool_calls: bool = True
    previous_response_id: str | None = None
    conversation: Json | None = None
    reasoning: Json
    temperature: float = 1.0
    top_p: float = 1.0
    presence_penalty: float = 0.0
    frequency_penalty: float = 0.0
    top_logprobs: int = 0
    text: Json
    tool_choice: Any = "auto"
    tools: list[Json]
    truncation: str = "disabled"
    usage: ResponseUsage | None = None
    metadata: dict[str, str]
    store: bool = True
    background: bool = False
    service_tier: str = "default"
    prompt_cache_key: str | None = None
    safety_identifier: str | None = None
    user: str | None = None
    object: Literal["response"] = "response"


def response_body(call: Call, response_id: str, created: int, model: str) -> ResponseBody:
    """The object as it is before anything was generated."""
    sampling, extra, session = call.sampling, call.extra, call.session
    conversation = session.conversation if session else None
    effort = call.template_args.get("reasoning_effort")
    return ResponseBody(
        id=response_id,
        created_at=created,
        status="in_progress",
        model=model,
        output=[],
        instructions=extra.get("instructions"),
        max_output_tokens=sampling.max_tokens,
        max_tool_calls=extra.get("max_tool_calls"),
        parallel_tool_calls=call.parallel_tool_calls is not False,
        previous_response_id=session.previous_response_id if session else None,
        conversation=None if conversation is None else {"id": conversation},
        reasoning={"effort": effort, "summary": extra.get("reasoning", {}).get("summary")},
        temperature=sampling.temperature,
        top_p=sampling.top_p,
        presence_penalty=sampling.presence_penalty,
        frequency_penalty=sampling.frequency_penalty,
        top_logprobs=sampling.logprobs or 0,
        text={"format": _format(call)} | extra.get("text", {}),
        tool_choice=extra.get("tool_choice") or write_choice(call.tool_choice, call.tools) or "auto",
        tools=[_shown(tool) for tool in write_tools(call.tools)],
        truncation=extra.get("truncation", "disabled"),
        metadata=call.metadata,
        store=session is not None and session.store,
        prompt_cache_key=call.cache.key,
        safety_identifier=extra.get("safety_identifier"),
        user=call.user,
    )


def _format(call: Call) -> Json:
    form = call.response_format
    if form is None or form.kind != "json_schema":
        return {"type": form.kind if form else "text"}
    shown = {"type": "json_schema", "name": form.name or "answer", "schema": form.schema or {}}
    return shown | {"strict": form.strict, "description": None}


def _shown(tool: Json) -> Json:
    """A function tool with all the fields that clients' types want."""
    if tool["type"] != "function":
        return tool
    return {"description": None, "parameters": None, "strict": False} | tool


def usage_body(usage: Usage) -> ResponseUsage:
    return ResponseUsage(
        usage.prompt_tokens,
        usage.completion_tokens,
        usage.total_tokens,
        InputDetails(
            usage.cached_tokens,
            evicted_tokens=usage.evicted_tokens or UNSET,
            prefix_miss=usage.prefix_miss or UNSET,
        ),
        OutputDetails(usage.reasoning_tokens),
    )


def usage_event(body: ResponseUsage | None) -> Usage:
    if body is None:
        return Usage()
    cached = body.input_tokens_details.cached_tokens if body.input_tokens_details else 0
    reasoning = body.output_tokens_details.reasoning_tokens if body.output_tokens_details else 0
    return Usage(body.input_tokens, body.output_tokens, cached, reasoning)


def logprobs_body(items: tuple[TokenLogprob, ...] | list[TokenLogprob] | None) -> list[Logprob]:
    return [
        Logprob(
            item.token,
            finite(item.logprob or 0.0),
            list(item.bytes),
            [TopLogprob(top.token, finite(top.logprob), list(top.bytes)) for top in item.top],
        )
        for item in items or ()
    ]


# What Codex and the SDKs look for in `error.code`; everything else is the server's fault to them.
_CODES = {
    "rate_limit_error": "rate_limit_exceeded",
    "invalid_request_error": "invalid_prompt",
    "timeout_error": "server_error",
}


def error_body(failure: Failure) -> ResponseError:
    code = failure.code or _CODES.get(failure.kind, "server_error")
    message = failure.message
    if failure.kind == "rate_limit_error" and failure.retry_after_s is not None:
        message = f"{message}; try again in {failure.retry_after_s:g}s"  # Codex reads the seconds here
    return ResponseError(code, message)


encode_body = msgspec.json.Encoder().encode
