"""run_engine in this process's main thread, with callers in another thread."""

from __future__ import annotations

import asyncio
import os
import signal
import threading
from collections.abc import Awaitable, Callable, Iterator
from concurrent.futures import Future
from pathlib import Path

import pytest
import zmq

from engine_process.test_transports import WAIT_S, request, started
from penstock.config import EngineSettings
from penstock.engine.client import ZmqTransport
from penstock.engine.messages import (
    Loading,
    Ping,
    Progress,
    Ready,
    Shutdown,
    decode_from_engine,
    encoder,
)
from penstock.engine.process import run_engine
from penstock.engine.transport import State
from penstock.errors import ModelRefused
from support.sim_engine import build_sim, expected_tokens

SIM = EngineSettings(model="sim:step_ms=1")


@pytest.fixture(autouse=True)
def _signal_handlers() -> Iterator[None]:
    kept = {number: signal.getsignal(number) for number in (signal.SIGTERM, signal.SIGINT)}
    yield
    for number, handler in kept.items():
        signal.signal(number, handler)


def terminate() -> None:
    os.kill(os.getpid(), signal.SIGTERM)


class Caller(threading.Thread):
    """Runs `script` on a loop of its own, then ends the engine; `result` raises what it raised."""

    def __init__(self, script: Callable[[], Awaitable[None]], end: Callable[[], None] = terminate) -> None:
        super().__init__(daemon=True)
        self._script, self._end = script, end
        self._outcome: Future[None] = Future()
        self.start()

    def run(self) -> None:
        try:
            asyncio.run(asyncio.wait_for(self._script(), WAIT_S))  # type: ignore[arg-type]
            self._outcome.set_result(None)
        except Exception as error:  # noqa: BLE001  (raised in `result`)
            self._outcome.set_exception(error)
        finally:
            self._end()

    def result(self) -> None:
        self._outcome.result(WAIT_S)


def test_serves_until_sigterm_and_reports_its_start(runtime_dir: Path) -> None:
    """Red if a caller is not served, `on_loading`/`on_ready` are not called, SIGTERM does not end it
    with 0, or the socket stays."""
    address = f"ipc://{runtime_dir}/e.sock"
    seen: list[object] = []

    async def script() -> None:
        transport = ZmqTransport(address)
        async with started(transport) as recorder:
            await recorder.until(lambda: recorder.ready)
            transport.submit(request("r"))
            await recorder.until(lambda: recorder.finished("r"))
            assert recorder.tokens("r") == expected_tokens(10, 20)

    caller = Caller(script)
    code = run_engine(SIM, address, build=build_sim, on_loading=seen.append, on_ready=seen.append)
    caller.result()
    assert code == 0
    assert [type(message) for message in seen] == [Loading, Ready]
    assert list(runtime_dir.iterdir()) == []


def test_callers_hear_of_loading_before_ready(runtime_dir: Path) -> None:
    """Red if an engine that loads for minutes looks dead: it must answer with its phase meanwhile."""
    address = f"ipc://{runtime_dir}/e.sock"
    heard = threading.Event()

    def slow_build(settings, sink, on_loading):  # type: ignore[no-untyped-def]
        on_loading(Loading("weights", 0.25))
        assert heard.wait(WAIT_S)
        return build_sim(settings, sink, on_loading)

    async def script() -> None:
        transport = ZmqTransport(address, ping_s=0.05)
        async with started(transport) as recorder:
            await recorder.until(lambda: "weights 25%" in transport.status().detail)
            heard.set()
            await recorder.until(lambda: recorder.ready)

    caller = Caller(script)
    assert run_engine(SIM, address, build=slow_build) == 0
    caller.result()


