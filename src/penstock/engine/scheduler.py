"""Scheduler: which tokens of which requests are computed in the next step.

There are no phases. Every request wants its *demand*: the tokens that the host or the device knows
and whose KV is not yet computed. Prefill, a prefill chunk, decode and recomputation after a
preemption are the same case. One token budget is shared; each row that wants anything gets at least
one token before any row gets more, so a long prompt never stalls the streams beside it. The rest is
shared in the policy's order, in which the best waiting request has its place: the prompt of a lower
class or of a better served tenant doesn't keep it out until it is computed.

Lines of batches come last in that order, and what they get of a step is bounded in seconds (StepBudget). Some
slots are kept free of them, so that who comes need not wait until one is left.

The scheduler reads no clock, imports no kernels and is deterministic. It edits only the host's
request table; what the device must do is the immutable StepPlan.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from typing import Protocol

import numpy as np
from msgspec import Struct

from penstock.call import BATCH_PRIORITY
from penstock.engine.plan import Admission, DraftStats, StepPlan, StepResult, frozen_array
from penstock.engine.policy import OrderPolicy
from penstock.engine.requests import Request, RequestTable
from penstock.engine.step_budget import StepBudget
from penstock.engine.window import InFlight, WindowPlanner
from penstock.resource import Grant, Resource, TableUpdate

KEPT = 16  # one slot of so many is never a batch's
_NO_ROWS = np.empty(0, np.int32)


class DraftSource(Protocol):
    """Who knows what requests may go on with (`penstock.engine.drafts.speculation.Speculation`)."""

    stats: DraftStats

    def propose(self, rows: np.ndarray, demand: np.ndarray) -> np.ndarray:
        """int32[R]: drafts for each slot of `rows`; 0 unless it wants (`demand`) all that is known of it."""
        ...

    def proposal(self, slot: int) -> np.ndarray:
        """int32[n]: what was just proposed for the slot."""
        ...

    def takes_over(self) -> bool:
        """Whether a request that decodes plainly is drafted for from now on, since the last call: its window
        in flight should end."""
        ...

    def verified(self, plan: StepPlan, live: np.ndarray, accepted: np.ndarray, device_s: float) -> None:
        """bool[R]: rows whose requests are still there; int32[R]: drafts of each that count."""
        ...

    def computed(
        self, plan: StepPlan, index: int, results: Sequence[StepResult], live: np.ndarray, counts: np.ndarray
    ) -> None:
        """Steps of a plan from number `index` on gave `results`. bool[R]: rows whose requests are still
        there; int32[n]: tokens of each such row that are verified."""
        ...

    def observe(self, tokens: int, device_s: float, host_s: float | None) -> None:
        """A step of so many tokens took the device `device_s`, after it had waited `host_s` for the host, or
        None if it was planned ahead."""
        ...


class _Spare(Struct):
    """Tokens of a step that are left for who enters."""

    calls: int
    lines: int  # of batches

    def of(self, request: Request) -> int:
        return self.calls if request.klass < BATCH_PRIORITY else self.lines

    def take(self, count: int) -> None:
        self.calls -= count
        self.lines -= count


class Scheduler:
    def __init__(
        self,
        table: RequestTable,
        policy: OrderPolicy,
        resources: Sequence[Resource],
        token_budget: int,
        longest_window: int = 1,
        drafts: DraftSource | None = None,
        batch_step_s: float = math.inf,
    ) -> None:
        self.table = table
        self.policy = policy
        self.resources = tuple(resources)
        self.drafts = drafts
        self.budget = StepBudget(token_budget, batch_step_s)
        self._kept = min(max(1, table.num_free // KEPT), table.num_free - 1)
        self._windows = WindowPlanner(table, policy, resources, longest_window)
        self.preemptions = 0
        # Called with a request that is alone in the pool and still doesn't fit: its owner ends it.
        self.on_impossible: Callable[[Request], None] = self.release
        self._running = _NO_ROWS  # slots, active only
        self._stale = False  # _running must be rebuilt
        self._refused: Request | None = None  # waits for resources; nothing was given back since
        self._step = 0

    # ------------------------------------------------------------------ the step

    def schedule(self, now: float) -> StepPlan | None:
        """The next step, or None if nothing can be computed now."""
        preempted_before = self.preemptions
        rows = self.policy.order(self.table, self.running)
        demand = self._demand(rows)
        wanted = demand if self.drafts is None else demand + self.drafts.propose(rows, demand)
        grants, spare = self._share(rows, demand, wanted, now)
        granted = int(grants.sum())
        rows, grants = self._reserve(rows, grants, np.minimum(grants, demand))
        kept = grants > 0
        rows, grants = rows[kept], grants[kept]
        admissions: list[Admission] = []
        if self.policy.num_waiting and self.preemptions == preempted_before:
            spare.take(int(grants.sum()) - granted)  # what could not be reserved is free again
            generations = self.table.generation[rows]
            new_rows, new_grants = self._admit(spare, now, admissions)
            stays = self.table.active[rows] & (self.table.generation[rows] == generations)
            rows, grants = rows[stays], grants[stays]  # some may have made way for a better class
            if new_rows:
                rows = np.concatenate([rows, np.array(new_rows, np.int32)])
                grants = np.concatenate([grants, np.array(new_grants, np.int32)])
        if not len(rows):
            return None
        return self._freeze(rows, grants, admissions)

    def _share(
        self, rows: np.ndarray, demand: np.ndarray, wanted: np.ndarray, now: float
    ) -> tuple[np.ndarray, _Spare]:
        """(int32[R] tokens granted to each row, what is left for those who enter)."""
        calls = int(np.searchsorted(self.table.klass[rows], BATCH_PRIORITY))  # the other rows are lines
        budget = self._step_tokens(rows[:calls], demand[:calls])
        grants = self._share_budget(rows[:calls], wanted[:calls], budget, now)
        left = budget - int(grants.sum())
        if calls == len(rows) and self.policy.num_waiting == self.policy.num_waiting_calls():
            return grants, _Spare(left, 0)
        room = self.budget.most - int(grants.sum())
        most = min(room, self.budget.batch_tokens(int(grants.sum()) + self._entering_tokens(now)))
        lines = self._share_budget(rows[calls:], wanted[calls:], most, now)
        taken = int(lines.sum())
        return np.concatenate([grants, lines]), _Spare(min(left, room - taken), most - taken)

    def _entering_tokens(self, now: float) -> int:
        """That the best waiting call wants computed before its first token."""
        best = next(self.policy.waiting(now), None) if self.policy.num_waiting_calls() else None
        return 0 if best is None else len(best.held_tokens)

    def _demand(self, rows: np.ndarray) -> np.ndarray:
        """int32[R]: tokens of each row that can be computed."""
        table = self.table
        # The last token of a request needs no KV, hence limit - 1.
        upto = np.minimum(table.known[rows] + table.pending[rows], table.limit[rows] - 1)
        demand = upto - table.planned[rows]
        demand[table.alone[rows] & (table.pending[rows] > 0)] = 0
        return np.asarray(demand)

    def _step_tokens(self, rows: np.ndarray, demand: np.ndarray) -> int:
        """Of calls in this step at most."""
        decodes = demand == 1
        if not (self.table.stepwise[rows] & decodes).any():
            return self.budget.most
        entering = min(self.policy.num_waiting_calls(), self.table.num_free)
        return self.budget.tokens(int(decodes.sum()), int((demand > 1).sum()) + entering)

    def _share_budget(self, rows: np.ndarray, demand: np.ndarray, budget: int, now: float) -> np.ndarray:
        """int32[R] tokens granted to each row, in order: one for all who want, then the rest, less
        what is set aside for the best waiting request."""
        if int(demand.sum()) <= budget:
            return demand
        first = _fit(np.minimum(demand, 1), budget)
        more = np.where(first > 0, demand - first, 0)
        left = budget - int(first.sum())
        best = self._best_to_enter(now)
        if best is None:
            return first + _fit(more, left)
        before = self.policy.num_before(best, self.table, rows, now)
        better = _fit(more[:before], left)
        left -= int(better.sum())
        left -= min(left, len(best.held_tokens))
        return first + np.concatenate([better, _fit(more[before:], left)])

    def _best_to_enter(self, now: float) -> Request | None:
        """The best waiting request, if this step may give it a slot."""
        best = next(self.policy.waiting(now), None)
        if best is None or best is self._refused:
            return None
        may_enter = self._has_slot(best) or int(self.table.klass[self.running].max()) > best.klass
        return best if may_enter else None

    def _has_slot(self, request: Request) -> bool:
        kept = self._kept if request.klass >= BATCH_PRIORITY else 0
        return self.table.num_free > kept

    def _reserve(
        self, rows: np.ndarray, grants: np.ndarray, least: np.ndarray
    ) -> tuple[np.ndarray, np.ndarray]:
        """Reserve every row's grant; when something is full, do without what is beyond `least`, its drafts,
        then preempt the youngest of the worst class.

        Not the last in the order of service: that order turns with every token served, and two requests
        that do not fit together would throw each other out for ever.
        """
        upto = self.table.planned[rows] + grants
        needy = np.zeros(len(rows), bool)
        for resource in self.resources:
            needy |= resource.short(rows, upto)
        needy &= grants > 0
        if not needy.any():
            return rows, grants
        grants = grants.copy()
        seniority = self.policy.by_seniority(self.table, rows)
        tail = len(rows) - 1  # place in `seniority`: rows after it were preempted
        for place, i in enumerate(seniority.tolist()):
            slot, length = int(rows[i]), int(upto[i])
            while needy[i] and place <= tail:
                grant = self._reserve_all(slot, length)
                if grant is Grant.GRANTED:
                    break
                if grant is Grant.WAIT:
                    grants[i] = 0
                    break
                if grants[i] > least[i]:
                    length -= int(grants[i] - least[i])
                    grants[i] = least[i]
                    continue
                if place == tail == 0:
                    self.on_impossible(self._occupant(slot))
                else:
                    self._preempt(int(rows[seniority[tail]]))
                tail -= 1
        stay = np.sort(seniority[: tail + 1])
        return rows[stay], grants[stay]

    def _reserve_all(self, slot: int, upto: int) -> Grant:
        """All resources or none."""
        for i, resource in enumerate(self.resources):
            grant = resource.reserve(slot, upto)
            if grant is not Grant.GRANTED:
                for earlier in self.resources[:i]:
                    earlier.trim(slot, int(self.table.planned[slot]))
                return grant
        return Grant.GRANTED

    def _admit(self, spare: _Spare, now: float, admissions: list[Admission]) -> tuple[list[int], list[int]]:
        """Let waiting requests in, best first, while budget, slots and resources last."""
        rows: list[int] = []
        grants: list[int] = []
        for request in self.policy.waiting(now):
            most = spare.of(request)
            if most <= 0:
                break
            if not self._has_slot(request):
                self._make_way(request)
                if not self._has_slot(request):  # the victim's slot is free once its step is applied
                    break
            grant, count = self._try_enter(request, most, now)
            while grant is Grant.FULL and self._make_way(request):
                grant, count = self._try_enter(request, most, now)
            if grant is Grant.WAIT:
                continue
            if grant is Grant.FULL:
                self._refused = request
                if not len(self.running):
                    self.on_impossible(request)
                break
            if request.queue_s is None:
                request.queue_s = now - request.arrival_s
            self.policy.remove(request)
            slot = request.slot
            rows.append(slot)
            grants.append(count)
            spare.take(count)
            admissions.append(
                Admission(
                    slot=slot,
                    generation=int(self.table.generation[slot]),
                    tokens=frozen_array(request.held_tokens, np.int32),
                    prompt_len=request.prompt_len,
                    sampling=request.sampling,
                )
            )
        return rows, grants

    def _try_enter(self, request: Request, spare: int, now: float) -> tuple[Grant, int]:
        """Give the request a slot and its first tokens; undone unless GRANTED."""
        table = self.table
        slot = table.enter(request, self.policy.tenants.index(request.tenant))
        table.klass[slot] = self.policy.effective_class(request, now)
        known = int(table.known[slot])
        # At least the last known token is computed: its logits are the answer.
        hit = min(known - 1, *(resource.admit(slot, request) for resource in self.resources))
        table.computed[slot] = table.planned[slot] = hit
        count = min(known - hit, spare)
        grant = self._reserve_all(slot, hit + count)
        if grant is Grant.GRANTED:
            if request.cached_tokens is None:
                request.cached_tokens = hit
            self._stale = True
        else:
            self._vacate(request)
        return grant, count

    def _make_way(self, request: Request) -> bool:
        """Preempt the last running request if it was admitted in a lower class than `request` has.

        Aging does not count here: waiting lifts a request past others that wait, and having
        waited protects it once it runs, but nobody who runs is thrown out for another's patience.
        """
        rows = self.running
        if not len(rows):
            return False
        last = int(rows[self.policy.by_seniority(self.table, rows)[-1]])
        if self.table.klass[last] <= request.klass:
            return False
        self._preempt(last)
        return True

    def _freeze(self, rows: np.ndarray, grants: np.ndarray, admissions: list[Admission]) -> StepPlan:
        table = self.table
        starts = table.planned[rows]
        beyond = starts + grants - (table.known[rows] + table.pending[rows])
        samples = beyond >= 0
        steps = self._windows.steps(rows, grants)
        counts = grants * steps
        window = int(steps.max())
        table.planned[rows] += counts
        table.pending[rows] += samples * steps
        table.in_flight[rows] += steps
        self.policy.tenants.charge(table.tenant[rows], counts)
        updates: tuple[TableUpdate, ...] = ()
        for resource in self.resources:
            updates += resource.take_updates()
        first = self._step + 1
        self._step += window
        return StepPlan(
            step=first,
            slots=frozen_array(rows, np.int32),
            generations=frozen_array(table.generation[rows], np.int32),
            starts=frozen_array(starts, np.int32),
            counts=frozen_array(counts, np.int32),
            samples=frozen_array(samples, bool),
            prompt_logits=frozen_array(starts < table.prompt_logits_upto[rows], bool),
            admissions=tuple(admissions),
            updates=updates,
            window=window,
            **self._drafts_of(rows, np.maximum(beyond, 0)),
        )

    def _drafts_of(self, rows: np.ndarray, counts: np.ndarray) -> dict[str, np.ndarray]:
        """The plan's drafts: the first int32[R] `counts` of what was proposed for each row."""
        if self.drafts is None or not counts.any():
            return {}
        drafted = np.flatnonzero(counts).tolist()
        tokens = [self.drafts.proposal(int(rows[i]))[: counts[i]] for i in drafted]
        return {
            "draft_counts": frozen_array(counts, np.int32),
            "drafts": frozen_array(np.concatenate(tokens), np.int32),
        }

    # ------------------------------------------------------------------ leaving a slot

    @property
    def draft_stats(self) -> DraftStats:
        return DraftStats() if self.drafts is None else self.drafts.stats

    @property
    def has_work(self) -> bool:
        """A request has a slot or waits for one."""
        return bool(len(self.running) or self.policy.num_waiting)

    @property
    def running(self) -> np.ndarray:
        """int32[R]: active slots, in no particular order."""
        if self._stale:
            self._running = np.flatnonzero(self.table.active).astype(np.int32)
            self._stale = False
        return self._running

    def release(self, request: Request) -> None:
        """The request ended: it leaves the queue, or its slot and resources are free for the next plan.

        Steps run in order on the device, so a block given back here may be written by the next
        plan even while an older step that reads it is in flight.
        """
        if request.slot < 0:
            self.policy.remove(request)
        else:
            self._vacate(request)
        self._refused = None

    def requeue(self, request: Request) -> None:
        """A preempted request whose last step in flight was applied waits again."""
        self.table.leave(request)
        self.policy.push(request)

    def cancel(self, step: InFlight) -> np.ndarray:
        """A launched step never runs, nor any after it: as if it was never planned. int32[n]: its slots."""
        slots = self._living(step)
        table = self.table
        table.planned[slots] -= 1
        table.pending[slots] -= 1
        table.in_flight[slots] -= 1
        self.policy.tenants.refund(table.tenant[slots])
        return slots

    def take_back(self, step: InFlight) -> None:
        """A launched step will not be applied: its living requests wait again, with the tokens known."""
        slots = self._living(step)
        self.table.in_flight[slots] -= 1
        for slot in slots.tolist():
            if self.table.active[slot]:
                self._preempt(slot)
            elif not self.table.in_flight[slot]:
                self.requeue(self._occupant(slot))

    def _living(self, step: InFlight) -> np.ndarray:
        """int32[n]: slots of a launched step whose requests are still in them."""
        plan = step.plan
        lives = self.table.generation[plan.slots] == plan.generations
        return plan.slots[lives & (step.steps_of_rows() > 0)]

    def _preempt(self, slot: int) -> None:
        """Take everything from a running request; its tokens in flight are kept when they come."""
        request = self._occupant(slot)
        self.preemptions += 1
        for resource in self.resources:
            resource.release(slot)
        self.table.active[slot] = False
        self._stale = True
        self._refused = None
        if not self.table.in_flight[slot]:
            self.requeue(request)

    def _vacate(self, request: Request) -> None:
        if self.table.active[request.slot]:  # a preempted one gave everything back already
            for resource in self.resources:
                resource.release(request.slot)
        self.table.leave(request)
        self._stale = True

    def _occupant(self, slot: int) -> Request:
        request = self.table.occupant[slot]
        assert request is not None, f"slot {slot} is planned but empty"
        return request


def _fit(want: np.ndarray, budget: int) -> np.ndarray:
    """As much of `want` (int32[R]) as fits in `budget`, earlier rows first."""
    before = np.cumsum(want) - want
    return np.clip(budget - before, 0, want)
