"""EngineService over a real engine core on a simulated device, in this process and in another one."""

from __future__ import annotations

import asyncio
import os
import signal
import sys
import threading
from collections.abc import AsyncIterator, Callable
from contextlib import aclosing, asynccontextmanager
from pathlib import Path

import msgspec
import psutil
import pytest

from penstock.call import (
    Call,
    Done,
    Event,
    Failure,
    Finish,
    Message,
    SamplingParams,
    TextDelta,
    TextPart,
)
from penstock.config import EngineSettings
from penstock.engine import open_call
from penstock.engine import service as service_module
from penstock.engine.inprocess import InProcessTransport
from penstock.engine.service import EngineService
from penstock.engine.supervisor import SupervisedTransport
from penstock.engine.transport import Transport
from penstock.errors import (
    ContextOverflow,
    DeadlineExceeded,
    EngineUnavailable,
    InvalidRequest,
    ModelRefused,
    NotFound,
    Overloaded,
)
from penstock.observe.metrics import Metrics
from penstock.wire.fold import Fold
from support.sim_engine import build_sim
from support.tiny_models import make_tiny, write_tokenizer

SIM = str(Path(__file__).parents[1] / "support" / "sim_engine.py")
WAIT_S = 60.0
A = 64  # id of "a" in the tokenizer of the tiny models; tokens are the letters, in a circle


def letters(prompt_len: int, count: int) -> str:
    """The text that the simulated device writes after a prompt of this many tokens."""
    return "".join(chr(ord("a") + (prompt_len + i) % 26) for i in range(count))


@pytest.fixture
def model(tmp_path: Path) -> Callable[..., EngineSettings]:
    write_tokenizer(tmp_path)

    def make(words: str = "step_ms=0.2", **fields: object) -> EngineSettings:
        return EngineSettings(model=f"sim:first={A},vocab={A + 26},path={tmp_path},{words}", **fields)  # type: ignore[arg-type]

    return make


def in_process(settings: EngineSettings) -> Transport:
    return InProcessTransport(settings, build=build_sim)


def in_other_process(settings: EngineSettings) -> Transport:
    return SupervisedTransport(settings, command=(sys.executable, SIM), first_pause_s=0.01)


@asynccontextmanager
async def running(
    settings: EngineSettings, transport: Callable[[EngineSettings], Transport] = in_process, **options: float
) -> AsyncIterator[EngineService]:
    service = EngineService(settings, transport, served_model_name="sim", **options)  # type: ignore[arg-type]
    try:
        await service.start()
        await asyncio.wait_for(service.wait_ready(), WAIT_S)
        yield service
    finally:
        await service.close()


def completion(prompt: str | tuple[int, ...] | list[str] = "hello", **sampling: object) -> Call:
    prompts = tuple(prompt) if isinstance(prompt, list) else (prompt,)
    return Call(kind="completion", model="sim", prompts=prompts, sampling=SamplingParams(**sampling))  # type: ignore[arg-type]


async def answer(service: EngineService, call: Call, name: str = "test") -> Fold:
    fold = Fold()
    async with asyncio.timeout(WAIT_S), aclosing(service.stream(call, name)) as events:  # type: ignore[type-var]
        async for event in events:
            fold.add(event)
    return fold


async def until(condition: Callable[[], bool]) -> None:
    """Waits for something that other tasks of this loop bring about."""
    async with asyncio.timeout(WAIT_S):
        while not condition():
            await asyncio.sleep(0.001)


def prompt_len(service: EngineService, text: str) -> int:
    assert service._preparer is not None
    return len(service._preparer.tokenizer.encode(text, add_special=True))


