"""EngineService: a ModelService over one engine, wherever that engine runs.

    stream(call) → prepare (thread, if long) → submit → deltas → OpenCall → events

Everything runs on one asyncio loop. A call exists here from its preparation until its iterator is
closed, and whatever ends it (the last event, a failure, the reader leaving) leaves nothing behind in
the engine: requests that have not ended are aborted.

Health has three answers, tied to completed steps: with work in the engine, the step counter has to move.
"""

from __future__ import annotations

import asyncio
import itertools
import logging
import time
from collections.abc import AsyncIterator, Callable
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import TYPE_CHECKING, Any, Protocol

from penstock.call import Call, Event, Failure, Health, Message, ModelCard, PrefixMiss, ToolSpec
from penstock.config import EngineSettings
from penstock.engine.messages import Delta, Progress, Ready
from penstock.engine.open_call import OpenCall
from penstock.engine.prepare import Preparer, Prompt
from penstock.engine.transport import State, Transport
from penstock.errors import (
    EngineUnavailable,
    ModelRefused,
    NotFound,
    Overloaded,
    PenstockError,
    from_kind,
)
from penstock.models.sources import is_present, resolve

if TYPE_CHECKING:
    from penstock.text.tokenizer import Tokenizer

log = logging.getLogger("penstock.engine.service")

# Without a completed step for this long an engine with work counts as stuck. A step of 512 prompt tokens
# through a 7B model in plain numpy takes about a minute; anything beyond two is no progress for anyone.
STALL_S = 120.0
MUTE_S = 10.0  # an engine's I/O thread answers pings every second, also in the middle of a step
# Tokenizing runs at some 5 MB/s: below this it costs the loop under a millisecond, a thread switch as much.
INLINE_CHARS = 4096
PREPARE_THREADS = 2
# Calls that are prepared or run here at once, beyond the engine's own queue: bounds memory, not speed.
OPEN_CALLS_BEYOND_QUEUE = 1024


class EngineMetrics(Protocol):
    """What `penstock.observe.metrics.Metrics` offers for the engine's side."""

    def engine(self, model: str, progress: Any) -> None: ...

    def engine_state(self, model: str, ready: bool, restarts: int) -> None: ...


