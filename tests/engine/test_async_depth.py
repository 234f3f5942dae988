"""Asynchronous depth in virtual time: a host that takes time, a device that takes 5 ms a step."""

from __future__ import annotations

import pytest
from bench_core import CoreBench

from penstock.engine.plan import StepPlan
from penstock.simulate.device import SimDevice, SimStep, StepTime

HOST_S = 0.001  # planning, and again applying


class BusyHostDevice(SimDevice):
    """Advances the clock by the host's own work around each launch and each result."""

    def launch(self, plan: StepPlan) -> SimStep:
        self.clock.advance_to(self.clock() + HOST_S)
        return super().launch(plan)


def _run(depth: int) -> tuple[float, dict[str, list[int]]]:
    bench = CoreBench(depth=depth, num_slots=4, num_blocks=400, max_context=300)
    device = BusyHostDevice(bench.clock, StepTime(fixed_s=0.005))
    bench.core._flight.device = device
    ids = [bench.submit([i, i + 1], 200) for i in range(4)]
    bench.run()
    return device.busy_s / bench.clock(), {i: bench.tokens(i) for i in ids}


def test_depth_1_keeps_the_device_busy_where_depth_0_leaves_a_gap():
    """Red if planning waits for the previous step's tokens again."""
    busy = {depth: _run(depth) for depth in (0, 1)}
    assert busy[0][0] < 0.9
    assert busy[1][0] > 0.99
    assert busy[0][1] == busy[1][1]


@pytest.mark.parametrize("depth", [0, 1])
def test_progress_reports_the_same_busy_time_as_the_device(depth):
    """Red if the busy metric counts overlapping steps twice or misses the gaps."""
    bench = CoreBench(depth=depth, num_blocks=400, max_context=300)
    device = BusyHostDevice(bench.clock, StepTime(fixed_s=0.005))
    bench.core._flight.device = device
    bench.submit([1, 2], 100)
    bench.run()
    assert bench.core.progress().busy_s == pytest.approx(device.busy_s, rel=0.25)
