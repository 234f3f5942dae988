"""Weight sources: one interface over GGUF and safetensors, whole and in parts."""

from __future__ import annotations

import json
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import gguf
import numpy as np
import pytest
from safetensors.numpy import save_file

from penstock.errors import ModelRefused
from penstock.models.weights.source import open_source

RNG = np.random.default_rng(11)
MATRIX = RNG.standard_normal((8, 64)).astype(np.float32)
NORM = RNG.standard_normal(64).astype(np.float32)


def write_gguf(
    path: Path, tensors: dict[str, np.ndarray], *, part: tuple[int, int, int] | None = None
) -> Path:
    """part: (number from 0, parts, tensors in all)."""
    writer = gguf.GGUFWriter(path, "llama")
    if part is not None:
        writer.add_uint16("split.no", part[0])
        writer.add_uint16("split.count", part[1])
        writer.add_int32("split.tensors.count", part[2])
    for name, array in tensors.items():
        writer.add_tensor(name, array)
    writer.write_header_to_file()
    writer.write_kv_data_to_file()
    writer.write_tensors_to_file()
    writer.close()
    return path


def write_folder(folder: Path, tensors: dict[str, np.ndarray]) -> Path:
    folder.mkdir(exist_ok=True)
    save_file(tensors, folder / "model.safetensors")
    (folder / "config.json").write_text(json.dumps({"model_type": "llama", "hidden_size": 64}))
    return folder


def test_both_kinds_answer_alike(tmp_path: Path) -> None:
    """Red if GGUF and safetensors of the same tensors differ in shape order, dtype names or values."""
    tensors = {"w": MATRIX, "norm": NORM, "half": MATRIX.astype(np.float16)}
    one = open_source(write_gguf(tmp_path / "m.gguf", tensors))
    other = open_source(write_folder(tmp_path / "folder", tensors))
    assert (one.kind, other.kind) == ("gguf", "safetensors")
    assert (one.config, other.metadata) == ({}, {})
    assert one.metadata["general.architecture"] == "llama"
    assert other.config["model_type"] == "llama"
    assert set(one.names()) == set(other.names()) == set(tensors)
    for name, array in tensors.items():
        for source in (one, other):
            assert source.shape(name) == array.shape
            assert source.dtype(name) == {"float32": "F32", "float16": "F16"}[array.dtype.name]
            assert source.nbytes(name) == array.nbytes
            np.testing.assert_array_equal(source.float32(name), array.astype(np.float32))
            np.testing.assert_array_equal(source.raw(name), array.reshape(-1).view(np.uint8))
            out = np.empty(array.shape, np.float32)
            assert source.float32(name, out) is out
            np.testing.assert_array_equal(out, array.astype(np.float32))


def test_file_beside_its_config_is_the_folder(tmp_path: Path) -> None:
    """Red if a safetensors file and its folder open differently, or a missing config goes unnoticed."""
    folder = write_folder(tmp_path / "folder", {"w": MATRIX})
    assert open_source(folder / "model.safetensors").config == open_source(folder).config
    (folder / "config.json").write_text("[]")
    with pytest.raises(ModelRefused, match="not an object"):
        open_source(folder)
    (folder / "config.json").unlink()
    with pytest.raises(ModelRefused, match=r"config\.json: missing"):
        open_source(folder)