def test_refusal_is_told_to_a_parent_and_raised_when_alone(runtime_dir: Path) -> None:
    """Red if a supervised engine exits before its parent has heard the reason, or `penstock engine`
    can't show it."""
    address = f"ipc://{runtime_dir}/e.sock"
    refused = EngineSettings(model="sim:refuse")

    async def script() -> None:
        transport = ZmqTransport(address, reconnect=False)
        async with started(transport) as recorder:
            await recorder.until(lambda: recorder.lost)
            assert isinstance(recorder.lost[0], ModelRefused)
            assert transport.status().state is State.REFUSED

    read_end, write_end = os.pipe()
    caller = Caller(script)
    assert run_engine(refused, address, read_end, build=build_sim) == 0
    caller.result()
    os.close(read_end)
    os.close(write_end)
    with pytest.raises(ModelRefused, match=r"9\.00 GiB"):
        run_engine(refused, address, build=build_sim)
    assert list(runtime_dir.iterdir()) == []


def test_sigterm_while_loading_ends_at_once(runtime_dir: Path) -> None:
    """Red if an engine can't be stopped before its model is loaded."""

    def endless_build(settings, sink, on_loading):  # type: ignore[no-untyped-def]
        terminate()
        threading.Event().wait(WAIT_S)
        raise AssertionError("not reached")

    assert run_engine(SIM, f"ipc://{runtime_dir}/e.sock", build=endless_build) == 0
    assert list(runtime_dir.iterdir()) == []


def test_hostile_and_early_messages_do_no_harm(runtime_dir: Path) -> None:
    """Red if bytes that are no message, extra frames, or a request sent before Ready end the engine or
    starve other callers."""
    address = f"ipc://{runtime_dir}/e.sock"
    sent_early = threading.Event()

    def waiting_build(settings, sink, on_loading):  # type: ignore[no-untyped-def]
        assert sent_early.wait(WAIT_S)
        return build_sim(settings, sink, on_loading)

    async def script() -> None:
        context = zmq.Context()
        rude = context.socket(zmq.DEALER)
        rude.linger = 0
        rude.rcvtimeo = int(WAIT_S * 1000)
        rude.connect(address)
        rude.send(encoder.encode(request("early")))
        rude.send(b"\xff\x00 no message")
        rude.send(b"")
        rude.send_multipart([b"two", b"frames"])
        rude.send(encoder.encode(Ping()))
        answers = [decode_from_engine(rude.recv()) for _ in range(2)]
        assert [type(answer) for answer in answers] == [Loading, Progress]
        sent_early.set()
        transport = ZmqTransport(address)
        async with started(transport) as recorder:
            await recorder.until(lambda: recorder.ready)
            transport.submit(request("r"))
            await recorder.until(lambda: recorder.finished("r"))
        rude.close()
        context.term()

    caller = Caller(script)
    assert run_engine(SIM, address, build=waiting_build) == 0
    caller.result()


def test_silence_drops_only_the_silent(runtime_dir: Path) -> None:
    """Red if silence is counted for all callers together, or a dropped caller is not told."""
    address = f"ipc://{runtime_dir}/e.sock"

    async def script() -> None:
        talking, mute = ZmqTransport(address, ping_s=0.05), ZmqTransport(address, ping_s=1.2)
        async with started(talking) as first, started(mute) as second:
            await first.until(lambda: first.ready)
            await second.until(lambda: second.ready)
            talking.submit(request("kept", max_tokens=1500))
            mute.submit(request("dropped", max_tokens=19_000))
            await second.until(lambda: second.lost)
            await second.until(lambda: len(second.ready) == 2)
            await first.until(lambda: first.finished("kept"))
            assert first.tokens("kept") == expected_tokens(10, 1500)
            assert first.lost == []

    caller = Caller(script)
    assert run_engine(SIM, address, build=build_sim, silence_s=0.4) == 0
    caller.result()


def test_shutdown_message_ends_the_engine(runtime_dir: Path) -> None:
    """Red if the Shutdown message is ignored."""
    address = f"ipc://{runtime_dir}/e.sock"

    async def script() -> None:
        transport = ZmqTransport(address)
        async with started(transport) as recorder:
            await recorder.until(lambda: recorder.ready)
            transport._send(Shutdown())
            await recorder.until(lambda: recorder.lost)

    caller = Caller(script, end=lambda: None)
    assert run_engine(SIM, address, build=build_sim) == 0
    caller.result()
