"""SmoothQuant (arXiv:2211.10438): columns with large activations lend their size to the weights.

Column j of what a norm puts out is divided by s_j, column j of every matrix that reads it multiplied:
the same function, with activations that are easier to round.

    s_j = max|X_j|^alpha / max|W_j|^(1 - alpha)

max|X_j| comes from a forward pass of the reference backend over calibration text; max|W_j| is over all
matrices that read the norm.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np

from penstock.kernels.reference import ReferenceOps
from penstock.models.forward import Model
from penstock.models.quantize.plan import READERS, Item, QuantizePlan
from penstock.models.teacher import TeacherForcing, in_batches

BATCH_TOKENS = 1024
_MIN_SCALE = 1e-5  # of a column that never is anything; SmoothQuant's own bound

Place = tuple[int, str]  # layer, canonical name


class RecordingOps(ReferenceOps):
    """The reference, noting the largest |input| of each column of the weights it watches."""

    def __init__(self) -> None:
        self._places: dict[int, Place] = {}
        self.maxima: dict[Place, np.ndarray] = {}

    def watch(self, place: Place, weight: np.ndarray) -> None:
        """`weight` must live as long as this object: it is known by its identity."""
        self._places[id(weight)] = place

    def linear(self, x: Any, weight: Any, bias: Any | None = None) -> Any:
        self._note(x, weight)
        return ReferenceOps.linear(x, weight, bias)

    def experts(self, x: Any, ids: Any, weights: Any, gate_up: Any, *rest: Any) -> Any:
        self._note(x, gate_up)
        return ReferenceOps.experts(x, ids, weights, gate_up, *rest)

    def _note(self, x: np.ndarray, weight: np.ndarray) -> None:
        place = self._places.get(id(weight))
        if place is not None:
            largest = np.abs(x).max(axis=0)
            self.maxima[place] = np.maximum(self.maxima.get(place, largest), largest)


def activation_maxima(plan: QuantizePlan, sequences: Sequence[np.ndarray]) -> dict[Place, np.ndarray]:
    """float32[d] for each (layer, norm) of READERS: the largest |activation| of each column over
    `sequences` (int32[n] each, at most BATCH_TOKENS). Takes the model's weights in float32."""
    ops = RecordingOps()
    groups: list[dict[str, Any]] = []
    for group in (plan.tensors.model, *plan.tensors.layers):
        groups.append(
            {
                name: ops.vector(parts)
                if len(parts[0].shape) == 1 or name.endswith("_bias")
                else ops.prepare(parts)
                for name, parts in group.items()
            }
        )
    for layer, weights in enumerate(groups[1:]):
        for norm, readers in READERS.items():
            present = next(name for name in readers if name in weights)
            ops.watch((layer, norm), weights[present])
    model = Model(plan.spec, ops, groups[0], groups[1:], BATCH_TOKENS)
    batches = list(in_batches(sequences, BATCH_TOKENS))
    runner = TeacherForcing(model, BATCH_TOKENS, max(map(len, batches)))
    for batch in batches:
        runner.hidden(batch)
    return ops.maxima


def smoothing_scales(
    plan: QuantizePlan, maxima: Mapping[Place, np.ndarray], alpha: float
) -> dict[Place, np.ndarray]:
    """float32[d] for each (layer, norm): s of the module docstring."""
    weight_maxima: dict[Place, np.ndarray] = {}
    for item in plan.items:
        if (place := place_of(item)) is not None:
            largest = np.abs(item.tensor.float32()).max(axis=0)
            weight_maxima[place] = np.maximum(weight_maxima.get(place, largest), largest)
    return {
        place: np.maximum(
            np.maximum(maxima[place], _MIN_SCALE) ** alpha / np.maximum(largest, _MIN_SCALE) ** (1 - alpha),
            _MIN_SCALE,
        ).astype(np.float32)
        for place, largest in weight_maxima.items()
    }


def place_of(item: Item) -> Place | None:
    """The (layer, norm) whose output the matrix `item` reads, if it can take over its scale."""
    if item.layer < 0:
        return None
    return next(((item.layer, norm) for norm, readers in READERS.items() if item.canonical in readers), None)


def smoothed(item: Item, scales: Mapping[Place, np.ndarray]) -> np.ndarray | None:
    """`item` in float32 as it is stored after smoothing; None if smoothing leaves it alone."""
    if (gain := scales.get((item.layer, item.canonical))) is not None:
        return item.tensor.float32() / gain - np.float32(item.offset)
    place = place_of(item)
    if place is None or place not in scales:
        return None
    return item.tensor.float32() * scales[place]
