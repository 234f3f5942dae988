"""Lines of batches beside calls that somebody waits for: the same scheduler, a class of its own."""

from __future__ import annotations

import msgspec
import numpy as np
import pytest
from bench_core import CoreBench, expected_tokens
from hash_device import HashDevice
from hypothesis import given
from hypothesis import strategies as st

from penstock.call import BATCH_PRIORITY
from penstock.engine.step_budget import FIRST, LEAST, StepBudget

FIXED_S, TOKEN_S = 0.004, 0.0005  # of a step, of each of its tokens
LONGER = 2  # steps that a call waits at most for the lines beside it


def _cost(tokens: int) -> float:
    return FIXED_S + TOKEN_S * tokens


class _TimedDevice(HashDevice):
    """Says what its steps would cost."""

    def execute(self, plan, index, window):
        result = super().execute(plan, index, window)
        tokens = int(plan.counts_of(index).sum())
        return result if result is None else msgspec.structs.replace(result, device_s=_cost(tokens))


def _line(bench: CoreBench, prompt: list[int], max_tokens: int) -> str:
    return bench.submit(prompt, max_tokens, priority=BATCH_PRIORITY, stream=False)


def _steps_to_first_token(bench: CoreBench, prompt: list[int]) -> int:
    before = len(bench.device.steps)
    name = bench.submit(prompt, 3, stream=True)
    while not bench.tokens(name):
        bench.core.step()
    return len(bench.device.steps) - before


@pytest.mark.parametrize("depth", [0, 1])
@given(data=st.data())
def test_a_call_waits_at_most_two_steps_longer_than_alone(depth, data) -> None:
    """Red if a call has to wait until a line's window, prompt, slot or KV is free: whatever the lines do,
    however many wait, in the smallest pools."""
    settings = {
        "depth": depth,
        "window": data.draw(st.sampled_from([1, 8])),
        "num_slots": data.draw(st.integers(2, 6)),
        "num_blocks": data.draw(st.sampled_from([20, 40, 200])),
        "token_budget": data.draw(st.sampled_from([8, 32])),
        "prefix_cache": False,
    }
    prompt = list(range(1, 1 + data.draw(st.integers(1, 40))))
    alone = _steps_to_first_token(CoreBench(**settings), prompt)
    bench = CoreBench(**settings)
    lines = [
        (number, data.draw(st.integers(1, 40)), data.draw(st.integers(1, 20)))
        for number in range(data.draw(st.integers(1, 10)))
    ]
    names = [_line(bench, [number] * length, most) for number, length, most in lines]
    for _ in range(data.draw(st.integers(0, 30))):
        bench.core.step()
    assert _steps_to_first_token(bench, prompt) <= alone + LONGER
    bench.run()
    for name, (number, length, most) in zip(names, lines, strict=True):
        assert bench.tokens(name) == expected_tokens([number] * length, most)


def test_a_line_never_grows_as_old_as_a_call() -> None:
    """Red if lines that waited for hours come before a call that just came."""
    bench = CoreBench(num_slots=2, aging_s=1.0, token_budget=4)
    old = [_line(bench, [i, 2, 3], 20) for i in range(4)]
    bench.clock.advance_to(3600.0)
    first, second = (bench.submit([7, 8, i], 4) for i in range(2))
    while not (bench.finish(first) and bench.finish(second)):
        bench.core.step()
    assert not any(bench.finish(name) for name in old)
    bench.run()
    assert [len(bench.tokens(name)) for name in old] == [20] * 4


@pytest.mark.parametrize("streams", [0, 2])
def test_steps_with_lines_stay_in_their_time(streams, monkeypatch) -> None:
    """Red if a step of lines, their prompts or their many rows, takes longer than it may, once costs are
    measured; or if it is left half empty."""
    monkeypatch.setattr("bench_core.HashDevice", _TimedDevice)
    most_s = _cost(32)
    bench = CoreBench(token_budget=128, max_context=200, num_blocks=2000, num_slots=48, prefix_cache=False)
    bench.core.scheduler.budget = StepBudget(128, most_s)
    for i in range(streams):
        bench.submit([i, 1, 2], 150)
    names = [_line(bench, list(range(i, i + 60)), 40) for i in range(40)]
    bench.run()
    plans = [plan for plan in bench.device.plans if plan.num_rows > streams]
    measured = [plan for plan in plans if plan.step > 40]  # rows of the number that there are, too
    costs = np.array([_cost(int(plan.counts.sum()) // plan.window) for plan in measured])
    assert np.quantile(costs, 0.95) <= most_s
    assert costs.max() <= 1.5 * most_s
    assert np.median(costs) > 0.7 * most_s
    for i, name in enumerate(names):
        assert bench.tokens(name) == expected_tokens(list(range(i, i + 60)), 40)


def test_many_lines_are_no_crowd_that_streams_make_way_for(monkeypatch) -> None:
    """Red if prompts of lines count as people who wait for a first token."""
    monkeypatch.setattr("bench_core.HashDevice", _TimedDevice)
    bench = CoreBench(token_budget=128, max_context=200, num_blocks=2000, num_slots=16, prefix_cache=False)
    bench.core.scheduler.budget = StepBudget(128, _cost(16))
    stream = bench.submit([1, 2, 3], 100)
    for i in range(3):  # what a prompt's token costs is known
        bench.submit(list(range(i, i + 40)), 1)
    while len(bench.tokens(stream)) < 10:
        bench.core.step()
    before = len(bench.device.plans)
    for i in range(60):
        _line(bench, list(range(i, i + 100)), 2)
    while not bench.finish(stream):
        bench.core.step()
    beside = [plan for plan in bench.device.plans[before:] if stream and plan.num_rows > 1]
    assert max(_cost(plan.num_tokens) for plan in beside) <= _cost(16 + LEAST)
    bench.run()


def test_the_first_step_of_lines_measures_with_few_tokens() -> None:
    """Red if a step of unknown cost is as long as the budget lets it be."""
    assert StepBudget(512, 0.05).batch_tokens(0) == FIRST


def test_a_model_whose_shortest_step_is_too_long_runs_lines_all_the_same() -> None:
    """Red if lines stand still, or a row each step, where no step is as short as asked."""
    budget = StepBudget(512, 0.001)
    for rows in (1, 32):
        budget.observe(np.ones(rows, np.int32), 0.2 + 0.002 * rows)
    assert budget.batch_tokens(0) >= 32
    assert budget.batch_tokens(512) == LEAST
