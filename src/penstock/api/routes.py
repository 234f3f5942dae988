"""The routes: a dictionary for the hot ones, Starlette's router for the rest.

No route knows the layers around it. Unknown paths are 404, known ones with another method 405, both
in the error envelope.
"""

from __future__ import annotations

from collections.abc import Awaitable, Callable

import msgspec
from starlette.exceptions import HTTPException
from starlette.requests import Request
from starlette.responses import Response
from starlette.routing import Match, Route, Router
from starlette.types import ASGIApp, Receive, Scope, Send

from penstock import __version__
from penstock.api import anthropic
from penstock.api.batches import BatchRoutes, MessageBatchRoutes
from penstock.api.bodies import ModelBody, ModelList, VersionBody
from penstock.api.conversations import ConversationRoutes
from penstock.api.embeddings import EmbeddingRoutes
from penstock.api.errors import MethodNotAllowed
from penstock.api.exchange import exchange_of
from penstock.api.files import FileRoutes
from penstock.api.generate import GenerateRoute
from penstock.api.ollama import OllamaRoutes
from penstock.api.prefix_miss import PrefixMissRoutes
from penstock.api.responses import ResponseRoutes
from penstock.api.tokens import TokenRoutes, find_card
from penstock.config import ServerSettings
from penstock.errors import NotFound
from penstock.gateway.batches.answer import Answerer
from penstock.gateway.batches.runner import BatchRunner
from penstock.gateway.batches.service import BatchService
from penstock.gateway.service import EmbeddingService, Health, ModelCard, ModelLibrary, ModelService
from penstock.gateway.sessions import Sessions
from penstock.observe.metrics import Metrics
from penstock.store.opening import LazyBatches, LazyDatabase, LazyTurns
from penstock.wire import (
    anthropic_batches,
    anthropic_messages,
    openai_chat,
    openai_completions,
    openai_embeddings,
    openai_responses,
    openai_responses_compact,
    rerank,
    score,
)
from penstock.wire.anthropic_dialect import ANTHROPIC

Endpoint = Callable[[Request], Awaitable[Response]]


class Routes:
    """The innermost app. `hot` maps a path to a raw ASGI endpoint that checks its method itself."""

    def __init__(
        self,
        service: ModelService,
        settings: ServerSettings,
        metrics: Metrics,
        library: ModelLibrary | None = None,
        embeddings: EmbeddingService | None = None,
    ) -> None:
        codecs = (
            openai_chat,
            openai_completions,
            openai_responses,
            openai_responses_compact,
            anthropic_messages,
        )
        self.database = LazyDatabase(settings.database_url)
        turns = LazyTurns(self.database)
        sessions = Sessions(service, turns, settings.session_bytes, settings.session_pin_s)
        self.batches = _batches(service, sessions, LazyBatches(self.database), settings, metrics)
        hot = {codec.PATH: GenerateRoute(service, settings, metrics, codec, sessions) for codec in codecs}
        ollama = OllamaRoutes(service, settings, metrics, library, embeddings)
        self._hot: dict[str, ASGIApp] = {**hot, **{route.path: route for route in ollama.hot}}
        rest = _rest(service, settings, metrics, embeddings) + _embedding(embeddings, metrics)
        rest += _debug_routes(service, sessions, turns)
        rest += _response_routes(service, sessions, turns, hot[openai_responses.PATH])
        rest += _batch_routes(self.batches, settings)
        self._paths = [*hot, *(route.path for route in rest), "/"]
        self._rest = Router([*rest, *ollama.rest], redirect_slashes=False, default=_not_found)

    def paths(self) -> list[str]:
        """The template of every route in /openapi.json: all but Ollama's, which are documented by Ollama."""
        return self._paths

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        endpoint = self._hot.get(scope["path"])
        if endpoint is not None:
            await endpoint(scope, receive, send)
            return
        scope["app"] = self  # with an app in the scope Starlette raises a 405 instead of sending plain text
        try:
            await self._rest(scope, receive, send)
        except HTTPException as error:
            if error.status_code != 405:
                raise
            raise MethodNotAllowed(scope["method"], scope["path"], self._allowed(scope)) from None

    def _allowed(self, scope: Scope) -> str:
        """Methods of a path, by all routes of the template that it matches first; Starlette's own answer
        names those of one route."""
        routes = [route for route in self._rest.routes if isinstance(route, Route)]
        path = next(route.path for route in routes if route.matches(scope)[0] is not Match.NONE)
        methods = {method for route in routes if route.path == path for method in route.methods or ()}
        return ", ".join(sorted(methods))


