"""GGUF files of every architecture that has them: the same logits as the safetensors they came from."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pytest
from paged import PagedRunner
from tiny_gguf import ARCHES, write_gguf
from tiny_models import load_oracle, make_tiny, oracle_logits

from penstock.errors import ModelRefused
from penstock.models.arch import ARCHITECTURES
from penstock.models.load import inspect_model, load_model

# Without a window where GGUF has no key for it.
CASES: dict[str, dict[str, Any]] = {
    "llama": {},
    "llama_bias": {},
    "qwen2": {"use_sliding_window": False},
    "qwen2_yarn": {},
    "qwen3": {"use_sliding_window": False},
    "gemma2": {},
    "gemma3": {},
    "phi3": {},
    "smollm3": {"no_rope_layer_interval": 4},
    "granite": {},
    "gpt_oss": {},
    "mixtral": {"sliding_window": None},
    "qwen2_moe": {"mlp_only_layers": []},
    "qwen3_moe": {},
}


def test_every_gguf_architecture_is_tried() -> None:
    """Red if an architecture gets a GGUF mapping without a parity test."""
    tried = {ARCHES.get(t, "") for a in ARCHITECTURES.values() for t in a.model_types if a.name in CASES}
    assert {a.gguf_arch for a in ARCHITECTURES.values() if a.gguf_arch} == tried - {""}


@pytest.mark.parametrize("variant", list(CASES))
def test_gguf_gives_the_same_logits(variant: str, tmp_path: Path) -> None:
    """Red if a GGUF name, key, row order or norm offset is read wrongly."""
    folder = make_tiny(variant, tmp_path / "hf", **CASES[variant])
    info = inspect_model(write_gguf(folder, tmp_path / "model.gguf"))
    assert info.format == "gguf"
    tokens = [int(t) for t in np.random.default_rng(1).integers(0, 256, 40)]
    expected = oracle_logits(load_oracle(folder), tokens)
    runner = PagedRunner(load_model(info, "reference"))
    got = np.concatenate([runner.step({0: tokens[:23]})[0], runner.step({0: tokens[23:]})[0]])
    assert np.abs(got - expected).max() < 1e-4


def test_rope_freqs_tensor(tmp_path: Path) -> None:
    """Red if the frequency divisors of Llama 3 files (`rope_freqs.weight`) are ignored."""
    folder = make_tiny("llama", tmp_path / "hf")
    divisors = [1.0, 1.0, 2.0, 4.0, 8.0, 8.0]
    scaled = inspect_model(write_gguf(folder, tmp_path / "a.gguf", {"rope_freqs.weight": divisors}))
    rope = scaled.spec.layers[0].attention.rope
    assert rope is not None and rope.scaling is not None and rope.scaling.divisors == tuple(divisors)  # type: ignore[union-attr]


def test_longrope_factors(tmp_path: Path) -> None:
    """Red if Phi-3's long and short divisors are not taken from their tensors."""
    folder = make_tiny("phi3_longrope", tmp_path / "hf")
    hf = inspect_model(folder).spec
    rope = hf.layers[0].attention.rope
    assert rope is not None and rope.scaling is not None
    factors = {"rope_factors_long.weight": rope.scaling.long, "rope_factors_short.weight": rope.scaling.short}  # type: ignore[union-attr]
    info = inspect_model(write_gguf(folder, tmp_path / "m.gguf", factors))
    tokens = [int(t) for t in np.random.default_rng(1).integers(0, 256, 40)]
    expected = oracle_logits(load_oracle(folder), tokens)
    assert np.abs(PagedRunner(load_model(info, "reference")).step({0: tokens})[0] - expected).max() < 1e-4


def test_unsupported_gguf_architecture_is_named(tmp_path: Path) -> None:
    """Red if a foreign architecture fails with anything but its name and the supported list."""
    import gguf

    writer = gguf.GGUFWriter(tmp_path / "m.gguf", "falcon")
    writer.add_tensor("token_embd.weight", np.zeros((4, 32), np.float32))
    writer.write_header_to_file()
    writer.write_kv_data_to_file()
    writer.write_tensors_to_file()
    writer.close()
    with pytest.raises(ModelRefused, match=r"'falcon' is not supported; supported are llama, qwen2"):
        inspect_model(tmp_path / "m.gguf")
