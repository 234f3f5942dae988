"""Synthetic acceptance: drafts that count by chance, whatever the model says. For load tests and simulation.

How fast an engine is with a drafter depends on how many of its drafts count, and on random prompts, or for
a drafter that is not trained yet, that says nothing. Here it is given, as with vLLM's rejection sampler of
the same name. What a request gets is then not the model's answer.

The chance is that of (seed, position), from a stream of its own: independent of the noise that tokens are
drawn with and of what else is in the batch. native/core/acceptance.h is the same in C++.
"""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np

from penstock.decoding import philox

STREAM = 1  # of the noise of a position; its token is drawn with 0


class SyntheticAcceptance:
    """chances: float64[k], by place in a draft: that it counts where all before it do."""

    def __init__(self, rates: float | Sequence[float], k: int) -> None:
        """rates: the chance, the same for each of k places; or k shares of steps, not rising, in which the
        drafts up to each place count."""
        if isinstance(rates, int | float):
            self.chances = np.full(k, float(rates))
            return
        shares = np.array(rates, np.float64)
        before = np.concatenate([[1.0], shares[:-1]])
        self.chances = np.divide(shares, before, out=np.zeros(len(shares)), where=before > 0)

    def accepted(self, seed: int, position: int, count: int) -> int:
        """How many of `count` <= k drafts count, the first of which is for `position`. seed: below 2**64."""
        noise = philox.uniform(np.full(count, seed, np.uint64), position + np.arange(count), STREAM)
        lost = np.flatnonzero(noise >= self.chances[:count])
        return int(lost[0]) if len(lost) else count
