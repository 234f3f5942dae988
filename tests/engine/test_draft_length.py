"""Draft lengths follow measured costs and acceptance."""

from __future__ import annotations

import itertools

import hypothesis.strategies as st
import numpy as np
import pytest
from hypothesis import given

from penstock.decoding.drafting.drafter import Proposal
from penstock.engine.drafts.lengths import MARGIN, DraftLengths, Trials


def _measured(seconds: dict[int, float], host_s: float = 0.0) -> DraftLengths:
    lengths = DraftLengths(adaptive=True)
    for tokens, each in seconds.items():
        for _ in range(50):
            lengths.cost.observe(tokens, each)
            lengths.cost.observe_host(host_s)
    return lengths


def test_free_drafts_are_all_taken_and_dear_ones_none() -> None:
    """Red if a step bound by memory does without drafts, or one bound by arithmetic takes them."""
    sure = [np.ones(4)]
    assert _measured({1: 1.0, 5: 1.1}).choose(1, sure) == [4]
    assert _measured({1: 1.0, 5: 5.0}).choose(1, sure) == [0]
    assert _measured({32: 1.0, 160: 5.0}).choose(32, sure * 32) == [0] * 32


def test_the_hosts_time_counts_against_drafts() -> None:
    """Red if giving up steps planned ahead is taken for free."""
    drafts = [np.array([0.9, 0.8])]
    assert _measured({1: 1.0, 3: 1.2}).choose(1, drafts) == [2]
    assert _measured({1: 1.0, 3: 1.2}, host_s=2.0).choose(1, drafts) == [0]


def test_unlikely_drafts_are_left_out() -> None:
    lengths = _measured({1: 1.0, 2: 1.2, 3: 1.4, 4: 1.6})
    assert lengths.choose(1, [np.array([0.9, 0.1, 0.05])]) == [1]
    assert lengths.choose(1, [np.array([0.05, 0.01])]) == [0]


def test_nothing_measured_or_not_adaptive_takes_what_is_proposed() -> None:
    assert DraftLengths(adaptive=True).choose(2, [np.ones(3), np.ones(0)]) == [3, 0]
    assert DraftLengths(adaptive=False).choose(2, [np.full(3, 0.01)]) == [3]


@given(
    rows=st.integers(1, 4),
    shapes=st.lists(st.lists(st.floats(0.01, 1.0), max_size=3), min_size=1, max_size=3),
    slope=st.floats(0.0, 1.0),
    host_s=st.floats(0.0, 1.0),
)
def test_no_other_choice_gives_more_tokens_a_second(
    rows: int, shapes: list[list[float]], slope: float, host_s: float
) -> None:
    """Against all choices by brute force; survival falls along a draft."""
    survivals = [np.cumprod(shape) for shape in shapes]
    rows = max(rows, len(shapes))
    lengths = _measured({n: 1.0 + slope * n for n in range(1, rows + 10)}, host_s)
    chosen = lengths.choose(rows, survivals)

    def rate(counts: tuple[int, ...] | list[int]) -> float:
        tokens = rows + sum(float(s[:n].sum()) for s, n in zip(survivals, counts, strict=True))
        step = rows + sum(counts)
        return tokens / (1.0 + slope * step + (lengths.cost.host_s if step > rows else 0.0))

    best = max(map(rate, itertools.product(*(range(len(s) + 1) for s in survivals))))
    assert rate(chosen) >= best / MARGIN - 1e-9


def test_acceptance_is_learned_by_support_and_by_request() -> None:
    """Red if what was right does not raise, and what was wrong does not lower, the next estimate."""
    lengths = DraftLengths(adaptive=True)
    good, bad = Trials(), Trials()
    proposal = Proposal([1, 2, 3], [1.0, 1.0, 1.0], 4)
    for _ in range(40):
        lengths.learn(proposal, 3, good)
        lengths.learn(proposal, 0, bad)
    assert lengths.survival(proposal, good)[2] > 0.6
    assert lengths.survival(proposal, bad)[0] < 0.4
    unknown = lengths.survival(Proposal([1], [1.0], 9), Trials())[0]
    assert unknown == pytest.approx(0.75)
