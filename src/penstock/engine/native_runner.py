"""NativeRunner: executes StepPlans natively, sampling and whole windows of steps included.

`launch` puts a plan into the native queue (native/core/launch.h). Its thread sits in native code without
the GIL and runs one launch after the other; it comes back to Python only for those that Python *attends*:
plans that admit requests, that draw tokens which need the host (penalties, masks), or that want
log-probabilities of prompts.

    launch(plan) ──native queue──> [ gather, forward, draw ]* ──> wait()
                        └─ attended: tables, admissions │ gather, forward, draw │ host's rows, prompt rows
"""

from __future__ import annotations

import threading
from collections import deque
from collections.abc import Callable, Sequence
from typing import Any, cast

import numpy as np

from penstock.decoding.drafting.acceptance import SyntheticAcceptance
from penstock.decoding.native import NativeSampler
from penstock.decoding.params import RowLogprobs
from penstock.engine.plan import Pending, StepPlan, StepResult
from penstock.engine.request_rows import BROKEN, RequestRows
from penstock.engine.verify_synthetic import verifier
from penstock.models.lowered import LoweredModel


class _Launched:
    """One launch: its plan, and what Python adds to the results of one that it attends."""

    __slots__ = (
        "broken", "by_host", "drawn", "error", "features_width", "held", "ks", "launch", "logprobs", "plan",
        "prompt_logprobs",
    )  # fmt: skip

    def __init__(
        self, plan: StepPlan, held: bool, by_host: np.ndarray, ks: np.ndarray | None, features_width: int
    ) -> None:
        self.plan = plan
        self.features_width = features_width
        self.held = held
        self.by_host = by_host  # bool[R]: the host draws the row's token
        self.ks = ks  # int32[R]: alternatives that each row wants; None if no row wants log-probabilities
        self.launch: Any = None
        self.drawn: tuple[np.ndarray, np.ndarray] | None = None  # rows that the host drew, their tokens
        self.logprobs: dict[int, RowLogprobs] = {}
        self.prompt_logprobs: dict[int, RowLogprobs] = {}
        self.broken: list[int] = []  # rows whose prompt's logits are
        self.error: BaseException | None = None

    def logprobs_of(self, index: int) -> dict[int, RowLogprobs]:
        """Of the rows that asked, by row."""
        if self.ks is None:
            return self.logprobs
        found = dict(self.logprobs)
        rows, chosen, ids, values = self.launch.logprobs(index)
        firsts, counts = np.unique(rows, return_index=True, return_counts=True)[1:]
        for first, count in zip(firsts.tolist(), counts.tolist(), strict=True):
            row, part = int(rows[first]), slice(first, first + count)
            k = int(self.ks[row])
            found[row] = RowLogprobs(chosen=chosen[part], top_ids=ids[part, :k], top=values[part, :k])
        return found

    def features_of(self, index: int) -> dict[int, np.ndarray]:
        """Of the rows that took part in step `index`, by row; once."""
        if not self.features_width:
            return {}
        features, firsts = self.launch.take_features(index, self.features_width)
        counts = self.plan.counts if self.plan.window == 1 else np.ones_like(self.plan.counts)
        rows = np.flatnonzero(firsts >= 0).tolist()
        return {row: features[firsts[row] : firsts[row] + counts[row]] for row in rows}

    def tokens_of(self, tokens: np.ndarray) -> np.ndarray:
        """int32[R] or int32[R, S] of a step's native tokens, int32[R * (1 + most drafts)], and the host's."""
        rows = len(self.plan.slots)
        if self.drawn is None:
            return tokens if len(tokens) == rows else tokens.reshape(rows, -1)
        by_host, theirs = self.drawn
        native = tokens.reshape(rows, -1)
        merged = np.full((rows, max(native.shape[1], theirs.shape[1])), -1, np.int32)
        merged[:, : native.shape[1]] = native
        merged[by_host, : theirs.shape[1]] = theirs
        return merged


class NativeStep:
    """One step of a launch (`penstock.engine.plan.Pending`)."""

    __slots__ = ("index", "launched")

    def __init__(self, launched: _Launched, index: int) -> None:
        self.launched, self.index = launched, index

    def wait(self) -> StepResult | None:
        launched, index = self.launched, self.index
        drafts = launched.plan.draft_counts
        tokens = np.empty(
            len(launched.plan.slots) * (1 if drafts is None else 1 + int(drafts.max())), np.int32
        )
        try:
            ran = launched.launch.wait(index, tokens)
        except RuntimeError:
            if launched.error is not None:
                raise launched.error from None
            raise
        if ran is None:
            return None
        seconds, num_broken = ran
        broken = launched.broken
        tokens = launched.tokens_of(tokens)
        if num_broken or launched.drawn is not None:
            lost = (tokens if tokens.ndim == 1 else tokens.min(axis=1)) == BROKEN
            broken = sorted({*broken, *np.flatnonzero(lost).tolist()})
            tokens[lost] = -1
        return StepResult(
            step=launched.plan.step + index,
            tokens=tokens,
            logprobs=launched.logprobs_of(index),
            prompt_logprobs=launched.prompt_logprobs,
            broken=tuple(broken),
            device_s=seconds,
            features=launched.features_of(index),
        )


