"""Score: `POST /v1/score`, vLLM's format for pairs of texts; also at `/score`."""

from __future__ import annotations

from typing import Annotated

import msgspec
from msgspec import UNSET, Meta, Struct, UnsetType

from penstock.embedding import MAX_INPUTS, ScoreCall, Scores
from penstock.errors import InvalidRequest
from penstock.wire.openai_common import decode_request, encode
from penstock.wire.openai_embeddings import EmbeddingUsage, TruncateTokens, read_truncation

PATHS = ("/v1/score", "/score")

_Texts = str | Annotated[list[str], Meta(min_length=1, max_length=MAX_INPUTS)]


class ScoreRequest(Struct, kw_only=True, omit_defaults=True):
    """text_1: one text for every text_2, or as many as there are of those."""

    model: str
    text_1: _Texts
    text_2: _Texts
    truncate_prompt_tokens: TruncateTokens | None = None


class ScoreBody(Struct):
    index: int
    score: float
    object: str = "score"


class ScoreList(Struct):
    id: str
    created: int
    model: str
    data: list[ScoreBody]
    usage: EmbeddingUsage
    truncated: list[int] | UnsetType = UNSET
    object: str = "list"


_decoder = msgspec.json.Decoder(ScoreRequest)
_FIELDS = frozenset(ScoreRequest.__struct_fields__)


def read_request(body: bytes) -> ScoreCall:
    """InvalidRequest names the field at fault."""
    request, _ = decode_request(body, _decoder, _FIELDS)
    first = [request.text_1] if isinstance(request.text_1, str) else request.text_1
    second = [request.text_2] if isinstance(request.text_2, str) else request.text_2
    if len(first) == 1:
        first = first * len(second)
    if len(first) != len(second):
        raise InvalidRequest(
            f"text_1: {len(first)} texts for {len(second)} in text_2; send one, or as many", param="text_1"
        )
    return ScoreCall(
        model=request.model,
        pairs=tuple(zip(first, second, strict=True)),
        max_tokens=read_truncation(request.truncate_prompt_tokens),
    )


def write_body(answer: Scores, model: str, request_id: str, created: int) -> bytes:
    return encode(
        ScoreList(
            id=f"score-{request_id}",
            created=created,
            model=model,
            data=[ScoreBody(index, score) for index, score in enumerate(answer.scores)],
            usage=EmbeddingUsage(answer.prompt_tokens, answer.prompt_tokens),
            truncated=list(answer.truncated) or UNSET,
        )
    )
