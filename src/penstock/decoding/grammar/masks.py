"""GrammarMasks: the matchers of an engine's slots, and what each allows next.

The masks of a step are made by a thread of their own while the step's forward pass runs (`begin`), and waited
for where the draw needs them (`of`).
"""

from __future__ import annotations

from collections.abc import Sequence
from concurrent.futures import Future, ThreadPoolExecutor

import numpy as np

from penstock.decoding.grammar.backend import GrammarBroken, Matcher, mask_words
from penstock.decoding.grammar.loops import AnswerLoops, LoopGuard
from penstock.decoding.grammar.spec import GrammarSpec
from penstock.decoding.grammar.store import GrammarStore


class GrammarMasks:
    def __init__(self, num_slots: int, vocab_size: int, store: GrammarStore) -> None:
        self._store = store
        self._matchers: list[Matcher | None] = [None] * num_slots
        self._masks = np.zeros((num_slots, mask_words(vocab_size)), np.int32)
        self._broken: dict[int, str] = {}  # why the slot's answer can't go on
        self._worker: ThreadPoolExecutor | None = None
        self._pending: Future[None] | None = None
        self._fresh: set[int] = set()  # slots whose mask is that of their next token
        self._guard: LoopGuard | None = None
        self._loops: list[AnswerLoops | None] = [None] * num_slots

    def admit(
        self, slot: int, spec: GrammarSpec | None, generated: Sequence[int], max_tokens: int = 1 << 20
    ) -> None:
        """Write the slot's matcher: none without a `spec`. `generated`: the answer before a preemption."""
        self._settle()
        self._fresh.discard(slot)
        self._broken.pop(slot, None)
        self._matchers[slot] = None
        if spec is None:
            return
        matcher = self._matchers[slot] = self._store.compiled(spec).matcher()
        if self._guard is None:
            self._guard = LoopGuard(self._store.vocabulary())
        loops = self._loops[slot] = self._guard.answer(spec.loops, max_tokens)
        for token in generated:
            loops.plan(matcher)
            loops.record(token)
            if not matcher.consume(token):
                self._broken[slot] = f"token {token} of the answer is not what its grammar allows"
                break

    def any_of(self, slots: np.ndarray) -> bool:
        """Whether one of the slots has a matcher."""
        return any(self._matchers[slot] is not None for slot in slots.tolist())

    def begin(self, slots: Sequence[int]) -> None:
        """Make the masks of those of `slots` that have a matcher, while the caller does something else."""
        self._settle()
        wanted = [slot for slot in slots if self._needs_mask(slot)]
        if not wanted:
            return
        if self._worker is None:
            self._worker = ThreadPoolExecutor(1, thread_name_prefix="penstock-masks")
        self._pending = self._worker.submit(self._fill, wanted)

    def of(self, slots: np.ndarray) -> tuple[np.ndarray, dict[int, str]]:
        """int32[R, words]: bit i % 32 of word i // 32 says whether token i may come; all may without a
        matcher. And by row why some have no mask."""
        self.begin(slots.tolist())
        self._settle()
        masks = self._masks[slots]
        broken = {}
        for i, slot in enumerate(slots.tolist()):
            if self._matchers[slot] is None:
                masks[i] = -1
            elif slot in self._broken:
                broken[i] = self._broken[slot]
        return masks, broken

    def record(self, slot: int, token: int) -> None:
        """The token was drawn."""
        matcher = self._matchers[slot]
        if matcher is None or slot in self._broken:
            return
        self._fresh.discard(slot)
        loops = self._loops[slot]
        assert self._guard is not None and loops is not None
        loops.record(token)
        if token in self._guard.ends:
            # What a step in flight still draws for this row is dropped.
            self._matchers[slot] = None
        elif not matcher.consume(token):
            self._broken[slot] = f"token {token} was drawn against its grammar"

    def _needs_mask(self, slot: int) -> bool:
        return self._matchers[slot] is not None and slot not in self._fresh and slot not in self._broken

    def _fill(self, slots: list[int]) -> None:
        for slot in slots:
            matcher, loops = self._matchers[slot], self._loops[slot]
            assert matcher is not None and loops is not None
            try:
                matcher.fill(self._masks[slot])
                loops.plan(matcher)
                loops.bound(self._masks[slot])
            except GrammarBroken as error:
                self._broken[slot] = error.message
            self._fresh.add(slot)

    def _settle(self) -> None:
        if self._pending is not None:
            self._pending.result()
            self._pending = None
