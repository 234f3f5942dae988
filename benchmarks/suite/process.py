"""An engine as a process that answers JSON lines (benchmarks/peers/peer.py is the other end).

Whoever is not being asked is stopped (SIGSTOP): an idle engine that polls or spins takes nothing from
the one that is measured.
"""

from __future__ import annotations

import ctypes
import http.client
import json
import os
import select
import signal
import socket
import subprocess
import time
from dataclasses import dataclass, field
from pathlib import Path
from typing import IO

from suite.catalogue import PEERS, Engine, EngineFailure, as_folder, environment

LOAD_LIMIT_S = 600  # vLLM takes minutes
LIBC = ctypes.CDLL(None)
PR_SET_PDEATHSIG = 1


def _die_with_the_suite() -> None:
    """In the child, before it becomes the engine: a stopped process would never notice that its pipe is
    closed, so the kernel kills it when the suite dies (Linux, prctl(2))."""
    LIBC.prctl(PR_SET_PDEATHSIG, signal.SIGKILL)


@dataclass
class Launch:
    """What every engine gets alike."""

    model: Path
    cache: Path
    threads: int
    kv_tokens: int  # the KV pool must hold so many
    kv_elements_per_token: int
    limit_s: float  # of one command

    def variables(self) -> dict[str, str]:
        names = ("OMP_NUM_THREADS", "OPENBLAS_NUM_THREADS", "MKL_NUM_THREADS", "RAYON_NUM_THREADS")
        return {**os.environ, **{name: str(self.threads) for name in names}}


class EngineProcess:
    """Started, loaded and stopped when the constructor returns. EngineFailure with the reason otherwise."""

    def __init__(self, engine: Engine, launch: Launch) -> None:
        self.engine, self._launch = engine, launch
        python = environment(engine, launch.cache)
        source = as_folder(launch.model, launch.cache) if engine.needs_folder else launch.model
        with (launch.cache / f"{engine.name}.log").open("w") as log:
            began = time.perf_counter()
            self._process = subprocess.Popen(
                [str(python), str(PEERS / engine.script)],
                stdin=subprocess.PIPE,
                stdout=subprocess.PIPE,
                stderr=log,
                text=True,
                cwd=launch.cache,
                env=launch.variables(),
                start_new_session=True,
                preexec_fn=_die_with_the_suite,  # noqa: PLW1509  # the suite has one thread
            )
        try:
            self.loaded = self.ask(
                LOAD_LIMIT_S,
                do="load",
                model=str(source),
                threads=launch.threads,
                kv_tokens=launch.kv_tokens,
                kv_elements_per_token=launch.kv_elements_per_token,
                options=engine.options,
            )
            self.ask(do="run", prompts=[[1, 2, 3, 4, 5]], output_len=1)
        except EngineFailure:
            self.kill()
            raise
        self.ready_s = time.perf_counter() - began

    def ask(self, limit_s: float | None = None, **message: object) -> dict:
        """One command. EngineFailure with the engine's own reason; an engine that gives no answer within
        the limit is killed."""
        assert self._process.stdin and self._process.stdout
        limit_s = limit_s or self._launch.limit_s
        self._signal(signal.SIGCONT)
        try:
            self._process.stdin.write(json.dumps(message) + "\n")
            self._process.stdin.flush()
            line = _read_line(self._process.stdout, limit_s)
        except BrokenPipeError:
            line = ""
        except TimeoutError:
            self.kill()
            raise EngineFailure(f"no answer within {limit_s:g} s") from None
        finally:
            self._signal(signal.SIGSTOP)
        if not line:
            self._signal(signal.SIGCONT)
            raise EngineFailure(f"the process ended with status {self._process.wait()}; see its log")
        answer = json.loads(line)
        if not answer["ok"]:
            raise EngineFailure(answer["error"])
        return answer

    @property
    def alive(self) -> bool:
        return self._process.poll() is None

    def close(self) -> None:
        """Let it end by itself; kill it after 20 s."""
        if not self.alive:
            return
        self._signal(signal.SIGCONT)
        assert self._process.stdin
        self._process.stdin.close()
        try:
            self._process.wait(timeout=20)
        except subprocess.TimeoutExpired:
            self.kill()

    def kill(self) -> None:
        self._signal(signal.SIGKILL)
        self._process.wait()

    def _signal(self, number: int) -> None:
        if self.alive:
            os.killpg(self._process.pid, number)


def _read_line(stream: IO[str], limit_s: float) -> str:
    """One question, one line: nothing is left in the stream's buffer between calls."""
    if not select.select([stream], [], [], limit_s)[0]:
        raise TimeoutError
    return stream.readline()


