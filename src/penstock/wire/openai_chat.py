"""Codec of OpenAI chat completions: `POST /v1/chat/completions`.

Serving side: `read_request`, `Encoder`. Upstream side: `write_request`, `Decoder`.
Invariants of a stream: one completion id and one creation time in all chunks; `role` in the first
chunk of each choice only; `finish_reason` in a delta of its own; the usage chunk has `choices: []`
and exists only if `stream_options.include_usage` asked for it; `data: [DONE]` is the last frame,
also after an error.

Hints that may be ignored and are kept in `Call.extra`: store, service_tier, safety_identifier,
verbosity, prediction, prompt_cache_retention.
"""

from __future__ import annotations

from typing import Annotated, Any, Literal

import msgspec
from msgspec import UNSET, Meta, Struct, UnsetType

from penstock.call import (
    Call,
    Done,
    Event,
    Finish,
    PromptEcho,
    ReasoningDelta,
    TextDelta,
    TokenLogprob,
    ToolCallDelta,
    TopLogprob,
)
from penstock.errors import InvalidRequest
from penstock.wire import openai_messages as om
from penstock.wire import sse
from penstock.wire.fold import ChoiceFold, Fold
from penstock.wire.openai_common import (
    CommonFields,
    ErrorDetail,
    MaxTokens,
    PromptLogprobs,
    TopLogprobs,
    UsageBody,
    decode_request,
    encode,
    failure_bytes,
    finite,
    prompt_logprobs_body,
    read_common,
    read_sampling,
    refuse,
    usage_body,
    write_common,
)
from penstock.wire.openai_stream import ChunkStream
from penstock.wire.openai_thinking import ThinkingField, read_budget, read_thinking

PATH = "/v1/chat/completions"
ID_PREFIX = "chatcmpl-"


# --------------------------------------------------------------------------- request


class ChatRequest(CommonFields, kw_only=True, omit_defaults=True):
    """Body of a chat completion request."""

    messages: Annotated[list[om.ChatMessage], Meta(min_length=1)]
    max_tokens: MaxTokens | None = None
    max_completion_tokens: MaxTokens | None = None
    logprobs: bool | None = None
    top_logprobs: TopLogprobs | None = None
    tools: list[om.Tool] | None = None
    tool_choice: Literal["none", "auto", "required"] | om.NamedToolChoice | None = None
    parallel_tool_calls: bool | None = None
    response_format: om.AnyFormat | None = None
    reasoning_effort: str | None = None
    thinking: ThinkingField | None = None
    chat_template_kwargs: dict[str, Any] | None = None


_decoder = msgspec.json.Decoder(ChatRequest)
_KNOWN = frozenset(ChatRequest.__struct_fields__)
_REFUSED = {
    "functions": "replaced by `tools`; send the functions there",
    "function_call": "replaced by `tool_choice`; send it there",
    "modalities": 'text is the only output; leave it out or send ["text"]',
    "audio": "text is the only output; leave it out",
    "web_search_options": "there is no built-in web search; offer one in `tools`",
    "echo": "only /v1/completions can repeat the prompt",
    "best_of": "chat completions return all n answers; use `n`",
}
_HARMLESS: dict[str, tuple[Any, ...]] = {
    "functions": ([],),
    "function_call": ("none",),
    "modalities": (["text"],),
    "echo": (False,),
    "best_of": (1,),
}


def read_request(body: bytes) -> Call:
    """The Call in a request body. Raises InvalidRequest naming the field, the value and the limit."""
    request, extra = decode_request(body, _decoder, _KNOWN)
    refuse(extra, _REFUSED, _HARMLESS)
    if request.top_logprobs and not request.logprobs:
        raise InvalidRequest(
            f"top_logprobs: {request.top_logprobs} alternatives need `logprobs: true`", param="top_logprobs"
        )
    limit = request.max_completion_tokens
    budget, template_args = read_thinking(
        read_budget(request.thinking_budget, request.thinking_token_budget),
        request.thinking,
        request.reasoning_effort,
        request.chat_template_kwargs,
    )
    sampling = read_sampling(
        request,
        max_tokens=request.max_tokens if limit is None else limit,
        logprobs=(request.top_logprobs or 0) if request.logprobs else None,
        thinking_budget=budget,
    )
    tools = om.read_tools(request.tools)
    if request.return_token_ids:
        extra["return_token_ids"] = True
    return Call(
        kind="chat",
        messages=om.read_messages(request.messages),
        sampling=sampling,
        tools=tools,
        tool_choice=om.read_tool_choice(request.tool_choice, tools),
        parallel_tool_calls=request.parallel_tool_calls,
        response_format=om.read_format(request.response_format),
        template_args=template_args,
        extra=extra,
        **read_common(request),
    )


