"""Checkpoint layouts beside the usual one, and what is refused before memory is taken."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from paged import PagedRunner
from safetensors.numpy import load_file, save_file
from tiny_models import load_oracle, make_tiny, oracle_logits

from penstock.errors import ModelRefused
from penstock.models.load import inspect_model, load_model

TOKENS = [int(t) for t in np.random.default_rng(1).integers(0, 256, 30)]
Tensors = dict[str, np.ndarray]


def logits_of(path: Path) -> np.ndarray:
    return PagedRunner(load_model(inspect_model(path), "reference")).step({0: TOKENS})[0]


def rewrite(folder: Path, change: Callable[[Tensors], Tensors]) -> None:
    tensors = change(load_file(folder / "model.safetensors"))
    save_file({name: np.ascontiguousarray(t) for name, t in tensors.items()}, folder / "model.safetensors")


def edit_config(folder: Path, **changes: Any) -> None:
    path = folder / "config.json"
    path.write_text(json.dumps(json.loads(path.read_text()) | changes))


def fuse_experts(tensors: Tensors, gate: str, up: str, down: str, block: str) -> Tensors:
    """Per-expert matrices -> mlp.experts.gate_up_proj (E, 2I, d) and down_proj (E, d, I)."""
    out = {name.replace(block, "mlp"): t for name, t in tensors.items() if ".experts." not in name}
    layers = {name.split(f".{block}.")[0] for name in tensors if ".experts." in name}
    for layer in layers:
        count = len([n for n in tensors if n.startswith(f"{layer}.{block}.experts.") and f".{down}." in n])

        def each(part: str, layer: str = layer, count: int = count) -> np.ndarray:
            return np.stack([tensors[f"{layer}.{block}.experts.{e}.{part}.weight"] for e in range(count)])

        out[f"{layer}.mlp.experts.gate_up_proj"] = np.concatenate([each(gate), each(up)], axis=1)
        out[f"{layer}.mlp.experts.down_proj"] = each(down)
    return out


@pytest.mark.parametrize(
    ("arch", "parts"),
    [
        ("mixtral", ("w1", "w3", "w2", "block_sparse_moe")),
        ("qwen2_moe", ("gate_proj", "up_proj", "down_proj", "mlp")),
        ("qwen3_moe", ("gate_proj", "up_proj", "down_proj", "mlp")),
    ],
)
def test_fused_expert_layout(arch: str, parts: tuple[str, str, str, str], tmp_path: Path) -> None:
    """Red if stacked 3-D experts are not found, or read in another order."""
    folder = make_tiny(arch, tmp_path)
    expected = logits_of(folder)
    rewrite(folder, lambda tensors: fuse_experts(tensors, *parts))
    assert np.array_equal(logits_of(folder), expected)


def test_mxfp4_experts(tmp_path: Path) -> None:
    """Red if GPT-OSS's packed experts are unpacked in another nibble, scale or row order."""
    import torch
    from transformers.integrations.mxfp4 import convert_moe_packed_tensors

    rng = np.random.default_rng(3)
    plain, packed = make_tiny("gpt_oss", tmp_path / "plain"), make_tiny("gpt_oss", tmp_path / "packed")

    def pack(tensors: Tensors) -> Tensors:
        out = dict(tensors)
        for name in [n for n in tensors if n.endswith("_proj") and ".experts." in n]:
            experts, width, rows = out.pop(name).shape
            blocks = rng.integers(0, 256, (experts, rows, width // 32, 16), np.uint8)
            scales = rng.integers(121, 127, (experts, rows, width // 32), np.uint8)
            out |= {name + "_blocks": blocks, name + "_scales": scales}
        return out

    rewrite(packed, pack)
    stored = load_file(packed / "model.safetensors")

    def unpack(tensors: Tensors) -> Tensors:
        for name in [n for n in tensors if n.endswith("_proj") and ".experts." in n]:
            both = (torch.from_numpy(stored[name + suffix]) for suffix in ("_blocks", "_scales"))
            tensors[name] = convert_moe_packed_tensors(*both, dtype=torch.float32).numpy()
        return tensors

    rewrite(plain, unpack)
    edit_config(packed, quantization_config={"quant_method": "mxfp4"})
    expected = oracle_logits(load_oracle(plain), TOKENS)
    assert np.abs(logits_of(packed) - expected).max() < 1e-4


@pytest.mark.parametrize("root", ["model.language_model.", "language_model.model."])
def test_text_half_of_a_vision_model(root: str, tmp_path: Path) -> None:
    """Red if Gemma3ForConditionalGeneration's nested configuration or names are not understood."""
    folder = make_tiny("gemma3", tmp_path)
    expected = logits_of(folder)

    def nest(tensors: Tensors) -> Tensors:
        out = {n.replace("model.", root, 1) if n.startswith("model.") else n: t for n, t in tensors.items()}
        return out | {"vision_tower.patch.weight": np.zeros((2, 2), np.float32)}

    rewrite(folder, nest)
    text = json.loads((folder / "config.json").read_text())
    nested = {
        "model_type": "gemma3",
        "architectures": ["Gemma3ForConditionalGeneration"],
        "text_config": text,
    }
    (folder / "config.json").write_text(json.dumps(nested))
    assert np.array_equal(logits_of(folder), expected)


def test_older_rope_keys(tmp_path: Path) -> None:
    """Red if `rope_theta` and `rope_scaling` of configurations before transformers 5 are ignored."""
    folder = make_tiny("llama3", tmp_path)
    spec = inspect_model(folder).spec
    config = json.loads((folder / "config.json").read_text())
    scaling = config.pop("rope_parameters")
    theta = scaling.pop("rope_theta")
    (folder / "config.json").write_text(json.dumps(config | {"rope_theta": theta, "rope_scaling": scaling}))
    assert inspect_model(folder).spec == spec


@pytest.mark.parametrize("variant", ["qwen2", "qwen3", "gemma2", "gemma3", "gpt_oss", "smollm3", "qwen2_moe"])
def test_configurations_without_layer_types(variant: str, tmp_path: Path) -> None:
    """Red if a layer slides (or not) by another rule than its architecture's where no list says so."""
    folder = make_tiny(variant, tmp_path)
    spec = inspect_model(folder).spec
    edit_config(folder, layer_types=None)
    assert inspect_model(folder).spec == spec


def test_older_gemma3_rope_keys(tmp_path: Path) -> None:
    """Red if Gemma 3's local base, or the scaling of its global layers alone, is lost."""
    folder = make_tiny("gemma3", tmp_path)
    spec = inspect_model(folder).spec
    edit_config(
        folder,
        rope_parameters=None,
        rope_theta=1000000.0,
        rope_local_base_freq=10000.0,
        rope_scaling={"rope_type": "linear", "factor": 8.0},
    )
    assert inspect_model(folder).spec == spec


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"model_type": "mamba"}, "architecture 'mamba' is not supported; supported are llama, mistral"),
        ({"hidden_act": "relu"}, "hidden_act = 'relu' is not supported; supported are silu"),
        (
            {"rope_parameters": {"rope_type": "dynamic", "factor": 2.0}},
            "rope scaling 'dynamic' is not supported; supported are default, linear",
        ),
        ({"quantization_config": {"quant_method": "quip"}}, "quantization 'quip' .* gptq, awq"),
        ({"hidden_size": None}, "has no 'hidden_size'"),
        ({"num_key_value_heads": 3}, "4 attention heads can't share 3 KV heads"),
        ({"intermediate_size": 73}, r"gate_proj.weight' gives shape \(72, 48\), .* says \(73, 48\)"),
        ({"num_hidden_layers": 2}, r"'model.layers.2.input_layernorm.weight' has no place .*9 such tensors"),
        ({"num_hidden_layers": 4}, "'model.layers.3.input_layernorm.weight' is missing"),
        ({"num_hidden_layers": "x"}, "the configuration can't be read"),
        ({"attention_bias": True}, "'model.layers.0.self_attn.q_proj.bias' is missing"),
    ],
)
def test_refusals_name_what_is_wrong(changes: dict[str, Any], message: str, tmp_path: Path) -> None:
    """Red if a model that can't be served is loaded, or refused without its reason and numbers."""
    folder = make_tiny("llama", tmp_path)
    edit_config(folder, **changes)
    with pytest.raises(ModelRefused, match=message) as refused:
        inspect_model(folder)
    assert str(folder) in str(refused.value)


