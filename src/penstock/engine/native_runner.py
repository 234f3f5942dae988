"""NativeRunner: executes StepPlans with one native call each.

The native call gathers the rows' tokens and blocks from the request table by itself and runs
embedding to logits; the host only draws tokens, and only for rows that are not greedy.
"""

from __future__ import annotations

from collections.abc import Callable

import numpy as np

from penstock.decoding.params import RowLogprobs
from penstock.engine.device_thread import DeviceThread, QueuedStep
from penstock.engine.plan import StepPlan, StepResult
from penstock.engine.request_rows import RequestRows, TokenSampler
from penstock.models.lowered import LoweredModel


class NativeRunner:
    """A `penstock.engine.plan.Device` over a lowered model whose pool is bound."""

    def __init__(
        self,
        model: LoweredModel,
        sampler: TokenSampler,
        *,
        num_slots: int,
        max_context: int,
        num_groups: int,
        block_size: int,
    ) -> None:
        self._executable = model.executable
        self._sampler = sampler
        self._requests = RequestRows(num_slots, max_context, num_groups, block_size)
        self._logits = np.empty((num_slots, model.spec.vocab_size), np.float32)
        self._best = np.empty(num_slots, np.int32)
        self._thread = DeviceThread(self.execute)

    def launch(self, plan: StepPlan) -> QueuedStep:
        return self._thread.launch(plan)

    def close(self) -> None:
        self._thread.close()

    def execute(self, plan: StepPlan) -> StepResult:
        """Run one plan on the calling thread."""
        requests = self._requests
        requests.enter(plan, self._sampler)
        self._executable.step(
            requests.tokens, requests.tables, plan.slots, plan.starts, plan.counts, plan.samples,
            self._logits, self._best,
        )  # fmt: skip
        tokens = np.full(plan.num_rows, -1, np.int32)
        logprobs: dict[int, RowLogprobs] = {}
        rows = np.flatnonzero(plan.samples)
        if len(rows):
            slots, positions = plan.slots[rows], plan.starts[rows] + plan.counts[rows]
            drawn, found = self._sampler.sample(self._logits[: len(rows)], slots, positions)
            tokens[rows] = drawn
            requests.tokens[slots, positions] = drawn
            logprobs = {int(rows[i]): entry for i, entry in found.items()}
        prompt: dict[int, RowLogprobs] = {}
        if plan.prompt_logits.any():
            prompt = requests.prompt_rows(plan, self._prompt_logits(plan), self._sampler)
        return StepResult(step=plan.step, tokens=tokens, logprobs=logprobs, prompt_logprobs=prompt)

    def _prompt_logits(self, plan: StepPlan) -> Callable[[int, int, int], np.ndarray]:
        bases = np.cumsum(plan.counts) - plan.counts - plan.starts

        def logits(row: int, first: int, end: int) -> np.ndarray:
            base = int(bases[row])
            return np.asarray(self._executable.logits(np.arange(base + first, base + end, dtype=np.int32)))

        return logits