def write_request(call: Call) -> bytes:
    """The request body for an upstream of this format. Tenant, deadline and read/store policy stay here."""
    sampling = call.sampling
    request = ChatRequest(
        messages=om.write_messages(call.messages),
        max_completion_tokens=sampling.max_tokens,
        logprobs=None if sampling.logprobs is None else True,
        top_logprobs=sampling.logprobs or None,
        tools=om.write_tools(call.tools),
        tool_choice=om.write_tool_choice(call.tool_choice),
        parallel_tool_calls=call.parallel_tool_calls,
        response_format=om.write_format(call.response_format),
        chat_template_kwargs=call.template_args or None,
        **write_common(call),
    )
    if not call.extra:
        return encode(request)
    return encode(msgspec.to_builtins(request, str_keys=True) | call.extra)


# --------------------------------------------------------------------------- answers


class TopLogprobBody(Struct):
    token: str
    logprob: float
    bytes: list[int] | None = None


class TokenLogprobBody(Struct):
    token: str
    logprob: float
    bytes: list[int] | None
    top_logprobs: list[TopLogprobBody]


class LogprobsBody(Struct):
    content: list[TokenLogprobBody] | None
    refusal: list[TokenLogprobBody] | None = None


class FunctionDelta(Struct):
    name: str | UnsetType | None = UNSET
    arguments: str | UnsetType | None = UNSET


class ToolCallDeltaBody(Struct):
    index: int = 0
    id: str | UnsetType | None = UNSET
    type: Literal["function"] | UnsetType | None = UNSET
    function: FunctionDelta | UnsetType | None = UNSET


class DeltaBody(Struct):
    role: str | UnsetType | None = UNSET
    content: str | UnsetType | None = UNSET
    reasoning_content: str | UnsetType | None = UNSET
    reasoning: str | UnsetType | None = UNSET
    refusal: str | UnsetType | None = UNSET
    tool_calls: list[ToolCallDeltaBody] | UnsetType | None = UNSET


class ChunkChoice(Struct):
    index: int
    delta: DeltaBody
    logprobs: LogprobsBody | None = None
    finish_reason: str | None = None
    stop_reason: str | int | UnsetType | None = UNSET
    token_ids: list[int] | UnsetType | None = UNSET


class Chunk(Struct):
    """What is read of an upstream's `data:` frame. Written, it has a head too: see `Encoder`."""

    choices: list[ChunkChoice] = []
    usage: UsageBody | UnsetType | None = UNSET
    prompt_logprobs: PromptLogprobs | UnsetType | None = UNSET
    error: ErrorDetail | UnsetType | None = UNSET


class AnswerFunction(Struct):
    name: str
    arguments: str


class AnswerToolCall(Struct):
    id: str
    function: AnswerFunction
    type: Literal["function"] = "function"


class AnswerMessage(Struct):
    content: str | None
    role: Literal["assistant"] = "assistant"
    refusal: str | None = None
    reasoning_content: str | UnsetType = UNSET
    reasoning: str | UnsetType = UNSET
    tool_calls: list[AnswerToolCall] | UnsetType = UNSET


class AnswerChoice(Struct):
    index: int
    message: AnswerMessage
    finish_reason: Literal["stop", "length", "tool_calls", "content_filter"]
    logprobs: LogprobsBody | None = None
    stop_reason: str | int | UnsetType | None = UNSET
    token_ids: list[int] | UnsetType = UNSET


