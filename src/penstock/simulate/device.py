"""SimDevice: a device that computes nothing and takes the time that a model of it says.

It implements `penstock.engine.plan.Device`, so scheduler, KV and policies run unchanged. Tokens are
a fixed function of the position: the same request gets the same tokens at every asynchronous depth.
Drafts count that are these tokens, or by chance, as the acceptance says.
"""

from __future__ import annotations

from collections.abc import Callable

import numpy as np
from msgspec import Struct

from penstock.decoding.drafting.acceptance import SyntheticAcceptance
from penstock.decoding.sampling import SEED_MASK
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
    def __init__(self, device: SimDevice, result: StepResult, ends_s: float) -> None:
        self._device, self._result, self._ends_s = device, result, ends_s

    def wait(self) -> StepResult:
        self._device.clock.advance_to(self._ends_s)
        return self._result


class SimDevice:
    def __init__(
        self,
        clock: VirtualClock,
        step_time: Callable[[StepPlan], float],
        acceptance: SyntheticAcceptance | None = None,
    ) -> None:
        self.clock = clock
        self._step_time = step_time
        self._acceptance = acceptance
        self._seeds: dict[int, int] = {}  # by slot
        self._free_s = clock()
        self.busy_s = 0.0
        self.steps = 0

    def launch(self, plan: StepPlan) -> SimStep:
        """Steps run one after the other, each starting when the last one ended."""
        duration = self._step_time(plan)
        self._free_s = max(self._free_s, self.clock()) + duration
        self.busy_s += duration
        self.steps += 1
        self._seeds |= {each.slot: each.sampling.seed & SEED_MASK for each in plan.admissions}
        tokens = sim_tokens(plan) if plan.draft_counts is None else self._verified(plan)
        return SimStep(self, StepResult(step=plan.step, tokens=tokens), self._free_s)

    def _verified(self, plan: StepPlan) -> np.ndarray:
        """int32[R, S]: of each row the drafts that count, and a token after them."""
        assert plan.draft_counts is not None
        tokens = np.full((plan.num_rows, 1 + int(plan.draft_counts.max())), -1, np.int32)
        for row in np.flatnonzero(plan.samples).tolist():
            drafts = plan.drafts_of(row)
            first = int(plan.starts[row] + plan.counts[row]) - len(drafts)
            own = _tokens_at(first + np.arange(len(drafts) + 1))
            if self._acceptance is not None:
                count = self._acceptance.accepted(self._seeds[int(plan.slots[row])], first, len(drafts))
            else:
                count = int(np.append(drafts != own[:-1], True).argmax())
            tokens[row, :count] = drafts[:count]
            tokens[row, count] = own[count]
        return tokens

    def close(self) -> None:
        """Nothing to stop."""


def sim_tokens(plan: StepPlan) -> np.ndarray:
    """int32[R]: a token per sampling row that depends on its position only, -1 elsewhere."""
    return np.where(plan.samples, _tokens_at(plan.starts + plan.counts), -1).astype(np.int32)


def _tokens_at(positions: np.ndarray) -> np.ndarray:
    return np.asarray(100 + positions % 1000)
