"""The sampler: logits in, one token per row out. Reference implementation, the meaning of every setting.

Order of processing, that of transformers and vLLM:

    1. logit_bias          added to the raw logits: OpenAI defines it on the model's own scores
    2. penalties           repetition, then frequency, presence: they act on what the user sees as scores
    3. masks to -inf       allowed_token_ids, bad_words, min_tokens (stop ids): after everything that adds,
                           since no bias may bring a forbidden token back; and what the grammar of the
                           answer does not allow
    4. temperature         0 ends here: the largest score, of equal ones the lowest id. Filters can't
                           change an argmax, so greedy skips them
    5. top-k, top-p, min-p, typical-p: each on what the one before left, renormalized. After temperature,
                           so that they cut the distribution that is drawn from
    6. one draw            inverse CDF with the noise of (seed, position)

If the masks leave no token, min_tokens and bad_words yield: the allowed token with the best score is taken
(the lowest allowed id if the model rules all of them out). allowed_token_ids never yields but to a grammar,
which nothing but the next overrules.

A spent thinking budget overrules all of 1 to 6: the token that it forces is taken whatever it costs,
allowed_token_ids, bad_words, min_tokens (should the end marker be a stop id) and the grammar included, or the
budget would not hold. The draw that it replaces uses up no noise: that is a function of the position. The
token counts for penalties and bad words like any other. A grammar beside reasoning starts behind it.

Invariants: a row's token depends on its own logits, settings, tokens and position only, never on the
batch; admitting a slot with the tokens it had continues as if it had never left; reported log-probabilities
are the model's, untouched by 1 to 5. Logits are read, never written.
"""

from __future__ import annotations

from collections.abc import Container

import numpy as np

from penstock.decoding import draw, filters, philox
from penstock.decoding.bad_words import BadWords
from penstock.decoding.grammar.masks import GrammarMasks
from penstock.decoding.grammar.store import GrammarStore
from penstock.decoding.logprobs import row_logprobs
from penstock.decoding.params import RowLogprobs, TokenSampling
from penstock.decoding.penalties import Penalties
from penstock.decoding.thinking import Thinking
from penstock.errors import InvalidRequest, PenstockError

SEED_MASK = 2**64 - 1  # negative seeds are taken modulo 2**64


class BrokenRows(PenstockError):
    """Some rows can't be drawn; nothing was drawn or recorded. `rows`: their indexes in the call."""

    def __init__(self, rows: list[int], message: str) -> None:
        super().__init__(message)
        self.rows = rows


class NonFiniteLogits(BrokenRows):
    """The model's output for some rows is NaN or +inf, or -inf everywhere."""

    def __init__(self, rows: list[int], where: str) -> None:
        super().__init__(
            rows,
            f"logits of {where} are NaN, +inf, or -inf for every token: the weights are damaged or an "
            f"operation overflowed; check the model file, or try another backend",
        )


def check_token_ids(sampling: TokenSampling, vocab_size: int) -> None:
    """Raise InvalidRequest for a token id that the model does not have.

    Stop ids may lie beyond: such a token is never drawn, so it never stops anything.
    """
    named = {
        "logit_bias": [token for token, _ in sampling.logit_bias],
        "allowed_token_ids": sampling.allowed_token_ids,
        "bad_words": [token for word in sampling.bad_words for token in word],
        "thinking": () if sampling.thinking is None else sampling.thinking.token_ids,
    }
    for field, ids in named.items():
        for token in ids:
            if not 0 <= token < vocab_size:
                raise InvalidRequest(
                    f"{field}: token id {token} is outside [0, {vocab_size - 1}], this model's vocabulary",
                    param=field,
                )
    if not all(sampling.bad_words):
        raise InvalidRequest("bad_words: a word has no tokens; leave it out", param="bad_words")
    thinking = sampling.thinking
    if thinking is not None and not (
        thinking.starts and thinking.ends and all((*thinking.starts, *thinking.ends, *thinking.ended_by))
    ):
        raise InvalidRequest("thinking: a marker has no tokens; give each one or more", param="thinking")