def _embedding(service: EmbeddingService | None, metrics: Metrics) -> list[Route]:
    routes = EmbeddingRoutes(service, metrics)
    return [
        _post(openai_embeddings.PATH, routes.embed),
        *(_post(path, routes.rerank) for path in rerank.PATHS),
        *(_post(path, routes.score) for path in score.PATHS),
    ]


def _rest(
    service: ModelService, settings: ServerSettings, metrics: Metrics, embeddings: EmbeddingService | None
) -> list[Route]:
    tokens = TokenRoutes(service)

    def cards() -> list[ModelCard]:
        """Of all models; where one both generates and embeds, the card that knows the context served."""
        found = {card.id: card for card in embeddings.models()} if embeddings is not None else {}
        generating = service.models()
        return [
            *generating,
            *(card for name, card in found.items() if name not in {c.id for c in generating}),
        ]

    async def models(request: Request) -> Response:
        if exchange_of(request.scope).dialect is ANTHROPIC:
            return _json(anthropic.model_list(service, request.query_params))
        return _json(ModelList([_model_body(card) for card in cards()]))

    async def model(request: Request) -> Response:
        name = request.path_params["model"]
        if exchange_of(request.scope).dialect is ANTHROPIC:
            return _json(anthropic.one_model(service, name))
        return _json(_model_body(find_card(cards(), name)))

    async def health(request: Request) -> Response:
        state = service.health()
        return _health(state, state.alive)

    async def ready(request: Request) -> Response:
        state = service.health()
        return _health(state, state.ready)

    async def exposition(request: Request) -> Response:
        state = service.health()
        for card in service.models()[:1]:
            metrics.queue(card.id, state.running, state.waiting)
            metrics.engine_state(card.id, state.ready, state.restarts)
        return Response(metrics.expose(), media_type=metrics.content_type.decode())

    async def version(request: Request) -> Response:
        return _json(VersionBody(__version__))

    async def openapi(request: Request) -> Response:
        from penstock.api.openapi.document import document  # its schemas are made when somebody asks

        return _json(document([card.id for card in service.models()], settings.api_key is not None))

    return [
        _get("/v1/models", models),
        _get("/v1/models/{model:path}", model),
        _get("/health", health),
        _get("/ready", ready),
        _get("/metrics", exposition),
        _get("/version", version),
        _get("/openapi.json", openapi),
        _post(anthropic_messages.COUNT_PATH, anthropic.CountTokens(service)),
        _post("/tokenize", tokens.tokenize),
        _post("/detokenize", tokens.detokenize),
    ]


def _get(path: str, endpoint: Endpoint) -> Route:
    return _on("GET", path, endpoint)


def _on(method: str, path: str, endpoint: Endpoint) -> Route:
    async def named(request: Request) -> Response:
        exchange_of(request.scope).route = path
        return await endpoint(request)

    return Route(path, named, methods=[method])


