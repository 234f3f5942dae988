"""Executable: a Program bound to the native executor, and the KV pool in its page form."""

from __future__ import annotations

import os
from collections.abc import Sequence
from typing import Any

import numpy as np

from penstock.kernels.batch import Batch
from penstock.kernels.cpu import _native
from penstock.kernels.cpu.weights import JoinedWeight
from penstock.kernels.program import (
    AddLinear,
    AddNorm,
    AddSigmoidGated,
    Attend,
    Capture,
    GatedLinear,
    Linear,
    MixExperts,
    Norm,
    Operation,
    Program,
    Rotate,
)

BUFFERS = {
    name: i
    for i, name in enumerate(("x", "normed", "qkv", "q", "mixed", "hidden", "delta", "scores", "shared"))
}
ACTIVATIONS = {"silu": 0, "gelu_tanh": 1, "clamped_swiglu": 2}
FINE_TOKENS = 16  # a hidden state's large channels are the same ones whatever the text
_POOLS: dict[int, Any] = {}


def thread_pool(threads: int) -> Any:
    """The process's pool of `threads` threads: made once, models take turns."""
    if threads not in _POOLS:
        _POOLS[threads] = _native.ThreadPool(threads)
    return _POOLS[threads]


def default_threads() -> int:
    """The cores that this process may use."""
    return len(os.sched_getaffinity(0))


