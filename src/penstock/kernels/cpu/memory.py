"""Zeroed memory in huge pages, for weights and the KV pool: address translation costs a tenth otherwise."""

from __future__ import annotations

import contextlib
import mmap
import threading

import numpy as np

REGION_BYTES = 64 << 20
ALIGNMENT = 4096
SLACK = 4096  # prefetches run ahead of the last panel


def zeroed(num_bytes: int) -> np.ndarray:
    """uint8[num_bytes], zero; memory is taken when it is first written."""
    # Private: shared memory, mmap's default, never comes in huge pages.
    region = mmap.mmap(-1, max(num_bytes, 1), flags=mmap.MAP_PRIVATE | mmap.MAP_ANONYMOUS)
    if hasattr(mmap, "MADV_HUGEPAGE") and num_bytes >= 2 << 20:
        with contextlib.suppress(OSError):  # a kernel without transparent huge pages: ordinary ones do
            region.madvise(mmap.MADV_HUGEPAGE)
    return np.frombuffer(region, np.uint8, num_bytes)


class Regions:
    """Hands out pieces of large regions, so that small weights lie in huge pages too. Thread-safe."""

    def __init__(self) -> None:
        self._lock = threading.Lock()
        self._region = np.empty(0, np.uint8)
        self._used = 0

    def take(self, num_bytes: int) -> np.ndarray:
        """uint8[num_bytes], zero, aligned to 4096."""
        need = -(-(num_bytes + SLACK) // ALIGNMENT) * ALIGNMENT
        with self._lock:
            if self._used + need > len(self._region):
                self._region = zeroed(max(REGION_BYTES, need))
                self._used = 0
            piece = self._region[self._used : self._used + num_bytes]
            self._used += need
        return piece
