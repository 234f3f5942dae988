"""The reference backend: plain numpy, float32. What an op computes here is what it means."""

from __future__ import annotations

from penstock.kernels.reference import attention as _attention
from penstock.kernels.reference import encoder, mlp, moe, norm, rope
from penstock.kernels.reference import linear as _linear
from penstock.kernels.reference.plan import ReferencePlan


class ReferenceOps:
    """`penstock.kernels.ops.Ops` over numpy arrays; a prepared weight is a float32 array."""

    name = "reference"
    attention_workspace_bytes = _attention.WORKSPACE_BYTES

    weight_bytes = staticmethod(_linear.weight_bytes)
    prepare = staticmethod(_linear.prepare)
    vector = staticmethod(_linear.vector)
    plan = ReferencePlan
    embed = staticmethod(_linear.embed)
    linear = staticmethod(_linear.linear)
    logits = staticmethod(_linear.logits)
    rms_norm = staticmethod(norm.rms_norm)
    add_rms_norm = staticmethod(norm.add_rms_norm)
    rope_table = staticmethod(rope.rope_table)
    write_kv = staticmethod(rope.write_kv)
    attention = staticmethod(_attention.attention)
    gated = staticmethod(mlp.gated)
    route = staticmethod(moe.route)
    experts = staticmethod(moe.experts)
    add_sigmoid_gated = staticmethod(moe.add_sigmoid_gated)
    layer_norm = staticmethod(encoder.layer_norm)
    activate = staticmethod(encoder.activate)
    attend_texts = staticmethod(encoder.attend_texts)