async def test_completion_text_usage_and_order_of_events(model: Callable[..., EngineSettings]) -> None:
    """Red if text, counts or the order delta → Finish → Done of a plain call change."""
    async with running(model()) as service:
        events = [event async for event in service.stream(completion(max_tokens=30), "r")]
        n = prompt_len(service, "hello")
        fold = Fold(events)
    assert fold.choices()[0].text == letters(n, 30)
    assert (fold.usage.prompt_tokens, fold.usage.completion_tokens) == (n, 30)
    assert fold.choices()[0].finish == Finish(0, "length")
    assert isinstance(events[-2], Finish)
    assert isinstance(events[-1], Done)
    assert 0 < fold.timings.ttft_s <= fold.timings.total_s


@pytest.mark.parametrize("depth", [0, 1])
async def test_stop_string_across_deltas_counts_through_its_last_token(
    model: Callable[..., EngineSettings], depth: int
) -> None:
    """Red if a stop string that spans tokens is missed, shown, or the tokens after it are counted,
    by the caller or by the engine."""
    async with running(model(async_depth=depth)) as service:
        n = prompt_len(service, "hello")
        text = letters(n, 40)
        stop = text[17:21]
        fold = await answer(service, completion(max_tokens=1000, stop=(stop,)))
        assert fold.choices()[0].text == text[:17]
        assert fold.choices()[0].finish == Finish(0, "stop", stop)
        assert fold.usage.completion_tokens == 21
        await until(lambda: service.health().running == 0)
        assert service._progress.generated_tokens == 21


async def test_n_choices_share_the_prompt_and_count_it_once(model: Callable[..., EngineSettings]) -> None:
    """Red if siblings are lost, numbered wrongly, or their prompt is counted n times."""
    async with running(model()) as service:
        prompts = ["hello", "good morning"]
        fold = await answer(service, completion(prompts, n=3, max_tokens=9))
        lengths = [prompt_len(service, prompt) for prompt in prompts]
    assert [choice.index for choice in fold.choices()] == list(range(6))
    assert [choice.text for choice in fold.choices()] == [letters(n, 9) for n in lengths for _ in range(3)]
    assert fold.usage.prompt_tokens == sum(lengths)
    assert fold.usage.completion_tokens == 54


async def test_echo_gives_the_prompt_before_each_choice(model: Callable[..., EngineSettings]) -> None:
    """Red if echo is missing for a choice or comes after its first text."""
    call = msgspec.structs.replace(completion("hello", n=2, max_tokens=3), echo=True)
    async with running(model()) as service:
        events = [event async for event in service.stream(call, "r")]
    for index in range(2):
        mine = [event for event in events if getattr(event, "index", None) == index]
        assert type(mine[0]).__name__ == "PromptEcho"
        assert mine[0].text == "hello"  # type: ignore[union-attr]
        assert isinstance(mine[1], TextDelta)


async def test_closing_the_iterator_frees_all_siblings(model: Callable[..., EngineSettings]) -> None:
    """Red if a reader that leaves keeps slots busy: after the first event, or before it."""
    async with running(model("step_ms=2")) as service:
        stream = service.stream(completion(n=4, max_tokens=15_000), "r")
        await anext(stream)
        await stream.aclose()  # type: ignore[attr-defined]
        early = asyncio.ensure_future(anext(service.stream(completion(max_tokens=15_000), "r2")))
        await until(lambda: any(name.startswith("r2") for name in service._open))
        early.cancel()
        await asyncio.gather(early, return_exceptions=True)
        await until(lambda: service._progress.finished == 5)
        health = service.health()
        assert (health.running, health.waiting) == (0, 0)
        assert service._open == {}


async def test_same_request_id_twice_at_once(model: Callable[..., EngineSettings]) -> None:
    """Red if a client that repeats its request id gets another request's tokens, or an error."""
    async with running(model()) as service:
        folds = await asyncio.gather(*(answer(service, completion(max_tokens=50), "same") for _ in range(8)))
        n = prompt_len(service, "hello")
    assert [fold.choices()[0].text for fold in folds] == [letters(n, 50)] * 8


