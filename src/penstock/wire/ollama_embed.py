"""Ollama's embeddings: `POST /api/embed` and the older `POST /api/embeddings` of a single text.

Source: Ollama's api/types.go and server/routes.go. No text (a missing or empty input) asks to load the model.
Of `options` only `num_ctx` is about embeddings: texts are cut there too. Vectors have the length that the
model gives them on both routes, where Ollama's older one leaves them as the network has them.
"""

from __future__ import annotations

import math
from typing import Annotated, Any

import msgspec
import numpy as np
from msgspec import Meta, Raw, Struct

from penstock.embedding import MODEL_LIMIT, EmbedCall, Embeddings, check_count
from penstock.errors import InvalidRequest
from penstock.wire.ollama_common import keep_alive_s
from penstock.wire.openai_common import MAX_INT, decode_request, encode

PATH = "/api/embed"
OLD_PATH = "/api/embeddings"


class EmbedRequest(Struct, kw_only=True, omit_defaults=True):
    """truncate: cut inputs that are too long; false: refuse them."""

    model: str
    input: str | list[str] | None = None
    truncate: bool | None = None
    dimensions: Annotated[int, Meta(ge=0, le=MAX_INT)] | None = None
    options: dict[str, Any] | None = None
    keep_alive: Any = None


class OldRequest(Struct, kw_only=True, omit_defaults=True):
    model: str
    prompt: str | None = None
    options: dict[str, Any] | None = None
    keep_alive: Any = None


class EmbedBody(Struct):
    """Durations in nanoseconds."""

    model: str
    embeddings: list[Raw]
    total_duration: int
    load_duration: int
    prompt_eval_count: int


class OldBody(Struct):
    embedding: Raw


_decoder = msgspec.json.Decoder(EmbedRequest)
_old_decoder = msgspec.json.Decoder(OldRequest)


def read_request(body: bytes) -> EmbedCall:
    """InvalidRequest names the field at fault."""
    request, _ = decode_request(body, _decoder, frozenset(EmbedRequest.__struct_fields__))
    given = request.input or ()
    inputs = (given,) if isinstance(given, str) else tuple(given)
    if inputs:
        check_count(len(inputs), "input")
    longest = _longest(request.options)
    return EmbedCall(
        model=request.model,
        inputs=inputs,
        dimensions=request.dimensions or None,
        max_tokens=None if request.truncate is False else longest,
        keep_alive_s=_keep_alive(request.keep_alive),
    )


def read_old_request(body: bytes) -> EmbedCall:
    request, _ = decode_request(body, _old_decoder, frozenset(OldRequest.__struct_fields__))
    return EmbedCall(
        model=request.model,
        inputs=(request.prompt,) if request.prompt else (),
        max_tokens=_longest(request.options),
        keep_alive_s=_keep_alive(request.keep_alive),
    )


def _longest(options: dict[str, Any] | None) -> int:
    """Tokens at which texts are cut."""
    asked = (options or {}).get("num_ctx")
    if asked is None:
        return MODEL_LIMIT
    if isinstance(asked, bool) or not isinstance(asked, int) or asked < 1:
        raise InvalidRequest(
            f"options.num_ctx: {asked!r}; send a positive number of tokens", param="options.num_ctx"
        )
    return asked


def _keep_alive(value: Any) -> float | None:
    if value is None:
        return None
    seconds = keep_alive_s(value)
    return math.inf if seconds is None else seconds


def write_body(answer: Embeddings, model: str, total_s: float) -> bytes:
    """Row by row: nothing here holds the interpreter for long."""
    return encode(
        EmbedBody(
            model,
            [_row(vector) for vector in answer.vectors],
            round(total_s * 1e9),
            round(answer.load_s * 1e9),
            answer.prompt_tokens,
        )
    )


def write_old_body(answer: Embeddings) -> bytes:
    return encode(OldBody(_row(answer.vectors[0]) if len(answer.vectors) else Raw(b"[]")))


def _row(vector: np.ndarray) -> Raw:
    return Raw(encode(vector.tolist()))
