"""Lowering: a DecoderSpec and its prepared weights to a flat Program (kernels/program.py).

The same operations in the same order as `models/forward.py`, with what belongs together joined:
residual additions go into the product before them (or, under a post-norm, into the norm after).
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

from penstock.kernels.program import (
    AddLinear,
    AddNorm,
    AddSigmoidGated,
    Attend,
    Buffer,
    Capture,
    GatedLinear,
    Linear,
    MixExperts,
    Norm,
    Operation,
    Program,
    Rotate,
)
from penstock.models.rope import inverse_frequencies
from penstock.models.spec import DecoderSpec, Experts, LayerSpec, Rope

Tensors = Mapping[str, Any]


def lower(
    spec: DecoderSpec,
    weights: Tensors,
    layers: Sequence[Tensors],
    context: int,
    capture: Sequence[int] = (),
) -> Program:
    """weights, layers: canonical name -> prepared; `context` is served; capture: layers after which x is
    kept (see models.forward.Model)."""
    ropes: list[Rope] = []
    operations: list[Operation] = [Norm(layers[0]["attn_norm"])]
    for index, (layer, tensors) in enumerate(zip(spec.layers, layers, strict=True)):
        after = layers[index + 1]["attn_norm"] if index + 1 < len(layers) else None
        attention = _attention(index, layer, tensors, ropes)
        # Behind the product that reads the norm of x: nothing in between changes x, and who looks for the
        # reader of a norm finds it next to it (native/core/fine.cpp).
        attention[1:1] = _captures(capture, index - 1)
        operations += attention
        operations += _feed(layer, tensors, after)
    operations += _captures(capture, len(layers) - 1)
    return Program(
        hidden_size=spec.hidden_size,
        vocab_size=spec.vocab_size,
        norm_eps=spec.norm_eps,
        embed=weights["embed"],
        embedding_scale=spec.embedding_scale,
        ropes=tuple(inverse_frequencies(rope, context) for rope in ropes),
        operations=tuple(operations),
        final_gain=weights["final_norm"],
        head=weights["embed"] if spec.tied_head else weights["head"],
        logit_scale=spec.logit_scale,
        logit_softcap=spec.logit_softcap,
    )


def _captures(capture: Sequence[int], layer: int) -> list[Operation]:
    """Those of x after `layer`; -1: of the embeddings."""
    return [Capture(place) for place, wanted in enumerate(capture) if wanted == layer]


def _attention(index: int, layer: LayerSpec, w: Tensors, ropes: list[Rope]) -> list[Operation]:
    spec = layer.attention
    if spec.rope is not None and spec.rope not in ropes:
        ropes.append(spec.rope)
    operations: list[Operation] = [
        Linear("normed", "qkv", w["qkv"], w.get("qkv_bias")),
        Rotate(
            layer=index,
            shape=spec.shape,
            rope=None if spec.rope is None else ropes.index(spec.rope),
            rotated=0 if spec.rope is None else spec.rope.dim,
            style="half" if spec.rope is None else spec.rope.style,
            gains=(w["q_norm"], w["k_norm"]) if spec.qk_norm else None,
            scale=spec.params.scale,
        ),
        Attend(index, spec.shape, spec.params, w.get("sinks")),
    ]
    return operations + _close(
        layer, "mixed", w["out"], w.get("out_bias"), w.get("attn_post_norm"), w["ffn_norm"]
    )


def _feed(layer: LayerSpec, w: Tensors, after: Any | None) -> list[Operation]:
    ffn, post = layer.ffn, w.get("ffn_post_norm")
    if not isinstance(ffn, Experts):
        gated = GatedLinear(w["gate_up"], w.get("gate_up_bias"), ffn.activation)
        return [gated, *_close(layer, "hidden", w["down"], w.get("down_bias"), post, after)]
    biases = (w["experts_gate_up_bias"], w["experts_down_bias"]) if ffn.bias else None
    operations: list[Operation] = [
        Linear("normed", "scores", w["router"], w.get("router_bias")),
        MixExperts(
            w["experts_gate_up"],
            w["experts_down"],
            biases,
            ffn.activation,
            ffn.top_k,
            ffn.softmax,
            ffn.normalize,
        ),
    ]
    if ffn.shared_size:
        operations += [
            GatedLinear(w["shared_gate_up"], None, ffn.activation),
            Linear("hidden", "shared", w["shared_down"]),
            Linear("normed", "scores", w["shared_gate"]),
            AddSigmoidGated(),
        ]
    return [*operations, AddNorm(after, post, layer.residual_scale)]


def _close(
    layer: LayerSpec, source: Buffer, weight: Any, bias: Any | None, post: Any | None, gain: Any | None
) -> list[Operation]:
    """The product that joins the residual, and the norm after it (none after the last layer: the head's)."""
    if post is not None:
        return [Linear(source, "delta", weight, bias), AddNorm(gain, post, layer.residual_scale)]
    joined: list[Operation] = [AddLinear(source, weight, bias, layer.residual_scale)]
    return joined if gain is None else [*joined, Norm(gain)]
