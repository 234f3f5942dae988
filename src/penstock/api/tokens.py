"""`POST /tokenize` and `POST /detokenize`, in the shapes that vLLM made common."""

from __future__ import annotations

from typing import Annotated, Any

import msgspec
from msgspec import Meta, Struct
from starlette.types import Receive, Scope, Send

from penstock.api.body import read_body
from penstock.api.errors import ClientGone, send_bytes
from penstock.api.media import require_json
from penstock.errors import InvalidRequest, NotFound
from penstock.gateway.service import ModelCard, ModelService
from penstock.wire import openai_messages
from penstock.wire.openai_common import TokenId, decode_request, encode


class TokenizeRequest(Struct, omit_defaults=True):
    """Exactly one of `prompt` and `messages`."""

    model: str | None = None
    prompt: str | None = None
    messages: Annotated[list[openai_messages.ChatMessage], Meta(min_length=1)] | None = None
    tools: list[openai_messages.Tool] | None = None
    add_special_tokens: bool | None = None
    add_generation_prompt: bool | None = None


class TokenizeAnswer(Struct):
    tokens: list[int]
    count: int
    max_model_len: int


class DetokenizeRequest(Struct, omit_defaults=True):
    tokens: list[TokenId]
    model: str | None = None


class DetokenizeAnswer(Struct):
    prompt: str


_tokenize_decoder = msgspec.json.Decoder(TokenizeRequest)
_detokenize_decoder = msgspec.json.Decoder(DetokenizeRequest)
_TOKENIZE_FIELDS = frozenset(TokenizeRequest.__struct_fields__)
_DETOKENIZE_FIELDS = frozenset(DetokenizeRequest.__struct_fields__)


class TokenRoutes:
    """ASGI endpoints `tokenize` and `detokenize` over one service."""

    def __init__(self, service: ModelService) -> None:
        self._service = service

    async def tokenize(self, scope: Scope, receive: Receive, send: Send) -> None:
        body = await _json_body(scope, receive)
        request, _ = decode_request(body, _tokenize_decoder, _TOKENIZE_FIELDS)
        card = find_model(self._service, request.model)
        if (request.prompt is None) == (request.messages is None):
            raise InvalidRequest("prompt: send exactly one of `prompt` and `messages`", param="prompt")
        if request.prompt is not None:
            special = request.add_special_tokens is not False
            tokens = await self._service.tokenize(card.id, request.prompt, special)
        else:
            tokens = await self._service.tokenize_chat(
                card.id,
                openai_messages.read_messages(request.messages or []),
                openai_messages.read_tools(request.tools),
                request.add_generation_prompt is not False,
            )
        answer = TokenizeAnswer([int(token) for token in tokens], len(tokens), card.max_context)
        await send_bytes(send, 200, encode(answer))

    async def detokenize(self, scope: Scope, receive: Receive, send: Send) -> None:
        body = await _json_body(scope, receive)
        request, _ = decode_request(body, _detokenize_decoder, _DETOKENIZE_FIELDS)
        card = find_model(self._service, request.model)
        text = await self._service.detokenize(card.id, request.tokens)
        await send_bytes(send, 200, encode(DetokenizeAnswer(text)))


def find_model(service: ModelService, name: str | None) -> ModelCard:
    """The card of a model that generates; the first one where none is named. Raises NotFound."""
    return find_card(service.models(), name)


def find_card(cards: list[ModelCard], name: str | None) -> ModelCard:
    for card in cards:
        if name is None or card.id == name:
            return card
    known = ", ".join(card.id for card in cards)
    raise NotFound(
        f"model: {name!r} is not served here; served: {known}", param="model", code="model_not_found"
    )


async def _json_body(scope: Scope, receive: Receive) -> Any:
    require_json(scope)
    body = await read_body(receive)
    if body is None:
        raise ClientGone
    return body