class ChatCompletion(Struct):
    """Body of a chat completion that was not streamed."""

    id: str
    created: int
    model: str
    choices: list[AnswerChoice]
    usage: UsageBody
    object: Literal["chat.completion"] = "chat.completion"
    prompt_logprobs: PromptLogprobs | UnsetType = UNSET


def _logprobs_body(items: tuple[TokenLogprob, ...] | list[TokenLogprob] | None) -> LogprobsBody | None:
    if items is None:
        return None
    return LogprobsBody(
        [
            TokenLogprobBody(
                item.token,
                finite(item.logprob or 0.0),
                list(item.bytes),
                [TopLogprobBody(top.token, finite(top.logprob), list(top.bytes)) for top in item.top],
            )
            for item in items
        ]
    )


def _logprobs_events(body: LogprobsBody | None) -> tuple[TokenLogprob, ...] | None:
    """token_id is -1: the format does not carry it."""
    if body is None or body.content is None:
        return None
    return tuple(
        TokenLogprob(
            item.token,
            item.logprob,
            _bytes(item.token, item.bytes),
            -1,
            tuple(
                TopLogprob(top.token, top.logprob, _bytes(top.token, top.bytes), -1)
                for top in item.top_logprobs
            ),
        )
        for item in body.content
    )


def _bytes(token: str, given: list[int] | None) -> bytes:
    return token.encode("utf-8", "replace") if given is None else bytes(given)


class Encoder:
    """Events of one answer → SSE bytes (`feed`, `close`) or the whole body (`body`).

    Made per request. `created` is Unix seconds; `model` is the name that the answer shows.
    """

    media_type = sse.MEDIA_TYPE
    keep_alive = sse.KEEP_ALIVE

    def __init__(self, call: Call, request_id: str, created: int, model: str) -> None:
        self.id = ID_PREFIX + request_id
        self._created = created
        self._model = model
        self._usage = call.stream_usage
        self._token_ids = call.extra.get("return_token_ids") is True
        self._prompt_logprobs = call.sampling.prompt_logprobs is not None
        self._echo: PromptEcho | None = None
        self._started: set[int] = set()
        head = {"id": self.id, "object": "chat.completion.chunk", "created": created, "model": model}
        self._head = b"data: " + encode(head)[:-1] + b',"choices":['
        self._tail = b',"usage":null}\n\n' if call.stream_usage else b"}\n\n"

    def feed(self, event: Event) -> bytes:
        """SSE frames of one event; b"" where there is nothing to say yet."""
        if isinstance(event, TextDelta):
            return self._text(event)
        if isinstance(event, Finish):
            return self._chunk(event.index, DeltaBody(), finish=event)
        if isinstance(event, ReasoningDelta):
            if not event.text and event.index in self._started and not self._wants_ids(event.token_ids):
                return b""
            delta = DeltaBody(reasoning_content=event.text, reasoning=event.text)
            return self._chunk(event.index, delta, token_ids=event.token_ids)
        if isinstance(event, ToolCallDelta):
            return self._chunk(event.index, DeltaBody(tool_calls=[_tool_delta(event)]))
        if isinstance(event, PromptEcho):
            self._echo = self._echo or event
            return b""
        if isinstance(event, Done):
            return (
                self._head + b'],"usage":' + encode(usage_body(event.usage)) + b"}\n\n"
                if self._usage
                else b""
            )
        return sse.data_frame(failure_bytes(event))

    def close(self) -> bytes:
        return sse.DONE

    def body(self, fold: Fold) -> bytes:
        """The non-streaming body. Each choice of `fold` must be finished."""
        choices = [self._answer_choice(choice) for choice in fold.choices()]
        answer = ChatCompletion(self.id, self._created, self._model, choices, usage_body(fold.usage))
        if self._prompt_logprobs:
            echo = next((choice.prompt for choice in fold.choices() if choice.prompt), None)
            if echo is not None and echo.logprobs is not None:
                answer.prompt_logprobs = prompt_logprobs_body(echo.logprobs)
        return encode(answer)

    def _text(self, event: TextDelta) -> bytes:
        silent = not event.text and not event.logprobs and not self._wants_ids(event.token_ids)
        if silent:
            return b"" if event.index in self._started else self._opening(event.index, DeltaBody())
        delta = DeltaBody(content=event.text)
        return self._chunk(event.index, delta, _logprobs_body(event.logprobs), token_ids=event.token_ids)

    def _wants_ids(self, token_ids: tuple[int, ...]) -> bool:
        return self._token_ids and bool(token_ids)

    def _chunk(
        self,
        index: int,
        delta: DeltaBody,
        logprobs: LogprobsBody | None = None,
        token_ids: tuple[int, ...] = (),
        finish: Finish | None = None,
    ) -> bytes:
        opening = b"" if index in self._started else self._opening(index, delta)
        choice = ChunkChoice(index, delta, logprobs)
        if finish is not None:
            choice.finish_reason = finish.reason
            choice.stop_reason = UNSET if finish.stop is None else finish.stop
        if self._wants_ids(token_ids):
            choice.token_ids = list(token_ids)
        return opening + self._head + encode(choice) + self._take_prompt_logprobs() + self._tail

    def _opening(self, index: int, first: DeltaBody) -> bytes:
        """The role, in a chunk of its own as OpenAI sends it: the SDK's stream helper counts what else
        stands in a choice's first chunk twice. Content is null where a tool call comes first."""
        self._started.add(index)
        delta = DeltaBody(role="assistant", content=None if first.tool_calls else "")
        return self._head + encode(ChunkChoice(index, delta)) + b"]" + self._tail

    def _take_prompt_logprobs(self) -> bytes:
        """The list of choices ends here; the first chunk also carries the prompt's log-probabilities."""
        if not self._prompt_logprobs or self._echo is None or self._echo.logprobs is None:
            return b"]"
        self._prompt_logprobs = False
        return b'],"prompt_logprobs":' + encode(prompt_logprobs_body(self._echo.logprobs))

    def _answer_choice(self, choice: ChoiceFold) -> AnswerChoice:
        assert choice.finish is not None, f"choice {choice.index} has no Finish"
        calls = [AnswerToolCall(c.id, AnswerFunction(c.name, c.arguments)) for c in choice.tool_calls]
        message = AnswerMessage(choice.text if choice.pieces or not calls else None)
        if choice.reasoning_pieces:
            message.reasoning_content = message.reasoning = choice.reasoning
        if calls:
            message.tool_calls = calls
        answer = AnswerChoice(choice.index, message, choice.finish.reason, _logprobs_body(choice.logprobs))
        if choice.finish.stop is not None:
            answer.stop_reason = choice.finish.stop
        if self._token_ids:
            answer.token_ids = choice.token_ids
        return answer


