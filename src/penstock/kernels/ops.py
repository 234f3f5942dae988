"""The op table: every operation that a forward pass may ask of a kernel backend.

An op-table backend implements `Ops`; `penstock.kernels.reference` (plain numpy, float32) is the
meaning of each operation, and every other backend is tested against it over generated shapes. The
table is cut so that a native or Triton kernel can fuse what belongs together: residual add with the
next norm, QK-norm with rope and the KV write, gate with up projection.

Letters in shapes: T tokens of the step, R rows, d hidden size, N and K output and input features,
H query heads, G KV heads, D head size, E experts, k experts per token, V vocabulary.

Invariants: an op never changes its arguments, except that `write_kv` writes the pages of the pool
that `plan` names; activations are float32 at the boundary of an op, whatever a backend uses inside;
weights, vectors, plans and tables are made by the backend and opaque to the caller.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any, Literal, Protocol

from msgspec import Struct

from penstock.kernels.batch import Batch, LayerKV
from penstock.kernels.codes import QuantizedCodes
from penstock.kernels.encoder import PlainActivation

RopeStyle = Literal["half", "interleaved"]


class WeightTensor(Protocol):
    """One tensor of a model file, read when asked. Rows (the last axis) are contiguous in `raw`."""

    shape: tuple[int, ...]  # (N,), (N, K) or (E, N, K)
    dtype: str  # how it is stored: "F32", "BF16", "Q4_1", "MXFP4" …

    def float32(self, out: Any | None = None) -> Any:
        """float32[shape]: `out` if given (C-contiguous), else fresh or a read-only view of the file."""
        ...

    def raw(self) -> Any | None:
        """uint8[*shape[:-1], row bytes] as stored; None if the file holds it in another order."""
        ...

    def codes(self) -> QuantizedCodes | None:
        """The integers of a GPTQ, AWQ or compressed-tensors weight, unpacked: w = scale·value + offset.

        Its `dtype` is then "INT{bits}/{group}", as "INT4/128"; `raw` is None. None for every other
        tensor, GGUF's included (a packer reads their blocks from `raw`)."""
        ...


class Activation(Struct, frozen=True):
    """How gate and up are joined.

    silu, gelu_tanh: act(gate) * up.
    clamped_swiglu (GPT-OSS): g = min(gate, limit), u = clip(up, ±limit), g·sigmoid(alpha·g)·(u + 1).
    """

    kind: Literal["silu", "gelu_tanh", "clamped_swiglu"] = "silu"
    alpha: float = 1.702
    limit: float = 7.0


class HeadShape(Struct, frozen=True):
    """Heads of one attention layer: H query heads share G KV heads (H a multiple of G) of size D."""

    heads: int
    kv_heads: int
    head_dim: int


class AttentionParams(Struct, frozen=True):
    """score = q·k·scale, then softcap·tanh(score/softcap); position p sees max(0, p-window+1) … p."""

    scale: float
    window: int | None = None
    softcap: float | None = None


