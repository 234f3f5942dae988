"""The tensor names that most architectures share; a mapping file overrides where it differs."""

from __future__ import annotations

from penstock.models.tensors import TensorNames

_EXPERT = "mlp.experts.{e}."

HF = TensorNames(
    model={
        "embed": ("model.embed_tokens.weight",),
        "final_norm": ("model.norm.weight",),
        "head": ("lm_head.weight",),
    },
    layer_prefix="model.layers.{i}.",
    layer={
        "attn_norm": ("input_layernorm.weight",),
        "ffn_norm": ("post_attention_layernorm.weight",),
        "qkv": ("self_attn.q_proj.weight self_attn.k_proj.weight self_attn.v_proj.weight",),
        "qkv_bias": ("self_attn.q_proj.bias self_attn.k_proj.bias self_attn.v_proj.bias",),
        "q_norm": ("self_attn.q_norm.weight",),
        "k_norm": ("self_attn.k_norm.weight",),
        "sinks": ("self_attn.sinks",),
        "out": ("self_attn.o_proj.weight",),
        "out_bias": ("self_attn.o_proj.bias",),
        "gate_up": ("mlp.gate_proj.weight mlp.up_proj.weight",),
        "gate_up_bias": ("mlp.gate_proj.bias mlp.up_proj.bias",),
        "down": ("mlp.down_proj.weight",),
        "down_bias": ("mlp.down_proj.bias",),
        "router": ("mlp.gate.weight",),
        "experts_gate_up": (
            "mlp.experts.gate_up_proj",
            f"{_EXPERT}gate_proj.weight {_EXPERT}up_proj.weight",
        ),
        "experts_down": ("mlp.experts.down_proj", f"{_EXPERT}down_proj.weight"),
    },
    # The head of a tied model may be stored a second time; old files keep rope's buffer.
    ignored=("*.rotary_emb.inv_freq", "lm_head.weight"),
)

GGUF = TensorNames(
    model={
        "embed": ("token_embd.weight",),
        "final_norm": ("output_norm.weight",),
        "head": ("output.weight",),
    },
    layer_prefix="blk.{i}.",
    layer={
        "attn_norm": ("attn_norm.weight",),
        "attn_post_norm": ("post_attention_norm.weight",),
        "ffn_norm": ("ffn_norm.weight",),
        "ffn_post_norm": ("post_ffw_norm.weight",),
        "qkv": ("attn_q.weight attn_k.weight attn_v.weight",),
        "qkv_bias": ("attn_q.bias attn_k.bias attn_v.bias",),
        "q_norm": ("attn_q_norm.weight",),
        "k_norm": ("attn_k_norm.weight",),
        "sinks": ("attn_sinks.weight",),
        "out": ("attn_output.weight",),
        "out_bias": ("attn_output.bias",),
        "gate_up": ("ffn_gate.weight ffn_up.weight",),
        "gate_up_bias": ("ffn_gate.bias ffn_up.bias",),
        "down": ("ffn_down.weight",),
        "down_bias": ("ffn_down.bias",),
        "router": ("ffn_gate_inp.weight",),
        "router_bias": ("ffn_gate_inp.bias",),
        # Files from before stacked experts keep one tensor per expert.
        "experts_gate_up": (
            "ffn_gate_exps.weight ffn_up_exps.weight",
            "ffn_gate.{e}.weight ffn_up.{e}.weight",
        ),
        "experts_gate_up_bias": ("ffn_gate_exps.bias ffn_up_exps.bias",),
        "experts_down": ("ffn_down_exps.weight", "ffn_down.{e}.weight"),
        "experts_down_bias": ("ffn_down_exps.bias",),
        "shared_gate_up": ("ffn_gate_shexp.weight ffn_up_shexp.weight",),
        "shared_down": ("ffn_down_shexp.weight",),
    },
    # These become numbers of the spec (arch/gguf.py) before the tensors are resolved.
    ignored=("rope_freqs.weight", "rope_factors_long.weight", "rope_factors_short.weight"),
)
