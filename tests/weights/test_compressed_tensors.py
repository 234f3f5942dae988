"""compressed-tensors checkpoints against the package that defines them, and against transformers."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from compressed_tensors.compressors import BaseCompressor
from compressed_tensors.quantization import QuantizationArgs, QuantizationScheme
from packed_checkpoints import Tensors, is_plain, requantize
from paged import PagedRunner
from safetensors.numpy import load_file
from safetensors.torch import save_file
from tiny_models import load_oracle, make_tiny, oracle_logits

from penstock.errors import ModelRefused
from penstock.models.load import inspect_model, load_model
from penstock.models.weights.quantization import quantization_of
from penstock.models.weights.source import open_source

TOKENS = [int(t) for t in np.random.default_rng(1).integers(0, 256, 30)]
SIZES = {"hidden_size": 64, "intermediate_size": 96, "head_dim": 16}
TOKEN = {"num_bits": 8, "type": "int", "symmetric": True, "strategy": "token", "dynamic": True}
CHANNEL = {"num_bits": 4, "strategy": "channel"}
GROUP = {**TOKEN, "strategy": "group", "group_size": 32}


def compress(
    weight: np.ndarray, form: str, weights: dict[str, Any], inputs: dict[str, Any] | None, seed: int = 0
) -> tuple[dict[str, torch.Tensor], np.ndarray]:
    """What the package stores for `weight`, and what it reads back, in float32."""
    scheme = QuantizationScheme(targets=["Linear"], weights=weights, input_activations=inputs)
    args = scheme.weights
    assert args is not None
    rng = np.random.default_rng(seed)
    state = {"weight": torch.from_numpy(weight.copy())}
    state |= {f"weight_{name}": value for name, value in _parameters(weight, args, form, rng).items()}
    compressor: Any = BaseCompressor.get_value_from_registry(form)
    stored = compressor.compress(state, scheme)
    wide = {name: t.float() if t.dtype == torch.float16 else t for name, t in stored.items()}
    back = compressor.decompress(wide, scheme)["weight"]
    return stored, back.float().numpy()


def _parameters(
    weight: np.ndarray, args: QuantizationArgs, form: str, rng: np.random.Generator
) -> dict[str, torch.Tensor]:
    rows, columns = weight.shape
    strategy, kind = (str(getattr(field, "value", field)) for field in (args.strategy, args.type))
    shape: tuple[int, ...] = {
        "tensor": (1,),
        "channel": (rows, 1),
        "group": (rows, columns // (args.group_size or 1)),
        "tensor_group": (rows, columns // (args.group_size or 1)),
    }.get(strategy, ())
    if strategy == "block":
        assert args.block_structure is not None
        tall, wide = args.block_structure
        shape = (-(-rows // tall), -(-columns // wide))
    largest = float(np.abs(weight).max())
    top = {"int": 2 ** (args.num_bits - 1), "float": 6.0 if args.num_bits == 4 else 448.0}[kind]
    scale = rng.uniform(0.4, 1.1, shape) * largest / top
    if form.startswith("mx"):
        return {"scale": torch.from_numpy(2.0 ** np.floor(np.log2(scale))).float()}
    if form.startswith("nvfp4"):
        whole = torch.tensor([100.0])
        return {"scale": torch.from_numpy(scale * 100).to(torch.float8_e4m3fn).float(), "global_scale": whole}
    found = {"scale": torch.from_numpy(scale).half()}
    if not args.symmetric:
        low, high = -(2 ** (args.num_bits - 1)), 2 ** (args.num_bits - 1)
        found["zero_point"] = torch.from_numpy(rng.integers(low, high, shape)).to(torch.int8)
    return found


def packed_folder(
    folder: Path,
    form: str,
    weights: dict[str, Any],
    inputs: dict[str, Any] | None = None,
    arch: str = "llama",
    **config: Any,
) -> tuple[Path, Tensors]:
    """A tiny model whose linears are stored as `form`; as requantize."""
    group = {"targets": ["Linear"], "weights": weights, "input_activations": inputs}
    described = {
        "quant_method": "compressed-tensors",
        "format": form,
        "ignore": ["lm_head"],
        "config_groups": {"group_0": group},
        **config,
    }
    seeds = iter(range(10**6))
    held: dict[str, torch.Tensor] = {}

    def pack(stem: str, weight: np.ndarray) -> tuple[Tensors, np.ndarray]:
        stored, back = compress(weight, form, weights, inputs, next(seeds))
        held.update({f"{stem}.{name}": tensor.contiguous() for name, tensor in stored.items()})
        return {}, back

    moe = {"moe_intermediate_size": 32, "shared_expert_intermediate_size": 64} if arch == "qwen2_moe" else {}
    plain, meaning = requantize(make_tiny(arch, folder, **SIZES, **moe), described, pack)
    others = {
        n: torch.from_numpy(t) for n, t in load_file(folder / "model.safetensors").items() if is_plain(n)
    }
    save_file(others | held, folder / "model.safetensors")
    return plain, meaning


def check_weights(folder: Path, meaning: Tensors) -> list[Any]:
    """float32 is what the package reads; returns the codes of each weight, checked where there are any."""
    source = open_source(folder)
    reader = quantization_of(source)
    assert reader is not None
    all_codes = []
    for name, expected in meaning.items():
        found = reader.find(name)
        assert found is not None, name
        tensor = found[0]
        np.testing.assert_array_equal(tensor.float32(), expected, strict=True)
        out = np.full(expected.shape, np.nan, np.float32)
        tensor.float32(out=out)
        np.testing.assert_array_equal(out, expected)
        codes = tensor.codes()
        all_codes.append(codes)
        if codes is not None:
            assert codes.values.dtype == np.uint8
            assert codes.values.max() < 2**codes.bits
            assert tensor.dtype == f"INT{codes.bits}/{codes.group}"
            groups = np.arange(expected.shape[1]) // codes.group
            rebuilt = codes.scale[:, groups] * codes.values + codes.offset[:, groups]
            np.testing.assert_array_equal(rebuilt, expected)
    return all_codes


def check_logits(folder: Path, plain: Path) -> None:
    ours = PagedRunner(load_model(inspect_model(folder), "reference")).step({0: TOKENS})[0]
    assert np.abs(ours - oracle_logits(load_oracle(plain), TOKENS)).max() < 1e-4


INTEGERS: dict[str, tuple[str, dict[str, Any], dict[str, Any] | None, str | None, int]] = {
    "W4A16 group": ("pack-quantized", {"num_bits": 4, "strategy": "group", "group_size": 32}, None, None, 32),
    "W4A16 asymmetric": (
        "pack-quantized",
        {"num_bits": 4, "strategy": "group", "group_size": 16, "symmetric": False},
        None,
        None,
        16,
    ),
    "W4A16 channel": (
        "pack-quantized",
        {"num_bits": 4, "strategy": "channel", "symmetric": False},
        None,
        None,
        0,
    ),
    "W8A16 group": ("pack-quantized", {"num_bits": 8, "strategy": "group", "group_size": 32}, None, None, 32),
    "W8A16 asymmetric": (
        "pack-quantized",
        {"num_bits": 8, "strategy": "group", "group_size": 32, "symmetric": False},
        None,
        None,
        32,
    ),
    "W8A8 token": ("int-quantized", {"num_bits": 8, "strategy": "channel"}, TOKEN, "token", 0),
    "W8A8 group": ("int-quantized", {"num_bits": 8, "strategy": "channel"}, GROUP, "group", 0),
    "W8A8 tensor": ("int-quantized", {"num_bits": 8, "strategy": "tensor"}, TOKEN, "token", 0),
    "W8A8 asymmetric": (
        "int-quantized",
        {"num_bits": 8, "strategy": "channel", "symmetric": False},
        TOKEN,
        "token",
        0,
    ),
    "W4A8 int4 in int8": (
        "int-quantized",
        {"num_bits": 4, "strategy": "group", "group_size": 32},
        TOKEN,
        "token",
        32,
    ),
    "W8A16 naive": ("naive-quantized", {"num_bits": 8, "strategy": "channel"}, None, None, 0),
    "W8A8 blocks": (
        "int-quantized",
        {"num_bits": 8, "strategy": "block", "block_structure": [16, 32]},
        TOKEN,
        "token",
        32,
    ),
}


@pytest.mark.parametrize("kind", INTEGERS)
def test_integer_formats(kind: str, tmp_path: Path) -> None:
    """Red if a packing, zero point, scale layout or the prescribed activations are read otherwise."""
    form, weights, inputs, activation, group = INTEGERS[kind]
    plain, meaning = packed_folder(tmp_path / "m", form, weights, inputs)
    for codes, expected in zip(check_weights(tmp_path / "m", meaning), meaning.values(), strict=True):
        assert codes.activation == activation
        assert codes.bits == weights["num_bits"]
        assert codes.group == (group or expected.shape[1])
    check_logits(tmp_path / "m", plain)


@pytest.mark.parametrize("arch", ["phi3", "mixtral", "qwen2_moe"])
@pytest.mark.parametrize("kind", ["W4A16 asymmetric", "W8A8 token"])
def test_fused_and_expert_linears(arch: str, kind: str, tmp_path: Path) -> None:
    """Red if fused QKV or gate/up, or linears of experts, are missed."""
    form, weights, inputs, _, _ = INTEGERS[kind]
    plain, meaning = packed_folder(tmp_path / "m", form, weights, inputs, arch)
    check_weights(tmp_path / "m", meaning)
    check_logits(tmp_path / "m", plain)


FLOATS: dict[str, tuple[str, dict[str, Any]]] = {
    "F8 tensor": ("float-quantized", {"num_bits": 8, "type": "float", "strategy": "tensor"}),
    "F8 channel": ("float-quantized", {"num_bits": 8, "type": "float", "strategy": "channel"}),
    "F8 block": (
        "float-quantized",
        {"num_bits": 8, "type": "float", "strategy": "block", "block_structure": [16, 32]},
    ),
    "MXFP4": (
        "mxfp4-pack-quantized",
        {"num_bits": 4, "type": "float", "strategy": "group", "group_size": 32, "scale_dtype": "torch.uint8"},
    ),
    "MXFP8": (
        "mxfp8-quantized",
        {"num_bits": 8, "type": "float", "strategy": "group", "group_size": 32, "scale_dtype": "torch.uint8"},
    ),
    "NVFP4": (
        "nvfp4-pack-quantized",
        {
            "num_bits": 4,
            "type": "float",
            "strategy": "tensor_group",
            "group_size": 16,
            "scale_dtype": "torch.float8_e4m3fn",
        },
    ),
}


@pytest.mark.parametrize("kind", FLOATS)
def test_float_formats_are_exact_and_said(kind: str, tmp_path: Path) -> None:
    """Red if float8 or fp4 values, or their one- or two-level scales, are decoded otherwise."""
    form, weights = FLOATS[kind]
    plain, meaning = packed_folder(tmp_path / "m", form, weights)
    source = open_source(tmp_path / "m")
    reader = quantization_of(source)
    assert reader is not None
    for name, expected in meaning.items():
        found = reader.find(name)
        assert found is not None
        assert found[0].codes() is None
        # The package reads NVFP4 in bfloat16 throughout; ours is float32.
        np.testing.assert_allclose(found[0].float32(), expected, rtol=2**-6 if kind == "NVFP4" else 0)
    assert inspect_model(tmp_path / "m").notes == (f"{form} weights are served as floats",)
    if kind != "NVFP4":
        check_logits(tmp_path / "m", plain)


def test_static_activations_and_cache_scales_are_said(tmp_path: Path) -> None:
    """Red if what the checkpoint prescribes and Penstock does not do passes in silence, or is refused."""
    static = {"num_bits": 8, "type": "int", "symmetric": True, "strategy": "tensor", "dynamic": False}
    folder = tmp_path / "m"
    plain, _ = packed_folder(folder, "int-quantized", {"num_bits": 8, "strategy": "channel"}, static)
    tensors = {name: torch.from_numpy(t) for name, t in load_file(folder / "model.safetensors").items()}
    tensors |= {
        name.replace("weight_scale", "input_scale"): torch.ones(1)
        for name in list(tensors)
        if name.endswith("weight_scale")
    }
    tensors["model.layers.0.self_attn.k_scale"] = torch.ones(1)
    save_file(tensors, folder / "model.safetensors")
    notes = inspect_model(folder).notes
    assert len(notes) == 2
    assert "static per tensor" in notes[0]
    assert "KV cache" in notes[1]
    check_logits(folder, plain)


def test_config_groups_by_name_pattern_and_class(tmp_path: Path) -> None:
    """Red if a module gets the scheme of another: by name first, then pattern, then class."""
    four = {"num_bits": 4, "strategy": "group", "group_size": 32}
    eight = {"num_bits": 8, "strategy": "channel"}
    groups = {
        "all": {"targets": ["Linear"], "weights": eight, "format": "pack-quantized"},
        "downs": {"targets": ["re:.*down_proj"], "weights": four},
        "one": {"targets": ["model.layers.0.mlp.down_proj"], "weights": eight},
    }
    folder = tmp_path / "m"
    config = {"quant_method": "compressed-tensors", "format": "pack-quantized", "config_groups": groups}
    held: dict[str, torch.Tensor] = {}

    def pack(stem: str, weight: np.ndarray) -> tuple[Tensors, np.ndarray]:
        small = stem.endswith("down_proj") and ".0." not in stem
        stored, back = compress(weight, "pack-quantized", four if small else eight, None)
        held.update({f"{stem}.{name}": tensor.contiguous() for name, tensor in stored.items()})
        return {}, back

    plain, meaning = requantize(make_tiny("llama", folder, **SIZES), config, pack)
    others = {name: torch.from_numpy(t) for name, t in load_file(folder / "model.safetensors").items()}
    save_file(others | held, folder / "model.safetensors")
    check_weights(folder, meaning)
    check_logits(folder, plain)


def test_quantized_embedding_and_head(tmp_path: Path) -> None:
    """Red if a quantized embedding or head is not found under its name."""
    folder = tmp_path / "m"
    group = {"targets": ["Linear", "Embedding"], "weights": {"num_bits": 8, "strategy": "channel"}}
    make_tiny("llama", folder, **SIZES)
    tensors = load_file(folder / "model.safetensors")
    plain = make_tiny("llama", tmp_path / "plain", **SIZES)
    for name in ("model.embed_tokens.weight", "lm_head.weight"):
        stored, back = compress(tensors.pop(name), "pack-quantized", group["weights"], None)  # type: ignore[arg-type]
        tensors |= {name.replace("weight", part, 1): t.numpy() for part, t in stored.items()}
        twin = load_file(plain / "model.safetensors") | {name: back}
        save_file({n: torch.from_numpy(t) for n, t in twin.items()}, plain / "model.safetensors")
    save_file({n: torch.from_numpy(t) for n, t in tensors.items()}, folder / "model.safetensors")
    described = json.loads((folder / "config.json").read_text())
    described["quantization_config"] = {
        "quant_method": "compressed-tensors",
        "format": "pack-quantized",
        "config_groups": {"group_0": group},
    }
    (folder / "config.json").write_text(json.dumps(described))
    check_logits(folder, plain)


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"format": "marlin-24"}, "format 'marlin-24' is not supported; supported are pack-quantized"),
        ({"format": "mxfp6-pack-quantized"}, "format 'mxfp6-pack-quantized'"),
        ({"sparsity_config": {"format": "sparse-24-bitmask"}}, "sparsity 'sparse-24-bitmask'"),
        ({"transform_config": {"config_groups": {"R1": {}}}}, "transforms"),
        ({"config_groups": {}}, "no config group of quantization_config targets it"),
        (
            {"config_groups": {"g": {"targets": ["Linear"], "weights": {"num_bits": 3}}}},
            "with 3 bits is not supported",
        ),
        (
            {
                "config_groups": {
                    "g": {"targets": ["Linear"], "weights": {"num_bits": 4, "strategy": "channel"}}
                }
            },
            r"weight_scale is \(64, 2\), a channel scale of a weight \(64, 64\) is \(64, 1\)",
        ),
        (
            {
                "config_groups": {
                    "g": {
                        "targets": ["Linear"],
                        "weights": {"num_bits": 4, "strategy": "group", "group_size": 32, "symmetric": False},
                    }
                }
            },
            "weight_zero_point' is missing",
        ),
    ],
)
def test_what_can_not_be_read_is_refused(changes: dict[str, Any], message: str, tmp_path: Path) -> None:
    """Red if another format or scheme is read as if it were the declared one."""
    form, weights, _, _, _ = INTEGERS["W4A16 group"]
    packed_folder(tmp_path / "m", form, weights)
    path = tmp_path / "m" / "config.json"
    described = json.loads(path.read_text())
    described["quantization_config"] |= changes
    path.write_text(json.dumps(described))
    with pytest.raises(ModelRefused, match=message):
        inspect_model(tmp_path / "m")


def test_plain_integers_are_refused(tmp_path: Path) -> None:
    """Red if int8 weights whose scales are missing are served as the numbers -128 to 127."""
    form, weights, inputs, _, _ = INTEGERS["W8A8 token"]
    packed_folder(tmp_path / "m", form, weights, inputs)
    path = tmp_path / "m" / "model.safetensors"
    gone = "model.layers.1.mlp.up_proj.weight_scale"
    kept = {n: torch.from_numpy(t) for n, t in load_file(path).items() if n != gone}
    save_file(kept, path)
    with pytest.raises(ModelRefused, match=f"{gone}' is missing"):
        inspect_model(tmp_path / "m")
