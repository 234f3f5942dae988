"""Verification where acceptance is synthetic: for rows that the host draws, as native/core/launch.cpp does.

So many drafts of a row are taken as if they had been drawn, as chance has it; then one token is drawn. What a
grammar or a thinking budget rules out is not taken: requests end and read as they must, load test or not.
"""

from __future__ import annotations

import logging
from collections.abc import Callable, Sequence
from functools import partial

import numpy as np

from penstock.decoding.drafting.acceptance import SyntheticAcceptance
from penstock.decoding.params import RowLogprobs
from penstock.decoding.sampling import BrokenRows
from penstock.engine.request_rows import BROKEN, TokenSampler, draw
from penstock.engine.verify import Drawn, filled, joined, unknown, verify

log = logging.getLogger("penstock.engine")

Verify = Callable[[TokenSampler, np.ndarray, np.ndarray, np.ndarray, np.ndarray, Sequence[np.ndarray]], Drawn]


def verifier(acceptance: SyntheticAcceptance | None) -> Verify:
    """What verifies drafts under the settings of an engine."""
    return verify if acceptance is None else partial(verify_synthetic, acceptance)


def verify_synthetic(
    acceptance: SyntheticAcceptance,
    sampler: TokenSampler,
    logits: np.ndarray,
    places: np.ndarray,
    slots: np.ndarray,
    positions: np.ndarray,
    drafts: Sequence[np.ndarray],
) -> Drawn:
    """See `penstock.engine.verify.verify`."""
    tokens: list[list[int]] = [[] for _ in slots]
    parts: dict[int, list[RowLogprobs]] = {}
    goes_on = []
    for row in unknown(sampler, slots, positions).tolist():
        slot, drafted = int(slots[row]), drafts[row].tolist() if drafts else []
        count = acceptance.accepted(sampler.seed(slot), int(positions[row]), len(drafted))
        found = parts[row] = []
        if _take(sampler, logits[int(places[row]) :], slot, drafted[:count], tokens[row], found):
            goes_on.append(row)
    if goes_on:
        rows = np.array(goes_on, np.int32)
        steps = np.array([len(tokens[row]) for row in goes_on], np.int32)
        drawn, logprobs = draw(sampler, logits, places[rows] + steps, slots[rows], positions[rows] + steps)
        for i, part in logprobs.items():
            parts[goes_on[i]].append(part)
        for row, token in zip(goes_on, drawn.tolist(), strict=True):
            if token == BROKEN:
                tokens[row] = [BROKEN]
            else:
                tokens[row] += [token, *sampler.take_forced(int(slots[row]))]
    return Drawn(filled(tokens), {row: joined(several) for row, several in parts.items() if several})


def _take(
    sampler: TokenSampler,
    logits: np.ndarray,
    slot: int,
    drafts: Sequence[int],
    tokens: list[int],
    parts: list[RowLogprobs],
) -> bool:
    """Add drafts to `tokens`, and their log-probabilities, if wanted, to `parts`. logits: float32[.., V], of
    which they would be drawn in order. False if no token is to be drawn after them."""
    try:
        for place, draft in enumerate(drafts):
            taken, logprobs = sampler.take(logits[place], slot, draft)
            if not taken:
                break
            tokens.append(draft)
            if logprobs is not None:
                parts.append(logprobs)
            forced = sampler.take_forced(slot)
            if forced:  # computed with the next step, as after a draw
                tokens += forced
                return False
    except BrokenRows as error:
        log.warning("%s", error.message)
        tokens[:] = [BROKEN]
        return False
    return True
