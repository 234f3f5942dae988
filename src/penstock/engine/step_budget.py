"""StepBudget: how many tokens a step may compute.

A long prompt computed in large chunks is done soonest, and every stream beside it stalls for as long as a
chunk takes. So while somebody reads tokens as they come, the chunks beside them are bounded: the step may
take about twice the time of one without prompts, by the cost that steps were measured to have. Where many
prompts stand against few streams their share grows: then those who have nothing yet wait longest.

Plans stay a function of what the scheduler was told: the costs come from the results, no clock is read here.
"""

from __future__ import annotations

import numpy as np

STALL = 0.8  # of the time that decoding alone takes: what prompts may add while streams are read
CROWD = 4.0  # … times prompts per decoding request, where that is more
LEAST = 8  # prompt tokens in a step: a chunk of fewer costs a step as much
WEIGHT = 0.25  # of the newest measurement in the running means


class StepBudget:
    def __init__(self, most: int) -> None:
        """`most`: tokens of a step in any case."""
        self.most = most
        self._decode_s: dict[int, float] = {}  # by rows: of steps in which all decode
        self._prompt_token_s = 0.0  # what a prompt's token adds to a step

    def tokens(self, decoding: int, prompts: int) -> int:
        """Of the next step. `decoding`: requests that want one token, some of them read as they come;
        `prompts`: those that want more, or wait for a slot that is free."""
        if not decoding or not prompts or not self._decode_s or not self._prompt_token_s:
            return self.most
        stall = self._seconds(decoding) * max(STALL, CROWD * prompts / decoding)
        return min(self.most, decoding + max(LEAST, int(stall / self._prompt_token_s)))

    def observe(self, counts: np.ndarray, seconds: float) -> None:
        """A step that computed int32[R] tokens of its rows kept the device busy for `seconds`."""
        if seconds <= 0.0:
            return
        decoding = int(np.count_nonzero(counts == 1))
        prompt_tokens = int(counts.sum()) - decoding
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
