"""SimDevice: a device that computes nothing and takes the time that a model of it says.

It implements `penstock.engine.plan.Device`, so scheduler, KV and policies run unchanged. Tokens are
a fixed function of the position: the same request gets the same tokens at every asynchronous depth.
"""

from __future__ import annotations

from collections.abc import Callable

import numpy as np
from msgspec import Struct

from penstock.engine.plan import StepPlan, StepResult
from penstock.simulate.clock import VirtualClock


class StepTime(Struct, frozen=True):
    """Seconds of one step: fixed + per computed token + per row + per token of context read.

    The terms are those of a roofline: weights are read once a step, arithmetic grows with tokens,
    attention with contexts. Fitted from `penstock bench`; the defaults are a round 20 ms GPU-like
    step for tests, not a measurement.
    """

    fixed_s: float = 0.02
    per_token_s: float = 0.0
    per_row_s: float = 0.0
    per_context_token_s: float = 0.0

    def __call__(self, plan: StepPlan) -> float:
        context = int(plan.starts.sum()) + plan.num_tokens if self.per_context_token_s else 0
        return (
            self.fixed_s
            + self.per_token_s * plan.num_tokens
            + self.per_row_s * plan.num_rows
            + self.per_context_token_s * context
        )


class SimStep:
    def __init__(self, device: SimDevice, plan: StepPlan, ends_s: float) -> None:
        self._device, self._plan, self._ends_s = device, plan, ends_s

    def wait(self) -> StepResult:
        self._device.clock.advance_to(self._ends_s)
        return StepResult(step=self._plan.step, tokens=sim_tokens(self._plan))


class SimDevice:
    def __init__(self, clock: VirtualClock, step_time: Callable[[StepPlan], float]) -> None:
        self.clock = clock
        self._step_time = step_time
        self._free_s = clock()
        self.busy_s = 0.0
        self.steps = 0

    def launch(self, plan: StepPlan) -> SimStep:
        """Steps run one after the other, each starting when the last one ended."""
        duration = self._step_time(plan)
        self._free_s = max(self._free_s, self.clock()) + duration
        self.busy_s += duration
        self.steps += 1
        return SimStep(self, plan, self._free_s)

    def close(self) -> None:
        """Nothing to stop."""


def sim_tokens(plan: StepPlan) -> np.ndarray:
    """int32[R]: a token per sampling row that depends on its position only, -1 elsewhere."""
    positions = plan.starts + plan.counts
    return np.where(plan.samples, 100 + positions % 1000, -1).astype(np.int32)
