"""The Python API: an engine in this process.

    from penstock import LLM, SamplingParams

    with LLM("smollm2") as llm:
        for result in llm.generate(["Once upon a time"], SamplingParams(max_tokens=20)):
            print(result.text)

`LLM` blocks, `AsyncLLM` streams. Keyword arguments are the fields of `penstock.config.EngineSettings`.
Nothing is forked or spawned: the engine is a thread, so a script needs no main guard. Errors are
PenstockErrors (`penstock.errors`).
"""

from __future__ import annotations

import asyncio
import itertools
import logging
import operator
import sys
import threading
from collections.abc import AsyncIterator, Callable, Coroutine, Iterable, Iterator, Mapping, Sequence
from contextlib import aclosing, contextmanager
from typing import TYPE_CHECKING, Any, Self, TypeVar

import msgspec
from msgspec import Struct

from penstock.call import (
    Call,
    Event,
    Message,
    SamplingParams,
    Timings,
    TokenLogprob,
    ToolCallPart,
    ToolSpec,
    Usage,
)
from penstock.config import EngineSettings, build
from penstock.errors import EngineUnavailable, InvalidRequest, from_kind

if TYPE_CHECKING:
    from penstock.call import Failure, Health
    from penstock.engine.messages import Ready
    from penstock.engine.service import EngineService
    from penstock.wire.fold import Fold

T = TypeVar("T")
Prompt = str | Sequence[int]
Conversation = Sequence[Message | Mapping[str, Any]]

BAR_FROM = 10  # prompts; shorter batches are over before a bar says anything

log = logging.getLogger("penstock.llm")


class Choice(Struct, frozen=True):
    """One answer. `stop`: the stop string or stop token id that ended it, None for end of sequence.

    `text` is the answer proper: what the model reasoned and which tools it called stand beside it.
    """

    index: int
    text: str
    token_ids: tuple[int, ...]
    finish_reason: str
    stop: str | int | None = None
    logprobs: tuple[TokenLogprob, ...] | None = None
    reasoning: str = ""
    tool_calls: tuple[ToolCallPart, ...] = ()


class Result(Struct, frozen=True):
    """What came of one prompt. The single-answer fields are those of `choices[0]`.

    prompt_logprobs: one entry per prompt token, the first without a value; None unless asked for.
    """

    choices: tuple[Choice, ...]
    usage: Usage
    timings: Timings
    prompt_logprobs: tuple[TokenLogprob, ...] | None = None

    @property
    def text(self) -> str:
        return self.choices[0].text

    @property
    def token_ids(self) -> tuple[int, ...]:
        return self.choices[0].token_ids

    @property
    def finish_reason(self) -> str:
        return self.choices[0].finish_reason

    @property
    def reasoning(self) -> str:
        return self.choices[0].reasoning

    @property
    def tool_calls(self) -> tuple[ToolCallPart, ...]:
        return self.choices[0].tool_calls

    @property
    def logprobs(self) -> tuple[TokenLogprob, ...] | None:
        return self.choices[0].logprobs


