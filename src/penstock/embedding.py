"""What is asked of embedding models and what they answer: the vocabulary of `wire`, `gateway` and `engine`.

Like `call.py` for generation: wire formats read into these records and write from them.
"""

from __future__ import annotations

from typing import Any

from msgspec import Struct

from penstock.errors import InvalidRequest

MAX_INPUTS = 2048  # texts of one request, as the OpenAI API has it
MODEL_LIMIT = -1  # of `max_tokens`: the model's own


class EmbedCall(Struct, frozen=True, kw_only=True):
    """Vectors of `inputs`: texts, or token ids that are taken as they are, nothing put around them.

    dimensions: the first so many, scaled to length 1 again; None: all. max_tokens: longer inputs are cut to
    so many tokens (MODEL_LIMIT: to what the model takes); None: they are refused. keep_alive_s: how long the
    model stays loaded without further use, inf for ever; None: as the server has it. No inputs: only load it.
    """

    model: str | None
    inputs: tuple[str | tuple[int, ...], ...]
    dimensions: int | None = None
    max_tokens: int | None = None
    keep_alive_s: float | None = None


class Embeddings(Struct, frozen=True):
    """vectors float32[n, d]; `truncated`: indices of the inputs that were cut. load_s: what of the request's
    time went into loading the model."""

    vectors: Any
    prompt_tokens: int
    truncated: tuple[int, ...] = ()
    load_s: float = 0.0


class LoadedModel(Struct, frozen=True):
    """A model that takes memory now. expires: Unix seconds, when it is given back unless used again; None:
    not while a request uses it, or never."""

    name: str
    max_tokens: int
    expires: float | None


class ScoreCall(Struct, frozen=True, kw_only=True):
    """How well each pair (query, document) fits. max_tokens: of a pair, as in EmbedCall; document_tokens:
    longer documents are cut to so many tokens first."""

    model: str | None
    pairs: tuple[tuple[str, str], ...]
    max_tokens: int | None = None
    document_tokens: int | None = None


class Scores(Struct, frozen=True):
    """scores: 0..1 of a cross-encoder, cosines of an embedding model; `truncated`: indices of pairs."""

    scores: tuple[float, ...]
    prompt_tokens: int
    truncated: tuple[int, ...] = ()


def check_count(count: int, param: str) -> None:
    """InvalidRequest unless 1 to MAX_INPUTS texts are asked about."""
    if not 1 <= count <= MAX_INPUTS:
        raise InvalidRequest(f"{param}: {count} entries; send 1 to {MAX_INPUTS} in one request", param=param)
