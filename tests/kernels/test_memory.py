"""Memory of weights and KV."""

from __future__ import annotations

import re
from pathlib import Path

import numpy as np
import pytest

from penstock.kernels.cpu.memory import Regions, zeroed

HUGE = 2 << 20


def _mapping(array: np.ndarray) -> str:
    """The entry of /proc/self/smaps that holds the array's first byte."""
    smaps = Path("/proc/self/smaps")
    if not smaps.exists():
        pytest.skip("needs /proc")
    address = array.ctypes.data
    for entry in re.split(r"\n(?=[0-9a-f]+-[0-9a-f]+ )", smaps.read_text()):
        first, last = (int(part, 16) for part in entry.split(" ", 1)[0].split("-"))
        if first <= address < last:
            return entry
    raise AssertionError("the array is mapped nowhere")


@pytest.mark.parametrize("take", [zeroed, lambda size: Regions().take(size)], ids=["zeroed", "regions"])
def test_large_memory_comes_in_huge_pages(take) -> None:
    """Red if weights or KV lie in small pages: decoding then takes a third longer."""
    enabled = Path("/sys/kernel/mm/transparent_hugepage/enabled")
    if not enabled.exists() or "[never]" in enabled.read_text():
        pytest.skip("this kernel gives no transparent huge pages")
    array = take(8 * HUGE)
    array[:] = 1
    entry = _mapping(array)
    assert " rw-p " in entry.split("\n")[0], "shared memory has no transparent huge pages"
    found = re.search(r"AnonHugePages:\s+(\d+) kB", entry)
    assert found and int(found[1]) >= HUGE >> 10, entry


def test_small_memory_is_zero_and_writable() -> None:
    """Red if the smallest sizes fail."""
    for size in (0, 1, 4096, HUGE - 1):
        array = zeroed(size)
        assert len(array) == size
        assert not array.any()
        array[:] = 7
