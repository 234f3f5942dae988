"""Quantized folders: what is rounded, smoothing as an identity, other readers, GGUF sources."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import tiny_gguf
import torch
from packed_checkpoints import is_linear
from paged import PagedRunner
from safetensors.numpy import load_file, save_file
from tiny_models import make_tiny, oracle_logits

from penstock.cli.quantize import quantize
from penstock.errors import ConfigError, InvalidRequest, ModelRefused
from penstock.models.load import inspect_model, load_model
from penstock.models.quantize.plan import QuantizePlan, make_plan
from penstock.models.quantize.smooth import activation_maxima, smoothed, smoothing_scales
from penstock.models.tensors import Tensors
from penstock.models.weights.quantization import quantization_of
from penstock.models.weights.source import open_source
from penstock.text.tokenizer import Tokenizer

TOKENS = [int(t) for t in np.random.default_rng(1).integers(0, 256, 40)]
SIZES = {"hidden_size": 64, "intermediate_size": 96, "head_dim": 16}
MOE = {"moe_intermediate_size": 32, "shared_expert_intermediate_size": 64}
ARCHES = ["llama", "llama3", "qwen2", "phi3", "gemma2", "granite", "mixtral", "qwen2_moe", "qwen3_moe"]


def tiny(arch: str, folder: Path) -> Path:
    extra = {"qwen2_moe": MOE, "qwen3_moe": {"moe_intermediate_size": 32}}.get(arch, {})
    return make_tiny(arch, folder, **SIZES, **extra)


def run(model: Path, out: Path, weights: Any, **options: Any) -> Path:
    """The verb's function; options as on the command line."""
    chosen: dict[str, Any] = {"group": None, "symmetric": False, "activations": "group", "calibrate": None}
    quantize(str(model), out, weights, **(chosen | {"alpha": 0.5} | options))
    return out


def logits_of(path: Path) -> np.ndarray:
    return PagedRunner(load_model(inspect_model(path), "reference")).step({0: TOKENS})[0]


@pytest.mark.parametrize("arch", ARCHES)
@pytest.mark.parametrize("weights", ["int8", "int4"])
def test_linears_are_rounded_and_nothing_else_changes(arch: str, weights: str, tmp_path: Path) -> None:
    """Red if a linear stays float, another tensor loses a bit, or a weight is off by more than its steps."""
    model = tiny(arch, tmp_path / "m")
    out = run(model, tmp_path / "q", weights)
    stored = open_source(out)
    reader = quantization_of(stored)
    assert reader is not None
    for name, tensor in load_file(model / "model.safetensors").items():
        if not is_linear(name, tensor):
            assert stored.dtype(name) == "F32"
            np.testing.assert_array_equal(stored.float32(name), tensor, strict=True)
            continue
        found = reader.find(name)
        assert found is not None, name
        codes = found[0].codes()
        assert codes is not None
        assert (codes.bits, codes.group) == ((8, tensor.shape[1]) if weights == "int8" else (4, 32))
        assert codes.activation == ("group" if weights == "int8" else None)
        off = np.abs(found[0].float32() - tensor)
        assert off.max() <= np.repeat(codes.scale, codes.group, axis=1).max() * (
            0.51 if weights == "int8" else 4
        )
        assert off.mean() < np.abs(tensor).mean() * (0.01 if weights == "int8" else 0.12)
    info = inspect_model(out)
    assert info.spec == inspect_model(model).spec
    assert info.notes == ()
    for name in ("tokenizer.json", "tokenizer_config.json"):
        assert (out / name).read_bytes() == (model / name).read_bytes()


@pytest.mark.parametrize("options", [{}, {"symmetric": True}, {"group": 64}])
def test_transformers_reads_int4_folders(options: dict[str, Any], tmp_path: Path) -> None:
    """Red if what Penstock writes means something else to the package that defines the format."""
    import transformers

    model = make_tiny("llama", tmp_path / "m", **(SIZES | {"intermediate_size": 128}))
    out = run(model, tmp_path / "q", "int4", **options)
    theirs = transformers.AutoModelForCausalLM.from_pretrained(
        out, dtype=torch.float32, quantization_config=transformers.CompressedTensorsConfig(dequantize=True)
    )
    # The package multiplies in the scales' bfloat16, Penstock in float32.
    expected = oracle_logits(theirs, TOKENS)
    assert np.abs(logits_of(out) - expected).max() < 0.02 * np.abs(expected).max()


