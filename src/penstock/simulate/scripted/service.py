"""ScriptedModelService: a ModelService that answers with a script's fixed replies.

What a request may say is checked as for a model that generates: names, context, length, images. How tokens
are chosen has no effect: there is nothing to choose, and each token has probability 1.
"""

from __future__ import annotations

import asyncio
import logging
import time
from collections.abc import AsyncIterator, Iterator
from itertools import takewhile
from typing import Any

import msgspec
from msgspec import Struct

from penstock.call import (
    Call,
    Done,
    Event,
    Failure,
    Finish,
    FinishReason,
    ImagePart,
    Message,
    PrefixMiss,
    PromptEcho,
    ReasoningDelta,
    ReasoningPart,
    TextDelta,
    TextPart,
    Timings,
    TokenLogprob,
    ToolCallDelta,
    ToolCallPart,
    ToolResultPart,
    ToolSpec,
    TopLogprob,
    Usage,
)
from penstock.engine.supported import check_supported
from penstock.errors import ContextOverflow, EngineUnavailable, NotFound, from_kind
from penstock.gateway.service import Health, ModelCard
from penstock.simulate.scripted.match import Matcher, Reply, Situation, situation_of
from penstock.simulate.scripted.script import Script
from penstock.simulate.scripted.tokens import pieces_of, text_of, token_of

log = logging.getLogger("penstock.scripted")

AROUND = 12  # tokens that are shown on either side of the first that differs
IMAGE_TOKENS = 256  # what an image counts as; no matter, but more than nothing


class _Prompt(Struct):
    """One prompt: its text as it is echoed, its tokens, and what answers it."""

    text: str
    num_tokens: int
    reply: Reply


