"""Windows: several decode steps planned at once, which the device runs by itself.

A step of a small model takes less time than planning one, and a decode step whose rows need nothing of
the host follows from the one before: the device has the drawn token, the length, and the blocks if they
are reserved ahead. So a plan may cover up to `longest` such steps (`StepPlan.window`). To the loop each
is a step in flight like any other, applied as it comes:

    host    plan 1..8 | apply 1 | apply 2 | …  | apply 7, plan 9..16 | apply 8 | …
    device  [ step 1 ][ step 2 ][ step 3 ] …  [ step 8 ][ step 9 ] …

When nobody reads a window's tokens one by one, its steps are applied together: a step of two milliseconds
that wakes the host is a slower step.

Whatever should change the next plan cuts the window: the steps that the device has not begun never run
and are taken out of the plan again. What was reserved for them stays reserved, which costs nothing.

Invariant: a window plans no more than single steps would with nobody waiting and nothing preempted; so the
tokens are theirs, and window 1 is the oracle.
"""

from __future__ import annotations

import itertools
from collections import deque
from collections.abc import Iterator, Sequence

import numpy as np
from msgspec import Struct

from penstock.engine.plan import Device, Pending, StepPlan, WindowDevice
from penstock.engine.policy import OrderPolicy
from penstock.engine.requests import RequestTable
from penstock.resource import Grant, Resource

TOGETHER_S = 0.05  # results wait no longer than this for those of younger steps


class WindowPlanner:
    """How many steps a plan may cover."""

    def __init__(
        self, table: RequestTable, policy: OrderPolicy, resources: Sequence[Resource], longest: int
    ) -> None:
        self._table = table
        self._policy = policy
        self._resources = tuple(resources)
        self._longest = longest

    def steps(self, rows: np.ndarray, grants: np.ndarray) -> np.ndarray:
        """int32[R], for slots `rows` granted int32[R] tokens each: steps that each row takes part in, its
        blocks for all of them reserved. All 1 for a plan that is no window."""
        single = np.ones(len(rows), np.int32)
        if self._longest == 1 or self._policy.num_waiting or not self._plain_decode(rows, grants):
            return single
        left = self._table.limit[rows] - 1 - self._table.planned[rows]  # the last token needs no KV
        longest = min(self._longest, int(left.max()))
        while longest > 1:
            steps = np.minimum(left, longest)
            if self._reserve(rows, steps):
                return steps
            longest //= 2
        return single

    def _plain_decode(self, rows: np.ndarray, grants: np.ndarray) -> bool:
        """Every row computes its last known token and draws from it without the host."""
        table = self._table
        planned = table.planned[rows]
        return not (
            (grants != 1).any()
            or table.alone[rows].any()
            or (table.known[rows] + table.pending[rows] != planned + 1).any()
            or (planned + 1 < table.host_upto[rows]).any()
            or (planned < table.prompt_logits_upto[rows]).any()
        )

    def _reserve(self, rows: np.ndarray, steps: np.ndarray) -> bool:
        """All that the steps need, or no more than was reserved for the first."""
        planned = self._table.planned[rows]
        upto = planned + steps
        needy = np.zeros(len(rows), bool)
        for resource in self._resources:
            needy |= resource.short(rows, upto)
        asked = []
        for i in np.flatnonzero(needy).tolist():
            asked.append(i)
            slot, length = int(rows[i]), int(upto[i])
            if any(resource.reserve(slot, length) is not Grant.GRANTED for resource in self._resources):
                for j in asked:
                    for resource in self._resources:
                        resource.trim(int(rows[j]), int(planned[j]) + 1)
                return False
        return True


class InFlight(Struct):
    """A launched step: number `index` of its plan."""

    plan: StepPlan
    pending: Pending
    launched_s: float
    index: int

    def steps_of_rows(self, steps: int = 1) -> np.ndarray:
        """int32[R]: how many of this and the `steps` - 1 after it each row takes part in."""
        counts = self.plan.counts
        if self.plan.window == 1:
            return np.minimum(counts, 1)
        return np.clip(counts - self.index, 0, steps)


class Flight:
    """The launched steps that were not applied yet, oldest first."""

    def __init__(self, device: Device) -> None:
        self.device = device
        self._steps: deque[InFlight] = deque()

    def __len__(self) -> int:
        return len(self._steps)

    def launch(self, plan: StepPlan, now: float) -> None:
        if plan.window == 1:
            self._steps.append(InFlight(plan, self.device.launch(plan), now, 0))
            return
        assert isinstance(self.device, WindowDevice)
        for index, pending in enumerate(self.device.launch_window(plan)):
            self._steps.append(InFlight(plan, pending, now, index))

    def ready(self, keep: int) -> int:
        """How many of the oldest steps can be applied together, all of one window, at least one. Waits, not
        long, for all but the youngest `keep`; ends early for `interrupt`."""
        plan = self._steps[0].plan
        most = len(self._steps) - keep
        if plan.window == 1 or most <= 1:
            return 1
        oldest = [step.pending for step in itertools.islice(self._steps, most) if step.plan is plan]
        assert isinstance(self.device, WindowDevice)
        return max(1, self.device.ready(oldest, TOGETHER_S))

    def interrupt(self) -> None:
        """End a `ready` that waits. From any thread."""
        if isinstance(self.device, WindowDevice):
            self.device.interrupt()

    @property
    def oldest(self) -> InFlight:
        return self._steps[0]

    def pop(self) -> InFlight:
        """The oldest."""
        return self._steps.popleft()

    def cut(self) -> Iterator[InFlight]:
        """End the youngest window as soon as the device can. Its steps that will not run, youngest first;
        they are in flight no more."""
        if not self._steps or self._steps[-1].index == 0:
            return
        assert isinstance(self.device, WindowDevice)
        runs = self.device.cut()
        while self._steps and self._steps[-1].index >= max(runs, 1):
            yield self._steps.pop()

    def clear(self) -> None:
        self._steps.clear()
