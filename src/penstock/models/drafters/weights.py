"""The checkpoint of a draft network: its configuration and its tensors as float32 arrays.

Invariant: every tensor of the file is taken or named as ignorable; what is left over is refused, since a
drafter that lacks a part still runs and only accepts less.
"""

from __future__ import annotations

from pathlib import Path

import numpy as np

from penstock.errors import ModelRefused
from penstock.models.arch.config import Config
from penstock.models.weights.source import open_source

_INTEGERS = {"I64": np.int64, "I32": np.int32}


class DraftWeights:
    """Tensors by name, `model.` in front of a name left out. Close it when all are taken."""

    def __init__(self, path: Path) -> None:
        self.path = path
        self._source = open_source(path)
        self.config = Config(self._source.config)
        if self.config.get("quantization_config"):
            raise ModelRefused(f"{path}: a quantized drafter; drafters that read features are served plain")
        self._names = {name.removeprefix("model."): name for name in self._source.names()}
        self._taken: set[str] = set()

    def rename(self, old: str, new: str) -> None:
        """Names that begin with `old` begin with `new` from now on."""
        self._names = {
            (new + name.removeprefix(old) if name.startswith(old) else name): stored
            for name, stored in self._names.items()
        }

    def __contains__(self, name: str) -> bool:
        return name in self._names

    def names(self) -> list[str]:
        return list(self._names)

    def take(self, name: str, *shape: int) -> np.ndarray:
        """float32 of `shape`."""
        stored = self._stored(name)
        found = self._source.shape(stored)
        if found != shape:
            raise ModelRefused(
                f"{self.path}: tensor {stored!r} has shape {found}, the configuration says {shape}"
            )
        return np.ascontiguousarray(self._source.float32(stored), np.float32)

    def maybe(self, name: str, *shape: int) -> np.ndarray | None:
        return self.take(name, *shape) if name in self else None

    def integers(self, name: str) -> np.ndarray:
        """int64[n]"""
        stored = self._stored(name)
        kind = _INTEGERS.get(self._source.dtype(stored))
        if kind is None:
            raise ModelRefused(
                f"{self.path}: tensor {stored!r} is {self._source.dtype(stored)}, not integers"
            )
        return self._source.raw(stored).view(kind).astype(np.int64)

    def _stored(self, name: str) -> str:
        if name not in self._names:
            raise ModelRefused(
                f"{self.path}: tensor {name!r} is missing; the drafter is incomplete or of another kind"
            )
        self._taken.add(name)
        return self._names[name]

    def finish(self, *ignored: str) -> None:
        """All was taken but what may stay."""
        left = sorted(self._names.keys() - self._taken - set(ignored))
        self._source.close()
        if left:
            raise ModelRefused(
                f"{self.path}: tensor {left[0]!r} has no place in this kind of drafter ({len(left)} such "
                "tensors); it is a feature that Penstock does not serve, or a drafter of another kind"
            )
