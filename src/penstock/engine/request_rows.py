"""RequestRows: the device-resident state of every slot, as runners on this machine's CPU keep it.

A decode row's input token is read from here, never sent by the host, so step n+1 can be launched
before the host has seen step n.
"""

from __future__ import annotations

import logging
from collections.abc import Callable
from typing import Protocol

import numpy as np

from penstock.decoding.params import RowLogprobs, TokenSampling
from penstock.decoding.sampling import BrokenRows, NonFiniteLogits
from penstock.engine.plan import StepPlan

log = logging.getLogger("penstock.engine")

# Rows of prompt logits computed at once: 256 rows of a 256k vocabulary are 268 MB of float32.
PROMPT_LOGIT_ROWS = 256
BROKEN = -2  # in place of a token that could not be drawn


class TokenSampler(Protocol):
    """What a runner needs of a sampler (`penstock.decoding.sampling.Sampler`)."""

    def admit(self, slot: int, tokens: np.ndarray, prompt_len: int, sampling: TokenSampling) -> None: ...

    def begin(self, slots: np.ndarray) -> None: ...

    def known(self, slot: int) -> int: ...

    def sample(
        self, logits: np.ndarray, slots: np.ndarray, positions: np.ndarray, places: np.ndarray | None = None
    ) -> tuple[np.ndarray, dict[int, RowLogprobs]]: ...

    def seed(self, slot: int) -> int: ...

    def take(self, logits: np.ndarray, slot: int, token: int) -> tuple[bool, RowLogprobs | None]: ...

    def take_forced(self, slot: int) -> list[int]: ...

    def prompt_logprobs(self, logits: np.ndarray, targets: np.ndarray, k: int) -> RowLogprobs: ...


class RequestRows:
    """tokens int32[slots, max_context + 1]; tables: per KV group int32[slots, blocks]."""

    def __init__(self, num_slots: int, max_context: int, num_groups: int, block_size: int) -> None:
        self.tokens = np.empty((num_slots, max_context + 1), np.int32)
        self.prompt_len = np.zeros(num_slots, np.int32)
        self._prompt_logprobs = np.full(num_slots, -1, np.int32)
        max_blocks = -(-max_context // block_size)
        # Zeroed, not empty: entries that a window has left behind must stay valid block ids.
        self.tables = tuple(np.zeros((num_slots, max_blocks), np.int32) for _ in range(num_groups))

    def enter(self, plan: StepPlan, sampler: TokenSampler) -> None:
        """Apply the plan's table updates, which younger plans count on whatever fails, and admissions."""
        for update in plan.updates:
            table = self.tables[update.group]
            table[update.slot, update.first : update.first + len(update.blocks)] = update.blocks
        self.admit(plan, sampler)

    def admit(self, plan: StepPlan, sampler: TokenSampler) -> None:
        for admission in plan.admissions:
            slot = admission.slot
            self.tokens[slot, : len(admission.tokens)] = admission.tokens
            self.prompt_len[slot] = admission.prompt_len
            self._prompt_logprobs[slot] = admission.sampling.prompt_logprobs
            sampler.admit(slot, admission.tokens, admission.prompt_len, admission.sampling)

    def write_drafts(self, plan: StepPlan) -> None:
        """The plan's drafts, to where the tokens of their positions will be."""
        if plan.draft_counts is None:
            return
        for row in np.flatnonzero(plan.draft_counts).tolist():
            end = int(plan.starts[row] + plan.counts[row])
            self.tokens[plan.slots[row], end - int(plan.draft_counts[row]) : end] = plan.drafts_of(row)

    def write_drawn(self, slots: np.ndarray, positions: np.ndarray, tokens: np.ndarray) -> None:
        """int32[R, S] drawn tokens from int32[R] `positions` on, as far as the table goes."""
        places = positions[:, None] + np.arange(tokens.shape[1], dtype=np.int32)
        rows, columns = np.nonzero((tokens >= 0) & (places < self.tokens.shape[1]))
        self.tokens[slots[rows], places[rows, columns]] = tokens[rows, columns]

    def prompt_rows(
        self, plan: StepPlan, logits: Callable[[int, int, int], np.ndarray], sampler: TokenSampler
    ) -> tuple[dict[int, RowLogprobs], list[int]]:
        """Log-probabilities of the prompt tokens that the plan's rows predict, for rows that ask, and the
        rows that have none because their logits are not finite.

        `logits(row, first, end)`: float32[end - first, V] of the row's positions [first, end).
        """
        found: dict[int, RowLogprobs] = {}
        broken = []
        for row in np.flatnonzero(plan.prompt_logits).tolist():
            slot, start = int(plan.slots[row]), int(plan.starts[row])
            last = min(start + int(plan.counts[row]), int(self.prompt_len[slot]) - 1)
            if last <= start:
                continue
            k = int(self._prompt_logprobs[slot])
            parts = []
            try:
                for first in range(start, last, PROMPT_LOGIT_ROWS):
                    end = min(first + PROMPT_LOGIT_ROWS, last)
                    targets = self.tokens[slot, first + 1 : end + 1]
                    parts.append(sampler.prompt_logprobs(logits(row, first, end), targets, k))
            except NonFiniteLogits:
                broken.append(row)
                continue
            found[row] = RowLogprobs(
                chosen=np.concatenate([p.chosen for p in parts]),
                top_ids=np.concatenate([p.top_ids for p in parts]),
                top=np.concatenate([p.top for p in parts]),
            )
        return found, broken


def draw(
    sampler: TokenSampler, logits: np.ndarray, places: np.ndarray, slots: np.ndarray, positions: np.ndarray
) -> tuple[np.ndarray, dict[int, RowLogprobs]]:
    """`sampler.sample`, but rows that can't be drawn get BROKEN and the others their tokens."""
    try:
        return sampler.sample(logits, slots, positions, places)
    except BrokenRows as error:
        log.warning("%s", error.message)
        tokens = np.full(len(slots), BROKEN, np.int32)
        sound = np.delete(np.arange(len(slots)), error.rows)
    if not len(sound):
        return tokens, {}
    tokens[sound], found = sampler.sample(logits, slots[sound], positions[sound], places[sound])
    return tokens, {int(sound[i]): entry for i, entry in found.items()}
