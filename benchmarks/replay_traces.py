"""Replay public traces in virtual time through the real scheduler and KV, and say how fast that went.

    python benchmarks/replay_traces.py AZURE.csv MOONCAKE.jsonl

The step time is an assumption, stated in the output; the answer of interest here is the speed of
the host code: virtual seconds per real second.
"""

from __future__ import annotations

import argparse
from pathlib import Path

from penstock.simulate.device import StepTime
from penstock.simulate.replay import ReplaySettings, replay
from penstock.simulate.trace import MOONCAKE_BLOCK, read_trace


def settings_for(path: Path) -> tuple[ReplaySettings, StepTime]:
    """A pool and a device that carry the trace; Mooncake's unit of sharing is 512 tokens."""
    if path.suffix == ".jsonl":
        shape = ReplaySettings(
            num_blocks=6000,
            block_size=MOONCAKE_BLOCK,
            max_running=256,
            token_budget=32768,
            max_context=140_000,
        )
        return shape, StepTime(fixed_s=0.04, per_token_s=2e-6)
    shape = ReplaySettings(
        num_blocks=40_000, block_size=16, max_running=256, token_budget=8192, max_context=16_384
    )
    return shape, StepTime(fixed_s=0.06, per_token_s=5e-6)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("traces", nargs="+", type=Path)
    parser.add_argument("--limit", type=int, help="requests at most")
    options = parser.parse_args()
    for path in options.traces:
        settings, step_time = settings_for(path)
        report = replay(read_trace(path)[: options.limit], settings, step_time)
        print(f"{path.name}: step {step_time.fixed_s * 1e3:g} ms + {step_time.per_token_s * 1e6:g} us/token")
        print(
            f"  {report.requests} requests, {report.failed} failed, {report.steps} steps, "
            f"{report.preemptions} preemptions\n"
            f"  tokens: prompt {report.prompt_tokens}, cached {report.cached_tokens}, "
            f"generated {report.generated_tokens}\n"
            f"  TTFT p50 {report.ttft_p50_s:.3f} s, p99 {report.ttft_p99_s:.3f} s; "
            f"ITL p50 {report.itl_p50_s * 1e3:.1f} ms, p99 {report.itl_p99_s * 1e3:.1f} ms; "
            f"device busy {report.device_busy_rate:.1%}\n"
            f"  {report.virtual_s:.0f} virtual s in {report.wall_s:.1f} s: {report.speedup:.0f} x real time"
        )


if __name__ == "__main__":
    main()