@pytest.mark.parametrize("activations", ["group", "token"])
def test_transformers_runs_int8_folders(activations: str, tmp_path: Path) -> None:
    """Red if weights or the prescribed dynamic activations are described wrongly."""
    import transformers

    model = make_tiny("llama", tmp_path / "m", **SIZES)
    out = run(model, tmp_path / "q", "int8", activations=activations)
    theirs = transformers.AutoModelForCausalLM.from_pretrained(out, dtype=torch.float32)
    expected = oracle_logits(theirs, TOKENS)  # with activations rounded to int8
    off = np.abs(logits_of(out) - expected).max()
    assert 0 < off < 0.1 * np.abs(expected).max()


def smoothed_tensors(plan: QuantizePlan, alpha: float) -> tuple[dict[str, np.ndarray], set[str]]:
    sequences = [np.array(TOKENS, np.int32), np.array(TOKENS[::-1], np.int32)]
    scales = smoothing_scales(plan, activation_maxima(plan, sequences), alpha)
    found = {item.name: smoothed(item, scales) for item in plan.items}
    return {name: t for name, t in found.items() if t is not None}, {i.name for i in plan.items}


@pytest.mark.parametrize("arch", ARCHES)
def test_smoothing_changes_no_result(arch: str, tmp_path: Path) -> None:
    """Red if a matrix that reads a norm (router and shared gate included) misses its scale, or Gemma's
    1 + w gain is divided without the 1."""
    model = tiny(arch, tmp_path / "m")
    expected = logits_of(model)
    changed, names = smoothed_tensors(make_plan(open_source(model)), 0.5)
    stored = load_file(model / "model.safetensors")
    assert set(changed) < names <= set(stored)
    largest = max(float(np.abs(changed[name] / stored[name] - 1).max()) for name in changed)
    assert largest > 0.2
    save_file(stored | changed, model / "model.safetensors")
    assert np.abs(logits_of(model) - expected).max() < 2e-4 * np.abs(expected).max()


def test_smoothing_evens_out_activations(tmp_path: Path) -> None:
    """Red if range moves in the wrong direction, or not by the share alpha."""
    model = tiny("llama", tmp_path / "m")
    tensors = load_file(model / "model.safetensors")
    gain = tensors["model.layers.0.input_layernorm.weight"]
    gain[7] = 60.0  # an outlier channel
    save_file(tensors, model / "model.safetensors")
    sequences = [np.array(TOKENS, np.int32)]

    def spread(folder: Path) -> float:
        maxima = activation_maxima(make_plan(open_source(folder)), sequences)[(0, "attn_norm")]
        return float(maxima[7] / np.median(maxima))

    before = spread(model)
    plan = make_plan(open_source(model))
    scales = smoothing_scales(plan, activation_maxima(plan, sequences), 1.0)
    changed = {item.name: t for item in plan.items if (t := smoothed(item, scales)) is not None}
    save_file(tensors | changed, model / "model.safetensors")
    assert before > 10
    assert spread(model) == pytest.approx(1.0, abs=1e-3)


def test_calibration_reaches_the_folder(tmp_path: Path) -> None:
    """Red if --calibrate does nothing, or what it writes is another function."""
    model = tiny("llama", tmp_path / "m")
    text = tmp_path / "text.txt"
    text.write_text("the quick brown fox jumps over the lazy dog. " * 20)
    plain, smooth = run(model, tmp_path / "a", "int8"), run(model, tmp_path / "b", "int8", calibrate=text)
    first, second = (load_file(out / "model.safetensors") for out in (plain, smooth))
    name = "model.layers.1.input_layernorm.weight"
    assert not np.array_equal(first[name], second[name])
    exact = logits_of(model)
    assert np.abs(logits_of(smooth) - exact).max() < 0.1 * np.abs(exact).max()


@pytest.mark.parametrize("arch", ["llama", "llama_bias", "qwen2", "qwen3"])
def test_gguf_becomes_the_model_it_came_from(arch: str, tmp_path: Path) -> None:
    """Red if names, the order of Q and K rows (weights and biases) or the configuration are not translated
    back: the plan must be that of the safetensors folder the GGUF file was made from."""
    model = make_tiny(arch, tmp_path / "m", **SIZES)
    path = tiny_gguf.write_gguf(model, tmp_path / "m.gguf")
    plan = make_plan(open_source(path))
    stored = load_file(model / "model.safetensors")
    made = {item.name: item for item in plan.items}
    tied = json.loads((model / "config.json").read_text())["tie_word_embeddings"]
    assert made.keys() == {name for name in stored if not (tied and name == "lm_head.weight")}
    for name, item in made.items():
        np.testing.assert_array_equal(item.tensor.float32(), stored[name])
        assert item.rounded == is_linear(name, stored[name])
    described = model / "config.json"
    described.write_text(json.dumps(plan.config))
    save_file(stored, model / "model.safetensors")
    written, original = inspect_model(model).spec, inspect_model(path).spec
    assert written.hidden_size == original.hidden_size
    assert logits_of(model) == pytest.approx(logits_of(path), abs=1e-4)


