"""GPTQ and AWQ checkpoints against an independent unpacking and a float twin run by transformers."""

from __future__ import annotations

import json
import logging
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from packed_checkpoints import Tensors, pack_awq, pack_gptq, random_integers, requantize
from paged import PagedRunner
from safetensors.numpy import load_file, save_file
from tiny_models import load_oracle, make_tiny, oracle_logits

from penstock.errors import ModelRefused
from penstock.models.load import inspect_model, load_model
from penstock.models.weights.quantization import quantization_of
from penstock.models.weights.source import open_source

TOKENS = [int(t) for t in np.random.default_rng(1).integers(0, 256, 30)]
SIZES = {"hidden_size": 64, "intermediate_size": 96, "head_dim": 16}
GPTQ = {"quant_method": "gptq", "bits": 4, "group_size": 32, "desc_act": False, "sym": False}
AWQ = {"quant_method": "awq", "bits": 4, "group_size": 32, "version": "gemm", "zero_point": True}


def tiny(arch: str, folder: Path) -> Path:
    """Sizes that groups of 32 divide."""
    moe = {"moe_intermediate_size": 32, "shared_expert_intermediate_size": 64} if arch == "qwen2_moe" else {}
    return make_tiny(arch, folder, **SIZES, **moe)


def gptq_folder(
    folder: Path, arch: str = "llama", shuffle: bool = False, fields: dict[str, Any] | None = None
) -> tuple[Path, Tensors]:
    """A tiny GPTQ model in `folder`; `shuffle`d columns are in groups as desc_act leaves them."""
    config = GPTQ | (fields or {})
    bits, rng = config["bits"], np.random.default_rng(5)
    minus = 0 if config.get("checkpoint_format") == "gptq_v2" else 1

    def pack(stem: str, weight: np.ndarray) -> tuple[Tensors, np.ndarray]:
        columns = weight.shape[1]
        group = columns if config["group_size"] < 0 else config["group_size"]
        values, zeros, scales = random_integers(weight, bits, group, rng)
        places = (rng.permutation(columns) if shuffle else np.arange(columns)) // group
        meaning = scales.astype(np.float32)[:, places] * (values - zeros[:, places]).astype(np.float32)
        stored = pack_gptq(stem, values, zeros, scales, bits, minus)
        return stored | {f"{stem}.g_idx": places.astype(np.int32)}, meaning

    return requantize(tiny(arch, folder), config, pack)


def awq_folder(folder: Path, arch: str = "llama") -> tuple[Path, Tensors]:
    rng = np.random.default_rng(6)

    def pack(stem: str, weight: np.ndarray) -> tuple[Tensors, np.ndarray]:
        values, zeros, scales = random_integers(weight, 4, 32, rng)
        places = np.arange(weight.shape[1]) // 32
        meaning = scales.astype(np.float32)[:, places] * (values - zeros[:, places]).astype(np.float32)
        return pack_awq(stem, values, zeros, scales), meaning

    return requantize(tiny(arch, folder), AWQ, pack)