async def test_slow_reader_gets_the_same_events_merged(model: Callable[..., EngineSettings]) -> None:
    """Red if coalescing for a reader that pauses loses, repeats or reorders anything."""
    async with running(model()) as service:
        stream = service.stream(completion(n=2, max_tokens=400), "r")
        events: list[Event] = [await anext(stream)]
        await until(lambda: service._progress.finished == 2)
        events += [event async for event in stream]
        n = prompt_len(service, "hello")
    fold = Fold(events)
    assert [choice.text for choice in fold.choices()] == [letters(n, 400)] * 2
    assert len(events) < 20


async def test_reader_that_never_reads_is_cut_off(
    model: Callable[..., EngineSettings], monkeypatch: pytest.MonkeyPatch
) -> None:
    """Red if what nobody reads piles up without bound, or its request runs on."""
    monkeypatch.setattr(open_call, "MAX_UNREAD", 100)
    async with running(model()) as service:
        stream = service.stream(completion(max_tokens=15_000), "r")
        events: list[Event] = [await anext(stream)]
        await until(lambda: service._progress.finished == 1)
        events += [event async for event in stream]
        assert service._progress.generated_tokens < 15_000
        n = prompt_len(service, "hello")
    assert isinstance(events[-1], Failure)
    assert "slow" in events[-1].message
    read = Fold(events[:-1]).choices()[0]
    assert read.text == letters(n, len(read.token_ids))


async def test_refusals_before_the_first_event(model: Callable[..., EngineSettings]) -> None:
    """Red if a bad call is answered by an event, by a hang, or by an error without its numbers."""
    async with running(model(max_context=100)) as service:
        with pytest.raises(NotFound, match="other"):
            await answer(service, msgspec.structs.replace(completion(), model="other"))
        with pytest.raises(ContextOverflow, match=r"150 tokens.*100"):
            await answer(service, completion((A,) * 150))
        with pytest.raises(ContextOverflow, match=r"10 prompt tokens and max_tokens 91 are 101.*100"):
            await answer(service, completion((A,) * 10, max_tokens=91))
        with pytest.raises(ContextOverflow, match="100"):
            await answer(service, completion("x " * 100_000))
        with pytest.raises(InvalidRequest, match="logit_bias"):
            await answer(service, completion(logit_bias={A + 26: 1.0}))
        with pytest.raises(InvalidRequest, match="vocabulary"):
            await answer(service, completion((A + 26,)))
        with pytest.raises(InvalidRequest, match="temperature"):
            await answer(service, completion(temperature=float("nan")))
        fold = await answer(service, completion((A,) * 10, max_tokens=90))
        assert fold.usage.completion_tokens == 90
        assert (await answer(service, completion((A,) * 10))).usage.completion_tokens == 90


async def test_full_queue_is_overloaded_with_retry_after(model: Callable[..., EngineSettings]) -> None:
    """Red if the engine's refusal arrives as another error than 429, or as an event."""
    async with running(model("step_ms=5", max_running=1, max_queue=2)) as service:
        streams = [service.stream(completion(max_tokens=10_000), f"r{i}") for i in range(6)]
        first = [asyncio.ensure_future(anext(stream)) for stream in streams]
        await until(lambda: any(task.done() and task.exception() for task in first))
        errors = [task.exception() for task in first if task.done() and task.exception()]
        assert isinstance(errors[0], Overloaded)
        assert errors[0].retry_after_s
        for task in first:
            task.cancel()
        await asyncio.gather(*first, return_exceptions=True)
        for stream in streams:
            await stream.aclose()  # type: ignore[attr-defined]


async def test_deadline_ends_a_stream_with_a_failure(model: Callable[..., EngineSettings]) -> None:
    """Red if a deadline is not passed on to the engine or its error is not a timeout."""
    async with running(model("step_ms=5")) as service:
        call = msgspec.structs.replace(completion(max_tokens=15_000), deadline_s=0.2)
        fold = await answer(service, call)
        assert fold.failure is not None
        assert fold.failure.kind == DeadlineExceeded.kind


