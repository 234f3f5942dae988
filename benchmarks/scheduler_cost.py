"""Host cost of one step: plan plus apply, per number of running requests, on a device that takes no time.

    python benchmarks/scheduler_cost.py [--context 2000] [--steps 400]

Prints the median and 99th percentile in microseconds. Prefix cache on, requests of `context` tokens
generating one token a step, so every sixteenth step of a request completes a block.
"""

from __future__ import annotations

import argparse
import statistics
import time

import numpy as np

from penstock.decoding.params import TokenSampling
from penstock.engine.messages import Submit, pack_tokens
from penstock.simulate.clock import VirtualClock
from penstock.simulate.device import StepTime
from penstock.simulate.replay import ReplaySettings, build_sim_core


def measure(running: int, context: int, steps: int) -> list[float]:
    """Seconds of each step of the steady state."""
    settings = ReplaySettings(
        num_blocks=running * (context + steps + 64) // 16 + running,
        max_running=running,
        token_budget=max(8192, running),
        max_context=context + steps + 64,
        async_depth=1,
    )
    core = build_sim_core(settings, VirtualClock(), StepTime(fixed_s=0.01), lambda client, deltas: None)
    rng = np.random.default_rng(0)
    for i in range(running):
        # Lengths differ so that block borders do not fall into one step.
        tokens = rng.integers(0, 30000, context - i % 16, np.int32)
        sampling = TokenSampling(max_tokens=steps + 40, seed=0, stop_token_ids=(2,))
        core.submit("bench", Submit(id=str(i), tokens=pack_tokens(tokens), sampling=sampling))
    while core.progress().generated_tokens < running:
        core.step()
    times = []
    for _ in range(steps):
        began = time.perf_counter()
        core.step()
        times.append(time.perf_counter() - began)
    return times


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--context", type=int, default=2000)
    parser.add_argument("--steps", type=int, default=400)
    options = parser.parse_args()
    print(f"{'running':>8} {'median us':>10} {'p99 us':>8} {'us/request':>11}")
    for running in (16, 64, 256, 1024):
        times = measure(running, options.context, options.steps)
        median = statistics.median(times) * 1e6
        print(
            f"{running:>8} {median:>10.0f} {np.percentile(times, 99) * 1e6:>8.0f} {median / running:>11.2f}"
        )


if __name__ == "__main__":
    main()
