"""How busy a device of a fixed step time is kept, at asynchronous depth 0 and 1, in real time.

    python benchmarks/async_gap.py [--step-ms 5] [--running 64] [--steps 400]

The device is a thread that sleeps; what it shows is the host: at depth 0 planning and applying stand
between two steps, at depth 1 they happen during one. Busy is the device's own count: time inside
steps over time from the first step's start to the last one's end.
"""

from __future__ import annotations

import argparse
import time

import numpy as np

from penstock.decoding.params import TokenSampling
from penstock.engine.build import assemble_core
from penstock.engine.device_thread import DeviceThread, QueuedStep
from penstock.engine.messages import Delta, Submit, pack_tokens
from penstock.engine.plan import StepPlan, StepResult
from penstock.engine.shape import CoreShape
from penstock.kv.groups import LayerKV, plan_layout
from penstock.simulate.device import sim_tokens


class SleepDevice:
    """Runs one step at a time, each `step_s` long."""

    def __init__(self, step_s: float) -> None:
        self._step_s = step_s
        self._thread = DeviceThread(self._run)
        self.spans: list[tuple[float, float]] = []

    def launch(self, plan: StepPlan) -> QueuedStep:
        return self._thread.launch(plan)

    def close(self) -> None:
        self._thread.close()

    def _run(self, plan: StepPlan) -> StepResult:
        began = time.perf_counter()
        result = StepResult(step=plan.step, tokens=sim_tokens(plan))
        time.sleep(self._step_s - (time.perf_counter() - began))
        self.spans.append((began, time.perf_counter()))
        return result

    def busy(self) -> float:
        spans = self.spans[1:]  # the first one prefills
        return sum(end - start for start, end in spans) / (spans[-1][1] - spans[0][0])


def measure(depth: int, step_s: float, running: int, steps: int) -> tuple[float, dict[str, list[int]]]:
    """(busy share of the device, tokens of each request)."""
    tokens: dict[str, list[int]] = {}

    def sink(client: str, deltas: list[Delta]) -> None:
        for delta in deltas:
            tokens.setdefault(delta.id, []).extend(delta.tokens)

    shape = CoreShape(
        layout=plan_layout([LayerKV(1, 1)], 16, 1),
        num_blocks=running * (steps // 16 + 20),
        num_slots=running,
        max_context=steps + 300,
        token_budget=running * 300,
        async_depth=depth,
        max_queue=running,
        prefix_cache=True,
        namespace=b"bench",
    )
    device = SleepDevice(step_s)
    core = assemble_core(shape, device, sink, time.monotonic)
    rng = np.random.default_rng(0)
    for i in range(running):
        prompt = rng.integers(0, 30000, 200, np.int32)
        sampling = TokenSampling(max_tokens=steps, seed=0)
        core.submit("bench", Submit(id=str(i), tokens=pack_tokens(prompt), sampling=sampling))
    while core.has_work:
        core.step()
    core.close()
    return device.busy(), tokens


def main() -> None:
    raw = argparse.RawDescriptionHelpFormatter
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=raw)
    parser.add_argument("--step-ms", type=float, default=5.0)
    parser.add_argument("--running", type=int, default=64)
    parser.add_argument("--steps", type=int, default=400)
    options = parser.parse_args()
    answers = []
    for depth in (0, 1):
        busy, tokens = measure(depth, options.step_ms / 1e3, options.running, options.steps)
        answers.append(tokens)
        print(f"depth {depth}: device busy {busy:.2%}")
    print("identical tokens:", answers[0] == answers[1])


if __name__ == "__main__":
    main()
