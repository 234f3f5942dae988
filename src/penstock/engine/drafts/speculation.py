"""Speculation: drafts for the requests that decode, as a resource that they hold and the scheduler asks.

    schedule ── propose ──> drafts of each row ──> plan ──> device verifies ──> apply ── verified ──> learn

A request that is drafted for is planned only when its last token is known (`RequestTable.alone`), and while
there is one the engine runs step by step: windows and steps ahead are given up for it. So a request for which
drafts do not pay goes back to plain decoding. From then on they are tried on what it generated, without
a device (`_rehearse`): as soon as they would have paid, it is drafted for again. Drafters that are models
are tried again now and then instead, on credit (`engine/drafts/priced.py`).

Invariant: which tokens are drafted changes what a step costs, never what is drawn.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any

import numpy as np

from penstock.decoding.drafting.drafter import NOTHING, BatchDrafter, FeatureDrafter, HostDrafter, Proposal
from penstock.engine.drafts.lengths import DraftLengths, Trials
from penstock.engine.drafts.priced import TRIAL_DRAFTS, PricedDrafts
from penstock.engine.plan import DraftStats, StepPlan, StepResult
from penstock.engine.requests import Request, RequestTable
from penstock.resource import Grant, TableUpdate

PATIENCE = 4  # steps without a draft after which a request decodes plainly
HOPE = 0.8  # how likely a draft is taken to be right before anything is known of a request,
AT_BEST = 0.95  # and of one that could be drafted for again
PACE_WEIGHT = 0.15  # of the newest step in the running mean
REHEARSED = 8  # tokens, the last of eight times the batch: each costs the planning thread time
LONGEST_PAUSE = 16  # of these, the longer the less came of it
REST = 64  # tokens after which it is asked whether a drafter that has its price would pay
STEP_DRAFTS = 256  # drafts in a step at most: each needs a row of logits


class _Drafted:
    """What is remembered of a request in a slot."""

    __slots__ = (
        "appetite", "gain", "idle", "known", "pace", "pause", "proposal", "request", "spent", "trials",
    )  # fmt: skip

    def __init__(self, request: Request) -> None:
        self.request = request
        self.known = -1  # tokens that the drafter knows; -1: it does not know the request
        self.idle = 0  # steps without a draft that would pay, one after the other
        self.proposal = NOTHING
        self.trials = Trials()
        self.appetite = 4  # drafts to ask for where each has its price
        self.pause = REHEARSED  # tokens
        self.pace = 1.0  # drafts that were right in a step, or would have been: a running mean
        self.begin()

    def begin(self) -> None:
        """It is drafted for from now on, and has to show that this pays."""
        self.idle = 0
        self.gain, self.spent = 1.0, 1.0  # drafts that were right, and all, in a step, idle ones too

    def went(self, accepted: int) -> None:
        self.pace += PACE_WEIGHT * (accepted - self.pace)

    def stepped(self, drafts: int, accepted: int) -> None:
        """A step of a request that is drafted for."""
        self.went(accepted)
        self.gain += PACE_WEIGHT * (accepted - self.gain)
        self.spent += PACE_WEIGHT * (drafts - self.spent)

    @property
    def chance(self) -> float:
        """Of a draft to be right, if all had the same: so many in a row are then right on average."""
        return self.pace / (1 + self.pace)


class Speculation:
    """A `penstock.resource.Resource` and the scheduler's `DraftSource`."""

    def __init__(
        self, table: RequestTable, drafter: HostDrafter, k: int, adaptive: bool, clock: Callable[[], float]
    ) -> None:
        """k: drafts of a request in one step at most. adaptive: fewer, or none, where they do not pay. clock:
        says what a drafter that computes takes."""
        self._table = table
        self._drafter = drafter
        self._k = k
        self._lengths = DraftLengths(adaptive)
        self._features = drafter if isinstance(drafter, FeatureDrafter) else None
        self._batch = drafter if isinstance(drafter, BatchDrafter) else None
        self._priced = PricedDrafts(self._lengths, k) if self._batch is not None else None
        self._clock = clock
        self._drafting_s = 0.0  # of the step that was planned last
        self._is_trial = False  # … its drafts are to show whether they would pay
        self._drafted: list[_Drafted | None] = [None] * len(table.occupant)
        # Known tokens from which on one that decodes plainly is looked at.
        self._due = np.zeros(len(table.occupant), np.int32)
        self.stats = DraftStats(accepted=[0] * k)
        self._is_wanted = False

    # ------------------------------------------------------------------ a resource

    def admit(self, slot: int, holder: Any) -> int:
        drafted = self._drafted[slot] = _Drafted(holder)
        self._due[slot] = len(holder.known) + REHEARSED
        if self._features is not None:
            self._catch_up(slot, drafted)
            if drafted.request.cache_store:
                self._features.keep(slot)
        rows = int(np.count_nonzero(self._table.active))
        self._table.alone[slot] = self._begins(slot, drafted, rows)
        return len(holder.known)

    def _begins(self, slot: int, drafted: _Drafted, rows: int) -> bool:
        """Whether to draft from the first token on. A drafter that looks things up has nothing yet for most
        requests, and what it will have shows when it is tried on the answer."""
        if self._priced is not None:
            return self._priced.begins(rows, drafted.trials)
        if not self._lengths.adaptive:
            return True
        if not self._lengths.pays(rows, self._k, HOPE):
            return False
        self._catch_up(slot, drafted)
        return bool(self._drafter.propose(slot, self._k).tokens)

    def short(self, slots: np.ndarray, upto: np.ndarray) -> np.ndarray:
        return np.zeros(len(slots), bool)

    def reserve(self, slot: int, upto: int) -> Grant:
        return Grant.GRANTED

    def trim(self, slot: int, upto: int) -> None:
        pass

    def fork(self, parent: int, child: int) -> None:
        pass

    def commit(self, slots: np.ndarray, computed: np.ndarray) -> None:
        table = self._table
        due = slots[~table.alone[slots] & (table.known[slots] >= self._due[slots])]
        if not len(due):
            return
        if self._priced is not None:
            for slot in due.tolist():
                self._rise(slot, slots, self._priced)
        elif self._lengths.pays(len(slots), self._k, AT_BEST):
            for slot in due.tolist():
                self._rehearse(slot, len(slots))

    def release(self, slot: int) -> None:
        drafted = self._of(slot)
        if drafted.known >= 0:
            finished = drafted.request.is_finished and drafted.request.cache_store
            if finished:
                self._catch_up(slot, drafted)
            self._drafter.release(slot, finished)
        self._drafted[slot] = None

    def take_updates(self) -> tuple[TableUpdate, ...]:
        return ()

    # ------------------------------------------------------------------ drafts

    def propose(self, rows: np.ndarray, demand: np.ndarray) -> np.ndarray:
        table = self._table
        counts = np.zeros(len(rows), np.int32)
        self._drafting_s = 0.0
        # A grammar may have forced tokens since the last step: then more than one is to be computed. A
        # drafter that reads hidden states needs those of all but the last.
        wants = demand == 1 if self._features is not None else demand > 0
        whole = wants & (table.planned[rows] + demand == table.known[rows])
        idle = (table.pending[rows] == 0) & (table.in_flight[rows] == 0)
        candidates = np.flatnonzero(whole & idle & table.alone[rows]).tolist()
        wanted = [i for i in candidates if self._has_answered(int(rows[i]))]
        if not wanted:
            return counts
        slots = rows[wanted].tolist()
        most = min(self._most(slots, len(rows)), STEP_DRAFTS // len(wanted))
        if not most:
            for slot in slots:
                self._decode_plainly(slot)
            return counts
        # The last token is drawn, not drafted.
        rooms = np.minimum(table.limit[slots] - table.known[slots] - 1, most).tolist()
        survivals = []
        for slot, proposal in zip(slots, self._proposals(slots, rooms, len(rows)), strict=True):
            drafted = self._of(slot)
            drafted.proposal = proposal
            survivals.append(self._lengths.survival(proposal, drafted.trials))
        if self._priced is None:
            chosen = self._lengths.choose(len(rows), survivals)
        else:
            chosen = [len(each) for each in survivals]  # what was worth its price is worth its place
        for i, slot, count in zip(wanted, slots, chosen, strict=True):
            counts[i] = count
            if self._features is not None:
                self.stats.missing += self._features.missing(slot)
            self._tire(slot, count, len(rows))
        return counts

    def _most(self, slots: list[int], rows: int) -> int:
        """How many drafts to ask for, for each of `slots`."""
        if self._priced is None:
            return self._k if self._lengths.pays(rows, self._k, AT_BEST) else 0
        most = self._priced.most(rows, [self._of(slot).trials for slot in slots])
        self._is_trial = not most
        return most or (TRIAL_DRAFTS if self._priced.goes_on() else 0)

    def takes_over(self) -> bool:
        """Whether a request that decodes plainly is drafted for from now on, since the last call: its window
        in flight should end."""
        wanted, self._is_wanted = self._is_wanted, False
        return wanted

    def _has_answered(self, slot: int) -> bool:
        return int(self._table.known[slot]) > self._of(slot).request.prompt_len

    def _proposals(self, slots: list[int], rooms: list[int], rows: int) -> list[Proposal]:
        new = [int(self._table.known[slot]) - max(0, self._of(slot).known) for slot in slots]
        for slot in slots:
            self._catch_up(slot, self._of(slot))
        if self._priced is None or self._batch is None:
            return [self._drafter.propose(slot, room) for slot, room in zip(slots, rooms, strict=True)]
        if self._lengths.adaptive:
            # Each draft has its price here: no more than were of use lately, and one or two to find out more.
            appetites = [self._of(slot).appetite for slot in slots]
            rooms = [min(room, appetite) for room, appetite in zip(rooms, appetites, strict=True)]
        began = self._clock()
        proposals = self._batch.propose_all(slots, rooms)
        self._drafting_s = self._clock() - began
        self._priced.asked(rows, sum(rooms), self._drafting_s, caught_up=max(new) > self._k + 1)
        return proposals

    def proposal(self, slot: int) -> np.ndarray:
        return np.array(self._of(slot).proposal.tokens, np.int32)

    def _tire(self, slot: int, count: int, rows: int) -> None:
        drafted = self._of(slot)
        drafted.idle = 0 if count and not self._is_trial else drafted.idle + 1
        if not count:
            drafted.stepped(0, 0)
        if not self._lengths.adaptive:
            return
        keeps_up = self._priced is not None or self._lengths.keeps_up(rows, drafted.gain, drafted.spent)
        if drafted.idle >= PATIENCE or not keeps_up:
            self._decode_plainly(slot)

    def _decode_plainly(self, slot: int) -> None:
        drafted = self._of(slot)
        self._table.alone[slot] = False
        self._due[slot] = self._table.known[slot] + (REHEARSED if self._priced is None else REST)
        drafted.begin()

    # ------------------------------------------------------------------ what came of them

    def verified(self, plan: StepPlan, live: np.ndarray, accepted: np.ndarray, device_s: float) -> None:
        """bool[R]: rows whose requests are still there; int32[R]: drafts of each that count."""
        assert plan.draft_counts is not None
        cost = self._lengths.cost
        if device_s > 0.0 and (plan.counts - plan.draft_counts == 1).all():
            plain_s = float(cost.seconds(np.array([plan.num_rows]))[0])
            gained = float(accepted[live].sum()) / plan.num_rows
            self.stats.saved_s += (1 + gained) * plain_s - device_s - cost.host_s - self._drafting_s
        if self._priced is not None:
            drafts, right = int(plan.draft_counts.sum()), int(accepted[live].sum())
            self._priced.verified(plan.num_rows, drafts, right)
        for row in np.flatnonzero(live & (plan.draft_counts > 0)).tolist():
            drafted = self._drafted[int(plan.slots[row])]
            count, right = int(plan.draft_counts[row]), int(accepted[row])
            self.stats.steps += 1
            self.stats.drafted += count
            for place in range(right):
                self.stats.accepted[place] += 1
            if drafted is None:  # preempted meanwhile
                continue
            drafted.request.drafts = (count, right)
            drafted.appetite = max(2, right + 2)
            drafted.stepped(count, right)
            self._lengths.learn(_first(drafted.proposal, count), right, drafted.trials)

    def computed(
        self, plan: StepPlan, index: int, results: Sequence[StepResult], live: np.ndarray, counts: np.ndarray
    ) -> None:
        """Steps of a plan from number `index` on gave `results`. bool[R]: rows whose requests are still
        there; int32[n]: tokens of each such row that are verified."""
        if self._features is None:
            return
        for row, count in zip(np.flatnonzero(live).tolist(), counts.tolist(), strict=True):
            slot = int(plan.slots[row])
            drafted = self._drafted[slot]
            if drafted is None or not count or row not in results[0].features:  # None: preempted meanwhile
                continue
            parts = [result.features[row][:count] for result in results[: 1 if plan.window == 1 else count]]
            self._catch_up(slot, drafted)
            self._features.feed(slot, int(plan.starts[row]) + index, np.concatenate(parts))

    def observe(self, tokens: int, device_s: float, host_s: float | None) -> None:
        """A step of so many tokens took the device `device_s`, after it had waited `host_s` for the host, or
        None if it was planned ahead."""
        self._lengths.cost.observe(tokens, device_s)
        if host_s is not None and device_s > 0.0:
            self._lengths.cost.observe_host(max(0.0, host_s - self._drafting_s))
        if self._priced is not None:
            self._priced.earn()

    def _rise(self, slot: int, slots: np.ndarray, priced: PricedDrafts) -> None:
        """Draft again for a request, one of `slots`, if that pays, or to see if it would: one at a time."""
        drafted = self._of(slot)
        self._due[slot] = self._table.known[slot] + REST
        alone = self._table.alone
        if priced.begins(len(slots), drafted.trials) or (not alone[slots].any() and priced.tries()):
            drafted.appetite = 4
            alone[slot] = self._is_wanted = True

    def _rehearse(self, slot: int, rows: int) -> None:
        """See what drafts would have done for the tokens that came without them."""
        drafted = self._of(slot)
        known = int(self._table.known[slot])
        self._due[slot] = known + drafted.pause * rows
        drafted.pause = min(2 * drafted.pause, LONGEST_PAUSE)
        if drafted.known < 0:
            self._catch_up(slot, drafted)
            return
        tokens = self._table.tokens[slot, drafted.known : known].tolist()
        at = max(0, len(tokens) - REHEARSED)
        self._drafter.extend(slot, tokens[:at])
        while at < len(tokens):
            proposal = self._drafter.propose(slot, min(self._k, len(tokens) - at))
            accepted = _common(proposal.tokens, tokens[at:])
            if proposal.tokens:
                self._lengths.learn(proposal, accepted, drafted.trials)
            drafted.went(accepted)
            new = tokens[at : at + accepted + 1]
            self._drafter.extend(slot, new)
            at += len(new)
        drafted.known = known
        if self._lengths.pays(rows, self._k, drafted.chance):
            drafted.pause = REHEARSED
            self._table.alone[slot] = self._is_wanted = True

    def _catch_up(self, slot: int, drafted: _Drafted) -> None:
        """The drafter learns of the tokens that it does not know."""
        known = int(self._table.known[slot])
        tokens = self._table.tokens[slot]
        request = drafted.request
        if drafted.known < 0:
            whose = f"{request.tenant}\x00{request.cache_salt}"
            self._drafter.admit(slot, tokens[:known], whose, request.prompt_len)
        elif drafted.known < known:
            self._drafter.extend(slot, tokens[drafted.known : known].tolist())
        drafted.known = known

    def _of(self, slot: int) -> _Drafted:
        drafted = self._drafted[slot]
        assert drafted is not None, f"slot {slot} holds no request"
        return drafted


def _first(proposal: Proposal, count: int) -> Proposal:
    return Proposal(proposal.tokens[:count], proposal.survival[:count], proposal.support)


def _common(drafts: Sequence[int], tokens: Sequence[int]) -> int:
    """How many leading drafts are the tokens."""
    for place, (draft, token) in enumerate(zip(drafts, tokens, strict=False)):
        if draft != token:
            return place
    return min(len(drafts), len(tokens))
