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
from penstock.decoding.grammar.start_masks import MOST_TOKENS, Start, StartMasks
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
        self._starts: list[Start | None] = [None] * num_slots  # while an answer is at its beginning
        self._start_masks = StartMasks()
        self._taken: dict[int, int] = {}  # slot -> token that its matcher follows already, to be recorded
        self._refused = np.zeros(num_slots)  # share of the tokens, lately, that needed a mask

    def free(self, slot: int) -> None:
        """Drop what the slot has."""
        self._settle()
        self._fresh.discard(slot)
        self._broken.pop(slot, None)
        self._taken.pop(slot, None)
        self._matchers[slot] = self._gates[slot] = self._loops[slot] = self._starts[slot] = None

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
        compiled = self._store.compiled(spec)
        matcher = self._matchers[slot] = compiled.matcher()
        self._starts[slot] = (compiled, ())
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
        if self._taken.pop(slot, None) is not None:
            return
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
                for passed in gate.passed:
                    self._go_on(slot, passed)
            if taken:
                return True
        loops = self._loops[slot]
        assert loops is not None
        loops.plan(matcher)  # whoever takes a forced token has made no mask for it
        loops.record(token)
        self._go_on(slot, token)
        return matcher.consume(token)

    def _go_on(self, slot: int, token: int) -> None:
        start = self._starts[slot]
        if start is not None:
            self._starts[slot] = (start[0], (*start[1], token)) if len(start[1]) < MOST_TOKENS else None

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

    def may_take(self, slot: int) -> bool:
        """Whether to try `take` before the slot's mask is made."""
        return (
            self._needs_mask(slot)
            and self._gates[slot] is None
            and (slot in self._taken or self._refused[slot] < MOST_REFUSED)
        )

    def take(self, slot: int, candidates: Sequence[int]) -> int | None:
        """The first of `candidates` that the mask would allow; None if none is, or where only the mask says.

        The matcher follows the token at once, `record` adds nothing: to consume is to ask. Until then the
        slot's token stays this one.
        """
        if (taken := self._taken.get(slot)) is not None:
            return taken
        self._settle()
        matcher, loops = self._matchers[slot], self._loops[slot]
        assert matcher is not None and loops is not None and self._guard is not None
        loops.plan(matcher)
        if loops.is_binding or self._gates[slot] is not None:
            return None
        for token in candidates:
            if token in self._guard.ends:
                if matcher.accepts([token]) == 1:
                    return token
            elif matcher.consume(token):
                loops.record(token)
                self._go_on(slot, token)
                self._taken[slot] = token
                self._refused[slot] *= 1 - REFUSED_WEIGHT
                return token
        return None

    def give_up(self, slot: int) -> None:
        """`take` found no token: the slot's mask is made after the forward pass."""
        self._refused[slot] += REFUSED_WEIGHT * (1.0 - self._refused[slot])

    def _needs_mask(self, slot: int) -> bool:
        return self._matchers[slot] is not None and slot not in self._fresh and slot not in self._broken

    def _fill(self, slots: list[int]) -> None:
        for slot in slots:
            matcher, gate, loops = self._matchers[slot], self._gates[slot], self._loops[slot]
            assert matcher is not None and loops is not None
            try:
                if gate is None or gate.asks_grammar:
                    self._fill_one(slot, matcher)
                    loops.plan(matcher)
                    loops.bound(self._masks[slot])
                if gate is not None:
                    gate.fill(self._masks[slot])
            except GrammarBroken as error:
                self._broken[slot] = error.message
            self._fresh.add(slot)
            self._refused[slot] *= FORGIVEN

    def _fill_one(self, slot: int, matcher: Matcher) -> None:
        start, mask = self._starts[slot], self._masks[slot]
        if start is None or self._gates[slot] is not None:  # behind a gate the matcher may be further on
            matcher.fill(mask)
        elif not self._start_masks.copy(start, mask):
            matcher.fill(mask)
            self._start_masks.keep(start, mask)

    def _settle(self) -> None:
        pending, self._pending = self._pending, None  # what it raises is raised once
        if pending is not None:
            pending.result()


def _takes_all(matcher: Matcher, tokens: Sequence[int]) -> bool:
    return matcher.accepts(tokens) == len(tokens)
