"""Codec of OpenAI responses: `POST /v1/responses` (also Open Responses, and what Codex sends).

Serving side: `read_request`, `Encoder` (`openai_responses_stream`). Upstream side: `write_request`,
`Decoder` (`openai_responses_decoder`). Items are in `openai_responses_items`, tools in
`openai_responses_tools`.

`instructions` are the first message, and stay in `Call.extra` for the answer that repeats them. Turns that
the server keeps are named by `Call.session`; a request that is written for an upstream holds all turns and
asks it to store nothing.

Hints that may be ignored and are kept in `Call.extra`: service_tier, safety_identifier, client_metadata,
max_tool_calls (of built-in tools), text.verbosity, prompt_cache_options, prompt_cache_retention,
context_management, tools that this server would have to run (see `openai_responses_tools`).
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Annotated, Any, Literal

import msgspec
from msgspec import Meta, Struct

from penstock.call import Call, Message, ResponseFormat, Session, TextPart, ToolSpec
from penstock.errors import InvalidRequest
from penstock.wire import openai_messages as om
from penstock.wire.openai_common import (
    CommonFields,
    MaxTokens,
    TopLogprobs,
    decode_request,
    encode,
    read_common,
    read_sampling,
    refuse,
    write_common,
)
from penstock.wire.openai_responses_decoder import Decoder
from penstock.wire.openai_responses_items import item_type, read_items, write_items
from penstock.wire.openai_responses_stream import LOGPROBS, Encoder
from penstock.wire.openai_responses_tools import read_choice, read_tools, write_choice, write_tools
from penstock.wire.openai_thinking import ThinkingField, read_budget, read_thinking

__all__ = ["PATH", "Decoder", "Encoder", "ResponsesRequest", "read_request", "with_messages", "write_request"]

PATH = "/v1/responses"
Json = dict[str, Any]


class Reasoning(Struct, omit_defaults=True):
    effort: str | None = None
    summary: str | None = None
    generate_summary: str | None = None  # the older name


class JsonSchemaFormat(Struct, tag_field="type", tag="json_schema", omit_defaults=True):
    name: om.Name
    schema: Json | None = None
    strict: bool | None = None
    description: str | None = None


class TextOptions(Struct, omit_defaults=True):
    format: om.TextFormat | om.JsonObjectFormat | JsonSchemaFormat | None = None
    verbosity: str | None = None


class ConversationRef(Struct):
    id: str


class ResponsesRequest(CommonFields, kw_only=True, omit_defaults=True):
    """Body of a request. `stream_options` may hold `include_obfuscation`: frames are never padded."""

    input: str | list[Json] | None = None
    instructions: str | None = None
    max_output_tokens: MaxTokens | None = None
    top_logprobs: TopLogprobs | None = None
    tools: list[Json] | None = None
    tool_choice: str | Json | None = None
    parallel_tool_calls: bool | None = None
    text: TextOptions | None = None
    reasoning: Reasoning | None = None
    include: list[str] | None = None
    previous_response_id: str | None = None
    conversation: str | ConversationRef | None = None
    store: bool | None = None
    truncation: Literal["auto", "disabled"] | None = None
    thinking: ThinkingField | None = None
    chat_template_kwargs: Json | None = None
    n: Annotated[int, Meta(ge=1, le=1)] | None = None


_decoder = msgspec.json.Decoder(ResponsesRequest)
_KNOWN = frozenset(ResponsesRequest.__struct_fields__)
_REFUSED = {
    "background": "answers are not made in the background; leave it out and stream",
    "prompt": "there are no stored prompt templates; send `instructions` and `input`",
    "moderation": "there is no moderation model here; leave it out",
    "max_tokens": "this API calls it `max_output_tokens`",
    "max_completion_tokens": "this API calls it `max_output_tokens`",
    "messages": "this API calls it `input`",
    "response_format": "this API calls it `text.format`",
    "reasoning_effort": "this API calls it `reasoning.effort`",
}
_HARMLESS: dict[str, tuple[Any, ...]] = {"background": (False,)}


def read_request(body: bytes, *, store: bool = True, more: Sequence[Json] = ()) -> Call:
    """The Call in a request body. Raises InvalidRequest naming the field, the value and the limit.

    store: whether the answer may be stored; more: items that are put behind those of the request.
    """
    request, extra = decode_request(body, _decoder, _KNOWN)
    refuse(extra, _REFUSED, _HARMLESS)
    extra.pop("background", None)
    items = [*_input_items(request), *more]
    tools, choice = _tools(request, items, extra)
    reasoning = request.reasoning or Reasoning()
    budget, template_args = read_thinking(
        read_budget(request.thinking_budget, request.thinking_token_budget),
        request.thinking,
        reasoning.effort,
        request.chat_template_kwargs,
    )
    wants_logprobs = request.top_logprobs is not None or LOGPROBS in (request.include or ())
    sampling = read_sampling(
        request,
        max_tokens=request.max_output_tokens,
        logprobs=(request.top_logprobs or 0) if wants_logprobs else None,
        thinking_budget=budget,
    )
    _keep(request, extra)
    session = _session(request, items, store and request.store is not False)
    call = Call(
        kind="chat",
        sampling=sampling,
        tools=tools,
        tool_choice=choice,
        parallel_tool_calls=request.parallel_tool_calls,
        response_format=_read_format(request.text),
        template_args=template_args,
        session=session,
        extra=extra,
        **read_common(request),
    )
    if session is not None and _needs_turns(session):
        return call  # its messages are known when the stored ones are
    return with_messages(call, read_items(items))


def with_messages(call: Call, messages: tuple[Message, ...]) -> Call:
    """The call with the messages of all its turns, oldest first, behind its instructions. Raises
    InvalidRequest if there are none."""
    instructions = call.extra.get("instructions")
    head = () if instructions is None else (Message("system", (TextPart(instructions),)),)
    messages = head + messages
    if not messages:
        raise InvalidRequest("input: nothing to answer; send a string or items", param="input")
    return msgspec.structs.replace(call, messages=messages)


def _input_items(request: ResponsesRequest) -> list[Json]:
    if request.input is None:
        return []
    if isinstance(request.input, str):
        return [{"type": "message", "role": "user", "content": request.input}]
    return request.input


def _tools(
    request: ResponsesRequest, items: list[Json], extra: Json
) -> tuple[tuple[ToolSpec, ...], str | None]:
    """(tools, choice). Tools that are left out, and a choice among allowed ones, go to `extra`."""
    specs, left_out = read_tools(request.tools or ())
    for i, item in enumerate(items):
        if item_type(item) == "additional_tools":
            given = item.get("tools")
            more, more_left_out = read_tools(given if isinstance(given, list) else (), f"input[{i}].tools")
            specs += [spec for spec in more if spec.name not in {known.name for known in specs}]
            left_out += more_left_out
    choice, remaining = read_choice(request.tool_choice, specs)
    if left_out:
        extra["tools"] = left_out
    if len(remaining) < len(specs):
        extra["tool_choice"] = request.tool_choice
    return tuple(remaining), choice


def _keep(request: ResponsesRequest, extra: Json) -> None:
    """What a Call has no field for, and an answer or an upstream needs."""
    if request.instructions is not None:
        extra["instructions"] = request.instructions
    if request.include:
        extra["include"] = request.include
    if request.truncation == "auto":
        extra["truncation"] = "auto"
    if request.text is not None and request.text.verbosity is not None:
        extra["text"] = {"verbosity": request.text.verbosity}
    if request.reasoning is not None:
        summary = request.reasoning.summary or request.reasoning.generate_summary
        if summary is not None:
            extra["reasoning"] = {"summary": summary}


def _session(request: ResponsesRequest, items: list[Json], store: bool) -> Session | None:
    conversation = request.conversation
    if isinstance(conversation, ConversationRef):
        conversation = conversation.id
    if conversation is not None and request.previous_response_id is not None:
        raise InvalidRequest(
            "conversation: it says what came before, as previous_response_id does; send one of them",
            param="conversation",
        )
    session = Session(
        items=tuple(items),
        previous_response_id=request.previous_response_id,
        conversation=conversation,
        store=store,
    )
    return session if session.store or _needs_turns(session) else None


def _needs_turns(session: Session) -> bool:
    """Whether stored items have to be read before the messages are known."""
    if session.previous_response_id is not None or session.conversation is not None:
        return True
    return any(item_type(item) == "item_reference" for item in session.items)


def _read_format(text: TextOptions | None) -> ResponseFormat | None:
    form = text.format if text else None
    if form is None:
        return None
    if isinstance(form, JsonSchemaFormat):
        return ResponseFormat("json_schema", form.schema, form.name, bool(form.strict))
    return ResponseFormat("json_object" if isinstance(form, om.JsonObjectFormat) else "text")


# --------------------------------------------------------------------------- towards an upstream


def write_request(call: Call) -> bytes:
    """The request body for an upstream of this format. Tenant, deadline, session and read/store policy stay
    here. Raises InvalidRequest for several choices, which the format can't say."""
    if call.sampling.n > 1:
        raise InvalidRequest(f"n: {call.sampling.n}; the Responses format has one answer", param="n")
    extra = dict(call.extra)
    messages = call.messages[1:] if "instructions" in extra else call.messages
    text = _write_text(call.response_format, extra.pop("text", None))
    reasoning: Json = extra.pop("reasoning", {})
    template_args = dict(call.template_args)
    effort = template_args.pop("reasoning_effort", None)
    if effort is not None:
        reasoning = reasoning | {"effort": effort}
    request = ResponsesRequest(
        input=write_items(messages, call.tools),
        max_output_tokens=call.sampling.max_tokens,
        top_logprobs=call.sampling.logprobs,
        tools=[*write_tools(call.tools), *extra.pop("tools", ())] or None,
        tool_choice=extra.pop("tool_choice", None) or write_choice(call.tool_choice, call.tools),
        parallel_tool_calls=call.parallel_tool_calls,
        text=text,
        reasoning=msgspec.convert(reasoning, Reasoning) if reasoning else None,
        store=False,
        chat_template_kwargs=template_args or None,
        **write_common(call),
    )
    return encode(msgspec.to_builtins(request, str_keys=True) | extra)


def _write_text(form: ResponseFormat | None, rest: Json | None) -> TextOptions | None:
    if form is None and rest is None:
        return None
    verbosity = (rest or {}).get("verbosity")
    if form is None:
        return TextOptions(verbosity=verbosity)
    if form.kind == "json_schema":
        schema = JsonSchemaFormat(form.name or "answer", form.schema, form.strict or None)
        return TextOptions(schema, verbosity)
    return TextOptions(om.JsonObjectFormat() if form.kind == "json_object" else om.TextFormat(), verbosity)
