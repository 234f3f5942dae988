"""The routes: a dictionary for the hot ones, Starlette's router for the rest.

No route knows the layers around it. Unknown paths are 404, known ones with another method 405, both
in the error envelope.
"""

from __future__ import annotations

from collections.abc import Awaitable, Callable

import msgspec
from starlette.requests import Request
from starlette.responses import Response
from starlette.routing import Route, Router
from starlette.types import ASGIApp, Receive, Scope, Send

from penstock import __version__
from penstock.api.bodies import ModelBody, ModelList, VersionBody
from penstock.api.embeddings import EmbeddingRoutes
from penstock.api.exchange import exchange_of
from penstock.api.generate import GenerateRoute
from penstock.api.tokens import TokenRoutes, find_card
from penstock.config import ServerSettings
from penstock.errors import NotFound
from penstock.gateway.service import EmbeddingService, Health, ModelCard, ModelService
from penstock.observe.metrics import Metrics
from penstock.wire import openai_chat, openai_completions, openai_embeddings, rerank, score

Endpoint = Callable[[Request], Awaitable[Response]]


class Routes:
    """The innermost app. `hot` maps a path to a raw ASGI endpoint that checks its method itself."""

    def __init__(
        self,
        service: ModelService,
        settings: ServerSettings,
        metrics: Metrics,
        embeddings: EmbeddingService | None = None,
    ) -> None:
        codecs = (openai_chat, openai_completions)
        hot = [GenerateRoute(service, settings, metrics, codec) for codec in codecs]
        self._hot: dict[str, ASGIApp] = {route.path: route for route in hot}
        rest = _rest(service, settings, metrics, embeddings) + _embedding(embeddings, metrics)
        self._paths = [*self._hot, *(route.path for route in rest)]
        self._rest = Router(rest, redirect_slashes=False, default=_not_found)

    def paths(self) -> list[str]:
        """The template of every route."""
        return self._paths

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        endpoint = self._hot.get(scope["path"])
        if endpoint is not None:
            await endpoint(scope, receive, send)
            return
        scope["app"] = self  # with an app in the scope Starlette raises a 405 instead of sending plain text
        await self._rest(scope, receive, send)


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
        return _json(ModelList([_model_body(card) for card in cards()]))

    async def model(request: Request) -> Response:
        return _json(_model_body(find_card(cards(), request.path_params["model"])))

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
        from penstock.api.openapi import document  # its schemas are made when somebody asks

        return _json(document([card.id for card in service.models()], settings.api_key is not None))

    return [
        _get("/v1/models", models),
        _get("/v1/models/{model:path}", model),
        _get("/health", health),
        _get("/ready", ready),
        _get("/metrics", exposition),
        _get("/version", version),
        _get("/openapi.json", openapi),
        _post("/tokenize", tokens.tokenize),
        _post("/detokenize", tokens.detokenize),
    ]


def _get(path: str, endpoint: Endpoint) -> Route:
    async def named(request: Request) -> Response:
        exchange_of(request.scope).route = path
        return await endpoint(request)

    return Route(path, named, methods=["GET"])


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