class AsyncLLM:
    """`async with AsyncLLM("smollm2") as llm`, or `await llm.start()` … `await llm.close()`.

    Belongs to the event loop that it was started on.
    """

    def __init__(self, model: str = "smollm2", **engine_settings: Any) -> None:
        """Checks the settings (ConfigError); loads nothing yet."""
        self.settings = build(EngineSettings, model=model, **engine_settings)
        self._service: EngineService | None = None
        self._numbers = itertools.count()

    async def __aenter__(self) -> Self:
        await self.start()
        return self

    async def __aexit__(self, *exc: object) -> None:
        await self.close()

    async def start(self) -> None:
        """Pull the model if it is a known name that is not there yet, load it, wait until it is ready.

        Raises NotFound, ModelRefused, ConfigError.
        """
        from penstock.engine.inprocess import InProcessTransport
        from penstock.engine.service import EngineService

        if self._service is not None:
            return
        await asyncio.to_thread(_ensure_model, self.settings.model)
        service = EngineService(self.settings, InProcessTransport)
        try:
            await service.start()
            await service.wait_ready()
        except BaseException:
            await service.close()
            raise
        self._service = service

    async def close(self) -> None:
        """Abort what runs and free the model. Idempotent; the object can't be started again."""
        if self._service is not None:
            await self._service.close()

    @property
    def ready(self) -> Ready:
        """What was loaded: context, vocabulary, backend, memory plan, seconds of the start."""
        ready = self._started().ready
        assert ready is not None
        return ready

    def health(self) -> Health:
        return self._started().health()

    def _started(self) -> EngineService:
        if self._service is None:
            raise EngineUnavailable("the engine is not started; use `async with` or await start()")
        return self._service

    # ------------------------------------------------------------------ streams

    def generate(self, prompt: Prompt, params: SamplingParams | None = None) -> AsyncIterator[Event]:
        """Events of a completion: TextDelta …, Finish per choice, Done. Close the iterator to abort.

        A failure before the first event raises; a later one is a `Failure`, the last event.
        """
        return self._stream(
            self._call(kind="completion", prompts=(_read_prompt(prompt),), params=params, stream=True)
        )

    def chat(
        self,
        messages: Conversation,
        params: SamplingParams | None = None,
        *,
        tools: Sequence[ToolSpec] = (),
        tool_choice: str | None = None,
        template_args: Mapping[str, Any] | None = None,
    ) -> AsyncIterator[Event]:
        """Events of the answer to a conversation of {"role", "content"} dicts or Messages.

        tool_choice: "none", "auto", "required", or "tool:NAME".
        """
        return self._stream(
            self._call(
                kind="chat",
                messages=read_conversation(messages),
                tools=tuple(tools),
                tool_choice=tool_choice,
                template_args=dict(template_args or {}),
                params=params,
                stream=True,
            )
        )

    def _call(self, *, params: SamplingParams | None, **fields: Any) -> Call:
        return Call(model=self.settings.model, sampling=params or SamplingParams(), **fields)

    def _stream(self, call: Call) -> AsyncIterator[Event]:
        return self._started().stream(call, f"llm-{next(self._numbers)}")

    # ------------------------------------------------------------------ batches

    async def results(
        self, calls: Sequence[Call], on_done: Callable[[], None] = lambda: None
    ) -> list[Result]:
        """One Result per call, in order. As many run at once as the engine's queue takes.

        The first failure ends the batch: the others are aborted.
        """
        widest = max((call.sampling.n for call in calls), default=1)
        window = max(1, min(self.settings.max_queue, 2 * self.settings.max_running) // widest)
        found: list[Result | None] = [None] * len(calls)
        todo = iter(enumerate(calls))

        async def work() -> None:
            for index, call in todo:
                try:
                    found[index] = await self._result(call)
                except Exception as error:
                    error.add_note(f"prompt {index} of {len(calls)}")
                    raise
                on_done()

        try:
            async with asyncio.TaskGroup() as group:
                for _ in range(min(window, len(calls))):
                    group.create_task(work())
        except BaseExceptionGroup as failures:
            raise failures.exceptions[0] from None
        return [result for result in found if result is not None]

    async def _result(self, call: Call) -> Result:
        from penstock.wire.fold import Fold

        fold = Fold()
        async with aclosing(self._stream(call)) as events:  # type: ignore[type-var]
            async for event in events:
                fold.add(event)
        if fold.failure is not None:
            raise _error(fold.failure)
        return _result(fold)


class LLM:
    """A model, ready when the constructor returns. Safe to use from several threads."""

    def __init__(self, model: str = "smollm2", **engine_settings: Any) -> None:
        """Pulls and loads the model. Raises ConfigError, NotFound, ModelRefused."""
        self._llm = AsyncLLM(model, **engine_settings)
        self.settings = self._llm.settings
        self._loop = asyncio.new_event_loop()
        self._thread = threading.Thread(target=self._loop.run_forever, name="penstock-llm", daemon=True)
        self._thread.start()
        self._closed = False
        try:
            self._run(self._llm.start())
        except BaseException:
            self.close()
            raise

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *exc: object) -> None:
        self.close()

    def close(self) -> None:
        """Free the model and its threads. Idempotent."""
        if self._closed:
            return
        self._closed = True
        try:
            asyncio.run_coroutine_threadsafe(self._llm.close(), self._loop).result()
        finally:
            self._loop.call_soon_threadsafe(self._loop.stop)
            self._thread.join()
            self._loop.run_until_complete(self._loop.shutdown_asyncgens())
            self._loop.run_until_complete(self._loop.shutdown_default_executor())
            self._loop.close()

    @property
    def ready(self) -> Ready:
        """What was loaded: context, vocabulary, backend, memory plan, seconds of the start."""
        return self._llm.ready

    def generate(
        self,
        prompts: Prompt | Sequence[Prompt],
        params: SamplingParams | Sequence[SamplingParams] | None = None,
        *,
        progress: bool = True,
    ) -> list[Result]:
        """Complete prompts: a string, token ids, or a list of either. One Result per prompt, in order.

        params: one for all or one per prompt. progress: a bar on stderr for long batches on a terminal.
        """
        items = _read_prompts(prompts)
        calls = [
            self._llm._call(kind="completion", prompts=(prompt,), params=one)
            for prompt, one in zip(items, _spread(params, len(items)), strict=True)
        ]
        return self._results(calls, progress)

    def chat(
        self,
        messages: Conversation | Sequence[Conversation],
        params: SamplingParams | Sequence[SamplingParams] | None = None,
        *,
        tools: Sequence[ToolSpec] = (),
        tool_choice: str | None = None,
        template_args: Mapping[str, Any] | None = None,
        progress: bool = True,
    ) -> list[Result]:
        """Answer a conversation, or a list of them. One Result per conversation, in order.

        tool_choice: "none", "auto", "required", or "tool:NAME".
        """
        single = all(isinstance(item, Message | Mapping) for item in messages)
        conversations: list[Conversation] = [messages] if single else list(messages)  # type: ignore[list-item, arg-type]
        calls = [
            self._llm._call(
                kind="chat",
                messages=read_conversation(conversation),
                tools=tuple(tools),
                tool_choice=tool_choice,
                template_args=dict(template_args or {}),
                params=one,
            )
            for conversation, one in zip(conversations, _spread(params, len(conversations)), strict=True)
        ]
        return self._results(calls, progress)

    def _results(self, calls: Sequence[Call], progress: bool) -> list[Result]:
        with _bar(len(calls), progress) as advance:
            return self._run(self._llm.results(calls, advance))

    def _run(self, work: Coroutine[Any, Any, T]) -> T:
        if self._closed:
            work.close()
            raise EngineUnavailable("this LLM is closed; make a new one")
        future = asyncio.run_coroutine_threadsafe(work, self._loop)
        try:
            return future.result()
        except BaseException:
            future.cancel()  # Ctrl-C: the task is cancelled, which aborts its requests
            raise


