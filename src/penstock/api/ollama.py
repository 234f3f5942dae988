"""Ollama's routes: the two that generate (hot), and those about models, over a ModelLibrary.

`/api/version` tells the release of Ollama whose API this is: clients compare it with the one that they need.
"""

from __future__ import annotations

import asyncio
from collections.abc import Awaitable, Callable
from typing import Any, TypeVar

import msgspec
from msgspec import Struct
from starlette.requests import Request
from starlette.responses import PlainTextResponse, Response
from starlette.routing import Route
from starlette.types import ASGIApp, Receive, Scope, Send

from penstock.api import ollama_bodies as bodies
from penstock.api.body import read_body
from penstock.api.errors import ClientGone, send_bytes
from penstock.api.exchange import exchange_of
from penstock.api.generate import GenerateRoute
from penstock.api.media import require_json
from penstock.api.ollama_calls import OllamaCalls, plain_name
from penstock.api.ollama_embed import OllamaEmbed
from penstock.api.ollama_progress import run_with_progress
from penstock.config import ServerSettings
from penstock.errors import InvalidRequest, NotFound
from penstock.gateway.service import EmbeddingService, LibraryModel, ModelLibrary, ModelService
from penstock.observe.metrics import Metrics
from penstock.wire import ollama_chat, ollama_embed, ollama_generate
from penstock.wire.openai_common import decode_request, encode, refuse

R = TypeVar("R", bound=Struct)
Handler = Callable[[Any], Awaitable[bytes]]

API_VERSION = "0.13.5"


class NotServed(InvalidRequest):
    """A route of Ollama that is known and does nothing here."""

    status = 501


class OllamaRoutes:
    """`hot`: the generating routes; `rest`: the others, for a Router."""

    def __init__(
        self,
        service: ModelService,
        settings: ServerSettings,
        metrics: Metrics,
        library: ModelLibrary | None,
        embeddings: EmbeddingService | None,
    ) -> None:
        self._service = service
        self._embeddings = embeddings
        self._library = library
        calls = OllamaCalls(service, library)
        self.hot = [
            GenerateRoute(calls, settings, metrics, codec) for codec in (ollama_chat, ollama_generate)
        ]
        self.rest = [
            _route("/", self._running),
            _route("/api/version", self._version),
            _route("/api/tags", self._tags),
            _route("/api/ps", self._ps),
            _json_route("POST", "/api/show", bodies.ShowRequest, self._show),
            _json_route("POST", "/api/copy", bodies.CopyRequest, self._copy),
            _json_route("DELETE", "/api/delete", bodies.ModelRequest, self._delete),
            Route("/api/pull", _Work("/api/pull", self._pull), methods=["POST"]),
            Route("/api/create", _Work("/api/create", self._create), methods=["POST"]),
            *_embedding(embeddings, metrics),
            *(_refusal(path, reason) for path, reason in _REFUSED_ROUTES.items()),
        ]

    # ------------------------------------------------------------------ GET

    async def _running(self, request: Request) -> Response:
        return PlainTextResponse("Ollama is running")

    async def _version(self, request: Request) -> Response:
        return _json(bodies.VersionBody(API_VERSION))

    async def _tags(self, request: Request) -> Response:
        return _json(bodies.ModelList([bodies.model_body(model) for model in await self._models()]))

    async def _ps(self, request: Request) -> Response:
        """What is loaded: the served models, once they are ready, and those that embed."""
        cards = self._service.models() if self._service.health().ready else []
        known = {model.name: model for model in await self._models()}
        running = [bodies.running_body(known[card.id], card.max_context) for card in cards]
        loaded = [] if self._embeddings is None else self._embeddings.loaded()
        running += [
            bodies.running_body(
                known.get(model.name) or LibraryModel(model.name, 0, 0.0, ""), model.max_tokens, model.expires
            )
            for model in loaded
            if model.name not in {card.id for card in cards}
        ]
        return _json(bodies.RunningList(running))

    async def _models(self) -> list[LibraryModel]:
        """Of the library, and the served ones that it does not know."""
        found = [] if self._library is None else await asyncio.to_thread(self._library.entries)
        names = {model.name for model in found}
        cards = [card for card in self._service.models() if card.id not in names]
        return [
            *(LibraryModel(card.id, 0, card.created, "", context=card.max_context) for card in cards),
            *found,
        ]

    # ------------------------------------------------------------------ with a body

    async def _show(self, request: bodies.ShowRequest) -> bytes:
        library = self._need_library("/api/show")
        try:
            sheet = await asyncio.to_thread(library.show, plain_name(request.name))
        except NotFound:
            raise _unknown(request.name) from None
        return encode(bodies.show_body(sheet))

    async def _copy(self, request: bodies.CopyRequest) -> bytes:
        library = self._need_library("/api/copy")
        source, destination = plain_name(request.source), plain_name(request.destination)
        try:
            await asyncio.to_thread(library.copy, source, destination)
        except NotFound:
            raise _unknown(request.source) from None
        return b""

    async def _delete(self, request: bodies.ModelRequest) -> bytes:
        library = self._need_library("/api/delete")
        try:
            await asyncio.to_thread(library.delete, plain_name(request.name))
        except NotFound:
            raise _unknown(request.name) from None
        return b""

    async def _pull(self, scope: Scope, receive: Receive, send: Send) -> None:
        request, _ = await _read(scope, receive, bodies.PullRequest)
        library, name = self._need_library("/api/pull"), plain_name(request.name)
        await run_with_progress(
            scope, receive, send, request.stream is not False, lambda progress: library.pull(name, progress)
        )

    async def _create(self, scope: Scope, receive: Receive, send: Send) -> None:
        request, extra = await _read(scope, receive, bodies.CreateRequest)
        refuse(extra, _REFUSED_IN_CREATE, {name: ("", {}, []) for name in _REFUSED_IN_CREATE})
        library, name, source = self._need_library("/api/create"), plain_name(request.name), request.source
        if not source:
            raise InvalidRequest("from: the model, GGUF file or folder to take is required", param="from")
        await run_with_progress(
            scope,
            receive,
            send,
            request.stream is not False,
            lambda progress: library.create(name, plain_name(source), progress),
        )

    def _need_library(self, path: str) -> ModelLibrary:
        if self._library is None:
            raise NotServed(f"{path}: this server has no model library", code="not_served")
        return self._library