def check_weights(folder: Path, meaning: Tensors, bits: int, *, has_codes: bool = True) -> None:
    """float32 is exact, into `out` too, and codes say the same."""
    source = open_source(folder)
    reader = quantization_of(source)
    assert reader is not None
    for name, expected in meaning.items():
        found = reader.find(name)
        assert found is not None, name
        tensor = found[0]
        np.testing.assert_array_equal(tensor.float32(), expected, strict=True)
        out = np.full(expected.shape, np.nan, np.float32)
        assert tensor.float32(out=out) is out
        np.testing.assert_array_equal(out, expected)
        assert tensor.raw() is None
        codes = tensor.codes()
        assert (codes is not None) == has_codes
        if codes is None:
            assert tensor.dtype == "F32"
            continue
        assert tensor.dtype == f"INT{bits}/{codes.group}"
        assert (codes.values.dtype, codes.bits, codes.activation) == (np.uint8, bits, None)
        assert codes.values.max() < 2**bits
        assert codes.scale.shape == codes.offset.shape == (len(expected), expected.shape[1] // codes.group)
        groups = np.arange(expected.shape[1]) // codes.group
        rebuilt = codes.scale[:, groups] * codes.values + codes.offset[:, groups]
        np.testing.assert_array_equal(rebuilt, expected)


def check_logits(folder: Path, plain: Path) -> None:
    ours = PagedRunner(load_model(inspect_model(folder), "reference")).step({0: TOKENS})[0]
    assert np.abs(ours - oracle_logits(load_oracle(plain), TOKENS)).max() < 1e-4


@pytest.mark.parametrize("arch", ["llama", "phi3", "mixtral", "qwen2_moe"])
def test_gptq_of_every_layout_of_linears(arch: str, tmp_path: Path) -> None:
    """Red if separate, fused or per-expert linears of a GPTQ model are unpacked or joined otherwise."""
    plain, meaning = gptq_folder(tmp_path / "m", arch)
    check_weights(tmp_path / "m", meaning, 4)
    check_logits(tmp_path / "m", plain)


@pytest.mark.parametrize(
    "fields",
    [
        {"checkpoint_format": "gptq_v2"},
        {"bits": 8},
        {"bits": 8, "checkpoint_format": "gptq_v2", "group_size": -1},
        {"group_size": -1},
        {"group_size": 16},
    ],
)
def test_gptq_variants(fields: dict[str, Any], tmp_path: Path) -> None:
    """Red if a width, a zero-point convention or one group per row changes a weight by one step."""
    plain, meaning = gptq_folder(tmp_path / "m", fields=fields)
    check_weights(tmp_path / "m", meaning, fields.get("bits", 4))
    check_logits(tmp_path / "m", plain)


def test_gptq_activation_order_is_exact_and_said(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    """Red if scattered groups are read as k // group, or served as floats without a word."""
    plain, meaning = gptq_folder(tmp_path / "m", shuffle=True, fields={"desc_act": True})
    check_weights(tmp_path / "m", meaning, 4, has_codes=False)
    with caplog.at_level(logging.INFO, "penstock.models"):
        info = inspect_model(tmp_path / "m")
    assert info.quantization == "gptq 4-bit, group 32"
    assert len(info.notes) == 1
    assert "desc_act" in info.notes[0]
    assert [record.getMessage() for record in caplog.records].count(f"{tmp_path / 'm'}: {info.notes[0]}") == 1
    check_logits(tmp_path / "m", plain)


def test_gptq_modules_with_settings_of_their_own(tmp_path: Path) -> None:
    """Red if GPTQModel's `dynamic` (other bits for some modules) is ignored."""
    folder = make_tiny("llama", tmp_path / "m", **SIZES)
    rng = np.random.default_rng(7)

    def pack(stem: str, weight: np.ndarray) -> tuple[Tensors, np.ndarray]:
        bits, group = (8, 16) if "down_proj" in stem else (4, 32)
        values, zeros, scales = random_integers(weight, bits, group, rng)
        places = np.arange(weight.shape[1]) // group
        meaning = scales.astype(np.float32)[:, places] * (values - zeros[:, places]).astype(np.float32)
        return pack_gptq(stem, values, zeros, scales, bits, 1), meaning

    dynamic = {"-:.*never.*": {}, r"+:.*\.down_proj": {"bits": 8, "group_size": 16}}
    plain, _ = requantize(folder, GPTQ | {"dynamic": dynamic}, pack)
    info = inspect_model(folder)
    assert {dtype for _, dtype in info.tensors} == {"F32", "INT4/32", "INT8/16"}
    assert info.storage == "INT4/32"
    check_logits(folder, plain)


@pytest.mark.parametrize("arch", ["llama", "phi3", "mixtral"])
def test_awq_of_every_layout_of_linears(arch: str, tmp_path: Path) -> None:
    """Red if AWQ's interleaved columns or zero points are read in another order."""
    plain, meaning = awq_folder(tmp_path / "m", arch)
    check_weights(tmp_path / "m", meaning, 4)
    check_logits(tmp_path / "m", plain)


def test_awq_modules_left_unquantized(tmp_path: Path) -> None:
    """Red if `modules_to_not_convert`, stored plainly among packed ones, are missed or refused."""
    folder = make_tiny("llama", tmp_path / "m", **SIZES)
    rng = np.random.default_rng(8)

    def pack(stem: str, weight: np.ndarray) -> tuple[Tensors, np.ndarray]:
        if ".layers.1." in stem:
            half = weight.astype(np.float16)
            return {f"{stem}.weight": half}, half.astype(np.float32)
        values, zeros, scales = random_integers(weight, 4, 32, rng)
        places = np.arange(weight.shape[1]) // 32
        meaning = scales.astype(np.float32)[:, places] * (values - zeros[:, places]).astype(np.float32)
        return pack_awq(stem, values, zeros, scales), meaning

    plain, _ = requantize(folder, AWQ | {"modules_to_not_convert": ["model.layers.1"]}, pack)
    check_logits(folder, plain)


@given(st.integers(1, 6), st.integers(1, 5), st.sampled_from([4, 8]), st.integers(0, 2**32 - 1))
def test_gptq_unpacking_inverts_packing(
    tmp_path_factory: pytest.TempPathFactory, wide: int, high: int, bits: int, seed: int
) -> None:
    """Red if any shape of packed words loses a value, a zero point or a scale."""
    rng = np.random.default_rng(seed)
    weight = rng.standard_normal((8 * high, 16 * wide)).astype(np.float32)
    values, zeros, scales = random_integers(weight, bits, 16, rng)
    folder = tmp_path_factory.mktemp("gptq")
    save_file(pack_gptq("x", values, zeros, scales, bits, 1), folder / "model.safetensors")
    (folder / "config.json").write_text(
        json.dumps({"quantization_config": GPTQ | {"bits": bits, "group_size": 16}})
    )
    places = np.arange(weight.shape[1]) // 16
    meaning = scales.astype(np.float32)[:, places] * (values - zeros[:, places]).astype(np.float32)
    check_weights(folder, {"x.weight": meaning}, bits)


@pytest.mark.parametrize(
    ("config", "message"),
    [
        (GPTQ | {"bits": 3}, "gptq with 3 bits is not supported, only 4 and 8"),
        (GPTQ | {"checkpoint_format": "marlin"}, "format 'marlin' is not supported, only gptq and gptq_v2"),
        (GPTQ | {"is_marlin_format": True}, "format 'marlin'"),
        (GPTQ | {"group_size": 64}, r"qzeros' is I32 \(2, 8\), its packed weight needs I32 \(1, 8\)"),
        (AWQ | {"version": "gemv"}, "AWQ version 'gemv' is not supported, only 'gemm'"),
        (AWQ | {"bits": 8}, "AWQ with 8 bits is not supported"),
        (AWQ | {"group_size": 48}, "8 columns are no multiple of the AWQ group of 48"),
        (AWQ | {"group_size": 8}, r"qzeros' is I32 \(2, 8\), its packed weight needs I32 \(1, 64\)"),
    ],
)
def test_what_can_not_be_read_is_refused(config: dict[str, Any], message: str, tmp_path: Path) -> None:
    """Red if another width, packing or version is read as if it were the usual one."""
    gptq_folder(tmp_path / "m")
    described = json.loads((tmp_path / "m" / "config.json").read_text())
    (tmp_path / "m" / "config.json").write_text(json.dumps(described | {"quantization_config": config}))
    with pytest.raises(ModelRefused, match=message):
        inspect_model(tmp_path / "m")


def test_superfluous_biases(tmp_path: Path) -> None:
    """Red if the zero biases that AutoGPTQ writes are refused, or a real one is dropped."""
    plain, _ = gptq_folder(tmp_path / "m")
    path = tmp_path / "m" / "model.safetensors"
    tensors = load_file(path)
    extra = {"model.layers.0.self_attn.q_proj.bias": np.zeros(64, np.float16)}
    save_file(tensors | extra, path)
    check_logits(tmp_path / "m", plain)
    save_file(tensors | {name: bias + 1 for name, bias in extra.items()}, path)
    with pytest.raises(ModelRefused, match=r"q_proj\.bias' has no place"):
        inspect_model(tmp_path / "m")


@pytest.mark.parametrize("part", ["qzeros", "scales"])
def test_missing_part_is_named(part: str, tmp_path: Path) -> None:
    """Red if a packed weight without its scales or zero points is served, or fails on a KeyError."""
    gptq_folder(tmp_path / "m")
    path = tmp_path / "m" / "model.safetensors"
    gone = f"model.layers.2.mlp.up_proj.{part}"
    save_file({name: tensor for name, tensor in load_file(path).items() if name != gone}, path)
    with pytest.raises(ModelRefused, match=f"{gone}' is missing"):
        inspect_model(tmp_path / "m")


def test_group_index_out_of_range(tmp_path: Path) -> None:
    """Red if a damaged g_idx reads another row's scales."""
    gptq_folder(tmp_path / "m")
    path = tmp_path / "m" / "model.safetensors"
    tensors = load_file(path)
    name = "model.layers.0.mlp.up_proj.g_idx"
    save_file(tensors | {name: tensors[name] + 5}, path)
    with pytest.raises(ModelRefused, match="groups 5 to 6, scales for 2"):
        inspect_model(tmp_path / "m")