async def test_kill_of_the_engine_under_32_streams(
    model: Callable[..., EngineSettings], runtime_dir: Path
) -> None:
    """Red if a stream does not end with a well-formed Failure when the engine dies, health does not
    turn false at once and true again, the next request fails, or anything is left behind."""
    shared_memory = set(os.listdir("/dev/shm")) if os.path.isdir("/dev/shm") else set()
    async with running(model("step_ms=2"), in_other_process) as service:
        events: list[list[Event]] = [[] for _ in range(32)]

        async def read(i: int) -> None:
            async for event in service.stream(completion(max_tokens=15_000), f"r{i}"):
                events[i].append(event)

        readers = [asyncio.ensure_future(read(i)) for i in range(32)]
        await until(lambda: all(events))
        os.kill(service._transport.pid, signal.SIGKILL)  # type: ignore[attr-defined]
        await asyncio.wait_for(asyncio.gather(*readers), WAIT_S)
        for mine in events:
            failure = mine[-1]
            assert isinstance(failure, Failure)
            assert (failure.kind, failure.status) == (EngineUnavailable.kind, 503)
            assert failure.retry_after_s
            assert not any(isinstance(event, Done | Finish) for event in mine)
        assert not service.health().alive
        with pytest.raises(EngineUnavailable) as refusal:
            await answer(service, completion(max_tokens=5))
        assert refusal.value.retry_after_s
        await until(lambda: service.health().ready)
        assert service.health().alive
        assert service.health().restarts == 1
        fold = await answer(service, completion(max_tokens=5))
        assert fold.choices()[0].text == letters(prompt_len(service, "hello"), 5)
    assert list(runtime_dir.iterdir()) == []
    assert psutil.Process().children(recursive=True) == []
    if os.path.isdir("/dev/shm"):
        assert set(os.listdir("/dev/shm")) <= shared_memory


async def test_refused_model_shows_in_health_and_wait_ready(model: Callable[..., EngineSettings]) -> None:
    """Red if the reason of a refusal does not reach the operator, or models() fails before ready."""
    service = EngineService(model("refuse"), in_other_process, served_model_name="sim")
    await service.start()
    try:
        assert [card.id for card in service.models()] == ["sim"]
        with pytest.raises(ModelRefused, match=r"9\.00 GiB"):
            await asyncio.wait_for(service.wait_ready(), WAIT_S)
        health = service.health()
        assert not health.alive
        assert "9.00 GiB" in health.detail
        with pytest.raises(EngineUnavailable):
            await answer(service, completion())
    finally:
        await service.close()


async def test_health_is_false_while_work_does_not_move(model: Callable[..., EngineSettings]) -> None:
    """Red if /health stays true while the engine has work and completes no step (a shipped bug of
    more than one peer), or turns false for an idle engine."""
    async with running(model("step_ms=3000"), in_other_process, stall_s=0.3) as service:
        await until(lambda: service.health().alive)
        stream = asyncio.ensure_future(anext(service.stream(completion(max_tokens=2), "r")))
        await until(lambda: not service.health().alive)
        assert "completed no step" in service.health().detail
        stream.cancel()
        await asyncio.gather(stream, return_exceptions=True)


async def test_drain_lets_streams_finish_and_refuses_new_ones(model: Callable[..., EngineSettings]) -> None:
    """Red if draining cuts a running stream, accepts a new one, or says ready."""
    async with running(model("step_ms=2")) as service:
        reader = asyncio.ensure_future(answer(service, completion(max_tokens=100)))
        await until(lambda: service.health().running == 1)
        drained = asyncio.ensure_future(service.drain(WAIT_S))
        await until(lambda: not service.health().ready)
        assert service.health().alive
        with pytest.raises(EngineUnavailable):
            await answer(service, completion())
        assert (await reader).usage.completion_tokens == 100
        await drained


