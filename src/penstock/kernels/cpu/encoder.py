"""NativeEncoder: an EncoderProgram bound to native/core/encoder.h."""

from __future__ import annotations

from typing import Any

import numpy as np

from penstock.kernels.cpu import _native
from penstock.kernels.cpu.executable import default_threads, thread_pool
from penstock.kernels.encoder import EncoderProgram, TextBatch

ACTIVATIONS = {"silu": 0, "gelu_tanh": 1, "gelu": 3, "relu": 4}


class NativeEncoder:
    """`penstock.kernels.encoder.EncoderNetwork`: groups of texts on all threads, without the GIL."""

    def __init__(self, program: EncoderProgram, isa: str = "auto", threads: int | None = None) -> None:
        self._keep: list[Any] = [program]
        vector = self._vector
        builder = _native.EncoderBuilder(
            word=vector(program.word),
            place=vector(program.place),
            kind=None if program.kind is None else vector(program.kind),
            gain=vector(program.norm),
            bias=vector(program.norm_bias),
            heads=program.heads,
            first_position=program.first_position,
            eps=program.eps,
            activation=ACTIVATIONS[program.activation],
        )
        for layer in program.layers:
            builder.layer(
                qkv=layer.qkv,
                qkv_bias=vector(layer.qkv_bias),
                out=layer.out,
                out_bias=vector(layer.out_bias),
                attention_gain=vector(layer.attn_norm),
                attention_bias=vector(layer.attn_norm_bias),
                up=layer.up,
                up_bias=vector(layer.up_bias),
                down=layer.down,
                down_bias=vector(layer.down_bias),
                ffn_gain=vector(layer.ffn_norm),
                ffn_bias=vector(layer.ffn_norm_bias),
            )
        self._width = np.shape(program.word)[1]
        self._encoder = _native.Encoder(builder, isa, thread_pool(threads or default_threads()))

    def hidden(self, batch: TextBatch) -> np.ndarray:
        out = np.empty((len(batch.tokens), self._width), np.float32)
        self._encoder.encode(batch.tokens, batch.kinds, batch.offsets, out)
        return out

    def _vector(self, values: Any) -> np.ndarray:
        array = np.ascontiguousarray(values, dtype=np.float32)
        self._keep.append(array)
        return array
