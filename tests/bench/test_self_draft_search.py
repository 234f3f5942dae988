"""The search for layers that draft: what it judges by, and what it finds."""

from __future__ import annotations

import shutil
from pathlib import Path

import numpy as np
import pytest
from tiny_models import make_tiny

from penstock.bench.self_draft.places import BLOCK_SIZE, Places
from penstock.bench.self_draft.search import Search, find, judge
from penstock.decoding.params import TokenSampling
from penstock.engine.drafts.model_drafter import greedy, greedy_with_layers
from penstock.engine.shape import KV_BYTES
from penstock.kernels.backend import BackendOptions, open_backend
from penstock.models.load import inspect_model, load_model

DRAFTS, TOKENS = 3, 70
RANDOM = np.random.default_rng(11)
PROMPTS = [RANDOM.integers(5, 250, count).astype(np.int32) for count in (5, 16, 17, 40)]


@pytest.fixture(scope="module")
def idle_middle(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A model of three layers, the second of which adds nothing."""
    from safetensors.numpy import load_file, save_file

    folder = tmp_path_factory.mktemp("idle") / "model"
    shutil.copytree(make_tiny("llama", tmp_path_factory.mktemp("llama")), folder)
    weights = load_file(folder / "model.safetensors")
    for name in ("self_attn.o_proj", "mlp.down_proj"):
        weights[f"model.layers.1.{name}.weight"][:] = 0
    save_file(weights, folder / "model.safetensors", metadata={"format": "pt"})
    return folder


def _places(model: Path, backend: str = "cpu", temperature: float = 0.0) -> Places:
    opened = open_backend(backend, BackendOptions(weights="float32"))
    loaded = load_model(inspect_model(model), opened, context=128)
    sampling = TokenSampling(max_tokens=TOKENS, seed=3, temperature=temperature)
    return Places(loaded, PROMPTS, sampling, DRAFTS, KV_BYTES[opened.kv_form])


@pytest.mark.parametrize("arch", ["llama", "gemma3"])
@pytest.mark.parametrize("backend", ["cpu", "reference"])
def test_all_layers_are_always_right_about_greedy_text(arch: str, backend: str, tmp_path: Path) -> None:
    """Red if places hold another text, KV or position than the model's own, or if drafts leave a trace."""
    places = _places(make_tiny(arch, tmp_path), backend)
    lasts = [last for prompt in PROMPTS for last in range(len(prompt) - 1, len(prompt) + TOKENS - DRAFTS)]
    assert len(places) == sum(last % BLOCK_SIZE == 0 for last in lasts)
    for _ in range(2):
        assert places.survival(greedy(places.model, places.kv)).tolist() == [1.0] * DRAFTS
        some = places.survival(greedy_with_layers(places.model, (1,), places.kv))
        assert some[-1] <= some[0] and (arch != "llama" or some[0] < 1.0)


def test_a_layer_that_adds_nothing_is_left_out_first(idle_middle: Path) -> None:
    """Red if subsets are judged by layers that they do not have, or survival does not decide between them."""
    found = find(_places(idle_middle), beam=1, goes_on=lambda: True)
    assert found.sizes[0].layers == (0, 2)
    assert found.sizes[0].survival == (1.0,) * DRAFTS
    assert [len(judged.layers) for judged in found.sizes] == list(range(2, 2 - len(found.sizes), -1))
    assert found.best.ratio == max(judged.ratio for judged in (*found.exits, *found.sizes))
    assert (found.setting is not None) == (found.best.ratio > 1.0)


def test_sampled_text_is_drafted_for_less_often(idle_middle: Path) -> None:
    """Red if the temperature is not that of the text: all layers draft greedy text without a fault."""
    places = _places(idle_middle, temperature=1.0)
    assert places.survival(greedy(places.model, places.kv))[0] < 0.9


def test_judged_by_tokens_and_seconds_of_a_round() -> None:
    """Against figures by hand: a plain step of 10 ms, drafts of 2 ms, verification of 11, 12 and 20 ms."""
    verify_s = np.array([0.010, 0.011, 0.012, 0.020])
    judged = judge((0, 2), np.array([0.8, 0.7, 0.6]), 0.002, verify_s)
    # 1.8 tokens in 13 ms, 2.5 in 16, 3.1 in 26; plain decoding gives one in 10.
    assert judged.k == 2
    assert judged.tokens_per_round == pytest.approx(2.5)
    assert judged.ratio == pytest.approx(2.5 * 10 / 16)
    none = judge((0,), np.array([0.1, 0.0, 0.0]), 0.002, verify_s)
    assert none.ratio == pytest.approx(1.1 * 10 / 13)


def test_a_search_out_of_time_says_so(idle_middle: Path) -> None:
    """Red if a search that was cut looks like one that tried everything."""
    places = _places(idle_middle)
    left = iter([True] * 2)  # the first size has three subsets
    cut = Search(places, 1, lambda: next(left, False))
    assert list(cut.run()) == [] and not cut.is_complete
    whole = Search(places, 1, lambda: True)
    assert list(whole.run()) and whole.is_complete
