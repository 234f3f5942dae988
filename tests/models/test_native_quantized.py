"""Quantized files on the native backend: near their exact floats, and the same bits however cut."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import gguf
import native_kernels as native
import numpy as np
import pytest
from packed_checkpoints import pack_awq, pack_gptq, random_integers, requantize
from paged import PagedRunner
from safetensors.numpy import load_file, save_file
from tiny_gguf import write_gguf
from tiny_models import make_tiny

from penstock.kernels.backend import BackendOptions
from penstock.kernels.cpu.weights import CpuWeights
from penstock.models.load import ModelInfo, inspect_model, load_model
from penstock.models.tensors import Mxfp4
from penstock.models.weights.source import open_source

pytest.importorskip("penstock.kernels.cpu._native", reason="the native module is not built")

TOKENS = [int(t) for t in np.random.default_rng(3).integers(0, 256, 40)]
SIZES = {"hidden_size": 256, "intermediate_size": 256, "head_dim": 64, "num_hidden_layers": 2}
# As converters mix types in a file: (attention's Q, K and gate, up), V, down, embedding
MIXES = {
    "Q4_K_M": ("Q4_K", "Q6_K", "Q6_K", "Q6_K"),
    "Q5_K_M": ("Q5_K", "Q6_K", "Q6_K", "Q6_K"),
    "Q3_K_M": ("Q3_K", "Q5_K", "Q4_K", "Q6_K"),
    "Q4_0": ("Q4_0", "Q4_0", "Q4_0", "Q8_0"),
    "Q5_0": ("Q5_0", "Q5_0", "Q5_0", "Q6_K"),
    "Q5_1": ("Q5_1", "Q5_1", "Q5_1", "Q8_0"),
    "IQ4_XS": ("IQ4_XS", "IQ4_NL", "Q5_K", "Q6_K"),
    "MXFP4": ("MXFP4", "Q8_0", "MXFP4", "Q8_0"),
}
# What 8-bit activations cost, root mean square relative to the logits: 0.02 to 0.07; a wrong layout: 1
NOISE = 0.1


def run(info: ModelInfo, weights: Any, cuts: list[int]) -> np.ndarray:
    """float32 [len(TOKENS), V]: TOKENS in steps that end at `cuts`, beside a row of other tokens."""
    model = load_model(info, "cpu", options=BackendOptions(weights=weights))
    runner = PagedRunner(model, itemsize=4 if weights == "float32" else 2)
    got, begin = [], 0
    for end in [*cuts, len(TOKENS)]:
        beside = {"other": TOKENS[:7]} if cuts else {}
        got.append(runner.step(beside | {"row": TOKENS[begin:end]})["row"])
        begin = end
    return np.concatenate(got)


def check(info: ModelInfo, noise: float = NOISE) -> None:
    """As stored against the same values in float32 (which test_native_parity ties to the reference)."""
    exact, alone = run(info, "float32", []), run(info, "file", [])
    error = np.sqrt(np.mean((alone - exact) ** 2) / np.mean((exact - exact.mean()) ** 2))
    assert error < noise
    assert np.array_equal(run(info, "file", [1, 2, 13, 14, 30]), alone)


def sized(rng: np.random.Generator, kind: str, like: np.ndarray) -> np.ndarray:
    """Random blocks of type `kind` in the shape of `like`, brought to about its size."""
    *outer, n, k = like.shape
    raw = native.stored_rows(rng, kind, int(np.prod(outer, initial=n)), k)
    if kind == "MXFP4":
        return raw.reshape(*outer, n, -1)
    block = gguf.GGML_QUANT_SIZES[gguf.GGMLQuantizationType[kind]][1]
    blocks = raw.reshape(-1, block)
    factor = like.std() / gguf.quants.dequantize(raw, gguf.GGMLQuantizationType[kind]).std()
    two = kind in ("Q4_1", "Q5_1", "Q4_K", "Q5_K")
    for at in (block - 2,) if kind in ("Q3_K", "Q6_K") else (0, 2) if two else (0,):
        halves = np.ascontiguousarray(blocks[:, at : at + 2]).view(np.float16).astype(np.float32)
        blocks[:, at : at + 2] = (halves * factor).astype(np.float16).view(np.uint8)
    return blocks.reshape(*outer, n, -1)


def retyped(source: Path, target: Path, mix: tuple[str, str, str, str]) -> Path:
    """The GGUF file `source` with random blocks of the mix's types for its matrices."""
    rng, reader = np.random.default_rng(1), gguf.GGUFReader(source)
    field = reader.fields["general.architecture"]
    writer = gguf.GGUFWriter(target, str(bytes(field.parts[field.data[0]]), "utf-8"))
    for name, field in reader.fields.items():
        if not name.startswith(("GGUF.", "general.architecture")):
            writer.add_key_value(name, field.contents(), field.types[0])
    for tensor in reader.tensors:
        values = np.array(tensor.data)
        place = {"attn_v": 1, "ffn_down": 2, "ffn_down_exps": 2, "token_embd": 3, "output": 3}
        part = tensor.name.removesuffix(".weight").split(".")[-1]
        if values.ndim < 2 or "inp" in tensor.name or part.endswith("norm"):
            writer.add_tensor(tensor.name, values)
            continue
        kind = mix[place.get(part, 0)]
        raw = sized(rng, kind, values)
        writer.add_tensor(tensor.name, raw, raw_dtype=gguf.GGMLQuantizationType[kind])
    writer.write_header_to_file()
    writer.write_kv_data_to_file()
    writer.write_tensors_to_file()
    writer.close()
    return target