class NativeRunner:
    """A `penstock.engine.plan.WindowDevice` over a lowered model whose pool is bound."""

    def __init__(
        self,
        model: LoweredModel,
        sampler: NativeSampler,
        *,
        num_slots: int,
        max_context: int,
        num_groups: int,
        block_size: int,
        step_drafts: int = 0,
        acceptance: SyntheticAcceptance | None = None,
    ) -> None:
        """step_drafts: drafts of one step at most. acceptance: None where drafts count that are drawn."""
        self._executable = model.executable
        self._features_width = model.executable.program.features_width
        self._sampler = sampler
        self._requests = RequestRows(num_slots, max_context, num_groups, block_size)
        self._logits = np.empty((num_slots + step_drafts, model.spec.vocab_size), np.float32)
        # As of the last launch; what the device knows of a slot follows when the launch runs.
        self._host_upto = np.zeros(num_slots, np.int32)  # the host draws the tokens at positions below it
        self._logprobs = np.full(num_slots, -1, np.int32)
        self._queue = self._executable.step_queue(
            sampler.table,
            self._requests.tokens,
            self._requests.tables,
            self._logits,
            () if acceptance is None else acceptance.chances.tolist(),
        )
        self._verify = verifier(acceptance)
        self._attended: deque[_Launched] = deque()
        self._last: Any = None
        self._awaited: Any = None  # the launch that `ready` waits for
        self._interrupted = False
        self._thread = threading.Thread(target=self._serve, name="penstock-device", daemon=True)
        self._thread.start()

    # ------------------------------------------------------------------ the caller's thread

    def launch(self, plan: StepPlan) -> NativeStep:
        return self.launch_window(plan)[0]

    def launch_window(self, plan: StepPlan) -> list[NativeStep]:
        for admission in plan.admissions:
            sampling = admission.sampling
            self._host_upto[admission.slot] = admission.prompt_len + sampling.host_tokens
            self._logprobs[admission.slot] = sampling.logprobs
        slots = plan.slots
        drafts = 0 if plan.draft_counts is None else plan.draft_counts
        by_host = plan.samples & (plan.starts + plan.counts - drafts < self._host_upto[slots])
        held = bool(plan.prompt_logits.any() or by_host.any())
        attended = held or bool(plan.admissions)
        ks = self._logprobs[slots]
        asked = ks if (ks >= 0).any() else None
        launched = _Launched(plan, held, by_host, asked, self._features_width)
        writes = [(update.slot, update.group, update.first, update.blocks) for update in plan.updates]
        if attended:
            self._attended.append(launched)
        launched.launch = self._last = self._queue.launch(
            slots,
            plan.starts,
            plan.counts,
            plan.samples,
            plan.window,
            writes,
            attended,
            held,
            plan.draft_counts,
            plan.drafts,
        )
        return [NativeStep(launched, index) for index in range(plan.window)]

    def cut(self) -> int:
        return int(self._last.cut())

    def ready(self, steps: Sequence[Pending], seconds: float) -> int:
        first, last = cast(NativeStep, steps[0]), cast(NativeStep, steps[-1])
        # In this order: an interrupt from here on finds one of the two.
        self._awaited = launch = first.launched.launch
        if self._interrupted:
            seconds, self._interrupted = 0.0, False
        done = int(launch.wait_until(last.index, seconds))
        self._awaited = None
        return max(0, min(done, last.index + 1) - first.index)

    def interrupt(self) -> None:
        awaited = self._awaited
        if awaited is None:
            self._interrupted = True
        else:
            awaited.interrupt()

    def close(self) -> None:
        """Finish what was launched, then end the thread."""
        self._queue.close()
        self._thread.join()

    # ------------------------------------------------------------------ the device's thread

    def _serve(self) -> None:
        while (launch := self._queue.next()) is not None:
            launched = self._attended.popleft()
            try:
                self._attend(launched, launch)
            except BaseException as error:  # noqa: BLE001  raised again where it is waited for
                launched.error = error
                launch.fail(str(error))

    def _attend(self, launched: _Launched, launch: Any) -> None:
        plan = launched.plan
        self._queue.write(launch)  # first: younger plans count on it, whatever fails here
        self._requests.admit(plan, self._sampler)
        for admission in plan.admissions:
            sampling = admission.sampling
            self._queue.admit(
                admission.slot,
                admission.prompt_len + sampling.host_tokens,
                sampling.logprobs,
                admission.prompt_len + sampling.min_tokens,
                [token for token in sampling.stop_token_ids if token < 2**31],
            )
        if launched.held:
            self._sampler.begin(plan.slots[launched.by_host])
        self._queue.run(launch)
        if launched.held:
            self._draw_for(launched, launch)
            if plan.prompt_logits.any():
                launched.prompt_logprobs, launched.broken = self._requests.prompt_rows(
                    plan, self._prompt_logits(plan), self._sampler
                )
            launch.release()

    def _draw_for(self, launched: _Launched, launch: Any) -> None:
        """Tokens of the rows that the host draws."""
        plan = launched.plan
        rows = np.flatnonzero(launched.by_host).astype(np.int32)
        if not len(rows):
            return
        slots, positions = plan.slots[rows], plan.starts[rows] + plan.counts[rows]
        drafts: Sequence[np.ndarray] = ()
        if plan.draft_counts is not None:
            drafts = [plan.drafts_of(row) for row in rows.tolist()]
            positions = positions - plan.draft_counts[rows]
        places = launch.head_rows()[rows]
        drawn = self._verify(self._sampler, self._logits, places, slots, positions, drafts)
        self._requests.write_drawn(slots, positions, drawn.tokens)
        launched.drawn = rows, drawn.tokens
        launched.logprobs = {int(rows[i]): entry for i, entry in drawn.logprobs.items()}

    def _prompt_logits(self, plan: StepPlan) -> Callable[[int, int, int], np.ndarray]:
        bases = np.cumsum(plan.counts) - plan.counts - plan.starts

        def logits(row: int, first: int, end: int) -> np.ndarray:
            base = int(bases[row])
            return np.asarray(self._executable.logits(np.arange(base + first, base + end, dtype=np.int32)))

        return logits
