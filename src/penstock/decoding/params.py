"""TokenSampling: SamplingParams resolved against one model, the form that engines understand."""

from __future__ import annotations

import numpy as np
from msgspec import Struct

from penstock.decoding.grammar.spec import GrammarSpec
from penstock.decoding.thinking import ThinkingSpec


class TokenSampling(Struct, frozen=True, kw_only=True, omit_defaults=True):
    """Ids instead of strings, nothing left open.

    `stop_token_ids` includes the model's end-of-sequence ids unless ignore_eos was asked for.
    `seed` is always set (the caller draws one if the user gave none).
    `logprobs`/`prompt_logprobs` are -1 when not wanted, else the number of alternatives.
    """

    max_tokens: int
    seed: int
    min_tokens: int = 0
    temperature: float = 1.0
    top_p: float = 1.0
    top_k: int = 0
    min_p: float = 0.0
    typical_p: float = 1.0
    repetition_penalty: float = 1.0
    presence_penalty: float = 0.0
    frequency_penalty: float = 0.0
    logit_bias: tuple[tuple[int, float], ...] = ()
    allowed_token_ids: tuple[int, ...] = ()  # empty: all
    bad_words: tuple[tuple[int, ...], ...] = ()
    stop_token_ids: tuple[int, ...] = ()
    logprobs: int = -1
    prompt_logprobs: int = -1
    grammar: GrammarSpec | None = None  # what the answer must look like
    thinking: ThinkingSpec | None = None  # its reasoning is bounded, or comes before the grammar

    @property
    def may_force(self) -> bool:
        """A grammar may leave no choice: such tokens are taken without a draw, several at once. Not where
        their log-probabilities are wanted: nothing has computed them."""
        return self.grammar is not None and self.logprobs < 0

    @property
    def host_tokens(self) -> int:
        """How many of the first generated tokens depend on what only a host follows: a device that draws by
        itself leaves those to the sampler of the host."""
        # A section to think in may begin at any time.
        return self.max_tokens if self.grammar is not None or self.thinking is not None else 0


class RowLogprobs(Struct, frozen=True):
    """Log-probabilities of n consecutive positions, natural log, of the model's raw distribution.

    chosen: float32[n]; top_ids: int32[n, k]; top: float32[n, k] (k >= 0, best first).
    """

    chosen: np.ndarray
    top_ids: np.ndarray
    top: np.ndarray