@pytest.mark.parametrize("mix", list(MIXES))
def test_gguf_types(mix: str, tmp_path: Path) -> None:
    """Red if a stored type, or a fused matrix of several types, is computed wrongly."""
    folder = make_tiny("llama_bias", tmp_path / "hf", **SIZES)
    plain = write_gguf(folder, tmp_path / "plain.gguf")
    check(inspect_model(retyped(plain, tmp_path / "mixed.gguf", MIXES[mix])))


@pytest.mark.parametrize("arch", ["qwen3_moe", "qwen2_moe", "mixtral"])
def test_gguf_types_of_experts(arch: str, tmp_path: Path) -> None:
    """Red if quantized experts are taken for one another, or gathered rows lose their scales."""
    more = {"moe_intermediate_size": 256, "shared_expert_intermediate_size": 256, "sliding_window": None}
    if arch == "qwen2_moe":
        more["mlp_only_layers"] = []
    folder = make_tiny(arch, tmp_path / "hf", **SIZES, **more)
    plain = write_gguf(folder, tmp_path / "plain.gguf")
    # A token at the border between two experts may take the other one: looser than without experts.
    check(inspect_model(retyped(plain, tmp_path / "mixed.gguf", MIXES["Q4_K_M"])), noise=0.2)


@pytest.mark.parametrize(("method", "group"), [("gptq", 32), ("gptq", 64), ("awq", 64), ("gptq8", 128)])
def test_gptq_and_awq(method: str, group: int, tmp_path: Path) -> None:
    """Red if a checkpoint's integers, zero points or groups mean something else natively."""
    rng = np.random.default_rng(group)
    bits = 8 if method == "gptq8" else 4

    def pack(stem: str, weight: np.ndarray) -> tuple[dict[str, np.ndarray], np.ndarray]:
        values, zeros, scales = random_integers(weight, bits, group, rng)
        wide = (np.repeat(a.astype(np.float32), group, axis=1) for a in (scales, zeros))
        scale, zero = wide
        if method == "awq":
            stored = pack_awq(stem, values, zeros, scales)
        else:
            stored = pack_gptq(stem, values, zeros, scales, bits, 1)
        return stored, (scale * (values - zero)).astype(np.float32)

    config: dict[str, Any] = {"quant_method": "gptq", "bits": bits, "group_size": group, "desc_act": False}
    if method == "awq":
        config = {
            "quant_method": "awq",
            "bits": 4,
            "group_size": group,
            "zero_point": True,
            "version": "gemm",
        }
    folder = make_tiny("llama", tmp_path / "model", **SIZES)
    requantize(folder, config, pack)
    check(inspect_model(folder))


def test_int8_with_a_scale_per_token(tmp_path: Path) -> None:
    """Red if W8A8 of compressed-tensors gets other activations than it prescribes, or other weights."""
    rng = np.random.default_rng(8)

    def pack(stem: str, weight: np.ndarray) -> tuple[dict[str, np.ndarray], np.ndarray]:
        integers = rng.integers(-127, 128, weight.shape).astype(np.int8)
        scale = (rng.uniform(0.5, 1.5, (len(weight), 1)) * weight.std() / 74).astype(np.float16)
        stored = {f"{stem}.weight": integers, f"{stem}.weight_scale": scale.astype(np.float32)}
        return stored, integers * scale.astype(np.float32)

    token = {"num_bits": 8, "type": "int", "symmetric": True, "strategy": "token", "dynamic": True}
    weights = {"num_bits": 8, "type": "int", "symmetric": True, "strategy": "channel"}
    config = {
        "quant_method": "compressed-tensors", "format": "int-quantized", "ignore": ["lm_head"],
        "config_groups": {"g": {"targets": ["Linear"], "weights": weights, "input_activations": token}},
    }  # fmt: skip
    folder = make_tiny("llama", tmp_path / "model", **SIZES)
    requantize(folder, config, pack)
    check(inspect_model(folder))


@pytest.mark.parametrize(("weights", "noise"), [("bf16", 0.02), ("int8", 0.05), ("int4", 0.4)])
def test_floats_rounded_at_load(weights: Any, noise: float, tmp_path: Path) -> None:
    """Red if rounding at load costs more than its bits do."""
    info = inspect_model(make_tiny("llama", tmp_path, **SIZES))
    exact, got = run(info, "float32", []), run(info, weights, [])
    assert np.sqrt(np.mean((got - exact) ** 2) / np.mean((exact - exact.mean()) ** 2)) < noise


def test_mxfp4_blocks_of_a_folder(tmp_path: Path) -> None:
    """Red if the nibbles of a GPT-OSS checkpoint land in another order, or its experts lose their form."""
    folder = make_tiny("gpt_oss", tmp_path, num_hidden_layers=2)
    stored = load_file(folder / "model.safetensors")
    rng = np.random.default_rng(2)
    for name in [n for n in stored if n.endswith(("gate_up_proj", "down_proj"))]:
        experts, k, n = stored.pop(name).shape
        stored[name + "_blocks"] = rng.integers(0, 256, (experts, n, k // 32, 16), np.uint8)
        stored[name + "_scales"] = rng.integers(121, 124, (experts, n, k // 32), np.uint8)
    save_file(stored, folder / "model.safetensors")
    config = json.loads((folder / "config.json").read_text())
    config["quantization_config"] = {"quant_method": "mxfp4"}
    (folder / "config.json").write_text(json.dumps(config))
    info = inspect_model(folder)
    check(info, noise=0.3)  # 5 experts, 2 chosen: near-ties flip
    part = CpuWeights().prepare([Mxfp4(open_source(folder), "model.layers.0.mlp.experts.down_proj")])
    assert part.format == native.FP4
