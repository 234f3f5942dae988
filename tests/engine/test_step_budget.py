"""How far a prompt may slow down the streams beside it."""

from __future__ import annotations

import msgspec
import numpy as np
import pytest
from bench_core import CoreBench, expected_tokens
from hash_device import HashDevice

from penstock.engine.step_budget import CROWD, LEAST, STALL, StepBudget

FIXED_S, TOKEN_S = 0.004, 0.0005  # of a step, of each of its tokens


def _cost(tokens: int) -> float:
    return FIXED_S + TOKEN_S * tokens


def _measured(most: int = 512) -> StepBudget:
    budget = StepBudget(most)
    budget.observe(np.ones(32, np.int32), _cost(32))
    budget.observe(np.array([1] * 32 + [100]), _cost(132))
    return budget


def test_without_streams_or_prompts_a_step_is_full() -> None:
    """Red if a batch that nobody reads token by token is computed in small chunks."""
    assert _measured().tokens(0, 5) == 512
    assert _measured().tokens(32, 0) == 512


def test_before_anything_was_measured_a_step_is_full() -> None:
    """Red if the bound is a guess."""
    assert StepBudget(512).tokens(32, 1) == 512


def test_the_bound_follows_the_measured_costs() -> None:
    """Red if what a prompt adds is not held against what decoding takes."""
    budget = _measured()
    prompt_tokens = budget.tokens(32, 1) - 32
    assert prompt_tokens == pytest.approx(STALL * _cost(32) / TOKEN_S, abs=1)
    for _ in range(50):  # further into a prompt, each of its tokens costs more
        budget.observe(np.array([1] * 32 + [20]), _cost(32) + 20 * 2 * TOKEN_S)
    assert budget.tokens(32, 1) - 32 == pytest.approx(prompt_tokens / 2, abs=1)


def test_many_prompts_against_few_streams_get_more() -> None:
    """Red if those who wait for their first token starve beside a few streams."""
    budget = StepBudget(512)
    budget.observe(np.ones(2, np.int32), _cost(2))
    budget.observe(np.array([1, 1, 100]), _cost(102))
    assert budget.tokens(2, 6) - 2 == pytest.approx(CROWD * 3 * _cost(2) / TOKEN_S, abs=1)


def test_a_prompt_always_gets_on() -> None:
    """Red if a prompt stands still because its tokens are dear."""
    budget = StepBudget(512)
    budget.observe(np.ones(1, np.int32), 1e-4)
    budget.observe(np.array([1, 64]), 10.0)
    assert budget.tokens(1, 1) == 1 + LEAST


class _TimedDevice(HashDevice):
    """Says what its steps would cost."""

    def execute(self, plan, index, window):
        result = super().execute(plan, index, window)
        tokens = int(plan.counts_of(index).sum())
        return result if result is None else msgspec.structs.replace(result, device_s=_cost(tokens))


@pytest.mark.parametrize("stream", [True, False])
def test_a_long_prompt_does_not_stall_those_who_stream(stream, monkeypatch) -> None:
    """Red if a step with a prompt takes much longer than twice the steps without, where somebody streams; or
    if the bound slows down a batch."""
    monkeypatch.setattr("bench_core.HashDevice", _TimedDevice)
    bench = CoreBench(
        token_budget=128, max_context=400, num_blocks=400, stream=stream, num_slots=8, prefix_cache=False
    )
    ids = [bench.submit([i, 1, 2], 60) for i in range(4)]
    for _ in range(30):
        bench.core.step()
    before = len(bench.device.plans)
    late = bench.submit(list(range(90)) * 4, 3)
    bench.run()
    plans = bench.device.plans[before:]
    mixed = [plan for plan in plans if plan.counts.max() > 1 and (plan.counts == 1).sum() == 4]
    if stream:
        assert len(mixed) > 10
        # The prompts of the start have measured what a prompt's token adds.
        assert max(_cost(plan.num_tokens) for plan in mixed) <= (1 + max(STALL, CROWD / 4)) * _cost(4)
    else:
        assert max(plan.num_tokens for plan in mixed) == 128
    assert bench.tokens(late) == expected_tokens(list(range(90)) * 4, 3)
    assert [bench.tokens(i) for i in ids] == [expected_tokens([i, 1, 2], 60) for i in range(4)]
