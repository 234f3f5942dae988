"""StepBudget: how many tokens a step may compute.

A long prompt computed in large chunks is done soonest, and every stream beside it stalls for as long as a
chunk takes. So while somebody reads tokens as they come, the chunks beside them are bounded: the step may
take about twice the time of one without prompts, by the cost that steps were measured to have. Where many
prompts stand against few streams their share grows: then those who have nothing yet wait longest.

Lines of batches have what is left of the time that such a step may take: whoever comes meanwhile waits for
at most two of them. Streams beside them get the same steps, so their tokens come as often.

Plans stay a function of what the scheduler was told: the costs come from the results, no clock is read here.
"""

from __future__ import annotations

import math

import numpy as np

STALL = 0.8  # of the time that decoding alone takes: what prompts may add while streams are read
CROWD = 4.0  # … times prompts per decoding request, where that is more
LEAST = 8  # prompt tokens in a step: a chunk of fewer costs a step as much
FIRST = 64  # tokens of batches in a step before any was measured
WEIGHT = 0.25  # of the newest measurement in the running means


class StepBudget:
    def __init__(self, most: int, batch_step_s: float = math.inf) -> None:
        """`most`: tokens of a step in any case. `batch_step_s`: seconds that a step with lines of batches may
        take; twice the time of the shortest ones where that is more."""
        self.most = most
        self._batch_step_s = batch_step_s
        self._steps: dict[int, tuple[float, float]] = {}  # tokens and seconds, by powers of two of tokens
        self._decode_s: dict[int, float] = {}  # by rows: of steps in which all decode
        self._prompt_token_s = 0.0  # what a prompt's token adds to a step

    def tokens(self, decoding: int, prompts: int) -> int:
        """Of the next step. `decoding`: requests that want one token, some of them read as they come;
        `prompts`: those that want more, or wait for a slot that is free."""
        if not decoding or not prompts or not self._decode_s or not self._prompt_token_s:
            return self.most
        stall = self._seconds(decoding) * max(STALL, CROWD * prompts / decoding)
        return min(self.most, decoding + max(LEAST, int(stall / self._prompt_token_s)))

    def batch_tokens(self, others: int) -> int:
        """That lines of batches may have in a step with `others` tokens of calls."""
        if not self._steps:
            return min(FIRST, self.most)
        steps = self._steps.values()
        short = [seconds for tokens, seconds in steps if tokens <= 2 * LEAST]
        most_s = max(self._batch_step_s, 2 * min(short, default=0.0))
        # Every step has its fixed costs, so a step of more tokens takes less time per token: what fits by the
        # measure of a step that fits does fit, and by that of one that doesn't, too much does.
        fitting = [tokens * most_s / seconds for tokens, seconds in steps if seconds <= most_s]
        beyond = [tokens * most_s / seconds for tokens, seconds in steps if seconds > most_s]
        found = max(fitting) if fitting else min(beyond)
        return min(self.most, max(LEAST, int(found) - others))

    def observe(self, counts: np.ndarray, seconds: float) -> None:
        """A step that computed int32[R] tokens of its rows kept the device busy for `seconds`."""
        if seconds <= 0.0:
            return
        num_tokens = int(counts.sum())
        before_tokens, before_s = self._steps.get(num_tokens.bit_length(), (num_tokens, seconds))
        self._steps[num_tokens.bit_length()] = (
            before_tokens + WEIGHT * (num_tokens - before_tokens),
            before_s + WEIGHT * (seconds - before_s),
        )
        decoding = int(np.count_nonzero(counts == 1))
        prompt_tokens = num_tokens - decoding
        if not prompt_tokens:
            known = self._decode_s.get(decoding, seconds)
            self._decode_s[decoding] = known + WEIGHT * (seconds - known)
            return
        added = max(0.0, seconds - (self._seconds(decoding) if decoding else 0.0)) / prompt_tokens
        known = self._prompt_token_s or added
        self._prompt_token_s = known + WEIGHT * (added - known)

    def _seconds(self, decoding: int) -> float:
        """Of a step of so many decoding rows, or of the nearest number that was measured."""
        if not self._decode_s:
            return 0.0
        return self._decode_s[min(self._decode_s, key=lambda rows: abs(rows - decoding))]
