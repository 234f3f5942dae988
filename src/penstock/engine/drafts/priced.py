"""Drafts that have their price: when a drafter that computes is asked, and for how many drafts.

A table of tokens answers at once; a model takes time for every draft, and for the tokens that it does not
know yet. So it is asked only where it pays, by what drafts and steps take and how many drafts were right.
Where it does not it is tried all the same now and then, on credit: a share TRIAL_SHARE of all steps. What
drafting gains and loses is booked by the same measurements, in units of plain steps, so that whatever a
drafter is worth, decoding takes about that share longer at most than without it.
"""

from __future__ import annotations

import numpy as np

from penstock.engine.drafts.lengths import CLEARLY, MARGIN, DraftLengths, StepCost, Trials

TRIAL_SHARE = 0.003  # of the steps, for trials
TRIAL = 8.0  # steps of credit that a trial begins with, and an engine
MOST_CREDIT = 32.0  # steps; gains beyond it count for nothing, losses after them would be seen late
TRIAL_DRAFTS = 2  # the first says whether the drafter is right at all, the second whether it stays so


class PricedDrafts:
    """The books of one drafter. Nothing here reads a clock."""

    def __init__(self, lengths: DraftLengths, k: int) -> None:
        """k: drafts of a request in one step at most."""
        self._lengths = lengths
        self._k = k
        self._price = StepCost()  # by drafts
        self._credit = TRIAL
        self._lost = 0.0  # steps that drafts lost since they last gained
        self._round = 0.0  # steps booked for the drafts that are not verified yet

    # ------------------------------------------------------------------ decisions

    def begins(self, rows: int, own: Trials) -> bool:
        """Whether a request, one of `rows`, should be drafted for from now on because it pays."""
        solvent = self._credit >= 0.0 or not self._lengths.adaptive
        return solvent and self.most(rows, [own], CLEARLY) > 0

    def tries(self) -> bool:
        """Whether a request should be drafted for to see if it would pay. A trial begins if so."""
        if self._credit < TRIAL:
            return False
        self._lost = 0.0
        return True

    def goes_on(self) -> bool:
        """Whether a trial that has not paid so far should."""
        return self._credit > 0.0 and self._lost <= TRIAL

    def most(self, rows: int, asked: list[Trials], margin: float = MARGIN) -> int:
        """How many drafts to ask for, for each of some of `rows` requests; 0 if they do not pay."""
        lengths = self._lengths
        if not lengths.adaptive or not lengths.cost.is_known:
            return self._k
        if self._lost > TRIAL:  # whatever the estimates say
            return 0
        places = np.arange(1, self._k + 1)
        chance = sum(map(lengths.chance, asked)) / len(asked)
        drafts = len(asked) * places
        gained = len(asked) * np.cumsum(chance**places)
        best = lengths.best(rows, drafts, gained, margin, self._seconds(drafts))
        return 0 if best is None else best + 1

    # ------------------------------------------------------------------ the books

    def asked(self, rows: int, drafts: int, seconds: float, caught_up: bool) -> None:
        """The drafter was asked for so many drafts in a step of `rows` requests. caught_up: it had to compute
        more than the last step brought."""
        if drafts and not caught_up:
            self._price.observe(drafts, seconds)
        price_s = float(self._seconds(np.array([max(drafts, 1)]))[0])
        self._round = self._steps(rows, -price_s - self._lengths.cost.host_s)
        self._book(self._round)
        if caught_up:  # an investment: booked, but no sign that drafts do not pay
            self._book(self._steps(rows, min(0.0, price_s - seconds)))

    def verified(self, rows: int, drafts: int, accepted: int) -> None:
        """Of so many drafts, in a step of `rows`, so many were right."""
        if not self._lengths.cost.is_known:
            return
        plain_s, step_s = self._lengths.cost.seconds(np.array([rows, rows + drafts])).tolist()
        gained = self._steps(rows, (1 + accepted / rows) * plain_s - step_s)
        self._book(gained)
        self._lost = max(0.0, self._lost - gained - self._round)

    def earn(self) -> None:
        """A step was computed."""
        self._credit = min(self._credit + TRIAL_SHARE, max(self._credit, TRIAL))

    def _book(self, steps: float) -> None:
        self._credit = min(self._credit + steps, MOST_CREDIT)

    def _steps(self, rows: int, seconds: float) -> float:
        """In plain steps of so many requests."""
        cost = self._lengths.cost
        return seconds / float(cost.seconds(np.array([rows]))[0]) if cost.is_known else 0.0

    def _seconds(self, drafts: np.ndarray) -> np.ndarray:
        return self._price.seconds(drafts) if self._price.is_known else np.zeros(len(drafts))
