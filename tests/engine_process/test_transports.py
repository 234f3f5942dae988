"""One behaviour, three transports: an engine in a thread, in a supervised process, in one standing alone."""

from __future__ import annotations

import asyncio
import os
import signal
import subprocess
import sys
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from pathlib import Path

import msgspec
import psutil
import pytest

from penstock.config import EngineSettings
from penstock.decoding.params import TokenSampling
from penstock.engine import sockets
from penstock.engine.client import ZmqTransport
from penstock.engine.inprocess import InProcessTransport
from penstock.engine.messages import Delta, Progress, Ready, Submit, pack_tokens
from penstock.engine.supervisor import SupervisedTransport
from penstock.engine.transport import State, Transport
from penstock.errors import ConfigError, EngineUnavailable, ModelRefused, PenstockError
from support.sim_engine import build_sim, expected_tokens

SIM = str(Path(__file__).parents[1] / "support" / "sim_engine.py")
WAIT_S = 60.0  # generous: the machine may be busy with other tests


class Recorder:
    """A Listener that remembers, and whose `until` waits for what it remembers."""

    def __init__(self) -> None:
        self.ready: list[Ready] = []
        self.lost: list[PenstockError] = []
        self.progress = Progress()
        self.deltas: dict[str, list[Delta]] = {}
        self._changed = asyncio.Event()

    def on_ready(self, ready: Ready) -> None:
        self.ready.append(ready)
        self._changed.set()

    def on_deltas(self, deltas: list[Delta]) -> None:
        for delta in deltas:
            self.deltas.setdefault(delta.id, []).append(delta)
        self._changed.set()

    def on_progress(self, progress: Progress) -> None:
        self.progress = progress
        self._changed.set()

    def on_lost(self, error: PenstockError) -> None:
        self.lost.append(error)
        self._changed.set()

    def tokens(self, request_id: str) -> list[int]:
        return [token for delta in self.deltas.get(request_id, ()) for token in delta.tokens]

    def finished(self, request_id: str) -> bool:
        return any(delta.finish for delta in self.deltas.get(request_id, ()))

    async def until(self, condition) -> None:  # type: ignore[no-untyped-def]
        async with asyncio.timeout(WAIT_S):
            while not condition():
                self._changed.clear()
                await self._changed.wait()


def request(request_id: str, prompt_len: int = 10, max_tokens: int = 20) -> Submit:
    sampling = TokenSampling(max_tokens=max_tokens, seed=1, temperature=0.0)
    return Submit(id=request_id, tokens=pack_tokens(list(range(prompt_len))), sampling=sampling)


def settings(model: str = "sim:step_ms=1") -> EngineSettings:
    return EngineSettings(model=model)


def supervised(model: str = "sim:step_ms=1") -> SupervisedTransport:
    return SupervisedTransport(settings(model), command=(sys.executable, SIM), first_pause_s=0.01)


@asynccontextmanager
async def started(transport: Transport) -> AsyncIterator[Recorder]:
    recorder = Recorder()
    await transport.start(recorder)
    try:
        yield recorder
    finally:
        await transport.close()


class Alone:
    """An engine process without a parent, as `penstock engine` runs it."""

    def __init__(self, folder: Path, silence_s: float = 5.0) -> None:
        self.address = f"ipc://{folder}/alone.sock"
        code = (
            "import sys; from penstock.config import EngineSettings;"
            "from penstock.engine.process import run_engine; from support.sim_engine import build_sim;"
            f"sys.exit(run_engine(EngineSettings(model='sim:step_ms=1'), {self.address!r},"
            f" build=build_sim, silence_s={silence_s}))"
        )
        self.process = subprocess.Popen([sys.executable, "-c", code])

    def __enter__(self) -> Alone:
        return self

    def __exit__(self, *_: object) -> None:
        if self.process.poll() is None:
            self.process.kill()
        self.process.wait()