def read_conversation(messages: Conversation) -> tuple[Message, ...]:
    """Messages, or dicts in the OpenAI form. Raises InvalidRequest naming the field."""
    from penstock.wire.openai_messages import ChatMessage, read_messages

    if isinstance(messages, str | Mapping):
        raise InvalidRequest("messages: give a list of {'role', 'content'} dicts", param="messages")
    found: list[Message] = []
    for index, message in enumerate(messages):
        if isinstance(message, Message):
            found.append(message)
            continue
        try:
            found.extend(read_messages([msgspec.convert(dict(message), ChatMessage)]))
        except msgspec.ValidationError as error:
            raise InvalidRequest(f"messages[{index}]: {error}", param="messages") from None
    return tuple(found)


def _read_prompts(prompts: Any) -> list[str | tuple[int, ...]]:
    """One prompt or a list of them: a list that begins with a number is one prompt of token ids."""
    if isinstance(prompts, str | bytes | Mapping) or not isinstance(prompts, Iterable):
        return [_read_prompt(prompts)]
    items = list(prompts)
    if items and not isinstance(items[0], str) and not hasattr(items[0], "__len__"):
        return [_read_prompt(items)]
    return [_read_prompt(item) for item in items]


def _read_prompt(prompt: Any) -> str | tuple[int, ...]:
    """Text, or token ids of any integer type. Raises InvalidRequest; 1.5 is no token id."""
    if isinstance(prompt, str):
        return prompt
    if isinstance(prompt, bytes | Mapping) or not isinstance(prompt, Iterable):
        raise InvalidRequest(
            f"prompt: got {type(prompt).__name__}; give a string or a list of token ids", param="prompt"
        )
    try:
        return tuple(map(operator.index, prompt))
    except TypeError as error:
        raise InvalidRequest(f"prompt: token ids must be integers: {error}", param="prompt") from None


def _spread(params: SamplingParams | Sequence[SamplingParams] | None, count: int) -> list[SamplingParams]:
    if params is None or isinstance(params, SamplingParams):
        return [params or SamplingParams()] * count
    if not isinstance(params, Sequence) or not all(isinstance(one, SamplingParams) for one in params):
        raise InvalidRequest(
            f"params: got {type(params).__name__}; give a SamplingParams, or a list of them", param="params"
        )
    if len(params) != count:
        raise InvalidRequest(
            f"params: {len(params)} for {count} prompts; give one, or one each", param="params"
        )
    return list(params)


def _result(fold: Fold) -> Result:
    choices = []
    for choice in fold.choices():
        assert choice.finish is not None
        choices.append(
            Choice(
                index=choice.index,
                text=choice.text,
                token_ids=tuple(choice.token_ids),
                finish_reason=choice.finish.reason,
                stop=choice.finish.stop,
                logprobs=None if choice.logprobs is None else tuple(choice.logprobs),
                reasoning=choice.reasoning,
                tool_calls=tuple(choice.tool_calls),
            )
        )
    prompt = fold.choices()[0].prompt
    return Result(tuple(choices), fold.usage, fold.timings, None if prompt is None else prompt.logprobs)


def _error(failure: Failure) -> Exception:
    return from_kind(
        failure.kind,
        failure.message,
        param=failure.param,
        code=failure.code,
        retry_after_s=failure.retry_after_s,
    )


def _ensure_model(name: str) -> None:
    """Pull a known model on first use; a local path is left alone."""
    from penstock.models import sources

    if not sources.is_present(name):
        log.info("%s is not in the model store yet: pulling it", name)
        sources.pull(name)


@contextmanager
def _bar(total: int, wanted: bool) -> Iterator[Callable[[], None]]:
    """A progress bar on stderr if it is a terminal and the batch is long; yields "one is done"."""
    if not wanted or total < BAR_FROM or not sys.stderr.isatty():
        yield lambda: None
        return
    from rich.console import Console
    from rich.progress import BarColumn, MofNCompleteColumn, Progress, TimeRemainingColumn

    columns = (
        "[progress.description]{task.description}",
        BarColumn(),
        MofNCompleteColumn(),
        TimeRemainingColumn(),
    )
    with Progress(*columns, console=Console(stderr=True), transient=True) as bar:
        task = bar.add_task("generating", total=total)
        yield lambda: bar.advance(task)