def test_bidirectional_gemma_is_refused(tmp_path: Path) -> None:
    """Red if an embedding model (non-causal attention) is served as if it were causal."""
    folder = make_tiny("gemma3", tmp_path)
    edit_config(folder, use_bidirectional_attention=True)
    with pytest.raises(ModelRefused, match="use_bidirectional_attention = True"):
        inspect_model(folder)


def test_superfluous_tensor_is_refused(tmp_path: Path) -> None:
    """Red if a tensor that the forward pass does not use (here QK-norm in Llama) is silently dropped."""
    folder = make_tiny("llama", tmp_path)
    extra = {"model.layers.1.self_attn.q_norm.weight": np.ones(12, np.float32)}
    rewrite(folder, lambda tensors: tensors | extra)
    with pytest.raises(ModelRefused, match=r"layers\.1\.self_attn\.q_norm\.weight' has no place"):
        inspect_model(folder)


def test_model_that_changed_after_inspection_is_refused(tmp_path: Path) -> None:
    """Red if weights are loaded under the revision (and KV identity) of other weights."""
    folder = make_tiny("llama", tmp_path)
    info = inspect_model(folder)
    rewrite(folder, lambda tensors: {n: t + 1 for n, t in tensors.items()})
    with pytest.raises(ModelRefused, match="changed since it was inspected"):
        load_model(info)
