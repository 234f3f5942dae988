"""Log-probabilities against torch."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from penstock.decoding.logprobs import row_logprobs
from penstock.decoding.sampling import NonFiniteLogits, Sampler


@given(st.integers(0, 2**32), st.integers(1, 5), st.integers(1, 3000), st.integers(0, 20))
def test_equal_to_torch_log_softmax(seed, n, vocab, k):
    """Red if values are not the float32 log-softmax of the raw logits, or k above V is not clamped."""
    rng = np.random.default_rng(seed)
    logits = (rng.standard_normal((n, vocab)) * 6).astype(np.float32)
    chosen = rng.integers(0, vocab, n)
    found = row_logprobs(logits, chosen, k)
    expected = torch.log_softmax(torch.tensor(logits), dim=-1)
    top = expected.topk(min(k, vocab), dim=-1)
    assert (found.chosen.dtype, found.top.dtype, found.top_ids.dtype) == (np.float32, np.float32, np.int32)
    assert found.top_ids.shape == found.top.shape == (n, min(k, vocab))
    np.testing.assert_allclose(found.chosen, expected[torch.arange(n), torch.tensor(chosen)], atol=1e-5)
    np.testing.assert_allclose(found.top, top.values, atol=1e-5)
    of_ids = np.take_along_axis(logits, found.top_ids, axis=1)
    np.testing.assert_array_equal(of_ids, torch.tensor(logits).topk(min(k, vocab)).values)


@given(st.integers(0, 2**32), st.integers(1, 1500), st.integers(1, 20))
def test_equal_values_come_by_id(seed, vocab, k):
    """Red if the order of equal log-probabilities is left to a sort that is not stable."""
    row = np.random.default_rng(seed).integers(0, 4, vocab).astype(np.float32)
    found = row_logprobs(row[None], np.array([0]), k).top_ids[0].tolist()
    assert found == sorted(range(vocab), key=lambda i: (-row[i], i))[:k]


def test_impossible_tokens_and_huge_logits_stay_finite_where_they_should():
    """Red if -inf or float32's extremes make NaN."""
    logits = np.array([[3.4e38, -3.4e38, -np.inf, 3.4e38]], np.float32)
    found = row_logprobs(logits, np.array([0]), 4)
    assert found.top_ids.tolist() == [[0, 3, 1, 2]]
    assert found.chosen.tolist() == pytest.approx([0.0], abs=1)  # log 2 is below float32's step at 3.4e38
    assert found.top[0, 3] == -np.inf and not np.isnan(found.top).any()


def test_prompt_rows_do_not_depend_on_how_they_are_chunked():
    """Red if a row's bits depend on the rows beside it: chunked prefill would change prompt_logprobs."""
    rng = np.random.default_rng(3)
    logits = rng.standard_normal((40, 5001)).astype(np.float32)
    targets = rng.integers(0, 5001, 40).astype(np.int32)
    sampler = Sampler(1, 5001)
    whole = sampler.prompt_logprobs(logits, targets, 5)
    for size in (1, 7, 16):
        cuts = [slice(i, i + size) for i in range(0, 40, size)]
        parts = [sampler.prompt_logprobs(logits[cut], targets[cut], 5) for cut in cuts]
        for field in ("chosen", "top_ids", "top"):
            joined = np.concatenate([getattr(part, field) for part in parts])
            assert joined.tobytes() == getattr(whole, field).tobytes()


@pytest.mark.parametrize("bad", [np.nan, np.inf])
def test_broken_prompt_rows_are_named(bad):
    """Red if NaN becomes a log-probability."""
    logits = np.zeros((3, 10), np.float32)
    logits[1, 4] = bad
    with pytest.raises(NonFiniteLogits, match=r"prompt rows \[1\]") as caught:
        Sampler(1, 10).prompt_logprobs(logits, np.zeros(3, np.int32), 0)
    assert caught.value.rows == [1]