_REFUSED_IN_CREATE = {
    "files": "blobs can't be uploaded; name a file or folder of the server's machine in `from`",
    "adapters": "adapters can't be put into a model",
    "quantize": "quantize with `penstock quantize`, then create from its folder",
    "template": "a model keeps its own template; send finished text with `raw: true`",
    "system": "the store keeps weights only; send the system text with each request",
    "parameters": "the store keeps weights only; send `options` with each request",
    "messages": "the store keeps weights only; send the messages with each request",
}
_REFUSED_ROUTES = {
    "/api/push": "models can't be pushed: there is no registry to push to",
    "/api/blobs/{digest}": "blobs can't be uploaded; create a model from a file of the server's machine",
}


_NO_EMBEDDINGS = "this server does not make embeddings"


def _embedding(service: EmbeddingService | None, metrics: Metrics) -> list[Route]:
    paths = (ollama_embed.PATH, ollama_embed.OLD_PATH)
    if service is None:
        return [_refusal(path, _NO_EMBEDDINGS) for path in paths]
    routes = OllamaEmbed(service, metrics)
    return [
        Route(path, _Work(path, endpoint), methods=["POST"])
        for path, endpoint in zip(paths, (routes.embed, routes.embed_one), strict=True)
    ]


def _unknown(name: str) -> NotFound:
    return NotFound(f"model '{name}' not found", param="model", code="model_not_found")


def _json(value: object) -> Response:
    return Response(encode(value), media_type="application/json")


def _route(path: str, endpoint: Callable[[Request], Awaitable[Response]]) -> Route:
    async def named(request: Request) -> Response:
        exchange_of(request.scope).route = path
        return await endpoint(request)

    return Route(path, named, methods=["GET"])  # HEAD comes with it


class _Work:
    """A raw ASGI endpoint: an object, since Starlette calls functions with a Request."""

    def __init__(self, path: str, endpoint: ASGIApp) -> None:
        self._path = path
        self._endpoint = endpoint

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        exchange_of(scope).route = self._path
        await self._endpoint(scope, receive, send)


def _json_route(method: str, path: str, kind: type[Struct], handler: Handler) -> Route:
    async def endpoint(scope: Scope, receive: Receive, send: Send) -> None:
        request, _ = await _read(scope, receive, kind)
        await send_bytes(send, 200, await handler(request))

    return Route(path, _Work(path, endpoint), methods=[method])


def _refusal(path: str, reason: str) -> Route:
    async def endpoint(scope: Scope, receive: Receive, send: Send) -> None:
        raise NotServed(f"{path}: {reason}", code="not_served")

    return Route(path, _Work(path, endpoint), methods=["POST"])


async def _read(scope: Scope, receive: Receive, kind: type[R]) -> tuple[R, dict[str, Any]]:
    require_json(scope)
    body = await read_body(receive)
    if body is None:
        raise ClientGone
    known = frozenset(field.encode_name for field in msgspec.structs.fields(kind))
    return decode_request(body, msgspec.json.Decoder(kind), known)
