"""Penalties on tokens that were already seen.

Repetition (CTRL, arXiv:1909.05858) counts prompt and output; presence and frequency (OpenAI) count the
output only. What was seen is kept as a list of distinct ids with counts: memory and time grow with the
number of distinct tokens of the request, never with the vocabulary.
"""

from __future__ import annotations

import numpy as np

from penstock.decoding.params import TokenSampling

_FLOAT32 = np.finfo(np.float32)


class Penalties:
    """The seen tokens of one request and what they cost."""

    def __init__(self, sampling: TokenSampling, tokens: np.ndarray, prompt_len: int) -> None:
        """tokens: int32[known], the prompt and what was generated before a preemption."""
        self._repetition = max(np.float32(sampling.repetition_penalty), _FLOAT32.tiny)
        self._presence = np.float32(sampling.presence_penalty)
        self._frequency = np.float32(sampling.frequency_penalty)
        counted = tokens if sampling.repetition_penalty != 1.0 else tokens[prompt_len:]
        distinct = np.unique(counted)
        self._position = {token: i for i, token in enumerate(distinct.tolist())}
        self._num = len(distinct)
        self._ids = np.empty(max(16, 2 * self._num), dtype=np.int64)
        self._ids[: self._num] = distinct
        self._counts = np.zeros(len(self._ids), dtype=np.float32)  # occurrences in the output
        generated, times = np.unique(tokens[prompt_len:], return_counts=True)
        self._counts[np.searchsorted(distinct, generated)] = times

    @staticmethod
    def wanted(sampling: TokenSampling) -> bool:
        """Whether any of the three differs from neutral."""
        return (
            sampling.repetition_penalty != 1.0
            or sampling.presence_penalty != 0.0
            or sampling.frequency_penalty != 0.0
        )

    def record(self, token: int) -> None:
        """The token was generated."""
        position = self._position.get(token)
        if position is None:
            position = self._position[token] = self._num
            if self._num == len(self._ids):
                self._ids = np.concatenate([self._ids, np.empty_like(self._ids)])
                self._counts = np.concatenate([self._counts, np.zeros_like(self._counts)])
            self._ids[position] = token
            self._num += 1
        self._counts[position] += 1

    def apply(self, row: np.ndarray) -> None:
        """Change float32[V] in place: repetition first, then frequency and presence."""
        ids = self._ids[: self._num]
        counts = self._counts[: self._num]
        scores = row[ids]
        # Dividing a negative score would raise it: CTRL's formula taken so that it always lowers.
        with np.errstate(over="ignore"):
            scores = np.where(scores < 0, scores * self._repetition, scores / self._repetition)
        np.minimum(scores, _FLOAT32.max, out=scores)  # a penalty near 0 is a reward without bound
        scores -= self._frequency * counts
        scores -= self._presence * (counts > 0)
        row[ids] = scores
