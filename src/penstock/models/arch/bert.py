"""BERT and its relatives with learned positions: RoBERTa, XLM-RoBERTa."""

from __future__ import annotations

from penstock.errors import ModelRefused
from penstock.kernels.encoder import PlainActivation
from penstock.models.arch.config import Config
from penstock.models.encoder.spec import EncoderSpec
from penstock.models.tensors import TensorNames

_ACTIVATIONS: dict[str, PlainActivation] = {
    "gelu": "gelu",
    "gelu_new": "gelu_tanh",
    "gelu_pytorch_tanh": "gelu_tanh",
    "relu": "relu",
    "silu": "silu",
    "swish": "silu",
}
# Whose first position comes behind that of padding.
_PADDED_POSITIONS = ("roberta", "xlm-roberta", "camembert")
MODEL_TYPES = ("bert", *_PADDED_POSITIONS)

NAMES = TensorNames(
    model={
        "embed": ("model.embeddings.word_embeddings.weight",),
        "place": ("model.embeddings.position_embeddings.weight",),
        "kind": ("model.embeddings.token_type_embeddings.weight",),
        "norm": ("model.embeddings.LayerNorm.weight",),
        "norm_bias": ("model.embeddings.LayerNorm.bias",),
        "pooler": ("model.pooler.dense.weight", "classifier.dense.weight"),
        "pooler_bias": ("model.pooler.dense.bias", "classifier.dense.bias"),
        "classifier": ("classifier.weight", "classifier.out_proj.weight"),
        "classifier_bias": ("classifier.bias", "classifier.out_proj.bias"),
    },
    layer_prefix="model.encoder.layer.{i}.",
    layer={
        "qkv": ("attention.self.query.weight attention.self.key.weight attention.self.value.weight",),
        "qkv_bias": ("attention.self.query.bias attention.self.key.bias attention.self.value.bias",),
        "out": ("attention.output.dense.weight",),
        "out_bias": ("attention.output.dense.bias",),
        "attn_norm": ("attention.output.LayerNorm.weight",),
        "attn_norm_bias": ("attention.output.LayerNorm.bias",),
        "up": ("intermediate.dense.weight",),
        "up_bias": ("intermediate.dense.bias",),
        "down": ("output.dense.weight",),
        "down_bias": ("output.dense.bias",),
        "ffn_norm": ("output.LayerNorm.weight",),
        "ffn_norm_bias": ("output.LayerNorm.bias",),
    },
    roots=("", "bert.", "roberta."),
    # Buffers, the heads of pretraining, and the pooler, which only a classification head reads.
    ignored=("*embeddings.position_ids", "*pooler.dense.*", "cls.*", "lm_head.*"),
)


def spec(c: Config) -> EncoderSpec:
    """From config.json. ModelRefused for relative positions, cross attention and unknown activations."""
    if (kind := c.get("position_embedding_type", "absolute")) != "absolute":
        raise ModelRefused(f"position_embedding_type = {kind!r} is not supported; absolute is")
    c.refuse_if("is_decoder")
    c.refuse_if("add_cross_attention")
    act = c.get("hidden_act", "gelu")
    if act not in _ACTIVATIONS:
        raise ModelRefused(f"hidden_act = {act!r} is not supported; supported are {', '.join(_ACTIVATIONS)}")
    hidden, heads = int(c.need("hidden_size")), int(c.need("num_attention_heads"))
    if hidden % heads:
        raise ModelRefused(f"{heads} attention heads can't share {hidden} features: not a multiple")
    padded = c.get("model_type") in _PADDED_POSITIONS
    return EncoderSpec(
        vocab_size=int(c.need("vocab_size")),
        hidden_size=hidden,
        num_layers=int(c.need("num_hidden_layers")),
        heads=heads,
        inner_size=int(c.need("intermediate_size")),
        activation=_ACTIVATIONS[act],
        positions=int(c.need("max_position_embeddings")),
        token_types=int(c.get("type_vocab_size", 0)),
        norm_eps=float(c.get("layer_norm_eps", 1e-12)),
        first_position=int(c.get("pad_token_id", 1)) + 1 if padded else 0,
        labels=_labels(c),
    )


def _labels(c: Config) -> int:
    """Outputs of a sequence classification head; 0 if the checkpoint is of another kind."""
    kinds = c.get("architectures", [])
    if not any(str(kind).endswith("ForSequenceClassification") for kind in kinds):
        return 0
    return len(c.get("id2label", {})) or int(c.get("num_labels", 2))
