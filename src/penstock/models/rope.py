"""Rotary frequencies of a Rope, its scaling applied (YaRN, Llama 3, LongRoPE, linear).

The arithmetic is float32, in the order in which the models were trained: frequencies that differ in
the last bit turn into different angles at large positions.
"""

from __future__ import annotations

import math

import numpy as np

from penstock.models.spec import (
    FrequencyDivisors,
    LinearScaling,
    Llama3Scaling,
    LongRopeScaling,
    Rope,
    YarnScaling,
)


def inverse_frequencies(rope: Rope, context: int) -> tuple[np.ndarray, float]:
    """float32[dim / 2] radians per position, and the factor on cos and sin.

    `context` is the longest context that will be served; only LongRoPE looks at it.
    """
    exponents = np.arange(0, rope.dim, 2, dtype=np.float32) / np.float32(rope.dim)
    periods = np.float32(rope.theta) ** exponents
    scaling = rope.scaling
    match scaling:
        case None:
            return 1 / periods, 1.0
        case LinearScaling():
            return 1 / periods / np.float32(scaling.factor), 1.0
        case FrequencyDivisors():
            return 1 / periods / np.array(scaling.divisors, np.float32), 1.0
        case LongRopeScaling():
            divisors = scaling.long if context > scaling.original_context else scaling.short
            return 1 / (np.array(divisors, np.float32) * periods), scaling.attention_factor
        case Llama3Scaling():
            return _llama3(1 / periods, scaling), 1.0
        case YarnScaling():
            return _yarn(periods, rope, scaling), scaling.attention_factor


def _llama3(inv_freq: np.ndarray, scaling: Llama3Scaling) -> np.ndarray:
    wavelength = np.float32(2 * math.pi) / inv_freq
    slow = inv_freq / np.float32(scaling.factor)
    low, high = scaling.low_freq_factor, scaling.high_freq_factor
    smooth = (np.float32(scaling.original_context) / wavelength - np.float32(low)) / np.float32(high - low)
    between = (1 - smooth) * slow + smooth * inv_freq
    blended = np.where(wavelength < scaling.original_context / high, inv_freq, between)
    result: np.ndarray = np.where(wavelength > scaling.original_context / low, slow, blended)
    return result.astype(np.float32)


def _yarn(periods: np.ndarray, rope: Rope, scaling: YarnScaling) -> np.ndarray:
    def dimension(rotations: float) -> float:
        """The dimension whose frequency turns `rotations` times in the original context."""
        turns = scaling.original_context / (rotations * 2 * math.pi)
        return rope.dim * math.log(turns) / (2 * math.log(rope.theta))

    low, high = dimension(scaling.beta_fast), dimension(scaling.beta_slow)
    if scaling.truncate:
        low, high = math.floor(low), math.ceil(high)
    low, high = max(low, 0), min(high, rope.dim - 1)
    if low == high:
        high += 0.001  # a ramp of no width divides by zero
    ramp = (np.arange(rope.dim // 2, dtype=np.float32) - np.float32(low)) / np.float32(high - low)
    kept = 1 - np.clip(ramp, 0, 1)
    interpolated = 1 / (np.float32(scaling.factor) * periods)
    return np.asarray(interpolated * (1 - kept) + (1 / periods) * kept, np.float32)
