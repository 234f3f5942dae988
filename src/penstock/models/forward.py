"""The one forward pass: any DecoderSpec, written against the op table.

A step is `hidden = model.forward(batch, kv)`, then `model.logits(hidden[rows])` for the rows that
want them: the head is the widest matrix, and most tokens of a prefill need no logits.

Invariants: `forward` writes the KV of every token of the batch to the pages that the tables name
and nothing else; it holds no state between calls, so any two batches may follow each other.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any, Protocol

import msgspec
import numpy as np

from penstock.errors import ConfigError
from penstock.kernels.batch import Batch, LayerKV
from penstock.kernels.ops import Ops
from penstock.models.rope import inverse_frequencies
from penstock.models.spec import DecoderSpec, Experts, LayerSpec, Rope

KV_DTYPES: dict[int, type[np.floating[Any]]] = {4: np.float32, 2: np.float16}


class PoolLayout(Protocol):
    """What `allocate_kv` must know of `kv.groups.KVLayout`."""

    @property
    def layers_per_group(self) -> int: ...
    @property
    def block_size(self) -> int: ...
    @property
    def kv_heads(self) -> int: ...
    @property
    def head_dim(self) -> int: ...
    @property
    def itemsize(self) -> int: ...
    @property
    def layer_place(self) -> tuple[tuple[int, int], ...]: ...


class Model:
    """A spec with its weights prepared by a backend.

    weights: canonical name -> prepared weight (spec.model_tensors), layers: one such mapping per
    layer (spec.layer_tensors). `context` is the longest context that will be served. capture: layers
    whose results (the residual stream behind them, -1: the embeddings) `forward` hands out as features.
    """

    def __init__(
        self,
        spec: DecoderSpec,
        ops: Ops,
        weights: Mapping[str, Any],
        layers: Sequence[Mapping[str, Any]],
        context: int | None = None,
        capture: tuple[int, ...] = (),
    ) -> None:
        self.spec = spec
        self.capture = capture
        self.ops = ops
        self.context = context or spec.max_context
        self._weights = weights
        self._embed = weights["embed"]
        self._head = weights["embed"] if spec.tied_head else weights["head"]
        self._final_norm = weights["final_norm"]
        self._layers = tuple(zip(spec.layers, layers, strict=True))
        ropes = {layer.attention.rope for layer in spec.layers} - {None}
        self._frequencies = {rope: inverse_frequencies(rope, self.context) for rope in ropes if rope}

    def forward(self, batch: Batch, kv: Sequence[LayerKV], features: Any | None = None) -> Any:
        """float32[T, d]: every token's hidden state after the final norm, ready for `logits`.

        features: float32[T, len(capture) · d], filled if given."""
        ops, eps = self.ops, self.spec.norm_eps
        plan = ops.plan(batch)
        tables = {
            rope: ops.rope_table(batch.positions, *frequencies)
            for rope, frequencies in self._frequencies.items()
        }
        x = ops.embed(self._embed, batch.tokens, self.spec.embedding_scale)
        self._keep(x, -1, features)
        h = ops.rms_norm(x, self._layers[0][1]["attn_norm"], eps)
        for index, (layer, w) in enumerate(self._layers):
            after = (
                self._layers[index + 1][1]["attn_norm"] if index + 1 < len(self._layers) else self._final_norm
            )
            delta = self._attend(layer, w, h, tables, plan, kv[index])
            post, scale = w.get("attn_post_norm"), layer.residual_scale
            x, h = ops.add_rms_norm(x, delta, w["ffn_norm"], eps, post_gain=post, scale=scale)
            delta = self._feed(layer, w, h)
            x, h = ops.add_rms_norm(x, delta, after, eps, post_gain=w.get("ffn_post_norm"), scale=scale)
            self._keep(x, index, features)
        return h

    def _keep(self, x: Any, layer: int, features: Any | None) -> None:
        if features is None:
            return
        size = self.spec.hidden_size
        for place, wanted in enumerate(self.capture):
            if wanted == layer:
                features[:, place * size : (place + 1) * size] = x

    @property
    def final_norm(self) -> np.ndarray:
        """float32[d]: the gain of the norm before the head."""
        return np.asarray(self._final_norm)

    def embedding(self, tokens: np.ndarray) -> np.ndarray:
        """int32[n] -> float32[n, d]: rows of the embedding, not scaled."""
        return np.asarray(self.ops.embed(self._embed, tokens, 1.0))

    def with_layers(self, kept: Sequence[int]) -> Model:
        """Some of the layers, ascending, and the head, over the same weights. Its KV is theirs."""
        spec = msgspec.structs.replace(self.spec, layers=tuple(self.spec.layers[i] for i in kept))
        layers = [self._layers[i][1] for i in kept]
        return Model(spec, self.ops, self._weights, layers, self.context)

    def logits(self, hidden: Any) -> Any:
        """hidden float32[n, d] (rows of what `forward` returned) -> float32[n, V]."""
        return self.ops.logits(hidden, self._head, self.spec.logit_scale, self.spec.logit_softcap)

    def _attend(
        self,
        layer: LayerSpec,
        w: Mapping[str, Any],
        h: Any,
        tables: Mapping[Rope, Any],
        plan: Any,
        kv: LayerKV,
    ) -> Any:
        ops, spec = self.ops, layer.attention
        qkv = ops.linear(h, w["qkv"], w.get("qkv_bias"))
        table = tables[spec.rope] if spec.rope else None
        style = spec.rope.style if spec.rope else "half"
        gains = (w["q_norm"], w["k_norm"]) if spec.qk_norm else None
        q = ops.write_kv(qkv, spec.shape, table, style, gains, self.spec.norm_eps, plan, kv)
        mixed = ops.attention(q, plan, kv, spec.params, w.get("sinks"))
        return ops.linear(mixed, w["out"], w.get("out_bias"))

    def _feed(self, layer: LayerSpec, w: Mapping[str, Any], h: Any) -> Any:
        ops, ffn = self.ops, layer.ffn
        if not isinstance(ffn, Experts):
            hidden = ops.gated(ops.linear(h, w["gate_up"], w.get("gate_up_bias")), ffn.activation)
            return ops.linear(hidden, w["down"], w.get("down_bias"))
        scores = ops.linear(h, w["router"], w.get("router_bias"))
        ids, weights = ops.route(scores, ffn.top_k, ffn.softmax, ffn.normalize)
        biases = (w["experts_gate_up_bias"], w["experts_down_bias"]) if ffn.bias else None
        result = ops.experts(h, ids, weights, w["experts_gate_up"], w["experts_down"], ffn.activation, biases)
        if ffn.shared_size:
            shared = ops.linear(
                ops.gated(ops.linear(h, w["shared_gate_up"]), ffn.activation), w["shared_down"]
            )
            result = ops.add_sigmoid_gated(result, shared, ops.linear(h, w["shared_gate"]))
        return result

    def allocate_kv(self, layout: PoolLayout, num_blocks: int) -> list[LayerKV]:
        """One pool of `num_blocks` blocks, and every layer's view of it.

        A block is [layer in group][K, V][token][kv head][head dim]; a layer's view steps over whole
        blocks. The pool is zero pages: memory is taken when a block is first written. Raises
        ConfigError for an element size that no numpy float has.
        """
        dtype = KV_DTYPES.get(layout.itemsize)
        if dtype is None:
            raise ConfigError(
                f"KV elements of {layout.itemsize} bytes; the {self.ops.name} backend keeps 4 or 2"
            )
        shape = (num_blocks, layout.layers_per_group, 2, layout.block_size, layout.kv_heads, layout.head_dim)
        pool = np.zeros(shape, dtype)
        return [
            LayerKV(k=pool[:, place, 0], v=pool[:, place, 1], group=group, block_size=layout.block_size)
            for group, place in layout.layer_place
        ]
