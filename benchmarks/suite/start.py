"""Ready time: from the start of a process to its first token, files warm in the page cache, alternating."""

from __future__ import annotations

import sys

from suite.alternate import Measured
from suite.catalogue import Engine, EngineFailure
from suite.process import EngineProcess, Launch, Server

KV_TOKENS = 16384  # a small pool: allocating a large one is not what is being timed


def measure_ready(engines: list[Engine], launch: Launch, measured: dict[str, Measured], repeats: int) -> None:
    """In its own process for every engine; over HTTP for those with a server."""
    small = Launch(
        launch.model, launch.cache, launch.threads, KV_TOKENS, launch.kv_elements_per_token, launch.limit_s
    )
    for _ in range(repeats):
        for engine in engines:
            row = measured[engine.name]
            if row.unavailable or "ready" in row.errors:
                continue
            try:
                process = EngineProcess(engine, small)
                process.close()
                row.ready_s.append(process.ready_s)
                if engine.server:
                    server = Server(engine, small)
                    row.http_ready_s.append(server.start())
                    server.stop()
            except EngineFailure as failure:
                row.errors["ready"] = str(failure)
            http = f", over HTTP {row.http_ready_s[-1]:.2f} s" if row.http_ready_s else ""
            print(f"ready {engine.name}: {row.ready_s[-1:]} s{http}", file=sys.stderr)
