"""Rerank: `POST /v1/rerank` in the shape that Cohere, Jina and vLLM share; also at `/rerank`, `/v2/rerank`.

Results come best first, equal ones in the order of the documents. Beside `usage` (Jina, vLLM) stands Cohere's
`meta`. Documents are strings, or objects with a `text`.
"""

from __future__ import annotations

from typing import Annotated

import msgspec
from msgspec import UNSET, Meta, Struct, UnsetType

from penstock.embedding import MAX_INPUTS, ScoreCall, Scores, check_count
from penstock.wire.openai_common import MAX_INT, decode_request, encode, refuse
from penstock.wire.openai_embeddings import EmbeddingUsage, TruncateTokens, read_truncation

PATHS = ("/v1/rerank", "/rerank", "/v2/rerank")

_REFUSED = {"rank_fields": "documents are read by their `text`; send that"}


class TextDocument(Struct):
    text: str


class RerankRequest(Struct, kw_only=True, omit_defaults=True):
    """max_tokens_per_doc: longer documents are cut (Cohere's name; max_chunks_per_doc was its older form)."""

    model: str
    query: str
    documents: Annotated[list[str | TextDocument], Meta(min_length=1, max_length=MAX_INPUTS)]
    top_n: Annotated[int, Meta(ge=1, le=MAX_INT)] | None = None
    return_documents: bool | None = None
    max_tokens_per_doc: Annotated[int, Meta(ge=1, le=MAX_INT)] | None = None
    truncate_prompt_tokens: TruncateTokens | None = None


class RerankResult(Struct):
    index: int
    relevance_score: float
    document: TextDocument | UnsetType = UNSET


class ApiVersion(Struct, frozen=True):
    version: str = "2"


class BilledUnits(Struct, frozen=True):
    search_units: int = 1


class RerankMeta(Struct, frozen=True):
    api_version: ApiVersion = ApiVersion()
    billed_units: BilledUnits = BilledUnits()


class RerankAnswer(Struct):
    """`truncated`: indices of documents of which something was left out; absent if none."""

    id: str
    model: str
    results: list[RerankResult]
    usage: EmbeddingUsage
    meta: RerankMeta = RerankMeta()
    truncated: list[int] | UnsetType = UNSET


class RerankCall(Struct, frozen=True):
    """What is asked of the model, and how the answer is to look."""

    score: ScoreCall
    documents: tuple[str, ...]
    top_n: int
    return_documents: bool


_decoder = msgspec.json.Decoder(RerankRequest)
_FIELDS = frozenset(RerankRequest.__struct_fields__)


def read_request(body: bytes) -> RerankCall:
    """InvalidRequest names the field at fault."""
    request, extra = decode_request(body, _decoder, _FIELDS)
    refuse(extra, _REFUSED, {"rank_fields": ([], ["text"])})
    check_count(len(request.documents), "documents")
    documents = tuple(item if isinstance(item, str) else item.text for item in request.documents)
    score = ScoreCall(
        model=request.model,
        pairs=tuple((request.query, document) for document in documents),
        max_tokens=read_truncation(request.truncate_prompt_tokens),
        document_tokens=request.max_tokens_per_doc,
    )
    return RerankCall(
        score, documents, request.top_n or len(documents), request.return_documents is not False
    )


def write_body(call: RerankCall, answer: Scores, model: str, request_id: str) -> bytes:
    order = sorted(range(len(answer.scores)), key=lambda index: -answer.scores[index])
    return encode(
        RerankAnswer(
            id=f"rerank-{request_id}",
            model=model,
            results=[
                RerankResult(
                    index,
                    answer.scores[index],
                    TextDocument(call.documents[index]) if call.return_documents else UNSET,
                )
                for index in order[: call.top_n]
            ],
            usage=EmbeddingUsage(answer.prompt_tokens, answer.prompt_tokens),
            truncated=list(answer.truncated) or UNSET,
        )
    )
