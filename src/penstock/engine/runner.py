"""ModelRunner: executes StepPlans on a model, in launch order, on one device thread.

The runner keeps its own request table (tokens, block tables, sampling state): the *device-resident*
state. A decode row's input token is read from it, never sent by the host, so step n+1 can be
launched before the host has seen step n. A step is two entry points, `forward` and `sample`, so
that what needs the host between them (grammar masks) has a place to bind.

    launch(plan) ──queue──> [ enter rows, forward(plan) → hidden, sample(plan, hidden) ] ──> wait()
"""

from __future__ import annotations

import time
from collections.abc import Sequence
from typing import Any, Protocol

import msgspec
import numpy as np

from penstock.decoding.drafting.acceptance import SyntheticAcceptance
from penstock.decoding.params import RowLogprobs
from penstock.engine.device_thread import DeviceThread, QueuedStep
from penstock.engine.plan import StepPlan, StepResult
from penstock.engine.request_rows import BROKEN, RequestRows, TokenSampler
from penstock.engine.verify_synthetic import verifier
from penstock.kernels.batch import Batch, LayerKV


class ForwardModel(Protocol):
    """What the runner needs of a model (`penstock.models.forward.Model`)."""

    def forward(self, batch: Batch, kv: Sequence[LayerKV], features: Any | None = None) -> Any:
        """hidden[T, d]; features float32[T, w] is filled if given"""
        ...

    def logits(self, hidden: Any) -> np.ndarray:
        """float32[n, V] of hidden[n, d]"""
        ...


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
        features_width: int = 0,
        acceptance: SyntheticAcceptance | None = None,
    ) -> None:
        """features_width: floats that the model captures of every token. acceptance: None where drafts count
        that are drawn."""
        self._model = model
        self._features_width = features_width
        self._kv = kv
        self._sampler = sampler
        self._verify = verifier(acceptance)
        self._block_size = block_size
        self._requests = RequestRows(num_slots, max_context, num_groups, block_size)
        self._thread = DeviceThread(self.execute)

    def launch(self, plan: StepPlan) -> QueuedStep:
        return self._thread.launch(plan)

    def close(self) -> None:
        self._thread.close()

    def execute(self, plan: StepPlan) -> StepResult:
        """Run one plan on the calling thread."""
        began = time.perf_counter()
        self._requests.enter(plan, self._sampler)
        self._requests.write_drafts(plan)
        self._sampler.begin(plan.slots[plan.samples])
        features = None
        if self._features_width:
            features = np.empty((plan.num_tokens, self._features_width), np.float32)
        hidden, offsets = self.forward(plan, features)
        result = self.sample(plan, hidden, offsets)
        found = {}
        if features is not None:
            found = {row: features[offsets[row] : offsets[row + 1]] for row in range(plan.num_rows)}
        return msgspec.structs.replace(result, device_s=time.perf_counter() - began, features=found)

    def forward(self, plan: StepPlan, features: np.ndarray | None = None) -> tuple[Any, np.ndarray]:
        """hidden[T, d] of the plan's tokens, and offsets int32[R+1] of its rows; `features` is filled."""
        offsets = np.zeros(plan.num_rows + 1, np.int32)
        np.cumsum(plan.counts, out=offsets[1:])
        rows = np.repeat(np.arange(plan.num_rows), plan.counts)
        positions = (np.arange(offsets[-1], dtype=np.int32) - offsets[rows]) + plan.starts[rows]
        contexts = plan.starts + plan.counts
        num_blocks = -(-int(contexts.max()) // self._block_size)
        batch = Batch(
            tokens=self._requests.tokens[plan.slots[rows], positions],
            positions=positions,
            offsets=offsets,
            starts=plan.starts,
            contexts=contexts,
            tables=tuple(table[plan.slots, :num_blocks] for table in self._requests.tables),
        )
        if features is None:
            return self._model.forward(batch, self._kv), offsets
        return self._model.forward(batch, self._kv, features), offsets

    def sample(self, plan: StepPlan, hidden: Any, offsets: np.ndarray) -> StepResult:
        """Draw for every row that reached the end of its known tokens."""
        tokens = np.full((plan.num_rows, 1), -1, np.int32)
        logprobs: dict[int, RowLogprobs] = {}
        rows = np.flatnonzero(plan.samples)
        if len(rows):
            drafts = [plan.drafts_of(row) for row in rows.tolist()]
            widths = np.array([1 + len(each) for each in drafts], np.int32)
            ends = np.cumsum(widths, dtype=np.int32)
            wanted = np.concatenate(
                [np.arange(end - width, end) for end, width in zip(offsets[rows + 1], widths, strict=True)]
            )
            logits = self._model.logits(hidden[wanted])
            slots, positions = plan.slots[rows], plan.starts[rows] + plan.counts[rows] - widths + 1
            drawn = self._verify(self._sampler, logits, ends - widths, slots, positions, drafts)
            tokens = np.full((plan.num_rows, drawn.tokens.shape[1]), -1, np.int32)
            tokens[rows] = drawn.tokens
            self._requests.write_drawn(slots, positions, drawn.tokens)
            logprobs = {int(rows[i]): entry for i, entry in drawn.logprobs.items()}
        prompt, broken = self._requests.prompt_rows(
            plan,
            lambda row, first, end: self._model.logits(hidden[_span(offsets, plan, row, first, end)]),
            self._sampler,
        )
        broken = sorted({*broken, *np.flatnonzero(tokens[:, 0] == BROKEN).tolist()})
        return StepResult(
            step=plan.step,
            tokens=np.maximum(tokens, -1),
            logprobs=logprobs,
            prompt_logprobs=prompt,
            broken=tuple(broken),
        )


def _span(offsets: np.ndarray, plan: StepPlan, row: int, first: int, end: int) -> slice:
    """Tokens of the step at positions [first, end) of `row`."""
    base = int(offsets[row]) - int(plan.starts[row])
    return slice(base + first, base + end)