@pytest.fixture(params=["thread", "supervised", "alone"])
def transport(request: pytest.FixtureRequest, runtime_dir: Path):  # type: ignore[no-untyped-def]
    if request.param == "thread":
        yield InProcessTransport(settings(), build=build_sim)
    elif request.param == "supervised":
        yield supervised()
    else:
        with Alone(runtime_dir) as alone:
            yield ZmqTransport(alone.address)


async def test_every_transport_delivers_the_same_tokens(transport: Transport) -> None:
    """Red if a transport loses, repeats or reorders deltas, or does not report that it is ready."""
    async with started(transport) as seen:
        await seen.until(lambda: seen.ready)
        for i in range(20):
            transport.submit(request(f"r{i}", prompt_len=5 + i, max_tokens=30 + i))
        await seen.until(lambda: all(seen.finished(f"r{i}") for i in range(20)))
        for i in range(20):
            assert seen.tokens(f"r{i}") == expected_tokens(5 + i, 30 + i)
        await seen.until(lambda: seen.progress.running == 0 and seen.progress.finished == 20)


async def test_abort_frees_the_slot(transport: Transport) -> None:
    """Red if an abort is lost on its way: the request would run on for 15,000 tokens."""
    async with started(transport) as seen:
        await seen.until(lambda: seen.ready)
        transport.submit(request("long", max_tokens=15_000))
        await seen.until(lambda: seen.tokens("long"))
        transport.abort("long")
        await seen.until(lambda: seen.progress.finished == 1)
        assert seen.progress.kv_blocks_owned == 0
        assert seen.progress.generated_tokens < 15_000


async def test_submit_before_ready_is_unavailable(transport: Transport) -> None:
    """Red if a request sent while the model loads is swallowed instead of answered 503."""
    async with started(transport):
        with pytest.raises(EngineUnavailable):
            transport.submit(request("early"))


async def test_refused_model_gives_the_reason() -> None:
    """Red if the reason and the numbers of a refusal get lost between the processes, or if the
    supervisor starts the refused model again and again."""
    for transport in (supervised("sim:refuse"), InProcessTransport(settings("sim:refuse"), build=build_sim)):
        async with started(transport) as seen:
            await seen.until(lambda seen=seen: seen.lost)
            assert isinstance(seen.lost[0], ModelRefused)
            assert "9.00 GiB" in seen.lost[0].message
            assert transport.status().state is State.REFUSED
            assert "9.00 GiB" in transport.status().detail


async def test_kill_of_the_engine_is_reported_and_mended(runtime_dir: Path) -> None:
    """Red if a dead engine is not noticed, not restarted, or its orphaned requests never fail."""
    transport = supervised()
    async with started(transport) as seen:
        await seen.until(lambda: seen.ready)
        for i in range(32):
            transport.submit(request(f"r{i}", max_tokens=15_000))
        await seen.until(lambda: all(seen.tokens(f"r{i}") for i in range(32)))
        assert transport.pid is not None
        os.kill(transport.pid, signal.SIGKILL)
        await seen.until(lambda: seen.lost)
        assert transport.status().state is State.STARTING
        assert isinstance(seen.lost[0], EngineUnavailable)
        assert seen.lost[0].retry_after_s
        await seen.until(lambda: len(seen.ready) == 2)
        assert transport.status().restarts == 1
        assert len(seen.lost) == 1
        transport.submit(request("next"))
        await seen.until(lambda: seen.finished("next"))
        assert seen.tokens("next") == expected_tokens(10, 20)
    assert list(runtime_dir.iterdir()) == []
    assert psutil.Process().children(recursive=True) == []


async def test_a_start_that_fails_once_is_tried_again(tmp_path: Path) -> None:
    """Red if a death while loading ends the service for good."""
    transport = supervised(f"sim:die_once={tmp_path}/died")
    async with started(transport) as seen:
        await seen.until(lambda: seen.ready)
        assert transport.status().restarts == 1


async def test_a_start_that_always_fails_is_given_up_with_the_last_words() -> None:
    """Red if a broken start loops for ever, or the reason on stderr is not shown."""
    transport = supervised("sim:die")
    async with started(transport) as seen:
        await seen.until(lambda: seen.lost)
        assert transport.status().state is State.REFUSED
        assert "out of luck" in transport.status().detail
        assert "5 times" in transport.status().detail