@dataclass
class Server:
    """An engine's HTTP server as a child process, on a free loopback port."""

    engine: Engine
    launch: Launch
    arguments: tuple[str, ...] = ()
    port: int = field(default=0, init=False)

    def start(self) -> float:
        """Seconds from the process's start to the first token over HTTP. EngineFailure if none comes."""
        python = environment(self.engine, self.launch.cache)
        self.port = _free_port()
        given = {"model": self.launch.model, "port": self.port, "threads": self.launch.threads}
        command = [str(python), *(part.format(**given) for part in self.engine.server), *self.arguments]
        with (self.launch.cache / f"{self.engine.name}-server.log").open("w") as log:
            began = time.perf_counter()
            self._process = subprocess.Popen(
                command,
                stdout=log,
                stderr=log,
                cwd=self.launch.cache,
                env=self.launch.variables(),
                start_new_session=True,
                preexec_fn=_die_with_the_suite,  # noqa: PLW1509  # the suite has one thread
            )
        try:
            self._first_token(began + LOAD_LIMIT_S)
        except EngineFailure:
            self.stop()
            raise
        return time.perf_counter() - began

    def _first_token(self, until: float) -> None:
        body = {"prompt": "Once upon a time", "max_tokens": 1, "temperature": 0, "stream": True}
        model = None
        while time.perf_counter() < until:
            if self._process.poll() is not None:
                raise EngineFailure(f"the server ended with status {self._process.returncode}; see its log")
            try:
                model = model or self.get("/v1/models")["data"][0]["id"]
                connection = http.client.HTTPConnection("127.0.0.1", self.port, timeout=60)
                text = json.dumps({**body, "model": model})
                connection.request("POST", "/v1/completions", text, {"content-type": "application/json"})
                answer = connection.getresponse()
                if answer.status == 200 and answer.readline().startswith(b"data:"):
                    self.model = model
                    return
            except (OSError, http.client.HTTPException, LookupError, ValueError):
                pass  # not listening yet, or still loading: that is what is being timed
            time.sleep(0.005)
        raise EngineFailure(f"no token over HTTP within {LOAD_LIMIT_S} s")

    def get(self, path: str) -> dict:
        """A JSON answer; ValueError for any status but 200."""
        return json.loads(self.get_text(path))

    def get_text(self, path: str) -> str:
        connection = http.client.HTTPConnection("127.0.0.1", self.port, timeout=10)
        connection.request("GET", path)
        answer = connection.getresponse()
        text = answer.read().decode()
        if answer.status != 200:
            raise ValueError(f"{path}: HTTP {answer.status}")
        return text

    def resident_bytes(self) -> dict[str, int]:
        """Of the server and all its descendants: rss (shared pages counted in each) and pss (divided)."""
        found = {"processes": 0, "rss": 0, "pss": 0}
        for pid in _family(self._process.pid):
            try:
                rows = Path(f"/proc/{pid}/smaps_rollup").read_text().splitlines()
            except OSError:
                continue  # it has just ended
            values = {row.split(":")[0]: int(row.split()[1]) * 1024 for row in rows[1:]}
            found = {
                "processes": found["processes"] + 1,
                "rss": found["rss"] + values["Rss"],
                "pss": found["pss"] + values["Pss"],
            }
        return found

    def cpu_s(self) -> float:
        """CPU seconds that the server and its descendants have used."""
        ticks = 0
        for pid in _family(self._process.pid):
            try:
                fields = Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()
            except OSError:
                continue
            ticks += int(fields[11]) + int(fields[12])
        return ticks / os.sysconf("SC_CLK_TCK")

    def stop(self) -> None:
        if self._process.poll() is None:
            self._process.terminate()
            try:
                self._process.wait(timeout=20)
            except subprocess.TimeoutExpired:
                os.killpg(self._process.pid, signal.SIGKILL)
                self._process.wait()


def _family(ancestor: int) -> list[int]:
    """A process and its descendants, whatever sessions they are in."""
    children: dict[int, list[int]] = {}
    for folder in Path("/proc").iterdir():
        if not folder.name.isdigit():
            continue
        try:
            parent = int((folder / "stat").read_text().rpartition(")")[2].split()[1])
        except OSError:
            continue
        children.setdefault(parent, []).append(int(folder.name))
    found = [ancestor]
    for pid in found:  # grows while it is read
        found += children.get(pid, [])
    return found


def _free_port() -> int:
    with socket.socket() as listener:
        listener.bind(("127.0.0.1", 0))
        return int(listener.getsockname()[1])
