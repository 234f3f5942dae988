"""Verification: the tokens of rows with drafts, and what a grammar adds to a token.

A draft is right if it is what would have been drawn: position by position the target's own token is drawn,
with all processors and the noise of (seed, position), and the next position counts as long as draft and
token are the same. What a grammar forces after a token is taken as it would be without drafts. So a request's
tokens are those that it has without drafts, sampled ones too; and for a draft that is a single token the
probability of acceptance is that of rejection sampling (arXiv:2211.17192, arXiv:2302.01318).
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import NamedTuple

import numpy as np

from penstock.decoding.params import RowLogprobs
from penstock.engine.request_rows import BROKEN, TokenSampler, draw

_NONE = np.empty(0, np.int32)


class Drawn(NamedTuple):
    """tokens: int32[R, S], filled up with -1; a row that can't be drawn begins with BROKEN.
    logprobs: by row, of all its tokens."""

    tokens: np.ndarray
    logprobs: dict[int, RowLogprobs]


def verify(
    sampler: TokenSampler,
    logits: np.ndarray,
    places: np.ndarray,
    slots: np.ndarray,
    positions: np.ndarray,
    drafts: Sequence[np.ndarray],
) -> Drawn:
    """Draw for R rows. Row r's logits are those of `places[r]` and as many after it as it has `drafts`
    (int32[k], () if no row has any); its first token is that of `positions[r]`. All int32[R]. A row has no
    token where that one was forced with an earlier one, after this step had been planned."""
    rows = unknown(sampler, slots, positions)
    tokens: list[list[int]] = [[] for _ in slots]
    parts: dict[int, list[RowLogprobs]] = {}
    while len(rows):
        steps = np.array([len(tokens[row]) for row in rows], np.int32)
        drawn, logprobs = draw(sampler, logits, places[rows] + steps, slots[rows], positions[rows] + steps)
        for i, part in logprobs.items():
            parts.setdefault(int(rows[i]), []).append(part)
        goes_on = []
        for row, token in zip(rows.tolist(), drawn.tolist(), strict=True):
            if token == BROKEN:
                tokens[row] = [BROKEN]
                continue
            before = len(tokens[row])
            # What a grammar forces is never drawn, whether a draft has it or not.
            tokens[row] += [token, *sampler.take_forced(int(slots[row]))]
            known, drafted = len(tokens[row]), drafts[row] if drafts else _NONE
            if known <= len(drafted) and drafted[before:known].tolist() == tokens[row][before:]:
                goes_on.append(row)
        rows = np.array(goes_on, np.int32)
    return Drawn(filled(tokens), {row: joined(several) for row, several in parts.items()})


def unknown(sampler: TokenSampler, slots: np.ndarray, positions: np.ndarray) -> np.ndarray:
    """int32[n]: rows whose token at int32[R] `positions` was not forced with an earlier one."""
    firsts = zip(slots.tolist(), positions.tolist(), strict=True)
    return np.array([row for row, (slot, at) in enumerate(firsts) if sampler.known(slot) <= at], np.int32)


def filled(tokens: list[list[int]]) -> np.ndarray:
    """int32[R, S] of R rows, filled up with -1."""
    table = np.full((len(tokens), max([1, *map(len, tokens)])), -1, np.int32)
    for row, several in enumerate(tokens):
        table[row, : len(several)] = several
    return table


def joined(parts: list[RowLogprobs]) -> RowLogprobs:
    """Those of consecutive positions as one."""
    if len(parts) == 1:
        return parts[0]
    return RowLogprobs(
        chosen=np.concatenate([part.chosen for part in parts]),
        top_ids=np.concatenate([part.top_ids for part in parts]),
        top=np.concatenate([part.top for part in parts]),
    )
