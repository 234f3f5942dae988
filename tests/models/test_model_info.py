"""What inspection says about size, and what loading really takes."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
from paged import PagedRunner
from tiny_models import TINY, load_oracle, make_tiny

from penstock.errors import ConfigError
from penstock.kv.groups import LayerKV, plan_layout
from penstock.models.load import inspect_model, load_model
from penstock.models.spec import kv_layers, parameter_count, weight_bytes, workspace_bytes


@pytest.mark.parametrize("variant", list(TINY))
def test_parameter_count(variant: str, tmp_path: Path) -> None:
    """Red if the memory plan counts other parameters than the model has."""
    folder = make_tiny(variant, tmp_path)
    info = inspect_model(folder)
    oracle = load_oracle(folder)
    assert info.parameters == sum(p.numel() for p in oracle.parameters())
    assert info.weight_bytes("reference") == weight_bytes(info.spec) == 4 * parameter_count(info.spec)


def test_inspection_touches_headers_only(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Red if inspecting converts weights: a model would take its memory before it is planned."""
    from penstock.models.weights import source

    folder = make_tiny("qwen2_moe", tmp_path)

    def fail(*args: object) -> None:
        raise AssertionError("weights were read")

    monkeypatch.setattr(source, "dequantize", fail)
    assert inspect_model(folder).file_bytes > 0


def test_progress_reaches_one_and_never_falls(tmp_path: Path) -> None:
    """Red if the progress bar of loading stops short or jumps back."""
    shares: list[float] = []
    load_model(inspect_model(make_tiny("llama", tmp_path)), progress=lambda what, share: shares.append(share))
    assert shares == sorted(shares)
    assert shares[-1] == 1.0


def test_half_precision_kv(tmp_path: Path) -> None:
    """Red if a layout of 2-byte elements does not halve the pool or changes what is computed."""
    model = load_model(inspect_model(make_tiny("llama", tmp_path)), "reference")
    layout = plan_layout([LayerKV(*layer) for layer in kv_layers(model.spec)], 4, 2)
    halves = model.allocate_kv(layout, 10)
    assert halves[0].k.dtype == np.float16
    assert halves[0].k.base.nbytes == 10 * layout.block_bytes
    exact, rounded = PagedRunner(model), PagedRunner(model)
    rounded.kv = model.allocate_kv(layout, 600)
    tokens = list(range(20))
    assert np.abs(exact.step({0: tokens})[0] - rounded.step({0: tokens})[0]).max() < 0.05


def test_kv_of_an_unknown_element_size_is_refused(tmp_path: Path) -> None:
    """Red if KV of a size without a float type is silently taken as another."""
    model = load_model(inspect_model(make_tiny("llama", tmp_path)), "reference")
    layout = plan_layout([LayerKV(*layer) for layer in kv_layers(model.spec)], 4, 1)
    with pytest.raises(ConfigError, match="1 bytes"):
        model.allocate_kv(layout, 10)


@pytest.mark.parametrize("variant", ["llama", "gpt_oss", "qwen2_moe", "gemma2", "qwen3"])
def test_workspace_bounds_what_a_step_takes(
    variant: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Red if a step allocates more than the memory plan sets aside for it."""
    import tracemalloc

    from penstock.kernels.reference import attention

    monkeypatch.setattr(attention, "SCORE_BYTES", 1 << 16)
    model = load_model(inspect_model(make_tiny(variant, tmp_path, max_position_embeddings=2048)), "reference")
    shape = model.spec.layers[0].attention.shape
    keys_and_values = 2 * 4 * 1024 * shape.kv_heads * shape.head_dim
    bound = workspace_bytes(model.spec, 512, 512, 3 * (1 << 16) + keys_and_values)
    runner = PagedRunner(model, block_size=16, num_blocks=300)
    tokens = [int(t) for t in np.random.default_rng(0).integers(0, 256, 1024)]
    runner.step({0: tokens[:512]})
    tracemalloc.start()
    runner.step({0: tokens[512:]})
    _, peak = tracemalloc.get_traced_memory()
    tracemalloc.stop()
    assert bound / 3 < peak < bound
