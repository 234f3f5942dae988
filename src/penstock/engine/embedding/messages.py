"""What crosses the pipes between the gateway and a worker that embeds: frames of MessagePack, ids only.

A frame is its length (u32, little-endian) and its body. The gateway sends Batch, the worker answers each with
Done or Failed; before the first it sends Loaded or Failed.
"""

from __future__ import annotations

import struct
from typing import Literal

import msgspec
import numpy as np
from msgspec import Struct

from penstock.kernels.encoder import TextBatch

LENGTH = struct.Struct("<I")

NO_ROOM = "insufficient_memory"  # code of a model that is refused for now: memory may become free

Task = Literal["embed", "classify"]


class Loaded(Struct, frozen=True, kw_only=True, tag="loaded"):
    """path: of the model's files; max_tokens: of a text; labels: of its classification head, 0 for none."""

    path: str
    width: int
    max_tokens: int
    vocab_size: int
    labels: int


class Batch(Struct, frozen=True, tag="batch"):
    """A TextBatch as bytes, all int32."""

    task: Task
    tokens: bytes
    offsets: bytes
    kinds: bytes | None

    @staticmethod
    def of(task: Task, batch: TextBatch) -> Batch:
        kinds = None if batch.kinds is None else batch.kinds.tobytes()
        return Batch(task, batch.tokens.tobytes(), batch.offsets.tobytes(), kinds)

    def texts(self) -> TextBatch:
        kinds = None if self.kinds is None else np.frombuffer(self.kinds, np.int32)
        return TextBatch(np.frombuffer(self.tokens, np.int32), np.frombuffer(self.offsets, np.int32), kinds)


class Done(Struct, frozen=True, tag="done"):
    """float32[texts, width] as bytes."""

    vectors: bytes


class Failed(Struct, frozen=True, tag="failed"):
    """A PenstockError by its kind."""

    kind: str
    message: str
    code: str | None = None


ToGateway = Loaded | Done | Failed

_encoder = msgspec.msgpack.Encoder()
_to_gateway = msgspec.msgpack.Decoder(ToGateway)
_to_worker = msgspec.msgpack.Decoder(Batch)


def frame(message: ToGateway | Batch) -> bytes:
    body = _encoder.encode(message)
    return LENGTH.pack(len(body)) + body


def read_answer(body: bytes) -> ToGateway:
    return _to_gateway.decode(body)


def read_batch(body: bytes) -> Batch:
    return _to_worker.decode(body)