def test_real_gguf_and_its_tokenizer(smollm2_path: Path, tmp_path: Path) -> None:
    """Red if the folder made of the default model encodes or ends text differently from its GGUF file."""
    out = run(smollm2_path, tmp_path / "q", "int8")
    ours, theirs = Tokenizer.load(out), Tokenizer.load(smollm2_path)
    text = "<|im_start|>user\nNaïve café 123456, 東京!\n\n  def f(x):\treturn x<|im_end|>"
    assert ours.encode(text) == theirs.encode(text)
    assert (ours.eos_ids, ours.bos_id, ours.add_bos) == (theirs.eos_ids, theirs.bos_id, theirs.add_bos)
    assert ours.chat_template == theirs.chat_template
    assert ours.special_ids == theirs.special_ids
    info = inspect_model(out)
    assert info.storage.startswith("INT8/")
    assert info.context == inspect_model(smollm2_path).context


def test_refusals(tmp_path: Path) -> None:
    """Red if what can't be quantized is written half, or refused without saying what to do."""
    model = make_tiny("llama", tmp_path / "m")
    with pytest.raises(ModelRefused, match=r"48 columns are no multiple of 32; .* --weights int8"):
        run(model, tmp_path / "q", "int4")
    with pytest.raises(ModelRefused, match=r"96 columns are no multiple of the group of 64; use --group 32"):
        run(tiny("llama", tmp_path / "n"), tmp_path / "q", "int4", group=64)
    with pytest.raises(ConfigError, match="--group: 48 with int4"):
        run(model, tmp_path / "q", "int4", group=48)
    with pytest.raises(ConfigError, match="--group: 32 with int8"):
        run(model, tmp_path / "q", "int8", group=32)
    with pytest.raises(ModelRefused, match="compressed-tensors has no form for"):
        run(make_tiny("gpt_oss", tmp_path / "g"), tmp_path / "q", "int8")
    gemma = make_tiny("gemma2", tmp_path / "gemma")
    with pytest.raises(ModelRefused, match="quantizing 'gemma2' from GGUF is not supported"):
        run(tiny_gguf.write_gguf(gemma, tmp_path / "gemma.gguf"), tmp_path / "q", "int8")
    empty = tmp_path / "empty.txt"
    empty.write_text("")
    with pytest.raises(InvalidRequest, match="holds 0 tokens"):
        run(model, tmp_path / "q", "int8", calibrate=empty)
    assert not [path for path in tmp_path.iterdir() if path.name.startswith((".q", "q"))]
    out = run(model, tmp_path / "q", "int8")
    with pytest.raises(ModelRefused, match=r"already quantized \(compressed-tensors int-quantized int8\)"):
        run(out, tmp_path / "again", "int8")
    with pytest.raises(ConfigError, match="already exists"):
        run(model, out, "int8")


def test_fused_experts_get_names_of_their_own(tmp_path: Path) -> None:
    """Red if stacked 3-D experts stay float, or their gate and up rows are mixed up."""
    model = tiny("qwen3_moe", tmp_path / "m")
    stored = load_file(model / "model.safetensors")
    before = run(model, tmp_path / "a", "int8")
    stacked = {name: t for name, t in stored.items() if ".experts." not in name}
    for layer in range(3):
        prefix = f"model.layers.{layer}.mlp.experts."

        def each(part: str, prefix: str = prefix) -> np.ndarray:
            return np.stack([stored[f"{prefix}{e}.{part}.weight"] for e in range(6)])

        stacked[prefix + "gate_up_proj"] = np.concatenate([each("gate_proj"), each("up_proj")], axis=1)
        stacked[prefix + "down_proj"] = each("down_proj")
    save_file(stacked, model / "model.safetensors")
    after = run(model, tmp_path / "b", "int8")
    first, second = (load_file(out / "model.safetensors") for out in (before, after))
    assert first.keys() == second.keys()
    for name, tensor in first.items():
        np.testing.assert_array_equal(second[name], tensor)


def test_plan_reads_headers_only(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Red if refusing a large model costs reading it."""
    model = tiny("mixtral", tmp_path / "m")
    source = open_source(model)
    monkeypatch.setattr(type(source), "raw", None)
    plan = make_plan(source)
    assert isinstance(plan.tensors, Tensors)
    assert sum(item.rounded for item in plan.items) == 3 * (4 + 5 * 3)
