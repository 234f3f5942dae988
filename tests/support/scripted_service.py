"""A ModelService with fixed replies and real asynchronous behaviour: what the HTTP tests talk to.

The last user text chooses the reply. Plain text is echoed back word by word, one token per word.
Commands (each is the whole text):

    /hang            nothing, until the call is cancelled
    /hang-after N    N tokens, then nothing, until the call is cancelled
    /flood N         N tokens of 1 KiB each, as fast as they are taken
    /fail KIND       raises that error before the first event
    /fail-after KIND one token, then a Failure event
    /raise-after     one token, then an exception that is no PenstockError
    /cut             one token, then the stream ends without Done
    /release         waits for `release`, then answers "released"
    /tool            a tool call with empty arguments
    /think           reasoning, then text

Nothing sleeps: tests wait for `events` (see `seen`) and set `release`.
"""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator
from typing import Any

from penstock.call import (
    Call,
    Done,
    Event,
    Failure,
    Finish,
    Message,
    PrefixMiss,
    PromptEcho,
    ReasoningDelta,
    TextDelta,
    Timings,
    TokenLogprob,
    ToolCallDelta,
    ToolSpec,
    TopLogprob,
    Usage,
)
from penstock.engine.supported import check_supported
from penstock.errors import ContextOverflow, InvalidRequest, NotFound, from_kind
from penstock.gateway.service import Health, ModelCard

MODEL = "scripted"
CONTEXT = 512


def token_of(word: str) -> int:
    """A stable id per word."""
    return sum((i + 1) * byte for i, byte in enumerate(word.encode())) % 50_000


def words_of(text: str) -> list[str]:
    """Words with their leading space, so that joining them gives the text back."""
    words: list[str] = []
    for i, word in enumerate(text.split(" ")):
        words.append(word if i == 0 else " " + word)
    return [word for word in words if word]


def logprob_of(word: str, count: int, known: bool = True) -> TokenLogprob:
    tops = tuple(
        TopLogprob(f"{word}~{k}" if k else word, -0.25 - k, word.encode(), token_of(word) + k)
        for k in range(count)
    )
    return TokenLogprob(word, -0.25 if known else None, word.encode(), token_of(word), tops if known else ())


