"""GrammarMasks: the matchers of an engine's slots, and what each allows next.

The masks of a step are made by a thread of their own while the step's forward pass runs (`begin`), and waited
for where the draw needs them (`of`). Where the model may reason first a Gate stands before the matcher.
"""

from __future__ import annotations

import itertools
from collections.abc import Container, Sequence
from concurrent.futures import Future, ThreadPoolExecutor

import numpy as np

from penstock.decoding.grammar.backend import GrammarBroken, Matcher, mask_words
from penstock.decoding.grammar.gate import Gate
from penstock.decoding.grammar.loops import AnswerLoops, LoopGuard
from penstock.decoding.grammar.spec import GrammarSpec
from penstock.decoding.grammar.store import GrammarStore
from penstock.decoding.thinking import ThinkingSpec

MOST_REFUSED = 0.3  # beyond it masks are made ahead: asking first costs a mask's time after the forward pass
REFUSED_WEIGHT = 0.1  # of the newest token in the running mean
FORGIVEN = 0.98  # what is left of it after a mask: nothing is asked meanwhile


class GrammarMasks:
    def __init__(self, num_slots: int, vocab_size: int, store: GrammarStore) -> None:
        self._store = store
        self._matchers: list[Matcher | None] = [None] * num_slots
        self._gates: list[Gate | None] = [None] * num_slots
        self._masks = np.zeros((num_slots, mask_words(vocab_size)), np.int32)
        self._broken: dict[int, str] = {}  # why the slot's answer can't go on
        self._worker: ThreadPoolExecutor | None = None
        self._pending: Future[None] | None = None
        self._fresh: set[int] = set()  # slots whose mask is that of their next token
        self._guard: LoopGuard | None = None
        self._loops: list[AnswerLoops | None] = [None] * num_slots
        self._refused = np.zeros(num_slots)  # share of the likeliest tokens, lately, that were not allowed

    def free(self, slot: int) -> None:
        """Drop what the slot has."""
        self._settle()
        self._fresh.discard(slot)
        self._broken.pop(slot, None)
        self._matchers[slot] = self._gates[slot] = self._loops[slot] = None

    def admit(
        self,
        slot: int,
        spec: GrammarSpec | None,
        tokens: np.ndarray,
        prompt_len: int,
        thinking: ThinkingSpec | None = None,
        max_tokens: int = 1 << 20,
    ) -> bool:
        """Write the slot's matcher: none without a `spec`. Whether a section of `thinking` may come before
        it: none may if the grammar has the start marker in it, and so describes the reasoning itself.

        tokens: int32[known], the prompt and what of the answer was there before a preemption.
        """
        self.free(slot)
        if spec is None:
            return False
        matcher = self._matchers[slot] = self._store.compiled(spec).matcher()
        if self._guard is None:
            self._guard = LoopGuard(self._store.vocabulary())
        self._loops[slot] = self._guard.answer(spec.loops, max_tokens)
        if thinking is not None and (thinking.open or not _takes_all(matcher, thinking.starts[0])):
            self._gates[slot] = Gate(thinking, matcher, tokens[:prompt_len], self._guard.ends)
        leads = self._gates[slot] is not None
        for token in tokens[prompt_len:].tolist():
            self.record(slot, token)
        return leads

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

    def of(self, slots: np.ndarray, without: Container[int] = ()) -> tuple[np.ndarray, dict[int, str]]:
        """int32[R, words]: bit i % 32 of word i // 32 says whether token i may come; all may without a
        matcher, and in rows `without`. And by row why some have no mask."""
        self.begin([slot for i, slot in enumerate(slots.tolist()) if i not in without])
        self._settle()
        masks = self._masks[slots]
        broken = {}
        for i, slot in enumerate(slots.tolist()):
            if self._matchers[slot] is None or i in without:
                masks[i] = -1
            elif slot in self._broken:
                broken[i] = self._broken[slot]
        return masks, broken

    def record(self, slot: int, token: int) -> None:
        """The token came."""
        matcher = self._matchers[slot]
        if matcher is None or slot in self._broken:
            return
        self._fresh.discard(slot)
        assert self._guard is not None
        gate = self._gates[slot]
        if token in self._guard.ends and (gate is None or gate.asks_grammar):
            # What a step in flight still draws for this row is dropped; where min_tokens or no stop id keeps
            # the request going, what follows has no form.
            self._matchers[slot] = None
        elif not self._consumed(slot, matcher, token):
            self._broken[slot] = f"token {token} of the answer is not what its grammar allows"

    def _consumed(self, slot: int, matcher: Matcher, token: int) -> bool:
        """False if the grammar does not allow the token."""
        gate = self._gates[slot]
        if gate is not None:
            taken = gate.takes(token)
            if gate.done:
                self._gates[slot] = None
            if taken:
                return True
        loops = self._loops[slot]
        assert loops is not None
        loops.plan(matcher)  # whoever takes a forced token has made no mask for it
        loops.record(token)
        return matcher.consume(token)

    def forced(self, slot: int) -> list[int]:
        """Tokens that must come next whatever the model says. The end of an answer is not among them: it is
        drawn."""
        self._settle()
        matcher = self._matchers[slot]
        if matcher is None or slot in self._broken:
            return []
        assert self._guard is not None
        gate = self._gates[slot]
        if gate is not None:
            return gate.forced()
        ends = self._guard.ends
        return list(itertools.takewhile(lambda token: token not in ends, matcher.forced()))

    def expects_consent(self, slot: int) -> bool:
        """Whether to ask `allows` for the likeliest token before the slot's mask is made."""
        return self._needs_mask(slot) and self._refused[slot] < MOST_REFUSED

    def allows(self, slot: int, token: int) -> bool:
        """Whether the mask would allow the token. False as well where only the mask says."""
        self._settle()
        matcher, loops = self._matchers[slot], self._loops[slot]
        assert matcher is not None and loops is not None
        loops.plan(matcher)
        allowed = self._gates[slot] is None and not loops.is_binding and matcher.accepts([token]) == 1
        self._refused[slot] += REFUSED_WEIGHT * (float(not allowed) - self._refused[slot])
        return allowed

    def _needs_mask(self, slot: int) -> bool:
        return self._matchers[slot] is not None and slot not in self._fresh and slot not in self._broken

    def _fill(self, slots: list[int]) -> None:
        for slot in slots:
            matcher, gate, loops = self._matchers[slot], self._gates[slot], self._loops[slot]
            assert matcher is not None and loops is not None
            try:
                if gate is None or gate.asks_grammar:
                    matcher.fill(self._masks[slot])
                    loops.plan(matcher)
                    loops.bound(self._masks[slot])
                if gate is not None:
                    gate.fill(self._masks[slot])
            except GrammarBroken as error:
                self._broken[slot] = error.message
            self._fresh.add(slot)
            self._refused[slot] *= FORGIVEN

    def _settle(self) -> None:
        pending, self._pending = self._pending, None  # what it raises is raised once
        if pending is not None:
            pending.result()


def _takes_all(matcher: Matcher, tokens: Sequence[int]) -> bool:
    return matcher.accepts(tokens) == len(tokens)
