"""QuantizedCodes: a weight matrix as the integers and scales that a quantized checkpoint holds."""

from __future__ import annotations

from typing import Any, Literal

from msgspec import Struct


class QuantizedCodes(Struct, frozen=True):
    """w[..., n, k] = scale[..., n, k // group] · values[..., n, k] + offset[..., n, k // group].

    values: uint8[..., N, K], 0 … 2^bits - 1, one to a byte; bits: 4 or 8.
    group: columns that share a scale; K itself where a row has one scale.
    scale, offset: float32[..., N, K / group]; zero points are folded: offset = -scale · zero.
    activation: what the checkpoint prescribes for the other operand: int8 with a dynamic scale per
    token or per group of columns; None where it says nothing (the backend's own choice).

    For scales stored in 16 bits scale, offset and w are exact in float32.
    """

    values: Any
    bits: int
    group: int
    scale: Any
    offset: Any
    activation: Literal["group", "token"] | None = None