class Row:
    """One request in a slot: its settings and what they need to remember."""

    __slots__ = (
        "_allowed", "_bad_words", "_bias", "_bias_ids", "_penalties", "_prompt_len", "_stop_ids",
        "known", "limit", "plain", "sampling", "seed", "thinking",
    )  # fmt: skip

    def __init__(self, tokens: np.ndarray, prompt_len: int, sampling: TokenSampling, vocab_size: int) -> None:
        self.sampling = sampling
        self.seed = sampling.seed & SEED_MASK
        self.known = len(tokens)
        self._prompt_len = prompt_len
        self.limit = prompt_len + sampling.max_tokens
        self._bias_ids = np.array([token for token, _ in sampling.logit_bias], dtype=np.int64)
        self._bias = np.array([bias for _, bias in sampling.logit_bias], dtype=np.float32)
        self._allowed = np.array(sampling.allowed_token_ids, dtype=np.int64)
        self._penalties = Penalties(sampling, tokens, prompt_len) if Penalties.wanted(sampling) else None
        self._bad_words = BadWords(sampling.bad_words, tokens) if sampling.bad_words else None
        self.thinking: Thinking | None = None
        if sampling.thinking is not None:
            leading = sampling.grammar is not None
            self.thinking = Thinking(sampling.thinking, tokens, prompt_len, leading)
        stop_ids = [token for token in sampling.stop_token_ids if token < vocab_size]
        self._stop_ids = np.array(stop_ids if sampling.min_tokens else [], dtype=np.int64)
        lists = (self._bias_ids, self._allowed, self._stop_ids)
        self.plain = not (self._penalties or self._bad_words or any(map(len, lists)))

    def forced(self) -> int | None:
        """The next token, if the thinking budget leaves no choice."""
        return None if self.thinking is None else self.thinking.forced()

    def choose(self, logits: np.ndarray, uniform: float, allowed: np.ndarray | None = None) -> int:
        """The next token. logits: float32[V] with a finite maximum; allowed: bool[V], by the grammar."""
        scores = self.scores(logits, allowed)
        if isinstance(scores, int):
            return scores
        if self.sampling.temperature == 0.0:
            return int(scores.argmax())
        return self._draw(scores, uniform)

    def scores(self, logits: np.ndarray, allowed: np.ndarray | None = None) -> np.ndarray | int:
        """What the draw is made from, steps 1 to 3; or the token, if the masks leave none to draw."""
        if self.plain and allowed is None:
            return logits
        scores = self._scored(logits)
        if allowed is not None:
            scores[~allowed] = -np.inf
        best = int(scores.argmax())
        if scores[best] == -np.inf:  # the model rules out all that is allowed
            if allowed is None:
                return int(self._allowed.min())
            ids = np.flatnonzero(allowed)
            return int(ids[logits[ids].argmax()])
        scores[self._forbidden()] = -np.inf
        return best if scores.max() == -np.inf else scores

    def _scored(self, logits: np.ndarray) -> np.ndarray:
        """A new float32[V]: bias, penalties and the allowed set."""
        scores = logits.copy()
        # One entry per id reaches us (it is a mapping at the API), so plain indexed addition is enough.
        scores[self._bias_ids] += self._bias
        if self._penalties:
            self._penalties.apply(scores)
        if len(self._allowed):
            kept = scores[self._allowed]
            scores.fill(-np.inf)
            scores[self._allowed] = kept
        return scores

    def _forbidden(self) -> np.ndarray:
        """int64[n]: ids that bad_words and min_tokens rule out for the next token."""
        ids = self._bad_words.forbidden() if self._bad_words else []
        if self.known - self._prompt_len < self.sampling.min_tokens:
            return np.concatenate([np.array(ids, dtype=np.int64), self._stop_ids])
        return np.array(ids, dtype=np.int64)

    def _draw(self, scores: np.ndarray, uniform: float) -> int:
        """Temperature, filters, draw."""
        sampling = self.sampling
        ids: np.ndarray | None = None  # None: all
        if 0 < sampling.top_k < len(scores):
            ids = filters.top_k(scores, sampling.top_k)
            scores = scores[ids]
        weights = draw.weights(scores, sampling.temperature)
        for amount, neutral, keep in (
            (sampling.top_p, 1.0, filters.top_p),
            (sampling.min_p, 0.0, lambda _, weights, share: filters.min_p(weights, share)),
            (sampling.typical_p, 1.0, filters.typical_p),
        ):
            if amount != neutral:
                kept = keep(scores, weights, amount)
                scores, weights = scores[kept], weights[kept]
                ids = kept if ids is None else ids[kept]
        position = draw.inverse_cdf(weights, uniform)
        return position if ids is None else int(ids[position])

    def record(self, token: int) -> None:
        """The token was drawn."""
        self.known += 1
        if self._penalties:
            self._penalties.record(token)
        if self._bad_words:
            self._bad_words.record(token)
        if self.thinking:
            self.thinking.record(token)


