"""The memory plan: what is refused before anything is taken, and the longest context that a pool carries."""

from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from penstock.config import EngineSettings
from penstock.engine.build import longest_context, plan_memory
from penstock.errors import ModelRefused
from penstock.kv.groups import LayerKV, plan_layout

GIB = 2**30
LAYOUT = plan_layout([LayerKV(3, 64)] * 30, block_size=16, itemsize=4)


def test_a_model_that_does_not_fit_is_refused_with_the_numbers():
    """Red if weights beyond the free memory are found out by the kernel instead of the plan."""
    with pytest.raises(ModelRefused) as refused:
        plan_memory(EngineSettings(model="big"), LAYOUT, available=4 * GIB, weights=5 * GIB, workspace=GIB)
    for number in ("5.00 GiB", "1.00 GiB", "4.00 GiB"):
        assert number in refused.value.message


def test_kv_bytes_beyond_the_free_memory_are_refused():
    """Red if an explicit kv_bytes is trusted, or quietly cut."""
    settings = EngineSettings(kv_bytes=3 * GIB)
    with pytest.raises(ModelRefused, match="kv_bytes"):
        plan_memory(settings, LAYOUT, available=4 * GIB, weights=2 * GIB, workspace=0)


def test_kv_bytes_too_small_for_one_short_request_are_refused():
    """Red if an engine starts that can serve nobody."""
    with pytest.raises(ModelRefused, match="least"):
        plan_memory(EngineSettings(kv_bytes=1000), LAYOUT, available=4 * GIB, weights=GIB, workspace=0)


def test_kv_takes_its_share_and_never_what_the_model_needs():
    """Red if the default pool ignores kv_share or pushes the weights out."""
    roomy = plan_memory(EngineSettings(kv_share=0.25), LAYOUT, available=8 * GIB, weights=GIB, workspace=0)
    assert roomy.kv == 2 * GIB
    tight = plan_memory(
        EngineSettings(kv_share=0.9), LAYOUT, available=8 * GIB, weights=4 * GIB, workspace=GIB
    )
    assert tight.kv == 3 * GIB
    assert tight.total == 8 * GIB


@given(
    windows=st.lists(st.sampled_from([None, 5, 32, 100]), min_size=1, max_size=6),
    num_blocks=st.integers(8, 400),
    declared=st.integers(1, 5000),
    chunk=st.integers(1, 600),
)
def test_the_longest_context_is_the_longest_that_fits(windows, num_blocks, declared, chunk):
    """Red if a request may be submitted that is alone in the pool and still does not fit."""
    layout = plan_layout([LayerKV(1, 1, window) for window in windows], block_size=16, itemsize=1)
    found = longest_context(layout, num_blocks, declared, chunk)
    fits = [n for n in range(1, declared + 1) if layout.blocks_for(n, chunk) <= num_blocks]
    assert found == max(fits, default=0)
