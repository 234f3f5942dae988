"""Traces replayed in virtual time through the real scheduler and KV."""

from __future__ import annotations

from pathlib import Path

import msgspec
import pytest

from penstock.errors import ConfigError
from penstock.simulate.device import StepTime
from penstock.simulate.replay import ReplayReport, ReplaySettings, replay
from penstock.simulate.trace import MOONCAKE_BLOCK, TraceRequest, read_trace

SMALL = ReplaySettings(num_blocks=400, max_running=8, token_budget=256, max_context=2048)
TRACE = [TraceRequest(arrival_s=0.05 * i, input_len=40 + 7 * i, output_len=5 + i % 9) for i in range(60)]


def _without_wall_time(report: ReplayReport) -> ReplayReport:
    return msgspec.structs.replace(report, wall_s=0.0)


def test_every_token_of_a_trace_is_accounted_for():
    """Red if a replay loses requests or tokens, or charges the prompt twice."""
    report = replay(TRACE, SMALL, StepTime(fixed_s=0.01))
    assert report.failed == 0
    assert report.prompt_tokens == sum(r.input_len for r in TRACE)
    assert report.generated_tokens == sum(r.output_len for r in TRACE)
    assert report.virtual_s >= TRACE[-1].arrival_s
    assert 0 < report.ttft_p50_s <= report.ttft_p99_s


def test_a_replay_repeats_exactly():
    """Red if scheduling depends on real time, hash seeds or the order of a set."""
    first, second = (_without_wall_time(replay(TRACE, SMALL, StepTime(fixed_s=0.01))) for _ in range(2))
    assert first == second


def test_a_slower_device_is_slower_for_users():
    """Red if the virtual clock ignores the device's time."""
    fast, slow = (replay(TRACE, SMALL, StepTime(fixed_s=s)) for s in (0.01, 0.03))
    assert slow.itl_p50_s == pytest.approx(3 * fast.itl_p50_s, rel=0.2)
    assert slow.ttft_p99_s > fast.ttft_p99_s


@pytest.mark.parametrize(
    ("name", "text"), [("a.csv", "TIMESTAMP,Nothing\nx,y\n"), ("b.jsonl", '{"timestamp": "soon"}\n')]
)
def test_a_file_that_is_no_trace_is_refused_by_line(tmp_path: Path, name: str, text: str):
    """Red if a malformed trace is a traceback, or an empty replay."""
    path = tmp_path / name
    path.write_text(text)
    with pytest.raises(ConfigError, match="line"):
        read_trace(path)


def test_the_public_mooncake_trace_hits_what_an_endless_cache_would(shared_data: Path):
    """Red if prefix reuse over a real trace falls behind plain set arithmetic over its block ids."""
    trace = read_trace(shared_data / "traces" / "mooncake_fast25_conversation.jsonl")[:1000]
    settings = ReplaySettings(
        num_blocks=40_000, block_size=MOONCAKE_BLOCK, max_running=256, token_budget=32768, max_context=140_000
    )
    report = replay(trace, settings, StepTime(fixed_s=0.04))
    seen: set[int] = set()
    endless = 0
    for request in trace:
        full = request.block_ids[: (request.input_len - 1) // MOONCAKE_BLOCK]
        hits = next((i for i, block in enumerate(full) if block not in seen), len(full))
        endless += hits * MOONCAKE_BLOCK
        seen.update(request.block_ids)
    assert report.failed == 0
    # Less only where a prompt arrived while the one that it shares with was still being computed.
    assert 0.97 * endless <= report.cached_tokens <= endless


def test_the_public_azure_trace_replays_without_a_failure(shared_data: Path):
    """Red if a real arrival pattern wedges the scheduler."""
    trace = read_trace(shared_data / "traces" / "azure_llm_2023_conv.csv")[:1500]
    settings = ReplaySettings(num_blocks=20_000, token_budget=8192, max_context=16_384)
    report = replay(trace, settings, StepTime(fixed_s=0.04, per_token_s=5e-6))
    assert report.failed == 0
    assert report.generated_tokens == sum(r.output_len for r in trace)
