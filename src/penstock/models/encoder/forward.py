"""The forward pass of encoders, written once against the op table."""

from __future__ import annotations

from itertools import pairwise
from typing import Any

from penstock.kernels.encoder import EncoderProgram, TextBatch
from penstock.kernels.ops import Ops


class OpTableEncoder:
    """`penstock.kernels.encoder.EncoderNetwork` operation by operation."""

    def __init__(self, program: EncoderProgram, ops: Ops) -> None:
        self._program, self._ops = program, ops
        self._scale = (program.word.shape[1] // program.heads) ** -0.5

    def hidden(self, batch: TextBatch) -> Any:
        p, ops = self._program, self._ops
        x = self._embed(batch)
        for w in p.layers:
            mixed = ops.attend_texts(ops.linear(x, w.qkv, w.qkv_bias), batch.offsets, p.heads, self._scale)
            x = ops.layer_norm(x + ops.linear(mixed, w.out, w.out_bias), w.attn_norm, w.attn_norm_bias, p.eps)
            wide = ops.activate(ops.linear(x, w.up, w.up_bias), p.activation)
            x = ops.layer_norm(x + ops.linear(wide, w.down, w.down_bias), w.ffn_norm, w.ffn_norm_bias, p.eps)
        return x

    def _embed(self, batch: TextBatch) -> Any:
        p, ops = self._program, self._ops
        x = ops.embed(p.word, batch.tokens, 1.0)
        if p.kind is not None:
            x = x + (p.kind[0] if batch.kinds is None else ops.embed(p.kind, batch.kinds, 1.0))
        positions = [
            p.first_position + index
            for first, last in pairwise(batch.offsets)
            for index in range(last - first)
        ]
        return ops.layer_norm(x + ops.embed(p.place, positions, 1.0), p.norm, p.norm_bias, p.eps)
