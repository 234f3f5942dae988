"""The packed-weights cache: a start that reads gives what packing gives, whatever the file is like."""

from __future__ import annotations

import os
from pathlib import Path

import numpy as np
import pytest
from tiny_models import make_tiny

native = pytest.importorskip("penstock.kernels.cpu._native", reason="the native module is not built")

from penstock.kernels.backend import BackendOptions, open_backend
from penstock.kernels.cpu import packed_cache
from penstock.kernels.cpu.packed_cache import PackedCache
from penstock.kernels.cpu.weights import CpuWeights, JoinedWeight
from penstock.models.load import _opened, inspect_model


class Kept:
    """Every matrix of a tiny model, through a cache in `folder`."""

    def __init__(self, model: Path, folder: Path, form: str = "int8") -> None:
        self.weights = CpuWeights(form)
        info = inspect_model(model)
        self.cache = PackedCache(info.revision, form, folder)
        self.found: dict[str, bool] = {}
        self.bytes: dict[str, bytes] = {}
        with _opened(info) as tensors:
            for number, layer in enumerate(tensors.layers):
                for name, parts in layer.items():
                    if len(parts[0].shape) > 1 and not name.endswith("_bias"):
                        self._take(f"{number}.{name}", name, parts)
        thread = self.cache.finish()
        if thread is not None:
            thread.join()

    def _take(self, key: str, name: str, parts: list) -> None:
        weight = self.cache.load(key, self.weights.regions)
        self.found[key] = weight is not None
        if weight is None:
            gated = "gate_up" in name
            weight = self.weights.prepare_gated(parts) if gated else self.weights.prepare(parts)
            self.cache.add(key, weight)
        each = weight.parts if isinstance(weight, JoinedWeight) else (weight,)
        self.bytes[key] = b"".join(np.asarray(part.data).tobytes() for part in each)


@pytest.fixture(scope="module")
def model(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return make_tiny("qwen2_moe", tmp_path_factory.mktemp("cached"))


def test_second_start_reads_the_very_bytes_that_packing_gave(model: Path, tmp_path: Path) -> None:
    """Red if an entry loses its shape, its experts or a byte between two starts."""
    first, second = Kept(model, tmp_path), Kept(model, tmp_path)
    assert not any(first.found.values())
    assert all(second.found.values())
    assert first.bytes == second.bytes


def test_a_flipped_byte_is_packed_again_and_the_file_mended(model: Path, tmp_path: Path) -> None:
    """Red if damage on disk can reach a model, or is met again at every start."""
    first = Kept(model, tmp_path)
    raw = bytearray(first.cache.path.read_bytes())
    raw[-5000] ^= 1
    first.cache.path.write_bytes(raw)
    second, third = Kept(model, tmp_path), Kept(model, tmp_path)
    assert second.bytes == first.bytes
    assert list(second.found.values()).count(False) == 1
    assert all(third.found.values())


@pytest.mark.parametrize("cut", [0, 3, 21, 400, -1])
def test_a_cut_file_costs_time_and_nothing_else(model: Path, tmp_path: Path, cut: int) -> None:
    """Red if a file that ends early stops a start, wherever it ends."""
    first = Kept(model, tmp_path)
    first.cache.path.write_bytes(first.cache.path.read_bytes()[:cut])
    assert Kept(model, tmp_path).bytes == first.bytes
    assert all(Kept(model, tmp_path).found.values())


def test_forms_and_revisions_do_not_share_a_file(model: Path, tmp_path: Path) -> None:
    """Red if a model of another precision or content could be read."""
    Kept(model, tmp_path)
    assert not any(Kept(model, tmp_path, form="int4").found.values())
    other = make_tiny("llama", tmp_path / "other")
    assert not any(Kept(other, tmp_path).found.values())
    assert len(list(tmp_path.glob("*.packed"))) == 3


def test_the_longest_unused_files_make_room(tmp_path: Path) -> None:
    """Red if the folder grows beyond its limit, or the file in use is removed."""
    for age, name in enumerate("abcd"):
        file = tmp_path / f"{name}.packed"
        file.write_bytes(bytes(100))
        os.utime(file, (1000 - age, 1000 - age))
    (tmp_path / "a.999999999.tmp").write_bytes(b"left by a killed writer")
    packed_cache._make_room(tmp_path, 150, keep=tmp_path / "d.packed")
    assert sorted(f.name for f in tmp_path.iterdir()) == ["a.packed", "d.packed"]


def test_a_folder_that_cannot_be_written_stops_nothing(model: Path, tmp_path: Path) -> None:
    """Red if a full or read-only disk fails a start."""
    blocked = tmp_path / "file"
    blocked.write_bytes(b"")
    assert Kept(model, blocked / "below").bytes


def test_the_exact_path_keeps_no_copies(tmp_path: Path) -> None:
    """Red if float32 weights, which are the file's own, are written a second time."""
    assert open_backend("cpu", BackendOptions(weights="float32")).weight_cache("x") is None