class ScriptedService:
    def __init__(self) -> None:
        self.calls: list[Call] = []
        self.started = 0
        self.cancelled = 0
        self.finished = 0
        self.produced = 0
        self.open = 0
        self.release = asyncio.Event()
        self.draining = False
        self.drains = 0
        self.closed = False
        self.unpinned: list[str] = []
        self.alive = True
        self._changed = asyncio.Condition()

    async def seen(self, **counts: int) -> None:
        """Wait until each named counter is at least its value: `await service.seen(cancelled=1)`."""
        async with self._changed:
            await self._changed.wait_for(lambda: all(getattr(self, k) >= v for k, v in counts.items()))

    async def idle(self) -> None:
        """Wait until no call is open."""
        async with self._changed:
            await self._changed.wait_for(lambda: self.open == 0)

    async def _count(self, name: str, by: int = 1) -> None:
        async with self._changed:
            setattr(self, name, getattr(self, name) + by)
            self._changed.notify_all()

    # ---- ModelService

    async def start(self) -> None: ...

    def models(self) -> list[ModelCard]:
        return [ModelCard(MODEL, 1_700_000_000, CONTEXT), ModelCard("org/name", 1_700_000_001, CONTEXT)]

    async def stream(self, call: Call, request_id: str) -> AsyncIterator[Event]:
        if call.model not in {card.id for card in self.models()}:
            raise NotFound(f"model: {call.model!r} is not served here", param="model", code="model_not_found")
        self.check(call)
        self.calls.append(call)
        await self._count("open")
        await self._count("started")
        try:
            async for event in self._answer(call):
                self.produced += 1
                yield event
            await self._count("finished")
        except (asyncio.CancelledError, GeneratorExit):
            self.cancelled += 1
            raise
        finally:
            # Under its own task: this one may be being cancelled.
            asyncio.get_running_loop().create_task(self._count("open", -1))

    def check(self, call: Call) -> None:
        """It stands for the local engine."""
        check_supported(call)
        if call.suffix:
            raise InvalidRequest(f"suffix: {call.model} does not support insert", param="suffix")

    async def _answer(self, call: Call) -> AsyncIterator[Event]:
        text = call.messages[-1].text if call.kind == "chat" else ""
        command, _, argument = text.partition(" ")
        if command.startswith("/"):
            async for event in self._command(command, argument):
                yield event
            return
        prompts = [self._prompt(prompt) for prompt in call.prompts] or [words_of(text)]
        for prompt in prompts:
            if len(prompt) > CONTEXT:
                raise ContextOverflow(
                    f"prompt: {len(prompt)} tokens, the context has {CONTEXT}", param="messages"
                )
        generated = 0
        for p, prompt in enumerate(prompts):
            for sample in range(call.sampling.n):
                async for event in self._choice(call, p * call.sampling.n + sample, prompt):
                    generated += isinstance(event, TextDelta)
                    yield event
        count = sum(map(len, prompts))
        yield Done(Usage(count, generated, count // 2), Timings(0.001, 0.002, 0.003))

    def _prompt(self, prompt: str | tuple[int, ...]) -> list[str]:
        return words_of(prompt) if isinstance(prompt, str) else [f" {token}" for token in prompt]

    async def _choice(self, call: Call, index: int, prompt: list[str]) -> AsyncIterator[Event]:
        sampling = call.sampling
        if call.echo or sampling.prompt_logprobs is not None:
            logprobs = None
            if sampling.prompt_logprobs is not None:
                logprobs = tuple(
                    logprob_of(word, sampling.prompt_logprobs, known=i > 0) for i, word in enumerate(prompt)
                )
            yield PromptEcho(index, "".join(prompt), tuple(map(token_of, prompt)), logprobs)
        limit = len(prompt) if sampling.max_tokens is None else sampling.max_tokens
        for word in prompt[:limit]:
            await asyncio.sleep(0)
            if word.strip() in sampling.stop:
                yield Finish(index, "stop", word.strip())
                return
            logprobs = None if sampling.logprobs is None else (logprob_of(word, sampling.logprobs),)
            yield TextDelta(index, word, (token_of(word),), logprobs)
        yield Finish(index, "length" if limit < len(prompt) else "stop")

    async def _command(self, command: str, argument: str) -> AsyncIterator[Event]:
        if command == "/hang":
            await asyncio.Event().wait()
        elif command == "/fail":
            raise from_kind(argument, f"scripted {argument}", retry_after_s=2.5)
        elif command == "/release":
            await self.release.wait()
            yield TextDelta(0, "released", (1,))
        elif command in ("/hang-after", "/flood"):
            for i in range(int(argument)):
                yield TextDelta(0, ("x" * 1024) if command == "/flood" else f" {i}", (i,))
                if i % 16 == 0:
                    await asyncio.sleep(0)
            if command == "/hang-after":
                await asyncio.Event().wait()
        elif command == "/tool":
            yield ToolCallDelta(0, 0, "call_1", "now", "")
            yield ToolCallDelta(0, 0, arguments="{}")
            yield Finish(0, "tool_calls")
            yield Done(Usage(3, 2))
            return
        elif command == "/think":
            yield ReasoningDelta(0, "let me see", (1, 2))
            yield TextDelta(0, "yes", (3,))
        else:
            yield TextDelta(0, "start", (1,))
            await asyncio.sleep(0)
            if command == "/fail-after":
                yield Failure(argument, f"scripted {argument}", from_kind(argument, "").status)
            elif command == "/raise-after":
                raise ZeroDivisionError("a secret detail")
            return
        yield Finish(0, "stop")
        yield Done(Usage(3, 4, 1))

    async def tokenize(self, model: str, text: str, add_special: bool) -> list[int]:
        return [*([1] if add_special else []), *map(token_of, words_of(text))]

    async def tokenize_chat(
        self,
        model: str,
        messages: tuple[Message, ...],
        tools: tuple[ToolSpec, ...],
        add_generation_prompt: bool,
        template_args: dict[str, Any] | None = None,
    ) -> list[int]:
        tokens = [token_of(word) for message in messages for word in words_of(message.text)]
        return [*tokens, *([2] if add_generation_prompt else [])]

    async def explain_miss(self, before: Call, after: Call) -> PrefixMiss | None:
        """As if a token were a message."""
        for i, (old, new) in enumerate(zip(before.messages, after.messages, strict=False)):
            if old != new:
                return PrefixMiss(i, f"messages[{i}].content", old.text, new.text, len(before.messages) - i)
        return None

    def unpin(self, turn: str) -> None:
        self.unpinned.append(turn)

    async def detokenize(self, model: str, tokens: list[int]) -> str:
        return " ".join(map(str, tokens))

    def health(self) -> Health:
        ready = self.alive and not self.draining
        return Health(self.alive, ready, "scripted", steps=7, running=self.open)

    async def drain(self, timeout_s: float) -> None:
        self.draining = True
        await self._count("drains")

    async def close(self) -> None:
        self.closed = True
