"""Draft length: how many drafts of which requests a step should verify, from measured costs and acceptance.

A draft costs what a step of one token more costs, and brings a token with the probability that it and all
before it are right (its *survival*). So drafts of all requests stand in one line, the likeliest first, and
the step takes as many as give the most tokens a second; none, if plain decoding gives as many. Where steps
are bound by memory some drafts are free; in a batch whose steps are bound by arithmetic none is.

Costs and acceptance are running means of what results said. Nothing here reads a clock.
"""

from __future__ import annotations

import bisect
from collections.abc import Sequence

import numpy as np

from penstock.decoding.drafting.drafter import Proposal

WEIGHT = 0.2  # of the newest measurement in the running means
MARGIN = 1.05  # what drafts must gain over plain decoding: measurements are that uncertain
PRIOR = 8.0  # trials that the experience of all requests counts for, against a request's own
MEMORY = 0.95  # what is kept of earlier trials with each new draft
MOST_SUPPORT = 16


class StepCost:
    """Seconds of a step by its number of tokens."""

    def __init__(self) -> None:
        self._sizes: list[int] = []  # ascending
        self._seconds: dict[int, float] = {}
        self.host_s = 0.0  # that the device waits between two steps when none is planned ahead

    def observe(self, tokens: int, seconds: float) -> None:
        if seconds <= 0.0:
            return
        if tokens not in self._seconds:
            bisect.insort(self._sizes, tokens)
            self._seconds[tokens] = seconds
        self._seconds[tokens] += WEIGHT * (seconds - self._seconds[tokens])

    def observe_host(self, seconds: float) -> None:
        self.host_s += WEIGHT * (seconds - self.host_s)

    @property
    def is_known(self) -> bool:
        return bool(self._sizes)

    def seconds(self, tokens: int) -> float:
        """Of a step of so many tokens; between measured sizes in proportion, beyond them as the nearest:
        what is not known is tried."""
        at = bisect.bisect_left(self._sizes, tokens)
        if at == len(self._sizes):
            return self._seconds[self._sizes[-1]]
        above = self._sizes[at]
        if above == tokens or at == 0:
            return self._seconds[above]
        below = self._sizes[at - 1]
        low, high = self._seconds[below], self._seconds[above]
        return low + (high - low) * (tokens - below) / (above - below)


class Trials:
    """Drafts that were looked at, of those expected to be right, and how many were."""

    __slots__ = ("expected", "right")

    def __init__(self, expected: float = 0.0, right: float = 0.0) -> None:
        self.expected, self.right = expected, right

    def add(self, survival: Sequence[float], accepted: int) -> None:
        """Drafts of one step. Those behind the first wrong one say nothing."""
        self.expected *= MEMORY
        self.right *= MEMORY
        before = 1.0
        for chance in survival[: accepted + 1]:
            self.expected += chance / before
            before = chance
        self.right += accepted


class DraftLengths:
    """Chooses draft lengths; learns from what was verified."""

    def __init__(self, adaptive: bool) -> None:
        self.adaptive = adaptive
        self.cost = StepCost()
        self._by_support = [Trials(4.0, 3.0) for _ in range(MOST_SUPPORT + 1)]

    def learn(self, proposal: Proposal, accepted: int, own: Trials) -> None:
        """Of the drafts of `proposal`, all of which were verified, so many were right."""
        self._by_support[min(proposal.support, MOST_SUPPORT)].add(proposal.survival, accepted)
        own.add(proposal.survival, accepted)

    def survival(self, proposal: Proposal, own: Trials) -> np.ndarray:
        """float64[k]: of each draft, by the drafter's own estimate and by how right such estimates were."""
        others = self._by_support[min(proposal.support, MOST_SUPPORT)]
        share = others.right / others.expected
        share = min(1.0, (PRIOR * share + own.right) / (PRIOR + own.expected))
        return np.array(proposal.survival) * share ** np.arange(1, len(proposal.survival) + 1)

    def choose(self, rows: int, survivals: Sequence[np.ndarray]) -> list[int]:
        """How many drafts of each proposal a step of `rows` requests should take, given their survival."""
        lengths = [len(each) for each in survivals]
        if not self.adaptive or not self.cost.is_known or not any(lengths):
            return lengths
        owner = np.repeat(np.arange(len(lengths)), lengths)
        chances = np.concatenate(survivals)
        order = np.argsort(-chances, kind="stable")
        gained = np.cumsum(chances[order])
        seconds = np.array([self.cost.seconds(rows + n) for n in range(1, len(order) + 1)]) + self.cost.host_s
        rates = (rows + gained) / seconds
        best = int(rates.argmax())
        if rates[best] * self.cost.seconds(rows) < MARGIN * rows:
            return [0] * len(lengths)
        return np.bincount(owner[order[: best + 1]], minlength=len(lengths)).tolist()

    def may_pay(self, rows: int, k: int) -> bool:
        """Whether drafts that are all right would pay in a step of so many requests."""
        return any(self.choose(rows, [np.ones(k)] * rows))
