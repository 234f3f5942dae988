"""Layouts of hybrid groups: equal blocks for all, least padding, exact bounds of what a request holds."""

from __future__ import annotations

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from penstock.errors import ModelRefused
from penstock.kv.groups import KVLayout, LayerKV, plan_layout
from penstock.kv.resource import KVResource
from penstock.resource import Grant


def layers(*windows: int | None) -> list[LayerKV]:
    return [LayerKV(kv_heads=2, head_dim=8, window=window) for window in windows]


def shape(layout: KVLayout) -> list[tuple[int | None, int]]:
    return [(group.window, len(group.layers)) for group in layout.groups]


def test_gemma_like_five_to_one() -> None:
    """Red if 22 sliding and 4 full layers (Gemma 3 1B) stop sharing blocks of 2 layers without padding."""
    windows = [None if (i + 1) % 6 == 0 else 512 for i in range(26)]
    layout = plan_layout(layers(*windows), 16, 4)
    assert layout.layers_per_group == 2
    assert sorted(shape(layout), key=str) == [(512, 2)] * 11 + [(None, 2)] * 2


def test_gemma_like_with_a_remainder() -> None:
    """Red if 29 sliding and 5 full layers (Gemma 3 4B) waste more than one padded layer."""
    windows = [None if (i + 1) % 6 == 0 else 1024 for i in range(34)]
    layout = plan_layout(layers(*windows), 16, 4)
    assert layout.layers_per_group == 5
    assert sorted(shape(layout), key=str) == [(1024, 4)] + [(1024, 5)] * 5 + [(None, 5)]


def test_gpt_oss_like_one_to_one() -> None:
    """Red if 12 + 12 alternating layers (GPT-OSS 20B) are not exactly two groups."""
    layout = plan_layout(layers(*[128, None] * 12), 16, 4)
    assert shape(layout) == [(128, 12), (None, 12)]


def test_all_full_is_one_group_of_all_layers() -> None:
    """Red if a plain model gets more than one block table."""
    layout = plan_layout(layers(*[None] * 30), 16, 2)
    assert shape(layout) == [(None, 30)]
    assert layout.block_bytes == 30 * 2 * 16 * 2 * 8 * 2
    assert layout.bytes_for(17) == 2 * layout.block_bytes


def test_uneven_counts_pad_little_and_need_few_groups() -> None:
    """Red if 20 + 16 layers pad 12 of them (groups of 16) where groups of 10 pad 4."""
    layout = plan_layout(layers(*[64] * 20, *[None] * 16), 16, 4)
    assert layout.layers_per_group == 10
    assert shape(layout) == [(64, 10), (64, 10), (None, 10), (None, 6)]


@given(st.lists(st.sampled_from([None, 4, 32]), min_size=1, max_size=40))
def test_every_layer_has_one_place_and_padding_is_least(windows: list[int | None]) -> None:
    """Red if a layer shares a place, sits in a group of another window, or padding could be smaller."""
    layout = plan_layout(layers(*windows), 16, 4)
    assert len(set(layout.layer_place)) == len(windows)
    for layer, (group, index) in enumerate(layout.layer_place):
        assert layout.groups[group].layers[index] == layer
        assert layout.groups[group].window == windows[layer]
        assert index < layout.layers_per_group
    counts = [windows.count(kind) for kind in set(windows)]
    padded = layout.layers_per_group * len(layout.groups) - len(windows)
    sizes = [size for size in range(1, min(counts) + 1) if 2 * size >= min(counts)]
    assert padded == min(sum(-(-count // size) * size - count for count in counts) for size in sizes)


@pytest.mark.parametrize("bad", [[], [LayerKV(2, 8), LayerKV(4, 8)], [LayerKV(2, 8), LayerKV(2, 16, 4)]])
def test_layers_of_different_shapes_are_refused_before_memory_is_taken(bad: list[LayerKV]) -> None:
    """Red if a model whose layers don't fit one block shape is loaded and reads other layers' bytes."""
    with pytest.raises(ModelRefused, match="shapes"):
        plan_layout(bad, 16, 4)


class Request:
    id = "r"
    prompt_len = 0
    cache_salt = ""
    cache_read = False
    cache_store = False

    def __init__(self, num_tokens: int) -> None:
        self.known = np.arange(num_tokens, dtype=np.int32)


def test_no_group_strands_memory() -> None:
    """Red if some blocks serve one group only: then a mix of long and short requests can't use them."""
    layout = plan_layout(layers(None, 8, 8, 8), 4, 4)  # 1 full and 3 sliding groups
    num_blocks = 64
    # Short requests: all groups hold the same. One long one: nearly everything is the full group's.
    for num_slots, length in ((num_blocks // 8, 8), (1, 4 * (num_blocks - 3 * 3))):
        kv = KVResource(layout, num_blocks, num_slots, 4 * num_blocks, bytes(32))
        for slot in range(num_slots):
            kv.admit(slot, Request(length))
            for upto in range(1, length + 1):
                assert kv.reserve(slot, upto) is Grant.GRANTED
                kv.commit(np.array([slot]), np.array([upto]))
        assert kv.stats().free <= 3  # what one more token in every sliding group could need
        kv.check()
        for slot in range(num_slots):
            kv.release(slot)
        assert kv.stats().free == num_blocks


@given(
    windows=st.lists(st.sampled_from([None, 1, 2, 7, 16]), min_size=1, max_size=3, unique=True),
    block_size=st.sampled_from([1, 4, 8]),
    num_tokens=st.integers(1, 60),
    chunk=st.integers(1, 20),
    first=st.integers(1, 20),
)
def test_blocks_for_bounds_what_a_request_holds(
    windows: list[int | None], block_size: int, num_tokens: int, chunk: int, first: int
) -> None:
    """Red if a request holds more than the memory plan says: a request alone could then starve."""
    layout = plan_layout(layers(*windows), block_size, 4)
    kv = KVResource(layout, 1000, 1, 64, bytes(32), prefix_cache=False)
    kv.admit(0, Request(num_tokens))
    most, computed, step = 0, 0, min(first, chunk)
    while computed < num_tokens:
        computed = min(computed + step, num_tokens)
        kv.reserve(0, computed)
        most = max(most, kv.stats().owned)
        kv.commit(np.array([0]), np.array([computed]))
        step = chunk
    assert most <= layout.blocks_for(num_tokens, chunk)


def test_blocks_for_is_reached() -> None:
    """Red if the bound grows beyond what a long windowed request really needs (memory left unused)."""
    layout = plan_layout(layers(7), 4, 4)
    kv = KVResource(layout, 100, 1, 400, bytes(32), prefix_cache=False)
    kv.admit(0, Request(200))
    most = 0
    for computed in range(5, 200, 5):
        kv.reserve(0, computed)
        most = max(most, kv.stats().owned)
        kv.commit(np.array([0]), np.array([computed]))
    assert most == layout.blocks_for(200, chunk=5) < layout.blocks_for(200, chunk=200)