class ScriptedModelService:
    """See `penstock.gateway.service.ModelService`. `name`: the model's id, the script's if None."""

    def __init__(self, script: Script, name: str | None = None) -> None:
        self.script = script
        self.name = name or script.name or "scripted"
        self._matcher = Matcher(script.rules)
        self._created = int(time.time())
        self._running = 0
        self._answers = 0
        self._accepting = True
        self._idle = asyncio.Event()
        self._idle.set()

    # ------------------------------------------------------------------ life

    async def start(self) -> None:
        """There is nothing to load."""

    def models(self) -> list[ModelCard]:
        return [ModelCard(self.name, self._created, self.script.max_context)]

    def health(self) -> Health:
        detail = "scripted" if self._accepting else "draining"
        return Health(True, self._accepting, detail, steps=self._answers, running=self._running)

    async def drain(self, timeout_s: float) -> None:
        self._accepting = False
        try:
            await asyncio.wait_for(self._idle.wait(), timeout_s)
        except TimeoutError:
            log.warning("%d calls still run after %.0f s of draining", self._running, timeout_s)

    async def close(self) -> None:
        self._accepting = False

    # ------------------------------------------------------------------ calls

    async def stream(self, call: Call, request_id: str) -> AsyncIterator[Event]:
        """See ModelService."""
        started_s = time.monotonic()
        prompts = self._prepare(call, request_id)
        self._running += 1
        self._idle.clear()
        try:
            first_s: float | None = None
            completion = reasoning = 0
            for index in range(len(prompts) * call.sampling.n):
                prompt = prompts[index // call.sampling.n]
                async for event in self._choice(call, index, prompt):
                    if first_s is None:
                        first_s = time.monotonic()
                    yield event
                    if isinstance(event, Failure):
                        return
                    completion += isinstance(event, TextDelta | ReasoningDelta | ToolCallDelta)
                    reasoning += isinstance(event, ReasoningDelta)
            now = time.monotonic()
            timings = Timings(0.0, (first_s or now) - started_s, now - started_s)
            yield Done(_usage(prompts, completion, reasoning), timings)
        finally:
            self._answers += 1
            self._running -= 1
            if not self._running:
                self._idle.set()

    def _prepare(self, call: Call, request_id: str) -> list[_Prompt]:
        """Everything that can be refused is refused here."""
        self._check_model(call.model)
        if not self._accepting:
            raise EngineUnavailable(
                "the server is shutting down and takes no new requests", retry_after_s=5.0
            )
        call.sampling.validate()
        check_supported(call, images=self.script.images)
        prompts = []
        for text, count, situation in self._situations(call):
            self._check_length(call, count)
            reply = self._matcher.reply(call, situation, request_id)
            log.info("request %s: rules[%d] at turn %d", request_id, reply.number, situation.turns)
            if reply.rule.error is not None and reply.is_empty:
                error = reply.rule.error
                raise from_kind(error.kind, error.message, retry_after_s=error.retry_after_s)
            prompts.append(_Prompt(text, count, reply))
        return prompts

    def _situations(self, call: Call) -> Iterator[tuple[str, int, Situation]]:
        """(text, number of tokens, situation) of each prompt."""
        if call.kind == "chat":
            text = _chat_text(call.messages, () if call.tool_choice == "none" else call.tools)
            yield text, len(pieces_of(text)) + _image_tokens(call.messages), situation_of(call.messages)
            return
        for prompt in call.prompts:
            text = prompt if isinstance(prompt, str) else text_of(prompt)
            yield text, len(pieces_of(text)), Situation(text)

    def _check_model(self, model: str) -> None:
        if model != self.name:
            raise NotFound(f"model: {model!r} is not served here; {self.name!r} is", param="model")

    def _check_length(self, call: Call, count: int) -> None:
        asked = 1 if call.fit_context or call.sampling.max_tokens is None else call.sampling.max_tokens
        limit = self.script.max_context
        if count + asked > limit:
            raise ContextOverflow(
                f"{count} prompt tokens and {asked} to generate are {count + asked}, the context of this "
                f"model is {limit}; send or ask for less",
                param="messages" if call.kind == "chat" else "prompt",
                code="context_length_exceeded",
            )

    async def _choice(self, call: Call, index: int, prompt: _Prompt) -> AsyncIterator[Event]:
        """The events of one choice, its Finish or a Failure last."""
        sampling, reply, rule = call.sampling, prompt.reply, prompt.reply.rule
        if call.echo or sampling.prompt_logprobs is not None:
            yield _echo(index, prompt.text, sampling.prompt_logprobs)
        budget = sampling.max_tokens
        finish: FinishReason = rule.finish or ("tool_calls" if reply.calls else "stop")
        text, stop = _until_stop(reply.text, sampling.stop, sampling.include_stop_str_in_output)
        calls = reply.calls if stop is None else ()
        for used, event in enumerate(_deltas(index, reply.reasoning, text, calls, sampling.logprobs)):
            if budget is not None and used >= budget:
                finish, stop = "length", None
                break
            # A pause at each, so that a caller who leaves is noticed at the next.
            await asyncio.sleep(rule.token_s)
            yield event
        if rule.error is not None:
            error = rule.error
            status = from_kind(error.kind, error.message).status
            yield Failure(error.kind, error.message, status, retry_after_s=error.retry_after_s)
            return
        if rule.hang:
            await asyncio.Event().wait()
        yield Finish(index, "stop" if stop is not None else finish, stop)

    # ------------------------------------------------------------------ tokens

    async def tokenize(self, model: str, text: str, add_special: bool) -> list[int]:
        self._check_model(model)
        return list(map(token_of, pieces_of(text)))

    async def tokenize_chat(
        self,
        model: str,
        messages: tuple[Message, ...],
        tools: tuple[ToolSpec, ...],
        add_generation_prompt: bool,
        template_args: dict[str, Any] | None = None,
    ) -> list[int]:
        return await self.tokenize(model, _chat_text(messages, tools), False)

    async def detokenize(self, model: str, tokens: list[int]) -> str:
        self._check_model(model)
        return text_of(tokens)

    # ------------------------------------------------------------------ prefixes

    async def explain_miss(self, before: Call, after: Call) -> PrefixMiss | None:
        """By the first tool or message that differs; the script has no template that could move it."""
        old, new = (pieces_of(_chat_text(call.messages, call.tools)) for call in (before, after))
        token = sum(1 for _ in takewhile(lambda pair: pair[0] == pair[1], zip(old, new, strict=False)))
        if token == len(old):
            return None
        shown = slice(max(0, token - AROUND), token + AROUND)
        parts = [
            *(f"tools[{i}]" for i, tool in enumerate(before.tools) if (tool,) != after.tools[i : i + 1]),
            *(
                f"messages[{i}].content"
                for i, message in enumerate(before.messages)
                if (message,) != after.messages[i : i + 1]
            ),
        ]
        field = parts[0] if parts else "tools"
        return PrefixMiss(token, field, "".join(old[shown]), "".join(new[shown]), len(old) - token)

    def unpin(self, turn: str) -> None:
        """Nothing is kept for a turn."""


# ---------------------------------------------------------------------- prompts


def _chat_text(messages: tuple[Message, ...], tools: tuple[ToolSpec, ...]) -> str:
    """What the prompt of a conversation is counted from: every text in it, one after the other."""
    texts: list[str] = [msgspec.json.encode(tool).decode() for tool in tools]
    for message in messages:
        for part in message.parts:
            texts.extend(_texts(part))
    return "\n".join(texts)


def _texts(part: object) -> Iterator[str]:
    if isinstance(part, TextPart | ReasoningPart):
        yield part.text
    elif isinstance(part, ToolCallPart):
        yield f"{part.name} {part.arguments}"
    elif isinstance(part, ToolResultPart):
        for item in part.content:
            yield from _texts(item)


def _image_tokens(messages: tuple[Message, ...]) -> int:
    parts = [part for message in messages for part in message.parts]
    parts += [item for part in parts if isinstance(part, ToolResultPart) for item in part.content]
    return IMAGE_TOKENS * sum(isinstance(part, ImagePart) for part in parts)


def _echo(index: int, text: str, alternatives: int | None) -> PromptEcho:
    pieces = pieces_of(text)
    logprobs = None
    if alternatives is not None:
        known = [_logprob(piece, alternatives) for piece in pieces]
        logprobs = tuple(
            [msgspec.structs.replace(known[0], logprob=None, top=()), *known[1:]] if known else ()
        )
    return PromptEcho(index, text, tuple(map(token_of, pieces)), logprobs)


# ---------------------------------------------------------------------- answers


def _until_stop(text: str, stops: tuple[str, ...], keep: bool) -> tuple[str, str | None]:
    """(text up to the first stop string, that string)."""
    found = min(((text.find(stop), stop) for stop in stops if stop in text), default=None)
    if found is None:
        return text, None
    start, stop = found
    return text[: start + len(stop) if keep else start], stop


def _deltas(
    index: int, reasoning: str, text: str, calls: tuple[ToolCallPart, ...], alternatives: int | None
) -> Iterator[Event]:
    """One event per token."""
    for piece in pieces_of(reasoning):
        yield ReasoningDelta(index, piece, (token_of(piece),))
    for piece in pieces_of(text):
        logprobs = None if alternatives is None else (_logprob(piece, alternatives),)
        yield TextDelta(index, piece, (token_of(piece),), logprobs)
    for number, call in enumerate(calls):
        yield ToolCallDelta(index, number, call.id, call.name)
        for piece in pieces_of(call.arguments):
            yield ToolCallDelta(index, number, arguments=piece)


def _logprob(piece: str, alternatives: int) -> TokenLogprob:
    """Of a token that could not have been another one."""
    data, token = piece.encode("utf-8", "replace"), token_of(piece)
    top = (TopLogprob(piece, 0.0, data, token),) if alternatives else ()
    return TokenLogprob(piece, 0.0, data, token, top)


def _usage(prompts: list[_Prompt], completion: int, reasoning: int) -> Usage:
    """What the script says, else what was counted."""
    counted = Usage(sum(prompt.num_tokens for prompt in prompts), completion, 0, reasoning)
    given = msgspec.structs.asdict(prompts[0].reply.rule.usage)
    return msgspec.structs.replace(counted, **{name: n for name, n in given.items() if n is not None})
