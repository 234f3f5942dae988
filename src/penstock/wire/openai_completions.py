"""Codec of OpenAI completions: `POST /v1/completions`.

Serving side: `read_request`, `Encoder`. Upstream side: `write_request`, `Decoder`.
Choices are numbered prompt_index * n + sample_index, as Events are. With `echo` each choice begins
with its prompt (a PromptEcho event), and with `logprobs` too the prompt's tokens stand in the lists,
the first with null: nothing predicts it.

What the format can't say: reasoning and tool calls; where the echoed prompt ends.
"""

from __future__ import annotations

from typing import Annotated, Any, Literal

import msgspec
from msgspec import UNSET, Meta, Struct, UnsetType

from penstock.call import (
    Call,
    Done,
    Event,
    Failure,
    Finish,
    PromptEcho,
    TextDelta,
    TokenLogprob,
    TopLogprob,
)
from penstock.errors import InvalidRequest
from penstock.wire import sse
from penstock.wire.fold import ChoiceFold, Fold
from penstock.wire.openai_common import (
    CommonFields,
    ErrorDetail,
    MaxTokens,
    PromptLogprobs,
    TokenId,
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

PATH = "/v1/completions"
ID_PREFIX = "cmpl-"
MAX_PROMPTS = 1024

TokenList = Annotated[list[TokenId], Meta(min_length=1)]


# --------------------------------------------------------------------------- request


class CompletionRequest(CommonFields, kw_only=True, omit_defaults=True):
    """Body of a completion request. A list holds strings, or token ids, or lists of token ids."""

    prompt: str | Annotated[list[str | TokenId | TokenList], Meta(min_length=1)]
    max_tokens: MaxTokens | None = None
    logprobs: TopLogprobs | None = None
    echo: bool | None = None
    suffix: str | None = None


_decoder = msgspec.json.Decoder(CompletionRequest)
_KNOWN = frozenset(CompletionRequest.__struct_fields__)
_REFUSED = {
    "prompt_embeds": "prompts are text or token ids",
    "max_completion_tokens": "a limit of chat; a completion's is max_tokens",
    "top_logprobs": "a field of chat; a completion's `logprobs` is the number of alternatives",
}


def read_request(body: bytes) -> Call:
    """The Call in a request body. Raises InvalidRequest naming the field, the value and the limit."""
    request, extra = decode_request(body, _decoder, _KNOWN)
    refuse(extra, _REFUSED)
    if request.suffix and request.echo:
        raise InvalidRequest(
            "echo: with suffix the answer does not follow the prompt; leave echo out", param="echo"
        )
    _check_best_of(extra.pop("best_of", None), request.n or 1)
    own: dict[str, Any] = {"max_tokens": request.max_tokens, "logprobs": request.logprobs}
    sampling = read_sampling(request, **own)
    if request.echo and request.logprobs is not None:
        # The echoed tokens stand in the same lists as the generated ones.
        wanted = max(request.logprobs, request.prompt_logprobs or 0)
        sampling = msgspec.structs.replace(sampling, prompt_logprobs=wanted)
    if request.return_token_ids:
        extra["return_token_ids"] = True
    return Call(
        kind="completion",
        prompts=_read_prompts(request.prompt),
        suffix=request.suffix or "",
        sampling=sampling,
        echo=bool(request.echo),
        extra=extra,
        **read_common(request),
    )


def _check_best_of(best_of: Any, n: int) -> None:
    if best_of is not None and (isinstance(best_of, bool) or best_of != n):
        raise InvalidRequest(
            f"best_of: {best_of} is not n ({n}); all answers are returned, use n", param="best_of"
        )


def _read_prompts(prompt: str | list[Any]) -> tuple[str | tuple[int, ...], ...]:
    if isinstance(prompt, str):
        return (prompt,)
    kinds = {type(item) for item in prompt}
    if kinds == {int}:
        return (tuple(prompt),)
    if len(kinds) > 1:
        names = ", ".join(sorted(kind.__name__ for kind in kinds))
        raise InvalidRequest(
            f"prompt: a list of {names}; send strings, or token ids, or lists of token ids", param="prompt"
        )
    if len(prompt) > MAX_PROMPTS:
        raise InvalidRequest(
            f"prompt: {len(prompt)} prompts, at most {MAX_PROMPTS} in one request", param="prompt"
        )
    return tuple(item if isinstance(item, str) else tuple(item) for item in prompt)


def write_request(call: Call) -> bytes:
    """The request body for an upstream of this format. Tenant, deadline and read/store policy stay here."""
    sampling = call.sampling
    fields = write_common(call)
    if call.echo and sampling.logprobs is not None and sampling.prompt_logprobs == sampling.logprobs:
        fields.pop("prompt_logprobs")
    request = CompletionRequest(
        prompt=_write_prompts(call.prompts),
        max_tokens=sampling.max_tokens,
        logprobs=sampling.logprobs,
        echo=call.echo or None,
        suffix=call.suffix or None,
        **fields,
    )
    if not call.extra:
        return encode(request)
    return encode(msgspec.to_builtins(request, str_keys=True) | call.extra)


def _write_prompts(prompts: tuple[str | tuple[int, ...], ...]) -> str | list[Any]:
    if len(prompts) == 1:
        only = prompts[0]
        return only if isinstance(only, str) else list(only)
    return [prompt if isinstance(prompt, str) else list(prompt) for prompt in prompts]


# --------------------------------------------------------------------------- answers


class LogprobsBody(Struct):
    """Parallel lists, one entry per token. `text_offset` counts characters of the choice's text."""

    tokens: list[str] = []
    token_logprobs: list[float | None] = []
    top_logprobs: list[dict[str, float] | None] | None = None
    text_offset: list[int] = []


class ChunkChoice(Struct):
    index: int
    text: str = ""
    logprobs: LogprobsBody | None = None
    finish_reason: str | None = None
    stop_reason: str | int | UnsetType | None = UNSET
    token_ids: list[int] | UnsetType | None = UNSET
    prompt_logprobs: PromptLogprobs | UnsetType | None = UNSET


class Chunk(Struct):
    """What is read of an upstream's `data:` frame. Written, it has a head too: see `Encoder`."""

    choices: list[ChunkChoice] = []
    usage: UsageBody | UnsetType | None = UNSET
    error: ErrorDetail | UnsetType | None = UNSET


class AnswerChoice(Struct):
    index: int
    text: str
    finish_reason: Literal["stop", "length", "tool_calls", "content_filter"]
    logprobs: LogprobsBody | None = None
    stop_reason: str | int | UnsetType | None = UNSET
    token_ids: list[int] | UnsetType = UNSET
    prompt_logprobs: PromptLogprobs | UnsetType = UNSET


class Completion(Struct):
    """Body of a completion that was not streamed."""

    id: str
    created: int
    model: str
    choices: list[AnswerChoice]
    usage: UsageBody
    object: Literal["text_completion"] = "text_completion"


class _Offsets:
    """Character offset of each token in its choice's text, from the tokens' own bytes.

    A token that begins inside a character gets that character's offset.
    """

    def __init__(self) -> None:
        self._chars = 0  # characters begun so far

    def take(self, data: bytes) -> int:
        starts_inside = bool(data) and data[0] & 0xC0 == 0x80
        offset = self._chars - 1 if starts_inside and self._chars else self._chars
        self._chars += sum(byte & 0xC0 != 0x80 for byte in data)
        return offset


def _logprobs_body(items: tuple[TokenLogprob, ...] | list[TokenLogprob], offsets: _Offsets) -> LogprobsBody:
    body = LogprobsBody(top_logprobs=[])
    assert body.top_logprobs is not None
    for item in items:
        body.tokens.append(item.token)
        body.text_offset.append(offsets.take(item.bytes))
        if item.logprob is None:
            body.token_logprobs.append(None)
            body.top_logprobs.append(None)
            continue
        body.token_logprobs.append(finite(item.logprob))
        row: dict[str, float] = {}
        for top in item.top:  # two ids may share a text: the likelier one, which comes first, stays
            row.setdefault(top.token, finite(top.logprob))
        row.setdefault(item.token, finite(item.logprob))
        body.top_logprobs.append(row)
    return body


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
        self._echo = call.echo
        self._token_ids = call.extra.get("return_token_ids") is True
        self._logprobs = call.sampling.logprobs is not None
        # With echo and logprobs the prompt's tokens stand in `logprobs` already.
        self._prompt_logprobs = call.sampling.prompt_logprobs is not None and not (
            call.echo and self._logprobs
        )
        self._offsets: dict[int, _Offsets] = {}
        head = {"id": self.id, "object": "text_completion", "created": created, "model": model}
        self._head = b"data: " + encode(head)[:-1] + b',"choices":['
        self._tail = b'],"usage":null}\n\n' if call.stream_usage else b"]}\n\n"

    def feed(self, event: Event) -> bytes:
        """SSE frames of one event; b"" where there is nothing to say yet."""
        if isinstance(event, TextDelta):
            return self._text(event)
        if isinstance(event, Finish):
            choice = ChunkChoice(event.index, finish_reason=event.reason)
            if event.stop is not None:
                choice.stop_reason = event.stop
            return self._frame(choice)
        if isinstance(event, PromptEcho):
            return self._prompt(event)
        if isinstance(event, Done):
            return (
                self._head + b'],"usage":' + encode(usage_body(event.usage)) + b"}\n\n"
                if self._usage
                else b""
            )
        if isinstance(event, Failure):
            return sse.data_frame(failure_bytes(event))
        return b""  # reasoning and tool calls: a completion has plain text only

    def close(self) -> bytes:
        return sse.DONE

    def body(self, fold: Fold) -> bytes:
        """The non-streaming body. Each choice of `fold` must be finished."""
        choices = [self._answer_choice(choice) for choice in fold.choices()]
        return encode(Completion(self.id, self._created, self._model, choices, usage_body(fold.usage)))

    def _frame(self, choice: ChunkChoice) -> bytes:
        return self._head + encode(choice) + self._tail

    def _text(self, event: TextDelta) -> bytes:
        wants_ids = self._token_ids and bool(event.token_ids)
        if not event.text and not event.logprobs and not wants_ids:
            return b""
        choice = ChunkChoice(event.index, event.text)
        if event.logprobs is not None:
            choice.logprobs = _logprobs_body(event.logprobs, self._offset(event.index))
        if wants_ids:
            choice.token_ids = list(event.token_ids)
        return self._frame(choice)

    def _prompt(self, event: PromptEcho) -> bytes:
        choice = ChunkChoice(event.index)
        if self._echo:
            choice.text = event.text
            if self._logprobs and event.logprobs is not None:
                choice.logprobs = _logprobs_body(event.logprobs, self._offset(event.index))
        if self._prompt_logprobs and event.logprobs is not None:
            choice.prompt_logprobs = prompt_logprobs_body(event.logprobs)
        return self._frame(choice) if choice.text or choice.logprobs or choice.prompt_logprobs else b""

    def _offset(self, index: int) -> _Offsets:
        return self._offsets.setdefault(index, _Offsets())

    def _answer_choice(self, choice: ChoiceFold) -> AnswerChoice:
        assert choice.finish is not None, f"choice {choice.index} has no Finish"
        prompt = choice.prompt
        answer = AnswerChoice(choice.index, choice.text, choice.finish.reason)
        logprobs = choice.logprobs
        if prompt is not None and self._echo:
            answer.text = prompt.text + answer.text
            if self._logprobs:
                logprobs = [*(prompt.logprobs or ()), *(logprobs or ())]
        if logprobs is not None:
            answer.logprobs = _logprobs_body(logprobs, _Offsets())
        if prompt is not None and prompt.logprobs is not None and self._prompt_logprobs:
            answer.prompt_logprobs = prompt_logprobs_body(prompt.logprobs)
        if choice.finish.stop is not None:
            answer.stop_reason = choice.finish.stop
        if self._token_ids:
            answer.token_ids = choice.token_ids
        return answer


# --------------------------------------------------------------------------- upstream side


class Decoder(ChunkStream):
    """SSE bytes of an upstream → Events: `feed` takes any split of the bytes, `close` their end."""

    def __init__(self) -> None:
        super().__init__(_decode_chunk, _choice_events)


_decode_chunk = msgspec.json.Decoder(Chunk).decode


def _choice_events(choice: ChunkChoice) -> list[Event]:
    logprobs = _logprobs_events(choice.logprobs)
    ids = tuple(choice.token_ids or ())
    if not choice.text and not ids and logprobs is None:
        return []
    return [TextDelta(choice.index, choice.text, ids, logprobs)]


def _logprobs_events(body: LogprobsBody | None) -> tuple[TokenLogprob, ...] | None:
    """token_id is -1 and bytes are the text's: the format carries neither."""
    if body is None:
        return None
    rows = body.top_logprobs or [None] * len(body.tokens)
    return tuple(
        TokenLogprob(token, logprob, token.encode(), -1, _tops(row))
        for token, logprob, row in zip(body.tokens, body.token_logprobs, rows, strict=False)
    )


def _tops(row: dict[str, float] | None) -> tuple[TopLogprob, ...]:
    return tuple(TopLogprob(token, logprob, token.encode(), -1) for token, logprob in (row or {}).items())