class Sampler:
    """The device's table of sampling state, one row per slot.

    Steps may be launched one ahead: the drawn tokens are recorded here at once, and the host drops one only
    by ending its request, whose slot is then released or admitted anew.
    """

    def __init__(self, num_slots: int, vocab_size: int, grammars: GrammarStore | None = None) -> None:
        """vocab_size: at most draw.MAX_TOKENS. grammars: None if no request may have one."""
        if vocab_size > draw.MAX_TOKENS:
            raise PenstockError(
                f"a vocabulary of {vocab_size} tokens is beyond {draw.MAX_TOKENS}, what draws are exact for"
            )
        self._rows: list[Row | None] = [None] * num_slots
        self._vocab_size = vocab_size
        self._masks = GrammarMasks(num_slots, vocab_size, grammars) if grammars is not None else None

    def admit(self, slot: int, tokens: np.ndarray, prompt_len: int, sampling: TokenSampling) -> None:
        """Write the slot's row, whatever it held.

        tokens: int32[known], the prompt followed by what was generated before a preemption. Raises
        InvalidRequest for a token id outside the vocabulary; the slot is then unchanged.
        """
        check_token_ids(sampling, self._vocab_size)
        row = Row(tokens, prompt_len, sampling, self._vocab_size)
        if self._masks is not None:
            leads = self._masks.admit(
                slot, sampling.grammar, tokens, prompt_len, sampling.thinking, sampling.max_tokens
            )
            if sampling.grammar is not None and not leads:
                row.thinking = None
        elif sampling.grammar is not None:
            raise InvalidRequest("grammar: this engine has no tokenizer to make one for", param="grammar")
        self._rows[slot] = row

    def release(self, slot: int) -> None:
        """Drop what the slot remembers. A free slot may be released again."""
        self._rows[slot] = None
        if self._masks is not None:
            self._masks.free(slot)

    def begin(self, slots: np.ndarray) -> None:
        """int[R]: slots that will be sampled next. Their masks are made while the forward pass runs."""
        if self._masks is not None:
            self._masks.begin(slots.tolist())

    def row(self, slot: int) -> Row:
        """The slot's row. PenstockError if it is free."""
        row = self._rows[slot]
        if row is None:
            raise PenstockError(f"slot {slot} holds no request; admit one before sampling it")
        return row

    def known(self, slot: int) -> int:
        """How many tokens the slot's request has, those included that were forced."""
        return self.row(slot).known

    def sample(
        self, logits: np.ndarray, slots: np.ndarray, positions: np.ndarray, places: np.ndarray | None = None
    ) -> tuple[np.ndarray, dict[int, RowLogprobs]]:
        """Draw and record one token per row.

        logits: float32[.., V], C-contiguous; slots: int[R], each slot at most once; positions: int[R], the
        index that the token will have in its request; places: int32[R], rows of `logits`, None for all in
        order. Returns int32[R] and, for rows that asked, the raw
        log-probabilities by row index. Raises NonFiniteLogits or PenstockError before anything is recorded.
        """
        rows = self._checked_rows(slots, positions)
        if places is not None:
            logits = logits[places]
        tokens = logits.argmax(axis=1).astype(np.int32)
        peaks = logits[np.arange(len(rows)), tokens]  # argmax stops at a NaN, so this finds those too
        broken = np.flatnonzero(~np.isfinite(peaks)).tolist()
        if broken:
            raise NonFiniteLogits(broken, f"slots {[int(slots[i]) for i in broken]}")
        masks = self._masks_of(slots)
        noise = self._noise(rows)
        for i, row in enumerate(rows):
            forced = row.forced()
            allowed = None if masks is None else self._allowed(masks[i])
            if forced is not None:
                tokens[i] = forced
            elif allowed is not None or not (row.plain and row.sampling.temperature == 0.0):
                tokens[i] = row.choose(logits[i], noise[i], allowed)
        logprobs = {
            i: row_logprobs(logits[i : i + 1], tokens[i : i + 1], row.sampling.logprobs)
            for i, row in enumerate(rows)
            if row.sampling.logprobs >= 0
        }
        self._record(slots, rows, tokens)
        return tokens, logprobs

    def _masks_of(self, slots: np.ndarray, without: Container[int] = ()) -> np.ndarray | None:
        """int32[R, words] of what the rows' grammars allow, None if no row has one; of rows `without` every
        bit is set. Raises BrokenRows."""
        if self._masks is None or not self._masks.any_of(slots):
            return None
        masks, broken = self._masks.of(slots, without)
        if broken:
            raise BrokenRows(list(broken), "; ".join(broken.values()))
        return masks

    def _allowed(self, mask: np.ndarray) -> np.ndarray | None:
        """bool[V] of a mask, None if it allows everything."""
        if (mask == -1).all():
            return None
        return np.unpackbits(mask.view(np.uint8), bitorder="little")[: self._vocab_size].view(bool)

    def _record(self, slots: np.ndarray, rows: list[Row], tokens: np.ndarray) -> None:
        for slot, row, token in zip(slots.tolist(), rows, tokens.tolist(), strict=True):
            self._record_one(slot, row, token)

    def _record_one(self, slot: int, row: Row, token: int) -> None:
        row.record(token)
        if self._masks is not None:
            self._masks.record(slot, token)

    def seed(self, slot: int) -> int:
        """Of the slot's noise, 0 … 2**64 - 1."""
        return self.row(slot).seed

    def take(self, logits: np.ndarray, slot: int, token: int) -> tuple[bool, RowLogprobs | None]:
        """Record `token` as if it had been drawn from float32[V] `logits`, and give its log-probabilities to
        a row that asked. False, and nothing changed, if a grammar or a spent thinking budget is against it.

        Raises NonFiniteLogits as `sample` does."""
        row, slots, tokens = self.row(slot), np.array([slot], np.int32), np.array([token], np.int32)
        if not np.isfinite(logits.max()):
            raise NonFiniteLogits([0], f"slot {slot}")
        if row.forced() not in (None, token):
            return False, None
        masks = self._masks
        if masks is not None and masks.any_of(slots) and masks.take(slot, (token,)) is None:
            return False, None
        k = row.sampling.logprobs
        logprobs = self.prompt_logprobs(logits[None], tokens, k) if k >= 0 else None
        self._record(slots, [row], tokens)
        return True, logprobs

    def take_forced(self, slot: int) -> list[int]:
        """Tokens that must follow whatever the model says, recorded as if they had been drawn."""
        row = self._rows[slot]
        if self._masks is None or row is None or not row.sampling.may_force:
            return []
        taken: list[int] = []
        # The end of the reasoning, what leads to the answer, and how that begins: each shows the next.
        while row.known < row.limit:
            token = row.forced()
            forced = self._masks.forced(slot) if token is None else [token]
            if not forced:
                break
            for token in forced:
                self._record_one(slot, row, token)
            taken += forced
        return taken

    def prompt_logprobs(self, logits: np.ndarray, targets: np.ndarray, k: int) -> RowLogprobs:
        """Raw log-probabilities of n prompt tokens and of the k best at each place.

        logits: float32[n, V], row i predicts targets[i]; targets: int32[n]; k >= 0, clamped to V.
        """
        peaks = logits.max(axis=1)
        broken = np.flatnonzero(~np.isfinite(peaks)).tolist()
        if broken:
            raise NonFiniteLogits(broken, f"prompt rows {broken}")
        return row_logprobs(logits, targets, k)

    def _checked_rows(self, slots: np.ndarray, positions: np.ndarray) -> list[Row]:
        rows = []
        for slot, position in zip(slots.tolist(), positions.tolist(), strict=True):
            row = self.row(slot)
            # The noise is a function of the position: an unnoticed shift would change every later token.
            if position != row.known:
                raise PenstockError(
                    f"slot {slot}: asked for the token at position {position}, {row.known} tokens are known"
                )
            rows.append(row)
        if len(set(slots.tolist())) != len(rows):
            raise PenstockError(f"slots {slots.tolist()}: one slot twice in a step; draw one at a time")
        return rows

    def _noise(self, rows: list[Row]) -> list[float]:
        """One number in [0, 1) per row; 0 where nothing is drawn."""
        drawing = [i for i, row in enumerate(rows) if row.sampling.temperature != 0.0]
        noise = [0.0] * len(rows)
        if drawing:
            seeds = np.array([rows[i].seed for i in drawing], dtype=np.uint64)
            drawn = philox.uniform(seeds, np.array([rows[i].known for i in drawing]))
            for i, value in zip(drawing, drawn.tolist(), strict=True):
                noise[i] = value
        return noise