def _tool_delta(event: ToolCallDelta) -> ToolCallDeltaBody:
    function = FunctionDelta(arguments=event.arguments)
    body = ToolCallDeltaBody(event.call_index, function=function)
    if event.id is not None:
        body.id, body.type = event.id, "function"
    if event.name is not None:
        function.name = event.name
    return body


# --------------------------------------------------------------------------- upstream side


class Decoder(ChunkStream):
    """SSE bytes of an upstream → Events: `feed` takes any split of the bytes, `close` their end."""

    def __init__(self) -> None:
        super().__init__(_decode_chunk, _delta_events)


_decode_chunk = msgspec.json.Decoder(Chunk).decode


def _delta_events(choice: ChunkChoice) -> list[Event]:
    delta = choice.delta
    ids = tuple(choice.token_ids or ())
    events: list[Event] = []
    reasoning = delta.reasoning_content or delta.reasoning
    if reasoning:
        events.append(ReasoningDelta(choice.index, reasoning, ids))
        ids = ()
    logprobs = _logprobs_events(choice.logprobs)
    text = delta.content or delta.refusal or ""
    if text or ids or logprobs is not None:
        events.append(TextDelta(choice.index, text, ids, logprobs))
    for call in delta.tool_calls or ():
        function = call.function or FunctionDelta()
        events.append(
            ToolCallDelta(
                choice.index, call.index, call.id or None, function.name or None, function.arguments or ""
            )
        )
    return events
