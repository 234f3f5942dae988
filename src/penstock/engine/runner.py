"""ModelRunner: executes StepPlans on a model, in launch order, on one device thread.

The runner keeps its own request table (tokens, block tables, sampling state): the *device-resident*
state. A decode row's input token is read from it, never sent by the host, so step n+1 can be
launched before the host has seen step n. A step is two entry points, `forward` and `sample`, so
that what needs the host between them (grammar masks) has a place to bind.

    launch(plan) ──queue──> [ enter rows, forward(plan) → hidden, sample(plan, hidden) ] ──> wait()
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any, Protocol

import numpy as np

from penstock.decoding.params import RowLogprobs, TokenSampling
from penstock.engine.device_thread import DeviceThread, QueuedStep
from penstock.engine.plan import StepPlan, StepResult
from penstock.kernels.batch import Batch, LayerKV

# Rows of prompt logits computed at once: 256 rows of a 256k vocabulary are 268 MB of float32.
PROMPT_LOGIT_ROWS = 256


class ForwardModel(Protocol):
    """What the runner needs of a model (`penstock.models.forward.Model`)."""

    def forward(self, batch: Batch, kv: Sequence[LayerKV]) -> Any:
        """hidden[T, d]"""
        ...

    def logits(self, hidden: Any) -> np.ndarray:
        """float32[n, V] of hidden[n, d]"""
        ...


class TokenSampler(Protocol):
    """What the runner needs of a sampler (`penstock.decoding.sampling.Sampler`)."""

    def admit(self, slot: int, tokens: np.ndarray, prompt_len: int, sampling: TokenSampling) -> None: ...

    def sample(
        self, logits: np.ndarray, slots: np.ndarray, positions: np.ndarray
    ) -> tuple[np.ndarray, dict[int, RowLogprobs]]: ...

    def prompt_logprobs(self, logits: np.ndarray, targets: np.ndarray, k: int) -> RowLogprobs: ...


class ModelRunner:
    """A `penstock.engine.plan.Device` over a model on this machine's CPU."""

    def __init__(
        self,
        model: ForwardModel,
        kv: Sequence[LayerKV],
        sampler: TokenSampler,
        *,
        num_slots: int,
        max_context: int,
        num_groups: int,
        block_size: int,
    ) -> None:
        self._model = model
        self._kv = kv
        self._sampler = sampler
        self._block_size = block_size
        self._tokens = np.empty((num_slots, max_context + 1), np.int32)
        self._prompt_len = np.zeros(num_slots, np.int32)
        self._prompt_logprobs = np.full(num_slots, -1, np.int32)
        max_blocks = -(-max_context // block_size)
        # Zeroed, not empty: entries that a window has left behind must stay valid block ids.
        self._tables = tuple(np.zeros((num_slots, max_blocks), np.int32) for _ in range(num_groups))
        self._thread = DeviceThread(self.execute)

    def launch(self, plan: StepPlan) -> QueuedStep:
        return self._thread.launch(plan)

    def close(self) -> None:
        self._thread.close()

    def execute(self, plan: StepPlan) -> StepResult:
        """Run one plan on the calling thread."""
        self._enter(plan)
        hidden, offsets = self.forward(plan)
        return self.sample(plan, hidden, offsets)

    def _enter(self, plan: StepPlan) -> None:
        for admission in plan.admissions:
            slot = admission.slot
            self._tokens[slot, : len(admission.tokens)] = admission.tokens
            self._prompt_len[slot] = admission.prompt_len
            self._prompt_logprobs[slot] = admission.sampling.prompt_logprobs
            self._sampler.admit(slot, admission.tokens, admission.prompt_len, admission.sampling)
        for update in plan.updates:
            table = self._tables[update.group]
            table[update.slot, update.first : update.first + len(update.blocks)] = update.blocks

    def forward(self, plan: StepPlan) -> tuple[Any, np.ndarray]:
        """hidden[T, d] of the plan's tokens, and offsets int32[R+1] of its rows."""
        offsets = np.zeros(plan.num_rows + 1, np.int32)
        np.cumsum(plan.counts, out=offsets[1:])
        rows = np.repeat(np.arange(plan.num_rows), plan.counts)
        positions = (np.arange(offsets[-1], dtype=np.int32) - offsets[rows]) + plan.starts[rows]
        contexts = plan.starts + plan.counts
        num_blocks = -(-int(contexts.max()) // self._block_size)
        batch = Batch(
            tokens=self._tokens[plan.slots[rows], positions],
            positions=positions,
            offsets=offsets,
            starts=plan.starts,
            contexts=contexts,
            tables=tuple(table[plan.slots, :num_blocks] for table in self._tables),
        )
        return self._model.forward(batch, self._kv), offsets

    def sample(self, plan: StepPlan, hidden: Any, offsets: np.ndarray) -> StepResult:
        """Draw a token for every row that reached the end of its known tokens."""
        tokens = np.full(plan.num_rows, -1, np.int32)
        logprobs: dict[int, RowLogprobs] = {}
        rows = np.flatnonzero(plan.samples)
        if len(rows):
            logits = self._model.logits(hidden[offsets[rows + 1] - 1])
            positions = plan.starts[rows] + plan.counts[rows]
            drawn, drawn_logprobs = self._sampler.sample(logits, plan.slots[rows], positions)
            tokens[rows] = drawn
            self._tokens[plan.slots[rows], positions] = drawn
            logprobs = {int(rows[i]): entry for i, entry in drawn_logprobs.items()}
        prompt = {
            int(row): found
            for row in np.flatnonzero(plan.prompt_logits)
            if (found := self._prompt_row(plan, int(row), hidden, offsets)) is not None
        }
        return StepResult(step=plan.step, tokens=tokens, logprobs=logprobs, prompt_logprobs=prompt)

    def _prompt_row(self, plan: StepPlan, row: int, hidden: Any, offsets: np.ndarray) -> RowLogprobs | None:
        """Log-probabilities of the prompt tokens that this row's positions predict."""
        slot, start = int(plan.slots[row]), int(plan.starts[row])
        last = min(start + int(plan.counts[row]), int(self._prompt_len[slot]) - 1)
        if last <= start:
            return None
        k = int(self._prompt_logprobs[slot])
        parts = []
        for first in range(start, last, PROMPT_LOGIT_ROWS):
            end = min(first + PROMPT_LOGIT_ROWS, last)
            base = int(offsets[row]) - start
            logits = self._model.logits(hidden[base + first : base + end])
            parts.append(self._sampler.prompt_logprobs(logits, self._tokens[slot, first + 1 : end + 1], k))
        return RowLogprobs(
            chosen=np.concatenate([p.chosen for p in parts]),
            top_ids=np.concatenate([p.top_ids for p in parts]),
            top=np.concatenate([p.top for p in parts]),
        )
