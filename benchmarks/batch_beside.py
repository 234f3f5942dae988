"""Calls beside a batch: what a request that comes waits for, in engine steps and in milliseconds.

    python benchmarks/batch_beside.py --model smollm2 --lines 400 --calls 12

One engine in this process, the real runner over a SQLite file. Calls come one after the other, with a short
and a long prompt that no cache holds, first alone, then while the batch runs. Steps are those that the engine
completed between a call's submission and its first token. Printed is one JSON object.
"""

from __future__ import annotations

import argparse
import asyncio
import itertools
import json
import statistics
import tempfile
import time
from typing import Any

from penstock.call import Call, Message, TextDelta, TextPart
from penstock.config import EngineSettings
from penstock.engine.inprocess import InProcessTransport
from penstock.engine.service import EngineService
from penstock.gateway.batches.answer import Answerer
from penstock.gateway.batches.runner import BatchRunner
from penstock.gateway.batches.service import BatchService
from penstock.gateway.sessions import Sessions
from penstock.observe.metrics import Metrics
from penstock.sampling_params import SamplingParams
from penstock.store.opening import LazyBatches, LazyDatabase, LazyTurns
from penstock.store.records import NewLine
from penstock.wire import openai_chat

PROMPTS = {"short": 4, "long": 100}  # words, of about five tokens each
ANSWER = 24  # tokens of a call


def _text(words: int, number: int) -> str:
    return " ".join(f"word{(number * 7919 + i * 31) % 9973}" for i in range(words))


async def _call(service: EngineService, words: int, number: int) -> dict[str, float]:
    """Steps and ms until the first token; ms between the others."""
    message = Message("user", (TextPart(_text(words, number)),))
    sampling = SamplingParams(max_tokens=ANSWER, temperature=0.0, ignore_eos=True)
    call = Call(kind="chat", model=service.name, messages=(message,), sampling=sampling, stream=True)
    steps, began = service.health().steps, time.perf_counter()
    times: list[float] = []
    first_steps = 0
    async for event in service.stream(call, f"call-{number}"):
        if isinstance(event, TextDelta) and event.token_ids:
            first_steps = first_steps or service.health().steps - steps
            times.append(time.perf_counter())
    gaps = [after - before for before, after in itertools.pairwise(times)]
    return {
        "steps": first_steps,
        "ttft_ms": 1000 * (times[0] - began),
        "gap_ms": 1000 * statistics.median(gaps),
        "longest_gap_ms": 1000 * max(gaps),
    }


async def _calls(service: EngineService, count: int, first: int) -> dict[str, dict[str, float]]:
    """The worst number of steps, medians of the rest, by length of the prompt."""
    found = {}
    for name, words in PROMPTS.items():
        runs = [await _call(service, words, first + i) for i in range(count)]
        found[name] = {
            "most_steps": max(run["steps"] for run in runs),
            **{
                field: round(statistics.median(run[field] for run in runs), 1)
                for field in ("steps", "ttft_ms", "gap_ms", "longest_gap_ms")
            },
        }
        first += count
    return found


def _line(service: EngineService, number: int) -> NewLine:
    body = {
        "model": service.name,
        "messages": [{"role": "user", "content": _text(16, 100_000 + number)}],
        "max_tokens": 64,
        "ignore_eos": True,
    }
    return NewLine(f"r{number}", json.dumps(body))


async def _measure(arguments: argparse.Namespace, folder: str) -> dict[str, Any]:
    settings = EngineSettings(
        model=arguments.model,
        threads=arguments.threads,
        max_running=64,
        kv_bytes=256 * 2**20,
        batch_step_s=arguments.step_s,
    )
    service = EngineService(settings, InProcessTransport)
    await service.start()
    await service.wait_ready()
    database = LazyDatabase(f"sqlite:///{folder}/store.db")
    store = LazyBatches(database)
    answer = Answerer(service, Sessions(service, LazyTurns(database)), {openai_chat.PATH: openai_chat})
    runner = BatchRunner(store, answer, Metrics(), in_flight=64, lease_s=10.0)
    batches = BatchService(store, runner, [openai_chat.PATH])
    try:
        await _calls(service, 2, 0)  # costs are measured, pages are touched
        alone = await _calls(service, arguments.calls, 1000)
        lines = [_line(service, i) for i in range(arguments.lines)]
        made = await batches.create("", openai_chat.PATH, service.name, lines)
        while service.health().running < 16:
            await asyncio.sleep(0.05)
        began, steps = time.perf_counter(), service.health().steps
        beside = await _calls(service, arguments.calls, 5000)
        seconds = time.perf_counter() - began
        state = await batches.get("", "anthropic", made.id)
        return {
            "alone": alone,
            "beside": beside,
            "most_steps_longer": max(
                beside[name]["most_steps"] - alone[name]["most_steps"] for name in PROMPTS
            ),
            "batch": {
                "still_ran": state.is_open,
                "running": service.health().running,
                "in_flight_limit": runner._places.limit,
                "lines_done": state.counts.get("succeeded", 0),
                "steps_per_s": round((service.health().steps - steps) / seconds, 1),
            },
        }
    finally:
        await runner.close()
        await service.close()
        await database.close()


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawTextHelpFormatter)
    parser.add_argument("--model", default="smollm2")
    parser.add_argument("--threads", type=int, default=None)
    parser.add_argument("--lines", type=int, default=400)
    parser.add_argument("--calls", type=int, default=12)
    parser.add_argument("--step-s", type=float, default=EngineSettings().batch_step_s)
    arguments = parser.parse_args()
    with tempfile.TemporaryDirectory() as folder:
        print(json.dumps(asyncio.run(_measure(arguments, folder)), indent=1))


if __name__ == "__main__":
    main()