async def test_close_while_loading_leaves_nothing(runtime_dir: Path) -> None:
    """Red if closing before the engine is ready leaves its process or socket."""
    transport = supervised()
    async with started(transport):
        pass
    assert list(runtime_dir.iterdir()) == []
    assert psutil.Process().children(recursive=True) == []


async def test_engine_dies_with_its_parent_and_removes_its_socket(tmp_path: Path, runtime_dir: Path) -> None:
    """Red if `kill -9` of a gateway leaves its engine running, even in the middle of a long step,
    or leaves the socket's folder."""
    gateway = tmp_path / "gateway.py"
    gateway.write_text(
        "import asyncio, sys\n"
        "from penstock.config import EngineSettings\n"
        "from penstock.engine.supervisor import SupervisedTransport\n"
        "from engine_process.test_transports import Recorder, request, supervised\n"
        "async def main():\n"
        "    transport = supervised('sim:step_ms=100000')\n"
        "    seen = Recorder()\n"
        "    await transport.start(seen)\n"
        "    await seen.until(lambda: seen.ready)\n"
        "    transport.submit(request('long'))\n"
        "    print(transport.pid, flush=True)\n"
        "    await asyncio.Event().wait()\n"
        "asyncio.run(main())\n"
    )
    process = await asyncio.create_subprocess_exec(
        sys.executable, str(gateway), stdout=asyncio.subprocess.PIPE
    )
    assert process.stdout is not None
    engine = psutil.Process(int(await asyncio.wait_for(process.stdout.readline(), WAIT_S)))
    process.kill()
    await process.wait()
    await asyncio.to_thread(psutil.wait_procs, [engine], WAIT_S)
    assert not engine.is_running()
    assert list(runtime_dir.iterdir()) == []


async def test_engine_alone_outlives_callers_and_drops_their_requests(runtime_dir: Path) -> None:
    """Red if a stand-alone engine ends with a gateway, keeps the requests of one that fell silent,
    or drops those of another that did not."""
    with Alone(runtime_dir, silence_s=1.5) as alone:
        async with started(ZmqTransport(alone.address, ping_s=0.2)) as living:
            await living.until(lambda: living.ready)
            mute = ZmqTransport(alone.address, ping_s=3600.0)
            async with started(mute) as dead:
                await dead.until(lambda: dead.ready)
                mute.submit(request("orphan", max_tokens=19_000))
                await dead.until(lambda: dead.tokens("orphan"))
            await living.until(lambda: living.progress.finished == 1)
            assert living.progress.kv_blocks_owned == 0
            assert living.progress.generated_tokens < 19_000
            assert living.lost == []
            assert alone.process.poll() is None


async def test_a_caller_that_was_stopped_hears_that_its_requests_are_gone(runtime_dir: Path) -> None:
    """Red if a caller that missed its pings waits for ever for requests that the engine dropped."""
    with Alone(runtime_dir, silence_s=0.5) as alone:
        transport = ZmqTransport(alone.address, ping_s=3.0)
        async with started(transport) as seen:
            await seen.until(lambda: seen.ready)
            transport.submit(request("dropped", max_tokens=19_000))
            await seen.until(lambda: seen.lost)
            assert isinstance(seen.lost[0], EngineUnavailable)
            await seen.until(lambda: len(seen.ready) == 2)


async def test_caller_survives_the_restart_of_an_engine_alone(runtime_dir: Path) -> None:
    """Red if a gateway does not find an engine again that was restarted at its address, or if the
    dead engine's socket file keeps the new one from starting."""
    with Alone(runtime_dir) as first:
        transport = ZmqTransport(first.address)
        async with started(transport) as seen:
            await seen.until(lambda: seen.ready)
            transport.submit(request("r", max_tokens=19_000))
            await seen.until(lambda: seen.tokens("r"))
            first.process.kill()
            await seen.until(lambda: seen.lost)
            assert transport.status().state is State.STARTING
            with Alone(runtime_dir):
                await seen.until(lambda: len(seen.ready) == 2)
                transport.submit(request("again"))
                await seen.until(lambda: seen.finished("again"))
                assert transport.status().restarts == 1