def test_any_part_of_a_split_gguf_opens_all(tmp_path: Path) -> None:
    """Red if a split model loses tensors, or opens with a part missing, misnamed or foreign."""
    parts = [tmp_path / f"m-{i:05}-of-00002.gguf" for i in (1, 2)]
    write_gguf(parts[0], {"w": MATRIX}, part=(0, 2, 2))
    write_gguf(parts[1], {"norm": NORM}, part=(1, 2, 2))
    for path in (*parts, tmp_path):
        source = open_source(path)
        assert source.names() == ["w", "norm"]
        assert source.path == parts[0]
        np.testing.assert_array_equal(source.float32("norm"), NORM)
    renamed = tmp_path / "renamed.gguf"
    renamed.write_bytes(parts[0].read_bytes())
    with pytest.raises(ModelRefused, match="one of 2 parts"):
        open_source(renamed)
    write_gguf(parts[1], {"norm": NORM}, part=(1, 3, 2))
    with pytest.raises(ModelRefused, match=r"split\.count"):
        open_source(parts[0])
    write_gguf(parts[0], {"w": MATRIX}, part=(0, 2, 3))
    write_gguf(parts[1], {"norm": NORM, "w": MATRIX}, part=(1, 2, 3))
    with pytest.raises(ModelRefused, match="'w' is also in"):
        open_source(parts[0])
    write_gguf(parts[1], {}, part=(1, 2, 3))
    with pytest.raises(ModelRefused, match="3 tensors declared, its 2 parts hold 1"):
        open_source(parts[0])
    parts[1].unlink()
    with pytest.raises(ModelRefused, match=r"1 of 2 parts are missing \(m-00002"):
        open_source(parts[0])


def test_what_is_no_model_is_refused(tmp_path: Path) -> None:
    """Red if a wrong path or format fails with anything but a reason and a next step."""
    with pytest.raises(ModelRefused, match="no such file"):
        open_source(tmp_path / "absent")
    with pytest.raises(ModelRefused, match="neither safetensors nor GGUF"):
        open_source(tmp_path)
    (tmp_path / "pytorch_model.bin").write_bytes(b"PK\x03\x04")
    with pytest.raises(ModelRefused, match="not GGUF"):
        open_source(tmp_path / "pytorch_model.bin")
    write_gguf(tmp_path / "a.gguf", {"w": MATRIX})
    write_gguf(tmp_path / "b.gguf", {"w": MATRIX})
    with pytest.raises(ModelRefused, match="2 GGUF models"):
        open_source(tmp_path)


def test_revision_follows_content_not_name_or_time(tmp_path: Path) -> None:
    """Red if changed weights keep the revision (stale KV reuse) or a copy gets another one."""
    big = RNG.standard_normal((64, 1024)).astype(np.float32)
    first = open_source(write_folder(tmp_path / "one", {"w": big, "n": NORM})).revision
    assert open_source(write_folder(tmp_path / "two", {"w": big, "n": NORM})).revision == first
    changed = {
        "first value": {"w": np.concatenate([big[:1] + 1, big[1:]]), "n": NORM},
        "last value": {"w": np.concatenate([big[:-1], big[-1:] + 1]), "n": NORM},
        "every value": {"w": big * np.float32(1.001), "n": NORM},
        "small tensor": {"w": big, "n": NORM + 1},
        "name": {"v": big, "n": NORM},
        "shape": {"w": big.reshape(128, 512), "n": NORM},
    }
    revisions = {
        open_source(write_folder(tmp_path / "other", tensors)).revision for tensors in changed.values()
    }
    assert len(revisions | {first}) == len(changed) + 1


def test_views_outlive_the_source(tmp_path: Path) -> None:
    """Red if closing a source pulls the map from under weights that are in use."""
    source = open_source(write_gguf(tmp_path / "m.gguf", {"w": MATRIX}))
    view = source.float32("w")
    source.close()
    np.testing.assert_array_equal(view, MATRIX)
    with pytest.raises(KeyError):
        source.float32("w")


def test_real_model_equals_the_reference(smollm2_path: Path) -> None:
    """Red if any weight of the default model differs from the reference's, also when read by two threads."""
    source = open_source(smollm2_path)
    with ThreadPoolExecutor(2) as pool:
        ours = dict(zip(source.names(), pool.map(source.float32, source.names()), strict=True))
    reference = gguf.GGUFReader(smollm2_path)
    assert ours.keys() == {tensor.name for tensor in reference.tensors}
    for tensor in reference.tensors:
        np.testing.assert_array_equal(ours[tensor.name], gguf.dequantize(tensor.data, tensor.tensor_type))
    assert sum(array.size for array in ours.values()) == 134_515_008
    assert source.metadata["tokenizer.ggml.tokens"] == reference.fields["tokenizer.ggml.tokens"].contents()
    assert source.metadata["tokenizer.ggml.merges"] == reference.fields["tokenizer.ggml.merges"].contents()