class Executable:
    """Runs batches. `forward` leaves hidden states behind, of which `logits` and `hidden` ask."""

    def __init__(self, program: Program, isa: str = "auto", threads: int | None = None) -> None:
        self.program = program
        self._keep: list[Any] = []
        builder = _native.Builder(
            hidden=program.hidden_size,
            vocab=program.vocab_size,
            eps=program.norm_eps,
            embedding_scale=program.embedding_scale,
            logit_scale=program.logit_scale,
            logit_softcap=program.logit_softcap or 0.0,
        )
        self._builder = builder
        self._halves = [len(frequencies) for frequencies, _ in program.ropes]
        for frequencies, factor in program.ropes:
            builder.rope(self._vector(frequencies), factor)
        for operation in program.operations:
            self._add(operation)
        embed = self._weight(program.embed)
        head = embed if program.head is program.embed else self._weight(program.head)
        builder.ends(embed, head, self._vector(program.final_gain))
        self.instruction_set = isa
        self.pool = thread_pool(threads or default_threads())
        self._engine = _native.Engine(builder, isa, self.pool)
        self._chosen = False

    def forward(
        self,
        batch: Batch,
        rows: np.ndarray,
        logits: np.ndarray | None = None,
        best: np.ndarray | None = None,
        index: np.ndarray | None = None,
    ) -> None:
        """Compute the batch; rows int32[n] of the T tokens want logits float32[>=n, V] (and argmax int32[n]).

        `index` int32[R]: the table row of each batch row, for tables of all slots.
        """
        counts = np.diff(batch.offsets).astype(np.int32)
        tables = [np.ascontiguousarray(table) for table in batch.tables]
        self._engine.forward(batch.tokens, batch.starts, counts, tables, index, rows, logits, best)

    def step_queue(
        self,
        sampler: Any,
        tokens: np.ndarray,
        tables: Sequence[np.ndarray],
        logits: np.ndarray,
        chances: Sequence[float] = (),
    ) -> Any:
        """Launches over a request table (`_native.StepQueue`), drawn by `sampler` (`_native.SamplerTable`).

        tokens int32[slots, longest], tables int32[slots, blocks] per group, logits float32[slots, V].
        chances: of synthetic acceptance (native/core/acceptance.h); none: drafts count that are drawn.
        """
        return self._engine.step_queue(sampler, tokens, list(tables), logits, list(chances))

    def hidden(self, rows: np.ndarray) -> np.ndarray:
        """float32[n, d]: final-normed hidden states of tokens of the last forward."""
        out = np.empty((len(rows), self.program.hidden_size), np.float32)
        self._engine.hidden(rows, out)
        return out

    def logits(self, rows: np.ndarray) -> np.ndarray:
        """float32[n, V] of tokens of the last forward."""
        out = np.empty((len(rows), self.program.vocab_size), np.float32)
        self._engine.logits(rows, out)
        return out

    def head(self, hidden: np.ndarray) -> np.ndarray:
        """float32[n, V] of final-normed hidden states."""
        out = np.empty((len(hidden), self.program.vocab_size), np.float32)
        self._engine.head(np.ascontiguousarray(hidden), out)
        return out

    def embedding(self, tokens: np.ndarray) -> np.ndarray:
        """float32[n, d] of tokens int32[n], not scaled. Also while a step runs."""
        out = np.empty((len(tokens), self.program.hidden_size), np.float32)
        self._engine.embedding(np.ascontiguousarray(tokens, np.int32), out)
        return out

    def features(self, out: np.ndarray) -> None:
        """What the last forward captured of its T tokens, into float32[T, features_width]."""
        self._engine.features(out)

    def bind_kv(self, pool: np.ndarray, layout: Any) -> None:
        """pool uint8: blocks of `layout` (kv.groups.KVLayout), one after the other."""
        slot = layout.block_size * layout.kv_heads * layout.head_bytes
        layers = [(group, place * 2 * slot) for group, place in layout.layer_place]
        self._engine.bind_kv(
            pool,
            layout.block_bytes,
            layers,
            slot,
            slot // layout.kv_heads,
            layout.block_size,
            layout.itemsize,
        )
        if not self._chosen:
            self._choose_fine(pool, layout)
            self._chosen = True

    def _choose_fine(self, pool: np.ndarray, layout: Any) -> None:
        """Run a few tokens of the vocabulary, always the same, by which the native side chooses inputs that
        it holds with more bits (native/core/fine.cpp). The blocks that it needs are as before afterwards."""
        groups = len(layout.groups)
        count = min(FINE_TOKENS, len(pool) // layout.block_bytes // groups * layout.block_size)
        blocks = -(-count // layout.block_size)
        tokens = (np.arange(1, count + 1) * 2654435761 % self.program.vocab_size).astype(np.int32)
        tables = list(np.arange(groups * blocks, dtype=np.int32).reshape(groups, 1, blocks))
        start, counts = np.zeros(1, np.int32), np.full(1, count, np.int32)
        used = pool[: groups * blocks * layout.block_bytes]
        before = used.copy()
        self._engine.choose_fine(tokens, start, counts, tables)
        used[:] = before

    def take_clocks(self) -> dict[str, float]:
        """Seconds of thread 0 per kind of operation since the last call."""
        names = ("norm", "add_norm", "linear", "add_linear", "gated_linear", "rotate", "attend", "experts",
                 "add_sigmoid", "capture", "embed", "head")  # fmt: skip
        return dict(zip(names, self._engine.take_clocks(), strict=True))

    def _vector(self, values: Any) -> Any:
        if values is None:
            return None
        array = np.ascontiguousarray(values, dtype=np.float32).reshape(-1)
        self._keep.append(array)
        return array

    def _weight(self, packed: Any) -> int:
        self._keep.append(packed)
        return int(self._builder.weight(packed))

    def _add(self, op: Operation) -> None:
        builder = self._builder
        match op:
            case Norm():
                builder.norm(self._vector(op.gain))
            case AddNorm():
                builder.add_norm(self._vector(op.post_gain), op.scale, self._vector(op.gain))
            case Linear():
                self._linear(op.source, op.target, op.weight, op.bias, add=False, scale=1.0)
            case AddLinear():
                self._linear(op.source, "x", op.weight, op.bias, add=True, scale=op.scale)
            case GatedLinear():
                weight, bias, act = self._weight(op.weight), self._vector(op.bias), op.activation
                kind = ACTIVATIONS[act.kind]
                builder.gated_linear(
                    BUFFERS["normed"], BUFFERS["hidden"], weight, bias, kind, act.alpha, act.limit
                )
            case Rotate():
                self._rotate(op)
            case Attend():
                shape, params = op.shape, op.params
                builder.attend(
                    op.layer, shape.heads, shape.kv_heads, shape.head_dim,
                    params.window or 0, params.softcap or 0.0, self._vector(op.sinks),
                )  # fmt: skip
            case MixExperts():
                self._experts(op)
            case AddSigmoidGated():
                builder.add_sigmoid()
            case Capture():
                builder.capture(op.index * self.program.hidden_size)

    def _linear(self, source: str, target: str, weight: Any, bias: Any, *, add: bool, scale: float) -> None:
        """One operation, or one per part of a joined weight, each for its columns of the target."""
        parts = weight.parts if isinstance(weight, JoinedWeight) else (weight,)
        column = 0
        for part in parts:
            self._builder.linear(
                source=BUFFERS[source],
                target=BUFFERS[target],
                weight=self._weight(part),
                bias=self._vector(None if bias is None else bias[column : column + part.n]),
                add=add,
                scale=scale,
                column=column,
                last=part is parts[-1],
            )
            column += part.n

    def _experts(self, op: MixExperts) -> None:
        biases = op.biases or (None, None)
        self._builder.experts(
            gate_up=self._weight(op.gate_up),
            down=self._weight(op.down),
            gate_up_bias=self._vector(biases[0]),
            down_bias=self._vector(biases[1]),
            kind=ACTIVATIONS[op.activation.kind],
            alpha=op.activation.alpha,
            limit=op.activation.limit,
            top_k=op.top_k,
            softmax_before=op.softmax == "before",
            normalize=op.normalize,
        )

    def _rotate(self, op: Rotate) -> None:
        gains = (None, None) if op.gains is None else (self._vector(op.gains[0]), self._vector(op.gains[1]))
        shape = op.shape
        self._builder.rotate(
            layer=op.layer,
            rope=-1 if op.rope is None else op.rope,
            heads=shape.heads,
            kv_heads=shape.kv_heads,
            head_dim=shape.head_dim,
            half=op.rotated // 2,
            interleaved=op.style == "interleaved",
            q_gain=gains[0],
            k_gain=gains[1],
            eps=self.program.norm_eps,
            scale=op.scale,
        )


__all__: Sequence[str] = ["Executable", "default_threads", "thread_pool"]
