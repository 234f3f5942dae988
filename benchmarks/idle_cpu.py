"""Idle CPU of a server: gateway side and engine process together, with a model loaded and nothing to do.

    python benchmarks/idle_cpu.py [MODEL] [--seconds 30]

Prints one line of JSON: share of one core per process and in sum, over the measured time. The goal is
under 1 % of a core for both together. A request runs before the measurement, so that what it starts
(threads, timers) is counted.
"""

from __future__ import annotations

import argparse
import asyncio
import json
import os
import platform
import time

import psutil

from penstock.call import Call, SamplingParams
from penstock.config import EngineSettings
from penstock.engine.service import EngineService
from penstock.engine.supervisor import SupervisedTransport


def cpu_seconds(process: psutil.Process) -> float:
    """User and system seconds of all its threads so far."""
    times = process.cpu_times()
    return float(times.user + times.system)


async def measure(model: str, seconds: float, kv_bytes: int) -> dict[str, object]:
    transports: list[SupervisedTransport] = []

    def start(settings: EngineSettings) -> SupervisedTransport:
        transports.append(SupervisedTransport(settings))
        return transports[0]

    service = EngineService(EngineSettings(model=model, kv_bytes=kv_bytes), start)
    try:
        await service.start()
        await service.wait_ready()
        sampling = SamplingParams(max_tokens=4, ignore_eos=True)
        call = Call(kind="completion", model=model, prompts=("Hello",), sampling=sampling)
        async for _ in service.stream(call, "warm-up"):
            pass
        pid = transports[0].pid
        assert pid is not None
        processes = {"gateway": psutil.Process(os.getpid()), "engine": psutil.Process(pid)}
        before = {name: cpu_seconds(process) for name, process in processes.items()}
        started = time.monotonic()
        await asyncio.sleep(seconds)
        wall_s = time.monotonic() - started
        after = {name: cpu_seconds(process) for name, process in processes.items()}
    finally:
        await service.close()
    share = {name: (after[name] - before[name]) / wall_s for name in processes}
    return {
        "model": model,
        "seconds": round(wall_s, 1),
        "core_share": {name: round(value, 5) for name, value in share.items()},
        "core_share_sum": round(sum(share.values()), 5),
        "machine": f"{platform.machine()}, {os.cpu_count()} processors, Python {platform.python_version()}",
    }


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("model", nargs="?", default="smollm2")
    parser.add_argument("--seconds", type=float, default=30.0)
    parser.add_argument("--kv-bytes", type=int, default=256 << 20)
    options = parser.parse_args()
    print(json.dumps(asyncio.run(measure(options.model, options.seconds, options.kv_bytes))))


if __name__ == "__main__":
    main()
