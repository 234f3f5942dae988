"""EncoderSpec: everything that must be known about an encoder, as data; see `models.spec.DecoderSpec`."""

from __future__ import annotations

from math import prod
from typing import Literal

from msgspec import Struct

from penstock.kernels.encoder import PlainActivation
from penstock.models.spec import Shape
from penstock.models.tensors import LayerShapes

# Which of a text's hidden states stand for it: that of the first token, the mean of all, that of the last.
Pooling = Literal["cls", "mean", "last"]


class EncoderSpec(Struct, frozen=True, kw_only=True):
    """A BERT-like network (see `kernels.encoder.EncoderProgram`) and what is made of its hidden states.

    first_position: row of the position table for a text's first token (RoBERTa leaves rows for padding).
    labels: outputs of a classification head over the first token (a cross-encoder); 0 for none.
    """

    vocab_size: int
    hidden_size: int
    num_layers: int
    heads: int
    inner_size: int
    activation: PlainActivation
    positions: int
    token_types: int
    norm_eps: float
    first_position: int = 0
    labels: int = 0

    @property
    def max_tokens(self) -> int:
        """The longest text for which there are positions."""
        return self.positions - self.first_position


def model_tensors(spec: EncoderSpec) -> dict[str, Shape]:
    """Canonical names and shapes of what is outside the layers."""
    d = spec.hidden_size
    tensors: dict[str, Shape] = {
        "embed": (spec.vocab_size, d),
        "place": (spec.positions, d),
        "norm": (d,),
        "norm_bias": (d,),
    }
    if spec.token_types:
        tensors["kind"] = (spec.token_types, d)
    if spec.labels:
        tensors |= {
            "pooler": (d, d),
            "pooler_bias": (d,),
            "classifier": (spec.labels, d),
            "classifier_bias": (spec.labels,),
        }
    return tensors


def layer_shapes(spec: EncoderSpec) -> list[LayerShapes]:
    """Canonical names and shapes of the layers; qkv holds the rows of Q, K and V in this order."""
    d, inner = spec.hidden_size, spec.inner_size
    shapes: dict[str, Shape] = {
        "qkv": (3 * d, d),
        "qkv_bias": (3 * d,),
        "out": (d, d),
        "out_bias": (d,),
        "attn_norm": (d,),
        "attn_norm_bias": (d,),
        "up": (inner, d),
        "up_bias": (inner,),
        "down": (d, inner),
        "down_bias": (d,),
        "ffn_norm": (d,),
        "ffn_norm_bias": (d,),
    }
    return [LayerShapes(shapes, {"qkv": (d, d, d), "qkv_bias": (d, d, d)})] * spec.num_layers


def weight_bytes(spec: EncoderSpec) -> int:
    """Bytes of the weights, which are held as float32."""
    layers = sum(prod(shape) for layer in layer_shapes(spec) for shape in layer.shapes.values())
    return 4 * (layers + sum(prod(shape) for shape in model_tensors(spec).values()))
