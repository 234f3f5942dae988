"""Encoders as kernels see them: a batch of whole texts, and a network with its prepared weights.

BERT-like networks (arXiv:1810.04805) have no cache and no steps: a batch comes once, every token sees all of
its own text, and each sub-layer's result is added and normed behind it (post-norm).
"""

from __future__ import annotations

from typing import Any, Literal, Protocol

from msgspec import Struct

PlainActivation = Literal["silu", "gelu", "gelu_tanh", "relu"]


class TextBatch(Struct, frozen=True):
    """T tokens of texts, concatenated without padding; text r holds [offsets[r], offsets[r+1]), at least one.

    tokens: int32[T]; offsets: int32[R+1]; kinds: int32[T], token types, None where all are 0.
    """

    tokens: Any
    offsets: Any
    kinds: Any | None = None


class EncoderLayer(Struct, frozen=True):
    """x = norm(x + out(attend(qkv(x)))), then x = norm(x + down(act(up(x)))). All have biases.

    Weights (N, K) in the backend's form, vectors float32: biases [N], gains and biases of the norms [d].
    """

    qkv: Any
    qkv_bias: Any
    out: Any
    out_bias: Any
    attn_norm: Any
    attn_norm_bias: Any
    up: Any
    up_bias: Any
    down: Any
    down_bias: Any
    ffn_norm: Any
    ffn_norm_bias: Any


class EncoderProgram(Struct, frozen=True):
    """x = norm(word[token] + kind[type] + place[first_position + index in the text]), then the layers.

    word float32[V, d], place float32[P, d], kind float32[K, d] or None; heads share d evenly.
    """

    heads: int
    first_position: int
    eps: float
    activation: PlainActivation
    word: Any
    place: Any
    kind: Any | None
    norm: Any
    norm_bias: Any
    layers: tuple[EncoderLayer, ...]


class EncoderNetwork(Protocol):
    """An EncoderProgram that runs."""

    def hidden(self, batch: TextBatch) -> Any:
        """float32[T, d]: every token's hidden state after the last layer. A text's bits depend on it alone.

        Errors for ids, types or lengths beyond the tables are the caller's to prevent.
        """
        ...