async def test_close_fails_what_runs(model: Callable[..., EngineSettings]) -> None:
    """Red if a server that stops leaves its readers waiting."""
    async with running(model("step_ms=2")) as service:
        stream = service.stream(completion(max_tokens=15_000), "r")
        await anext(stream)
        waiting = asyncio.ensure_future(anext(service.stream(completion(max_tokens=15_000), "r2")))
        await until(lambda: any(name.startswith("r2") for name in service._open))
        await service.close()
        rest = [event async for event in stream]
        assert isinstance(rest[-1], Failure)
        assert rest[-1].status == 503
        with pytest.raises(EngineUnavailable):
            await waiting


async def test_tokenize_and_detokenize_are_inverse(model: Callable[..., EngineSettings]) -> None:
    """Red if the token endpoints disagree with what a completion counts."""
    async with running(model()) as service:
        text = "the tea is hot, señor 👍"
        ids = await service.tokenize("sim", text, True)
        assert await service.detokenize("sim", ids) == text
        assert (await answer(service, completion(tuple(i for i in ids if i < A + 26), max_tokens=1))).done
        with pytest.raises(NotFound):
            await service.tokenize("other", text, True)


async def test_long_prompt_does_not_block_the_loop(model: Callable[..., EngineSettings]) -> None:
    """Red if preparing a long prompt runs on the event loop, where every stream waits for it."""
    async with running(model()) as service:
        assert service._preparer is not None
        loop_thread = threading.get_ident()
        seen: list[int] = []
        encode = service._preparer.tokenizer.encode

        def spy(*args: object, **kwargs: object) -> list[int]:
            seen.append(threading.get_ident())
            return encode(*args, **kwargs)  # type: ignore[arg-type]

        service._preparer.tokenizer.encode = spy  # type: ignore[method-assign]
        await answer(service, completion("tea " * 3000, max_tokens=1))
        assert seen
        assert loop_thread not in seen


async def test_the_real_engine_process_gives_what_llm_gives(tmp_path: Path) -> None:
    """Red if the entry point that `serve` starts is broken, or a process border changes tokens."""
    folder = make_tiny("llama", tmp_path / "tiny")
    settings = EngineSettings(model=str(folder), kv_bytes=4 << 20)
    params: dict[str, object] = {"temperature": 0.0, "max_tokens": 20, "ignore_eos": True, "n": 2}
    texts = []
    for transport in (SupervisedTransport, InProcessTransport):
        async with running(settings, transport) as service:
            assert service.ready is not None
            assert service.models()[0].max_context == 512
            texts.append([c.text for c in (await answer(service, completion("tea", **params))).choices()])
    assert texts[0] == texts[1]
    assert len(texts[0]) == 2


async def test_a_missing_model_is_refused_not_restarted(tmp_path: Path) -> None:
    """Red if a path without a model ends in a loop of restarts instead of the reason."""
    service = EngineService(EngineSettings(model=str(tmp_path / "nothing.gguf")), SupervisedTransport)
    await service.start()
    try:
        with pytest.raises(ModelRefused, match="nothing"):
            await asyncio.wait_for(service.wait_ready(), WAIT_S)
        assert service.health().restarts == 0
    finally:
        await service.close()


async def test_metrics_follow_the_engine(model: Callable[..., EngineSettings]) -> None:
    """Red if /metrics stops showing the engine's counters or its readiness."""
    metrics = Metrics()
    service = EngineService(model(), in_process, "sim", metrics)
    try:
        await service.start()
        await asyncio.wait_for(service.wait_ready(), WAIT_S)
        await answer(service, completion(max_tokens=7))
        await until(lambda: b'penstock_sampled_tokens_total{model="sim"} 7.0' in metrics.expose())
        assert b'penstock_engine_ready{model="sim"} 1.0' in metrics.expose()
    finally:
        await service.close()


async def test_a_model_without_a_tokenizer_is_refused(tmp_path: Path) -> None:
    """Red if an engine whose text half can't be loaded is called ready, or the reason is lost."""
    settings = EngineSettings(model=f"sim:path={tmp_path}")
    service = EngineService(settings, in_process, served_model_name="sim")
    await service.start()
    try:
        with pytest.raises(ModelRefused, match="tokenizer"):
            await asyncio.wait_for(service.wait_ready(), WAIT_S)
        assert not service.health().ready
        assert "tokenizer" in service.health().detail
        with pytest.raises(EngineUnavailable):
            await service.tokenize("sim", "x", False)
    finally:
        await service.close()