class EngineService:
    """`transport_factory` makes the way to the engine from its settings."""

    def __init__(
        self,
        settings: EngineSettings,
        transport_factory: Callable[[EngineSettings], Transport],
        served_model_name: str | None = None,
        metrics: EngineMetrics | None = None,
        *,
        stall_s: float = STALL_S,
        adopt_name: bool = False,
    ) -> None:
        """`adopt_name`: once ready, serve under the engine's own name for its model."""
        self.settings = settings
        self.ready: Ready | None = None
        self._transport = transport_factory(settings)
        self.name = served_model_name or settings.model
        self._adopt_name = adopt_name
        self._metrics = metrics
        self._stall_s = stall_s
        self._created = int(time.time())
        self._preparer: Preparer | None = None
        self._prepared_for: tuple[str, int] | None = None
        self._open: dict[str, OpenCall] = {}  # request id -> its call
        self._calls = 0
        self._numbers = itertools.count()
        self._threads = ThreadPoolExecutor(PREPARE_THREADS, thread_name_prefix="penstock-prepare")
        self._progress = Progress()
        self._moved_at = time.monotonic()  # when a step last completed, or there was no work
        self._accepting = True
        self._changed = asyncio.Event()  # state of readiness or number of calls
        self._error: PenstockError | None = None
        self._tasks: set[asyncio.Task[None]] = set()
        self._tokenizers: dict[str, asyncio.Future[Tokenizer]] = {}  # by model path
        self._closed = False

    # ------------------------------------------------------------------ life

    async def start(self) -> None:
        """Returns at once; the tokenizer loads here while the engine loads the weights."""
        await self._transport.start(self)
        if is_present(self.settings.model):
            self._load_tokenizer(str(resolve(self.settings.model)))

    async def wait_ready(self) -> Ready:
        """Until requests are accepted. Raises the error (ModelRefused, …) that says why never."""
        while True:
            refused = self._transport.status().state is State.REFUSED or isinstance(self._error, ModelRefused)
            if self._error is not None and refused:
                raise self._error
            if self._closed:
                raise EngineUnavailable("the engine was closed")
            if self.ready is not None and self._preparer is not None:
                return self.ready
            self._changed.clear()
            await self._changed.wait()

    async def drain(self, timeout_s: float) -> None:
        """Refuse new calls from now on; wait for the running ones."""
        self._accepting = False
        self._report_state()
        try:
            async with asyncio.timeout(timeout_s):
                while self._calls:
                    self._changed.clear()
                    await self._changed.wait()
        except TimeoutError:
            log.warning("%d calls still run after %.0f s of draining", self._calls, timeout_s)

    async def close(self) -> None:
        """Fail what runs, end the engine if it is ours. Idempotent."""
        if self._closed:
            return
        self._closed = True
        self._accepting = False
        self._fail_all(EngineUnavailable("the server is shutting down", retry_after_s=5.0))
        self._changed.set()
        for task in self._tasks:
            task.cancel()
        await asyncio.gather(*self._tasks, return_exceptions=True)
        await self._transport.close()
        self._threads.shutdown(wait=False, cancel_futures=True)

    # ------------------------------------------------------------------ calls

    def models(self) -> list[ModelCard]:
        max_context = self.ready.max_context if self.ready else self.settings.max_context or 0
        return [ModelCard(id=self.name, created=self._created, max_context=max_context)]

    async def stream(self, call: Call, request_id: str) -> AsyncIterator[Event]:
        """See ModelService. The generator must be closed (or run to its end) for the call to be over."""
        arrived_s = time.monotonic()
        self._check_model(call.model)
        preparer = self._admit()
        self._calls += 1
        opened: OpenCall | None = None
        started = False
        try:
            key = f"{request_id}/{next(self._numbers)}"
            prompts = await self._prepare(preparer, call, key)
            opened = self._submit(call, prompts, preparer, arrived_s)
            while batch := await opened.next_batch():
                for event in batch:
                    started = True
                    yield event
        except PenstockError as error:
            if not started:
                raise
            yield failure(error)
        finally:
            self._calls -= 1
            self._changed.set()
            if opened is not None:
                opened.abort_unfinished()
                for name in opened.request_ids:
                    self._open.pop(name, None)

    def _check_model(self, model: str) -> None:
        if model != self.name:
            raise NotFound(f"model: {model!r} is not served here; {self.name!r} is", param="model")

    def _admit(self) -> Preparer:
        if not self._accepting:
            raise EngineUnavailable(
                "the server is shutting down and takes no new requests", retry_after_s=5.0
            )
        status = self._transport.status()
        if self._preparer is None or status.state is not State.READY:
            raise EngineUnavailable(
                f"the engine is not ready: {status.detail}", retry_after_s=status.retry_after_s
            )
        if self._calls >= self.settings.max_queue + self.settings.max_running + OPEN_CALLS_BEYOND_QUEUE:
            raise Overloaded(f"{self._calls} calls are open already; retry later", retry_after_s=1.0)
        return self._preparer

    async def _prepare(self, preparer: Preparer, call: Call, key: str) -> list[Prompt]:
        if _is_short(call):
            return preparer.prepare(call, key)
        loop = asyncio.get_running_loop()
        return await loop.run_in_executor(self._threads, preparer.prepare, call, key)

    def _submit(self, call: Call, prompts: list[Prompt], preparer: Preparer, arrived_s: float) -> OpenCall:
        synthetic = self.ready is not None and self.ready.synthetic_acceptance
        opened = OpenCall(call, prompts, preparer.tokenizer, self._transport.abort, arrived_s, synthetic)
        for name in opened.request_ids:
            self._open[name] = opened
        try:
            for prompt in prompts:
                for submit in prompt.submits:
                    self._transport.submit(submit)
        except PenstockError:
            opened.abort_unfinished()
            for name in opened.request_ids:
                self._open.pop(name, None)
            raise
        return opened

    # ------------------------------------------------------------------ tokens

    async def tokenize(self, model: str, text: str, add_special: bool) -> list[int]:
        preparer = self._ready_preparer(model)
        return await self._in_thread(len(text), preparer.tokenizer.encode, text, add_special)

    async def tokenize_chat(
        self,
        model: str,
        messages: tuple[Message, ...],
        tools: tuple[ToolSpec, ...],
        add_generation_prompt: bool,
        template_args: dict[str, Any] | None = None,
    ) -> list[int]:
        preparer = self._ready_preparer(model)
        size = sum(len(message.text) for message in messages)
        return await self._in_thread(
            size, preparer.chat_tokens, messages, tools, add_generation_prompt, template_args
        )

    async def detokenize(self, model: str, tokens: list[int]) -> str:
        preparer = self._ready_preparer(model)
        return await self._in_thread(len(tokens), preparer.tokenizer.decode, tokens, False)

    def _ready_preparer(self, model: str) -> Preparer:
        self._check_model(model)
        if self._preparer is None:
            status = self._transport.status()
            raise EngineUnavailable(
                f"the model is not loaded: {status.detail}", retry_after_s=status.retry_after_s
            )
        return self._preparer

    async def _in_thread(self, size: int, function: Callable[..., Any], *arguments: Any) -> Any:
        if size <= INLINE_CHARS:
            return function(*arguments)
        return await asyncio.get_running_loop().run_in_executor(self._threads, function, *arguments)

    async def explain_miss(self, before: Call, after: Call) -> PrefixMiss | None:
        preparer = self._ready_preparer(after.model)
        found: PrefixMiss | None = await self._in_thread(
            INLINE_CHARS + 1, preparer.explain_miss, before, after
        )
        return found

    def unpin(self, turn: str) -> None:
        self._transport.unpin(turn)
        if self._preparer is not None:
            self._preparer.turns.forget(turn)

    # ------------------------------------------------------------------ health

    def health(self) -> Health:
        status = self._transport.status()
        answering = status.heard_s < MUTE_S
        stuck_s = time.monotonic() - self._moved_at if self._has_work() else 0.0
        stalled = stuck_s > self._stall_s
        is_up = status.state is State.READY
        detail = status.detail
        if is_up and not answering:
            detail = f"the engine has said nothing for {status.heard_s:.0f} s"
        elif is_up and stalled:
            detail = f"the engine has work but completed no step for {stuck_s:.0f} s"
        elif is_up and self._preparer is None:
            detail = self._error.message if self._error else "loading the tokenizer"
        elif is_up and not self._accepting:
            detail = "draining"
        alive = is_up and answering and not stalled
        return Health(
            alive=alive,
            ready=alive and self._accepting and self._preparer is not None,
            detail=detail,
            steps=self._progress.steps,
            running=self._progress.running,
            waiting=self._progress.waiting,
            restarts=status.restarts,
        )

    def _has_work(self) -> bool:
        return self._progress.running + self._progress.waiting > 0

    def _report_state(self) -> None:
        if self._metrics is not None:
            health = self.health()
            self._metrics.engine_state(self.name, health.ready, health.restarts)

    # ------------------------------------------------------------------ Listener of the transport

    def on_ready(self, ready: Ready) -> None:
        self.ready = ready
        if self._adopt_name:
            self.name = ready.model_id
        self._error = None
        self._progress = Progress()
        self._moved_at = time.monotonic()
        identity = (ready.model_path, ready.max_context)
        if self._prepared_for == identity:
            self._announce()
            return
        self._preparer = None
        task = asyncio.create_task(self._load_text(ready, identity), name="load-tokenizer")
        self._tasks.add(task)
        task.add_done_callback(self._tasks.discard)

    async def _load_text(self, ready: Ready, identity: tuple[str, int]) -> None:
        try:
            tokenizer = await self._load_tokenizer(ready.model_path)
            loop = asyncio.get_running_loop()
            self._preparer = await loop.run_in_executor(self._threads, self._make_preparer, ready, tokenizer)
            self._prepared_for = identity
        except PenstockError as error:
            log.error("%s", error.message)
            self._error = ModelRefused(error.message)
        self._announce()

    def _load_tokenizer(self, path: str) -> asyncio.Future[Tokenizer]:
        """Begin, or go on with, loading the tokenizer beside the weights at `path`."""
        from penstock.text.tokenizer import Tokenizer

        if path not in self._tokenizers:
            loading = asyncio.get_running_loop().run_in_executor(self._threads, Tokenizer.load, Path(path))
            loading.add_done_callback(
                lambda done: done.cancelled() or done.exception()
            )  # raised where awaited
            self._tokenizers = {path: loading}
        return self._tokenizers[path]

    def _make_preparer(self, ready: Ready, tokenizer: Tokenizer) -> Preparer:
        return Preparer(
            tokenizer,
            model=self.name,
            max_context=ready.max_context,
            vocab_size=ready.vocab_size,
            prefix_cache=self.settings.prefix_cache,
            thinking_stop_sentence=self.settings.thinking_stop_sentence,
            transcript_bytes=self.settings.transcript_bytes,
            block_size=ready.block_size,
        )

    def _announce(self) -> None:
        self._changed.set()
        self._report_state()

    def on_deltas(self, deltas: list[Delta]) -> None:
        for delta in deltas:
            opened = self._open.get(delta.id)
            if opened is not None:  # else its call is over: these were in flight
                opened.on_delta(delta)

    def on_progress(self, progress: Progress) -> None:
        had_work = self._has_work()
        if progress.steps != self._progress.steps or not had_work:
            self._moved_at = time.monotonic()
        self._progress = progress
        if self._metrics is not None:
            self._metrics.engine(self.name, progress)
            self._report_state()

    def on_lost(self, error: PenstockError) -> None:
        self._error = error
        self._progress = Progress()
        self._fail_all(error)
        self._announce()

    def _fail_all(self, error: PenstockError) -> None:
        for opened in set(self._open.values()):
            # A copy each: a raised exception carries the traceback of the one who raised it.
            opened.fail(from_kind(error.kind, error.message, retry_after_s=error.retry_after_s))
        self._open.clear()


def failure(error: PenstockError) -> Failure:
    """The event that ends a stream which has begun."""
    return Failure(
        kind=error.kind,
        message=error.message,
        status=error.status,
        param=error.param,
        code=error.code,
        retry_after_s=error.retry_after_s,
    )


def _is_short(call: Call) -> bool:
    """Whether what must be rendered and tokenized is small, roughly: tools and templates come on top."""
    if call.kind == "completion":
        return sum(len(prompt) + len(call.suffix) for prompt in call.prompts) <= INLINE_CHARS
    size = 256 * len(call.tools)
    for message in call.messages:
        size += len(message.text)
        if size > INLINE_CHARS:
            return False
    return True
