"""NativeSampler: the reference sampler's tokens, drawn in C++ on the step's threads.

Bias, penalties, words, masks, filters, the draw and log-probabilities are one native call for all rows,
without the GIL. What is followed from token to token in Python is left here: grammars and thinking budgets.
Tokens and log-probabilities equal the reference's: see draw on why.
"""

from __future__ import annotations

from typing import Any

import msgspec
import numpy as np

from penstock.decoding.grammar.store import GrammarStore
from penstock.decoding.params import RowLogprobs, TokenSampling
from penstock.decoding.sampling import SEED_MASK, NonFiniteLogits, Row, Sampler, check_token_ids

_INT32_MAX = 2**31 - 1
_NEUTRAL: dict[str, Any] = {
    "repetition_penalty": 1.0,
    "presence_penalty": 0.0,
    "frequency_penalty": 0.0,
    "logit_bias": (),
    "allowed_token_ids": (),
    "bad_words": (),
    "min_tokens": 0,
}
CANDIDATES = 64  # likeliest tokens that a grammar is asked for before its mask is made


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
        # Public for the executor, which draws by itself where no grammar or budget is followed here.
        self.table = _native.SamplerTable(num_slots, instruction_set, pool)
        self._is_plain = np.ones(num_slots, bool)  # nothing but the filters and the draw

    def admit(self, slot: int, tokens: np.ndarray, prompt_len: int, sampling: TokenSampling) -> None:
        check_token_ids(sampling, self._vocab_size)
        # The reference's row keeps what is decided here: budgets, grammars, how many tokens are known.
        super().admit(slot, tokens, prompt_len, msgspec.structs.replace(sampling, **_NEUTRAL))
        rules = {name: getattr(sampling, name) for name in _NEUTRAL}
        self._is_plain[slot] = rules == _NEUTRAL
        late = [token for token in sampling.stop_token_ids if token < self._vocab_size]
        self.table.set(
            slot=slot,
            seed=sampling.seed & SEED_MASK,
            temperature=sampling.temperature,
            top_k=min(sampling.top_k, _INT32_MAX),
            top_p=sampling.top_p,
            min_p=sampling.min_p,
            typical_p=sampling.typical_p,
            bias=list(sampling.logit_bias),
            repetition=sampling.repetition_penalty,
            presence=sampling.presence_penalty,
            frequency=sampling.frequency_penalty,
            allowed=list(sampling.allowed_token_ids),
            bad_words=[list(word) for word in sampling.bad_words],
            late=late if sampling.min_tokens else [],
            late_until=prompt_len + sampling.min_tokens if sampling.min_tokens else 0,
            tokens=np.ascontiguousarray(tokens, np.int32),
            prompt=prompt_len,
        )

    def begin(self, slots: np.ndarray) -> None:
        if self._masks is not None:
            self._masks.begin([slot for slot in slots.tolist() if not self._may_do_without_mask(slot)])

    def _may_do_without_mask(self, slot: int) -> bool:
        """The likeliest of the tokens that a grammar allows is the first that it allows, in the order of all
        tokens' scores. To ask for one token is a hundredth of a mask's work, and mostly enough."""
        if self._masks is None or not self._masks.may_take(slot):
            return False
        row = self.row(slot)
        return bool(self._is_plain[slot]) and row.sampling.temperature == 0.0 and row.forced() is None

    def _without_mask(
        self, logits: np.ndarray, slots: np.ndarray, positions: np.ndarray, places: np.ndarray
    ) -> dict[int, int]:
        """By index, tokens of rows that needed no mask. Their matchers follow them already."""
        masks = self._masks
        if masks is None:
            return {}
        asking = [i for i, slot in enumerate(slots.tolist()) if self._may_do_without_mask(slot)]
        if not asking:
            return {}
        drawn = np.empty(len(asking), np.int32)
        self.table.sample(logits, places[asking], slots[asking], positions[asking], drawn, None)
        sure, refused = {}, []
        for i, slot, token in zip(asking, slots[asking].tolist(), drawn.tolist(), strict=True):
            if token >= 0 and (taken := masks.take(slot, (token,))) is not None:
                sure[i] = taken
            elif token >= 0:
                refused.append(i)
        if not refused:
            return sure
        best = np.empty((len(refused), min(CANDIDATES, logits.shape[1])), np.int32)
        self.table.best(logits, places[refused], best)
        for i, slot, candidates in zip(refused, slots[refused].tolist(), best.tolist(), strict=True):
            if (taken := masks.take(slot, candidates[1:])) is not None:
                sure[i] = taken
            else:
                masks.give_up(slot)
        return sure

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
        open_ = np.array([i for i in range(len(rows)) if i not in forced and i not in sure], np.int32)
        drawn = np.empty(len(open_), np.int32)
        open_masks = None if masks is None else masks[open_]
        self.table.sample(logits, places[open_], slots[open_], positions[open_], drawn, open_masks)
        tokens[open_] = drawn
        tokens[list(sure)] = list(sure.values())
        for i, token in forced.items():
            tokens[i] = token if np.isfinite(logits[places[i]].max()) else -1
        broken = np.flatnonzero(tokens < 0).tolist()
        if broken:
            raise NonFiniteLogits(broken, f"slots {[int(slots[i]) for i in broken]}")
        logprobs = self._logprobs(logits, places, rows, tokens)
        self._record(slots, rows, tokens)
        return tokens, logprobs

    def _record_one(self, slot: int, row: Row, token: int) -> None:
        super()._record_one(slot, row, token)
        self.table.record(slot, token)

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