async def test_waiting_for_a_service_that_is_closed_ends(model: Callable[..., EngineSettings]) -> None:
    """Red if a shutdown during loading leaves whoever waits for ready waiting for ever."""
    service = EngineService(model(), in_other_process, served_model_name="sim")
    await service.start()
    waiting = asyncio.ensure_future(service.wait_ready())
    await asyncio.sleep(0)
    await service.close()
    await service.close()
    with pytest.raises(EngineUnavailable):
        await asyncio.wait_for(waiting, WAIT_S)


async def test_tokenize_chat_is_what_a_chat_computes(model: Callable[..., EngineSettings]) -> None:
    """Red if /tokenize counts other tokens for a conversation than the engine is given."""
    messages = (Message("user", (TextPart("tea?"),)),)
    async with running(model()) as service:
        ids = await service.tokenize_chat("sim", messages, (), True)
        text = "<|im_start|>user\ntea?<|im_end|>\n<|im_start|>assistant\n"
        assert await service.detokenize("sim", ids) == text


async def test_an_engine_that_can_not_be_started(model: Callable[..., EngineSettings]) -> None:
    """Red if a broken installation hangs in "starting" instead of telling why."""

    def broken(settings: EngineSettings) -> Transport:
        return SupervisedTransport(settings, command=("/nonexistent/python",))

    service = EngineService(model(), broken, "sim")
    await service.start()
    try:
        with pytest.raises(ModelRefused, match="nonexistent"):
            await asyncio.wait_for(service.wait_ready(), WAIT_S)
    finally:
        await service.close()


@pytest.mark.parametrize("transport", [in_process, in_other_process])
async def test_a_fault_in_the_engine_fails_its_streams(
    model: Callable[..., EngineSettings], transport: Callable[[EngineSettings], Transport]
) -> None:
    """Red if an exception in the engine's loop leaves readers waiting, or its text is not shown.
    An engine process is started again; one in this process stays down, and says so."""
    async with running(model("crash=30"), transport) as service:
        fold = await answer(service, completion(max_tokens=1000))
        assert fold.failure is not None
        assert fold.failure.status == 503
        assert not service.health().alive
        if transport is in_process:
            assert "the device is lost" in fold.failure.message
            with pytest.raises(EngineUnavailable, match="the device is lost"):
                await answer(service, completion())
        else:
            await until(lambda: service.health().ready)
            assert (await answer(service, completion(max_tokens=5))).done


async def test_drain_gives_up_after_its_time(model: Callable[..., EngineSettings]) -> None:
    """Red if a stream that does not end keeps a server from stopping."""
    async with running(model("step_ms=5")) as service:
        stream = service.stream(completion(max_tokens=15_000), "r")
        await anext(stream)
        await service.drain(0.05)
        await stream.aclose()  # type: ignore[attr-defined]


async def test_more_calls_than_can_be_held_are_refused(
    model: Callable[..., EngineSettings], monkeypatch: pytest.MonkeyPatch
) -> None:
    """Red if calls pile up in this process without bound while the engine is behind."""
    monkeypatch.setattr(service_module, "OPEN_CALLS_BEYOND_QUEUE", 0)
    async with running(model("step_ms=5", max_running=1, max_queue=1)) as service:
        streams = [service.stream(completion(max_tokens=10_000), f"r{i}") for i in range(2)]
        await anext(streams[0])
        second = asyncio.ensure_future(anext(streams[1]))
        await until(lambda: service._calls == 2)
        with pytest.raises(Overloaded, match="2 calls"):
            await answer(service, completion())
        second.cancel()
        await asyncio.gather(second, return_exceptions=True)
        await streams[0].aclose()  # type: ignore[attr-defined]
        await until(lambda: service._calls == 0)
