"""Draft length: how many drafts of which requests a step should verify, from measured costs and acceptance.

A draft costs what a step of one token more costs, and brings a token with the probability that it and all
before it are right (its *survival*). So drafts of all requests stand in one line, the likeliest first, and
the step takes as many as give the most tokens a second; none, if plain decoding gives as many. Where steps
are bound by memory some drafts are free; in a batch whose steps are bound by arithmetic none is.

Costs and acceptance are running means of what results said. Nothing here reads a clock.
"""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np

from penstock.decoding.drafting.drafter import Proposal

# Of the newest measurement in the running means. Others on the machine make steps longer, never shorter.
RISING, FALLING = 0.05, 0.4
MARGIN = 1.05  # what drafts must gain over plain decoding: measurements are that uncertain,
CLEARLY = 1.15  # … and what they promise to gain where windows would be given up for them
PRIOR = 8.0  # trials that the experience of all requests counts for, against a request's own
MEMORY = 0.95  # what is kept of earlier trials with each new draft
MOST_SUPPORT = 16


class StepCost:
    """Seconds of a step by its number of tokens.

    A step of more tokens takes no less time, and each of its tokens no more: so every measured size bounds
    all others, and one that was measured once in a bad moment is not avoided for ever.
    """

    def __init__(self) -> None:
        self._sizes = np.empty(0, np.int64)  # ascending
        self._seconds = np.empty(0)
        self._bounds: tuple[np.ndarray, np.ndarray] | None = None  # of _seconds, and of those of a token
        self.host_s = 0.0  # that the device waits between two steps when none is planned ahead

    def observe(self, tokens: int, seconds: float) -> None:
        if seconds <= 0.0:
            return
        self._bounds = None
        at = int(np.searchsorted(self._sizes, tokens))
        if at == len(self._sizes) or self._sizes[at] != tokens:
            self._sizes = np.insert(self._sizes, at, tokens)
            self._seconds = np.insert(self._seconds, at, seconds)
            return
        rises = seconds > self._seconds[at]
        self._seconds[at] += (RISING if rises else FALLING) * (seconds - self._seconds[at])

    def observe_host(self, seconds: float) -> None:
        self.host_s += (RISING if seconds > self.host_s else FALLING) * (seconds - self.host_s)

    @property
    def is_known(self) -> bool:
        return bool(len(self._sizes))

    def seconds(self, tokens: np.ndarray) -> np.ndarray:
        """float64[n] of steps of int[n] tokens; between measured sizes in proportion. Beyond the largest: as
        that one, for what is not known is tried."""
        if self._bounds is None:
            by_token = np.minimum.accumulate(self._seconds / self._sizes)
            by_larger = np.minimum.accumulate(self._seconds[::-1])[::-1]
            self._bounds = np.minimum(self._sizes * by_token, by_larger), by_token
        bounded, by_token = self._bounds
        smaller = np.maximum(np.searchsorted(self._sizes, tokens, side="right") - 1, 0)
        by_smaller = by_token[smaller] * np.maximum(tokens, self._sizes[smaller])
        return np.minimum(by_smaller, np.interp(tokens, self._sizes, bounded))


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

    def chance(self, own: Trials, support: int = 1) -> float:
        """Of a request's draft to be right that is expected to be, where those before it are."""
        others = self._by_support[min(support, MOST_SUPPORT)]
        share = others.right / others.expected
        return min(1.0, (PRIOR * share + own.right) / (PRIOR + own.expected))

    def survival(self, proposal: Proposal, own: Trials) -> np.ndarray:
        """float64[k]: of each draft, by the drafter's own estimate and by how right such estimates were."""
        share = self.chance(own, proposal.support)
        return np.array(proposal.survival) * share ** np.arange(1, len(proposal.survival) + 1)

    def choose(self, rows: int, survivals: Sequence[np.ndarray]) -> list[int]:
        """How many drafts of each proposal a step of `rows` requests should take, given their survival."""
        lengths = [len(each) for each in survivals]
        if not self.adaptive or not self.cost.is_known or not any(lengths):
            return lengths
        owner = np.repeat(np.arange(len(lengths)), lengths)
        chances = np.concatenate(survivals)
        order = np.argsort(-chances, kind="stable")
        best = self.best(rows, np.arange(1, len(order) + 1), np.cumsum(chances[order]), MARGIN)
        if best is None:
            return [0] * len(lengths)
        return np.bincount(owner[order[: best + 1]], minlength=len(lengths)).tolist()

    def pays(self, rows: int, k: int, chance: float) -> bool:
        """Whether up to k drafts for each of so many requests would pay, each right with this chance where
        those before it are."""
        if not self.adaptive or not self.cost.is_known:
            return True
        places = np.arange(1, k + 1)
        gained = rows * np.cumsum(chance**places)
        return self.best(rows, rows * places, gained, CLEARLY) is not None

    def keeps_up(self, rows: int, gain: float, spent: float) -> bool:
        """Whether steps of so many requests, each with `spent` drafts of which `gain` are right, give as many
        tokens a second as plain decoding."""
        if not self.cost.is_known:
            return True
        drafted_s, plain_s = self.cost.seconds(np.array([rows * (1 + spent), rows])).tolist()
        return bool((1 + gain) * plain_s >= drafted_s + self.cost.host_s)

    def best(
        self,
        rows: int,
        drafts: np.ndarray,
        gained: np.ndarray,
        margin: float,
        price_s: np.ndarray | float = 0.0,
    ) -> int | None:
        """Which of the steps with int[n] drafts, bringing float[n] tokens and made in `price_s`, gives most
        tokens a second; None if none is `margin` times better than plain decoding."""
        seconds = self.cost.seconds(rows + drafts) + self.cost.host_s + price_s
        rates = (rows + gained) / seconds
        best = int(rates.argmax())
        plain_s = float(self.cost.seconds(np.array([rows]))[0])
        return best if rates[best] * plain_s >= margin * rows else None
