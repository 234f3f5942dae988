"""Program: a decoder lowered to a flat list of operations over a few named buffers.

This is what a backend that runs a whole step in one call executes (`kernels/cpu`); `models/lower.py`
makes it from a DecoderSpec, once. Buffers hold a row per token of the step:

    x       the residual          normed  input of QKV, MLP and experts     qkv    heads before rope
    q       queries               mixed   what attention gives              hidden what the gate gives
    delta   what joins x          scores  router logits                     shared the shared expert

Invariants: an operation reads only buffers that an earlier one wrote; weights and vectors are the
backend's own (`Weights.prepare`, `Weights.vector`).
"""

from __future__ import annotations

from typing import Any, Literal

from msgspec import Struct

from penstock.kernels.ops import Activation, AttentionParams, HeadShape, RopeStyle

Buffer = Literal["x", "normed", "qkv", "q", "mixed", "hidden", "delta", "scores", "shared"]


class Norm(Struct, frozen=True):
    """normed = rms_norm(x, gain)."""

    gain: Any


class AddNorm(Struct, frozen=True):
    """x += scale · (rms_norm(delta, post_gain) or delta); normed = rms_norm(x, gain), if there is a gain."""

    gain: Any | None
    post_gain: Any | None
    scale: float


class Linear(Struct, frozen=True):
    """target = source · weightᵀ + bias."""

    source: Buffer
    target: Buffer
    weight: Any
    bias: Any | None = None


class AddLinear(Struct, frozen=True):
    """x += scale · (source · weightᵀ + bias)."""

    source: Buffer
    weight: Any
    bias: Any | None
    scale: float


class GatedLinear(Struct, frozen=True):
    """hidden = act(gate) · up, both from normed · weightᵀ + bias (`Weights.prepare_gated`)."""

    weight: Any
    bias: Any | None
    activation: Activation


class Rotate(Struct, frozen=True):
    """qkv -> q (times `scale`) and the pages of `layer`; see Ops.write_kv. rope: index, None for NoPE."""

    layer: int
    shape: HeadShape
    rope: int | None
    rotated: int  # dimensions that turn
    style: RopeStyle
    gains: tuple[Any, Any] | None
    scale: float


class Attend(Struct, frozen=True):
    """q -> mixed over the pages of `layer`; the scale of `params` is already in q."""

    layer: int
    shape: HeadShape
    params: AttentionParams
    sinks: Any | None


class MixExperts(Struct, frozen=True):
    """delta = the chosen experts' gated MLPs of normed, weighed; scores are the router's logits."""

    gate_up: Any
    down: Any
    biases: tuple[Any, Any] | None
    activation: Activation
    top_k: int
    softmax: Literal["before", "after"]
    normalize: bool


class AddSigmoidGated(Struct, frozen=True):
    """delta += sigmoid(scores[:, 0]) · shared."""


class Capture(Struct, frozen=True):
    """x -> columns [index · d, (index + 1) · d) of the features: for drafters that read hidden states."""

    index: int


Operation = (
    Norm
    | AddNorm
    | Linear
    | AddLinear
    | GatedLinear
    | Rotate
    | Attend
    | MixExperts
    | AddSigmoidGated
    | Capture
)


class Program(Struct, frozen=True):
    """A whole decoder. ropes: (float32[D'/2] radians per position, factor on cos and sin)."""

    hidden_size: int
    vocab_size: int
    norm_eps: float
    embed: Any
    embedding_scale: float
    ropes: tuple[tuple[Any, float], ...]
    operations: tuple[Operation, ...]
    final_gain: Any
    head: Any
    logit_scale: float
    logit_softcap: float | None

    @property
    def features_width(self) -> int:
        """Floats that a step captures of every token."""
        return self.hidden_size * sum(isinstance(operation, Capture) for operation in self.operations)