def _response_routes(
    service: ModelService, sessions: Sessions, turns: LazyTurns, generate: GenerateRoute
) -> list[Route]:
    """Stored responses and conversations."""
    responses, conversations = (
        ResponseRoutes(service, sessions, turns, generate),
        ConversationRoutes(turns, sessions),
    )
    response, conversation = "/v1/responses/{response_id}", "/v1/conversations/{conversation_id}"
    items = conversation + "/items"
    return [
        _on("POST", "/v1/responses/input_tokens", responses.input_tokens),
        _on("GET", response, responses.get),
        _on("DELETE", response, responses.delete),
        _on("POST", response + "/cancel", responses.cancel),
        _on("GET", response + "/input_items", responses.input_items),
        _on("POST", "/v1/conversations", conversations.create),
        _on("GET", conversation, conversations.get),
        _on("POST", conversation, conversations.update),
        _on("DELETE", conversation, conversations.delete),
        _on("POST", items, conversations.add_items),
        _on("GET", items, conversations.list_items),
        _on("GET", items + "/{item_id}", conversations.get_item),
        _on("DELETE", items + "/{item_id}", conversations.delete_item),
    ]


def _batches(
    service: ModelService, sessions: Sessions, store: LazyBatches, settings: ServerSettings, metrics: Metrics
) -> BatchService:
    """For all formats that answer with one body; OpenAI's have an endpoint of their own each."""
    openai = {codec.PATH: codec for codec in (openai_chat, openai_completions, openai_responses)}
    answer = Answerer(service, sessions, {**openai, anthropic_messages.PATH: anthropic_messages})
    runner = BatchRunner(
        store, answer, metrics, in_flight=settings.batch_in_flight, lease_s=settings.batch_lease_s
    )
    return BatchService(store, runner, list(openai))


def _batch_routes(service: BatchService, settings: ServerSettings) -> list[Route]:
    """Files and batches."""
    files = FileRoutes(service.store, settings)
    batches, messages = BatchRoutes(service), MessageBatchRoutes(service)
    file, batch = "/v1/files/{file_id}", "/v1/batches/{batch_id}"
    message_batches = anthropic_batches.PATH
    message_batch = message_batches + "/{batch_id}"
    return [
        _on("POST", "/v1/files", files.create),
        _on("GET", "/v1/files", files.list),
        _on("GET", file, files.get),
        _on("DELETE", file, files.delete),
        _on("GET", file + "/content", files.content),
        _on("POST", "/v1/batches", batches.create),
        _on("GET", "/v1/batches", batches.list),
        _on("GET", batch, batches.get),
        _on("POST", batch + "/cancel", batches.cancel),
        _on("POST", message_batches, messages.create),
        _on("GET", message_batches, messages.list),
        _on("GET", message_batch, messages.get),
        _on("DELETE", message_batch, messages.delete),
        _on("POST", message_batch + "/cancel", messages.cancel),
        _on("GET", message_batch + "/results", messages.results),
    ]


def _debug_routes(service: ModelService, sessions: Sessions, turns: LazyTurns) -> list[Route]:
    misses = PrefixMissRoutes(service, sessions, turns)
    return [
        _on("POST", "/debug/prefix-miss", misses.compare),
        _get("/debug/prefix-miss/{response_id}", misses.of_response),
    ]


class _Raw:
    """An ASGI endpoint as Starlette wants it: an object, since it calls functions with a Request."""

    def __init__(self, path: str, endpoint: ASGIApp) -> None:
        self._path = path
        self._endpoint = endpoint

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        exchange_of(scope).route = self._path
        await self._endpoint(scope, receive, send)


def _post(path: str, endpoint: ASGIApp) -> Route:
    return Route(path, _Raw(path, endpoint), methods=["POST"])


async def _not_found(scope: Scope, receive: Receive, send: Send) -> None:
    raise NotFound(
        f"{scope['method']} {scope['path'][:200]}: no such route; see /openapi.json", code="unknown_route"
    )


def _model_body(card: ModelCard) -> ModelBody:
    return ModelBody(card.id, card.created, card.owned_by, card.max_context)


def _health(state: Health, good: bool) -> Response:
    headers = None if good else {"retry-after": "1"}
    return Response(msgspec.json.encode(state), 200 if good else 503, headers, "application/json")


def _json(value: object) -> Response:
    return Response(msgspec.json.encode(value), media_type="application/json")