class Ops(Protocol):
    """What a backend offers. Shapes in the module docstring's letters; all floats are float32."""

    name: str
    attention_workspace_bytes: int  # most bytes that `attention` takes beside its result

    def weight_bytes(self, shape: tuple[int, ...], dtype: str) -> int:
        """Bytes that `prepare` will hold for a tensor of `shape` stored as `dtype`."""
        ...

    def prepare(self, parts: Sequence[WeightTensor]) -> Any:
        """Weight (N, K) or (E, N, K) in this backend's own form; parts are joined along N."""
        ...

    def vector(self, parts: Sequence[WeightTensor]) -> Any:
        """float32 of the parts joined along their last axis: norm gains, biases, sinks."""
        ...

    def plan(self, batch: Batch) -> Any:
        """What `write_kv` and `attention` derive from the batch once for all layers."""
        ...

    def embed(self, weight: Any, tokens: Any, scale: float) -> Any:
        """weight (V, d), tokens int32[T] -> [T, d]: rows of `weight` times `scale`."""
        ...

    def linear(self, x: Any, weight: Any, bias: Any | None = None) -> Any:
        """x [T, K], weight (N, K), bias [N] -> [T, N] = x·weightᵀ + bias."""
        ...

    def logits(self, x: Any, weight: Any, scale: float, softcap: float | None) -> Any:
        """x [n, d], weight (V, d) -> [n, V] = x·weightᵀ·scale, then softcap·tanh(·/softcap)."""
        ...

    def rms_norm(self, x: Any, gain: Any, eps: float) -> Any:
        """x [..., d], gain [d] -> x / sqrt(mean(x²) + eps) · gain (arXiv:1910.07467)."""
        ...

    def add_rms_norm(
        self, x: Any, delta: Any, gain: Any, eps: float, *, post_gain: Any | None = None, scale: float = 1.0
    ) -> tuple[Any, Any]:
        """Residual and the next norm: s = x + scale·delta -> (s, rms_norm(s, gain)), both [T, d].

        With `post_gain` delta is normed first (the sandwich norms of Gemma 2 and 3)."""
        ...

    def rope_table(self, positions: Any, inv_freq: Any, factor: float) -> Any:
        """positions int32[T], inv_freq float32[D'/2] -> cos and sin, [T, D'/2], times `factor`."""
        ...

    def write_kv(
        self,
        qkv: Any,
        shape: HeadShape,
        rope: Any | None,
        style: RopeStyle,
        gains: tuple[Any, Any] | None,
        eps: float,
        plan: Any,
        kv: LayerKV,
    ) -> Any:
        """qkv [T, (H + 2G)·D] -> q [T, H, D]; K and V go to their pages.

        `gains` (q [D], k [D]) norm each head before rope; `rope` turns the first D' of the D
        dimensions of q and k (arXiv:2104.09864), None leaves them (NoPE). Style half pairs
        dimension i with i + D'/2, interleaved pairs 2i with 2i + 1."""
        ...

    def attention(self, q: Any, plan: Any, kv: LayerKV, params: AttentionParams, sinks: Any | None) -> Any:
        """q [T, H, D] -> [T, H·D]: each row's tokens over the row's pages, causal.

        `sinks` [H] are logits of a virtual key without value: exp(sink) joins the denominator."""
        ...

    def gated(self, gate_up: Any, activation: Activation) -> Any:
        """gate_up [T, 2·I], gate in the first I columns -> [T, I]."""
        ...

    def route(
        self, logits: Any, top_k: int, softmax: Literal["before", "after"], normalize: bool
    ) -> tuple[Any, Any]:
        """logits [T, E] -> experts int32[T, k] (best first), weights [T, k].

        softmax "before": over all experts, then the chosen ones are divided by their sum if
        `normalize`; "after": over the chosen logits only."""
        ...

    def experts(
        self,
        x: Any,
        ids: Any,
        weights: Any,
        gate_up: Any,
        down: Any,
        activation: Activation,
        biases: tuple[Any, Any] | None = None,
    ) -> Any:
        """x [T, d], gate_up (E, 2·I, d), down (E, d, I), biases ([E, 2·I], [E, d]) -> [T, d].

        Each token's chosen experts, summed with their weights in the order of `ids`."""
        ...

    def add_sigmoid_gated(self, x: Any, delta: Any, gate: Any) -> Any:
        """x, delta [T, d], gate [T, 1] -> x + sigmoid(gate)·delta (the shared expert of Qwen2-MoE)."""
        ...

    def layer_norm(self, x: Any, gain: Any, bias: Any, eps: float) -> Any:
        """x [T, d], gain, bias [d] -> (x - mean) / sqrt(variance + eps) · gain + bias (arXiv:1607.06450)."""
        ...

    def activate(self, x: Any, kind: PlainActivation) -> Any:
        """x [T, n] -> [T, n]; gelu is x·(1 + erf(x/√2))/2 (arXiv:1606.08415)."""
        ...

    def attend_texts(self, qkv: Any, offsets: Any, heads: int, scale: float) -> Any:
        """qkv [T, 3·H·D], offsets int32[R+1] -> [T, H·D]: every token of a text over all of that text."""
        ...
