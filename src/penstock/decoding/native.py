"""NativeSampler: the reference sampler's tokens, drawn in C++ on the step's threads.

Rows of temperature, top-k, top-p, min-p, typical-p and log-probabilities are one native call for all of them,
without the GIL. Bias, penalties and masks are made here, by the reference's own code, and the draw from
their scores is native again. Tokens and log-probabilities equal the reference's: see draw on why.
"""

from __future__ import annotations

from typing import Any

import numpy as np

from penstock.decoding.grammar.store import GrammarStore
from penstock.decoding.params import RowLogprobs, TokenSampling
from penstock.decoding.sampling import SEED_MASK, NonFiniteLogits, Row, Sampler

_INT32_MAX = 2**31 - 1


class NativeSampler(Sampler):
    """`penstock.decoding.sampling.Sampler` with the rows' work in C++."""

    def __init__(
        self,
        num_slots: int,
        vocab_size: int,
        grammars: GrammarStore | None = None,
        *,
        instruction_set: str = "auto",
        pool: Any = None,
    ) -> None:
        """pool: a `_native.ThreadPool` that no step uses meanwhile, or None for the calling thread.

        Raises ValueError if this processor lacks the instruction set.
        """
        from penstock.kernels.cpu import _native

        super().__init__(num_slots, vocab_size, grammars)
        # Public for the executor, which may draw a plan's plain rows by slot and then `record` them.
        self.table = _native.SamplerTable(num_slots, instruction_set, pool)

    def admit(self, slot: int, tokens: np.ndarray, prompt_len: int, sampling: TokenSampling) -> None:
        super().admit(slot, tokens, prompt_len, sampling)
        self.table.set(
            slot=slot,
            seed=sampling.seed & SEED_MASK,
            temperature=sampling.temperature,
            top_k=min(sampling.top_k, _INT32_MAX),
            top_p=sampling.top_p,
            min_p=sampling.min_p,
            typical_p=sampling.typical_p,
        )

    def is_plain(self, slot: int) -> bool:
        """Whether the slot's tokens need nothing but its logits and its settings in `table`."""
        return self.row(slot).plain

    def record(self, slot: int, token: int) -> None:
        """The executor drew the slot's next token by `table`."""
        self.row(slot).record(token)

    def begin(self, slots: np.ndarray) -> None:
        if self._masks is not None:
            self._masks.begin([slot for slot in slots.tolist() if not self._may_do_without_mask(slot)])

    def _may_do_without_mask(self, slot: int) -> bool:
        """The likeliest of all tokens is the likeliest of those that a grammar allows, if it is one of them.
        To ask for one token is a hundredth of a mask's work, and mostly enough."""
        row = self.row(slot)
        is_greedy = row.plain and row.sampling.temperature == 0.0 and row.forced() is None
        return is_greedy and self._masks is not None and self._masks.expects_consent(slot)

    def _without_mask(
        self, logits: np.ndarray, slots: np.ndarray, positions: np.ndarray, places: np.ndarray
    ) -> dict[int, int]:
        """By index, tokens of rows that needed no mask."""
        if self._masks is None or not self._masks.any_of(slots):
            return {}
        asked = [i for i, slot in enumerate(slots.tolist()) if self._may_do_without_mask(slot)]
        if not asked:
            return {}
        drawn = np.empty(len(asked), np.int32)
        self.table.sample(logits, places[asked], slots[asked], positions[asked], drawn, None)
        pairs = zip(asked, slots[asked].tolist(), drawn.tolist(), strict=True)
        return {i: token for i, slot, token in pairs if token >= 0 and self._masks.allows(slot, token)}

    def sample(
        self, logits: np.ndarray, slots: np.ndarray, positions: np.ndarray, places: np.ndarray | None = None
    ) -> tuple[np.ndarray, dict[int, RowLogprobs]]:
        """Draw and record one token per row, as Sampler.sample does, with its errors."""
        rows = self._checked_rows(slots, positions)
        if places is None:
            places = np.arange(len(rows), dtype=np.int32)
        slots, positions = slots.astype(np.int32), positions.astype(np.int32)
        tokens = np.empty(len(rows), np.int32)
        sure = self._without_mask(logits, slots, positions, places)
        masks = self._masks_of(slots, sure)
        forced = {i: token for i, row in enumerate(rows) if (token := row.forced()) is not None}
        known = forced.keys() | sure.keys()
        plain = np.array([i for i, row in enumerate(rows) if row.plain and i not in known], np.int32)
        drawn = np.empty(len(plain), np.int32)
        plain_masks = None if masks is None else masks[plain]
        self.table.sample(logits, places[plain], slots[plain], positions[plain], drawn, plain_masks)
        tokens[plain] = drawn
        # A mask may leave a plain row nothing that the model gives a chance: the reference knows what then.
        others = [
            i
            for i, row in enumerate(rows)
            if i not in known and (not row.plain or (masks is not None and tokens[i] < 0))
        ]
        tokens[list(sure)] = list(sure.values())
        for i in (*others, *forced):
            tokens[i] = 0 if np.isfinite(logits[places[i]].max()) else -1
        broken = np.flatnonzero(tokens < 0).tolist()
        if broken:
            raise NonFiniteLogits(broken, f"slots {[int(slots[i]) for i in broken]}")
        for i in others:
            scores = rows[i].scores(logits[places[i]], None if masks is None else self._allowed(masks[i]))
            if isinstance(scores, int):
                tokens[i] = scores
            else:
                self.table.sample(
                    scores[None], _FIRST, slots[i : i + 1], positions[i : i + 1], tokens[i : i + 1]
                )
        for i, token in forced.items():
            tokens[i] = token
        logprobs = self._logprobs(logits, places, rows, tokens)
        self._record(slots, rows, tokens)
        return tokens, logprobs

    def prompt_logprobs(self, logits: np.ndarray, targets: np.ndarray, k: int) -> RowLogprobs:
        """Raw log-probabilities of n prompt tokens, as Sampler.prompt_logprobs gives them."""
        n = len(targets)
        found, sound = self._row_logprobs(
            logits, np.arange(n, dtype=np.int32), targets, np.full(n, k, np.int32)
        )
        broken = np.flatnonzero(~sound).tolist()
        if broken:
            raise NonFiniteLogits(broken, f"prompt rows {broken}")
        return found

    def _logprobs(
        self, logits: np.ndarray, places: np.ndarray, rows: list[Row], tokens: np.ndarray
    ) -> dict[int, RowLogprobs]:
        """By index, of the rows that ask. All rows are sound: their tokens were drawn."""
        wanted = [i for i, row in enumerate(rows) if row.sampling.logprobs >= 0]
        if not wanted:
            return {}
        ks = np.array([min(rows[i].sampling.logprobs, logits.shape[1]) for i in wanted], np.int32)
        found, _ = self._row_logprobs(logits, places[wanted], tokens[wanted], ks)
        return {
            i: RowLogprobs(
                chosen=found.chosen[j : j + 1],
                top_ids=found.top_ids[j : j + 1, :k],
                top=found.top[j : j + 1, :k],
            )
            for j, (i, k) in enumerate(zip(wanted, ks.tolist(), strict=True))
        }

    def _row_logprobs(
        self, logits: np.ndarray, rows: np.ndarray, tokens: np.ndarray, ks: np.ndarray
    ) -> tuple[RowLogprobs, np.ndarray]:
        """Of n rows, as wide as the largest of ks, filled as far as each row's; and bool[n]: is it sound."""
        n = len(rows)
        ks = np.minimum(ks, np.int32(logits.shape[1]))
        shape = (n, int(ks.max(initial=0)))
        found = RowLogprobs(
            chosen=np.empty(n, np.float32), top_ids=np.empty(shape, np.int32), top=np.empty(shape, np.float32)
        )
        sound = np.empty(n, np.bool_)
        self.table.logprobs(
            logits, rows, tokens.astype(np.int32), ks, found.chosen, found.top_ids, found.top, sound
        )
        return found, sound


_FIRST = np.zeros(1, np.int32)
