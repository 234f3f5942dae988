"""The OpenAI embeddings format: `POST /v1/embeddings`.

Extension: `truncate_prompt_tokens` (vLLM) cuts inputs that are too long, which otherwise are refused; which
ones were cut stands in `truncated` of the answer. Input as token ids is taken as it is.
"""

from __future__ import annotations

import base64
from typing import Annotated, Any, Literal

import msgspec
import numpy as np
from msgspec import UNSET, Meta, Raw, Struct, UnsetType

from penstock.embedding import MAX_INPUTS, EmbedCall, Embeddings, check_count
from penstock.errors import InvalidRequest
from penstock.wire.openai_common import MAX_INT, TokenId, decode_request, encode, refuse

PATH = "/v1/embeddings"

# -1: what the model takes (vLLM's meaning).
TruncateTokens = Annotated[int, Meta(ge=-1, le=MAX_INT)]
_TokenList = Annotated[list[TokenId], Meta(min_length=1)]

_REFUSED = {
    "messages": "chats can't be embedded; send `input`",
    "add_special_tokens": "texts get the tokens that the model expects; send token ids to choose others",
}


class EmbeddingRequest(Struct, kw_only=True, omit_defaults=True):
    model: str
    input: str | Annotated[list[str | TokenId | _TokenList], Meta(min_length=1)]
    encoding_format: Literal["float", "base64"] | None = None
    dimensions: Annotated[int, Meta(ge=1, le=MAX_INT)] | None = None
    truncate_prompt_tokens: TruncateTokens | None = None
    user: str | None = None


class EmbeddingUsage(Struct):
    prompt_tokens: int
    total_tokens: int


class EmbeddingBody(Struct):
    """`embedding`: numbers, or base64 of little-endian float32."""

    index: int
    embedding: list[float] | str
    object: str = "embedding"


class EmbeddingList(Struct):
    """`truncated`: indices of inputs that were cut; absent if none was."""

    data: list[EmbeddingBody]
    model: str
    usage: EmbeddingUsage
    truncated: list[int] | UnsetType = UNSET
    object: str = "list"


_decoder = msgspec.json.Decoder(EmbeddingRequest)
_FIELDS = frozenset(EmbeddingRequest.__struct_fields__)


def read_request(body: bytes) -> tuple[EmbedCall, bool]:
    """(the call, whether vectors are wanted in base64). InvalidRequest names the field at fault."""
    request, extra = decode_request(body, _decoder, _FIELDS)
    refuse(extra, _REFUSED, {"add_special_tokens": (True,)})
    call = EmbedCall(
        model=request.model,
        inputs=_read_input(request.input),
        dimensions=request.dimensions,
        max_tokens=read_truncation(request.truncate_prompt_tokens),
    )
    return call, request.encoding_format == "base64"


def read_truncation(tokens: int | None) -> int | None:
    """`truncate_prompt_tokens` as `EmbedCall.max_tokens`."""
    if tokens == 0:
        raise InvalidRequest(
            "truncate_prompt_tokens: 0 leaves nothing; send -1 (what the model takes) or a number of tokens",
            param="truncate_prompt_tokens",
        )
    return tokens


def _read_input(given: str | list[Any]) -> tuple[str | tuple[int, ...], ...]:
    if isinstance(given, str):
        if not given:
            raise InvalidRequest("input: an empty text; send at least a character", param="input")
        return (given,)
    kinds = {type(item) for item in given}
    if kinds == {int}:
        return (tuple(given),)
    if len(kinds) > 1:
        names = ", ".join(sorted(kind.__name__ for kind in kinds))
        raise InvalidRequest(
            f"input: a list of {names}; send strings, or token ids, or lists of token ids", param="input"
        )
    check_count(len(given), "input")
    if "" in given:
        raise InvalidRequest(
            f"input: entry {given.index('')} is an empty text; send at least a character, or leave it out",
            param="input",
        )
    return tuple(item if isinstance(item, str) else tuple(item) for item in given)


def write_body(answer: Embeddings, model: str, base64_wanted: bool) -> bytes:
    """The JSON body. Row by row: nothing here holds the interpreter for long."""
    vectors = np.ascontiguousarray(answer.vectors, dtype="<f4")
    if base64_wanted:
        rows: list[Any] = [base64.b64encode(row.tobytes()).decode() for row in vectors]
    else:
        rows = [Raw(encode(row.tolist())) for row in vectors]
    return encode(
        EmbeddingList(
            data=[EmbeddingBody(index, row) for index, row in enumerate(rows)],
            model=model,
            usage=EmbeddingUsage(answer.prompt_tokens, answer.prompt_tokens),
            truncated=list(answer.truncated) or UNSET,
        )
    )


__all__ = [
    "MAX_INPUTS",
    "PATH",
    "EmbeddingList",
    "EmbeddingRequest",
    "EmbeddingUsage",
    "read_request",
    "write_body",
]
