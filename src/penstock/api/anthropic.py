"""The Anthropic API beside its messages: counting tokens, and models in its shape."""

from __future__ import annotations

from datetime import UTC, datetime

from msgspec import Struct
from starlette.datastructures import QueryParams
from starlette.types import Receive, Scope, Send

from penstock.api.body import read_body
from penstock.api.errors import ClientGone, send_bytes
from penstock.api.exchange import exchange_of
from penstock.api.media import require_json
from penstock.api.tokens import find_model
from penstock.errors import InvalidRequest
from penstock.gateway.service import ModelCard, ModelService
from penstock.wire.anthropic_messages import ALIAS, read_count
from penstock.wire.openai_common import encode

MAX_LIMIT = 1000
DEFAULT_LIMIT = 20


class AnthropicModel(Struct):
    """One model, as Anthropic lists it. Token counts are 0 as long as the model's context is not known."""

    id: str
    created_at: str  # RFC 3339
    display_name: str
    max_input_tokens: int
    max_tokens: int
    lifecycle: str = "active"
    type: str = "model"


class AnthropicModelList(Struct):
    data: list[AnthropicModel]
    has_more: bool
    first_id: str | None
    last_id: str | None


class TokenCount(Struct):
    input_tokens: int


class CountTokens:
    """The ASGI endpoint of `POST /v1/messages/count_tokens`: the prompt that a message request would have."""

    def __init__(self, service: ModelService) -> None:
        self._service = service

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        require_json(scope)
        body = await read_body(receive)
        if body is None:
            raise ClientGone
        call = read_count(body)
        exchange_of(scope).model = call.model
        card = find_model(self._service, call.model)
        tools = () if call.tool_choice == "none" else call.tools
        tokens = await self._service.tokenize_chat(
            card.id, call.messages, tools, True, call.template_args or None
        )
        await send_bytes(send, 200, encode(TokenCount(len(tokens))))


def model_list(service: ModelService, query: QueryParams) -> AnthropicModelList:
    """A page of the models, each under its own name and, if that is not one already, under one that begins
    with "claude": some clients show no others. Raises InvalidRequest for a limit or an id that is none."""
    models = [model for card in service.models() for model in _models(card)]
    ids = [model.id for model in models]
    begin, end = 0, len(models)
    if (after := query.get("after_id")) is not None:
        begin = _place(ids, "after_id", after) + 1
    limit = limit_of(query.get("limit"))
    if (before := query.get("before_id")) is not None:
        end = _place(ids, "before_id", before)
        begin = max(begin, end - limit)
        has_more = begin > 0
    else:
        has_more = begin + limit < end
        end = min(end, begin + limit)
    page = models[begin:end]
    return AnthropicModelList(page, has_more, page[0].id if page else None, page[-1].id if page else None)


def one_model(service: ModelService, name: str) -> AnthropicModel:
    """By either name. Raises NotFound."""
    card = find_model(service, name.removeprefix(ALIAS))
    return _model(card, name)


def _models(card: ModelCard) -> list[AnthropicModel]:
    known = card.id.startswith(("claude", "anthropic"))
    return [_model(card, card.id), *(() if known else (_model(card, ALIAS + card.id),))]


def _model(card: ModelCard, name: str) -> AnthropicModel:
    created = datetime.fromtimestamp(card.created, UTC).strftime("%Y-%m-%dT%H:%M:%SZ")
    return AnthropicModel(name, created, card.id, card.max_context, card.max_context)


def limit_of(given: str | None) -> int:
    """`limit` of a list request. Raises InvalidRequest."""
    if given is None:
        return DEFAULT_LIMIT
    if not (given.isascii() and given.isdigit() and len(given) <= 4 and 1 <= int(given) <= MAX_LIMIT):
        raise InvalidRequest(f"limit: {given[:20]!r} is no number in [1, {MAX_LIMIT}]", param="limit")
    return int(given)


def _place(ids: list[str], name: str, given: str) -> int:
    if given not in ids:
        raise InvalidRequest(f"{name}: {given[:100]!r} is no model of this server", param=name)
    return ids.index(given)