@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGINT])
async def test_signal_ends_an_engine_alone_cleanly(runtime_dir: Path, number: signal.Signals) -> None:
    """Red if SIGTERM or Ctrl-C leaves the socket file, or ends with a status other than 0."""
    with Alone(runtime_dir) as alone:
        transport = ZmqTransport(alone.address)
        async with started(transport) as seen:
            await seen.until(lambda: seen.ready)
            transport.submit(request("r", max_tokens=19_000))
            await seen.until(lambda: seen.tokens("r"))
            alone.process.send_signal(number)
            await seen.until(lambda: seen.lost)
        assert await asyncio.to_thread(alone.process.wait, WAIT_S) == 0
        assert list(runtime_dir.iterdir()) == []


async def test_ctrl_c_does_not_reach_a_supervised_engine() -> None:
    """Red if a terminal's SIGINT ends the engine before the gateway has drained."""
    transport = supervised()
    async with started(transport) as seen:
        await seen.until(lambda: seen.ready)
        assert transport.pid is not None
        assert os.getsid(transport.pid) != os.getsid(0)
        os.kill(transport.pid, signal.SIGINT)
        transport.submit(request("r"))
        await seen.until(lambda: seen.finished("r"))


async def test_address_of_a_live_engine_is_not_taken_over(runtime_dir: Path) -> None:
    """Red if a second engine binds the socket under the first: libzmq would do it without a word."""
    with Alone(runtime_dir) as alone:
        async with started(ZmqTransport(alone.address)) as seen:
            await seen.until(lambda: seen.ready)
            with pytest.raises(ConfigError, match="in use"):
                sockets.claim(alone.address)


def test_stale_folders_are_removed_and_live_ones_kept(runtime_dir: Path) -> None:
    """Red if folders of killed gateways pile up, or a running one's folder is deleted."""
    code = (
        "import os, signal; from penstock.engine.sockets import SocketDir; d = SocketDir();"
        "print(d.path, flush=True); os.kill(os.getpid(), signal.SIGKILL)"
    )
    killed = subprocess.run([sys.executable, "-c", code], check=False, capture_output=True, text=True)
    stale = Path(killed.stdout.strip())
    assert stale.is_dir()
    mine = sockets.SocketDir()
    assert not stale.exists()
    other = sockets.SocketDir()
    assert mine.path.is_dir()
    assert mine.path.stat().st_mode & 0o777 == 0o700
    for folder in (mine, other):
        folder.remove()
    assert list(runtime_dir.iterdir()) == []


def test_folder_that_others_can_write_is_refused(tmp_path: Path) -> None:
    """Red if a socket is put where another user could replace it."""
    shared = tmp_path / "shared"
    shared.mkdir()
    shared.chmod(0o777)
    with pytest.raises(ConfigError, match="0700"):
        sockets.claim(f"ipc://{shared}/engine.sock")


def test_settings_cross_the_process_border_unchanged() -> None:
    """Red if a settings field can't be sent as JSON to the engine process."""
    given = EngineSettings(model="m", tenant_weights={"a": 2.0}, max_context=7, kv_bytes=123)
    assert msgspec.json.decode(msgspec.json.encode(given), type=EngineSettings) == given


def test_socket_folder_is_short_enough(
    tmp_path: Path, runtime_dir: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Red if a long XDG_RUNTIME_DIR or TMPDIR keeps the engine from starting."""
    deep = tmp_path / ("d" * 90)
    deep.mkdir()
    monkeypatch.setenv("XDG_RUNTIME_DIR", str(deep))
    monkeypatch.setattr("tempfile.tempdir", str(deep))
    assert sockets.runtime_base() == Path("/tmp")
    monkeypatch.setenv("XDG_RUNTIME_DIR", str(runtime_dir))
    assert sockets.runtime_base() == runtime_dir
    with pytest.raises(ConfigError, match="103"):
        sockets.claim(f"ipc://{deep}/{'e' * 30}.sock")
