"""The ASGI application: routes inside a visible, ordered list of layers. Never BaseHTTPMiddleware,
which hides the client's departure from the routes.
"""

from __future__ import annotations

from collections.abc import Callable
from functools import partial

from starlette.types import ASGIApp, Receive, Scope, Send

from penstock.api.body import BodyLimit
from penstock.api.errors import ErrorLayer
from penstock.api.layers import AccessLogLayer, RequestIdLayer
from penstock.api.routes import Routes
from penstock.api.security import AuthLayer, HostCheck
from penstock.config import ServerSettings
from penstock.gateway.service import EmbeddingService, ModelLibrary, ModelService
from penstock.observe.metrics import Metrics
from penstock.wire import anthropic_batches


class App:
    """What `create_app` makes: an ASGI app that knows its services, for the server's start and end."""

    def __init__(
        self,
        app: ASGIApp,
        routes: Routes,
        service: ModelService,
        embeddings: EmbeddingService | None,
        metrics: Metrics,
    ) -> None:
        self._app = app
        self.routes = routes
        self.service = service
        self.embeddings = embeddings
        self.metrics = metrics

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        if scope["type"] != "http":
            raise NotImplementedError(f"{scope['type']}: only HTTP is served")
        await self._app(scope, receive, send)

    async def start(self) -> None:
        """Begin loading, and go on with the batches that an earlier server left."""
        await self.service.start()
        self.routes.batches.start()

    async def drain(self, timeout_s: float) -> None:
        """Nothing new, and no batch: their lines are run by the next server. Answers get `timeout_s`."""
        await self.routes.batches.close()
        await self.service.drain(timeout_s)

    async def close(self) -> None:
        """End the batches and the services, then the store that their answers go to."""
        await self.routes.batches.close()
        await self.service.close()
        if self.embeddings is not None:
            await self.embeddings.close()
        await self.routes.database.close()


def create_app(
    service: ModelService,
    settings: ServerSettings,
    *,
    embeddings: EmbeddingService | None = None,
    metrics: Metrics | None = None,
    library: ModelLibrary | None = None,
) -> App:
    """The whole HTTP side over one service that generates and, if there is one, one that embeds.

    library: the models of this machine, for the routes that manage them; without one these are refused.
    Raises ConfigError if the address is not loopback and no key is set (`security.with_api_key`).
    """
    metrics = metrics or Metrics()
    layers: list[Callable[[ASGIApp], ASGIApp]] = [
        RequestIdLayer,
        partial(AccessLogLayer, metrics=metrics),
        ErrorLayer,  # of what the next two layers raise
        partial(HostCheck, settings=settings),
        *_cors(settings),
        ErrorLayer,  # inside CORS, so that a page may read its errors
        partial(AuthLayer, settings=settings),
        partial(
            BodyLimit,
            max_bytes=settings.max_body_bytes,
            uploads=("/v1/files", anthropic_batches.PATH),
            max_file_bytes=settings.max_file_bytes,
        ),
    ]
    routes = Routes(service, settings, metrics, library, embeddings)
    app: ASGIApp = routes
    for layer in reversed(layers):
        app = layer(app)
    return App(app, routes, service, embeddings, metrics)


def _cors(settings: ServerSettings) -> list[Callable[[ASGIApp], ASGIApp]]:
    if not settings.cors_origins:
        return []
    from starlette.middleware.cors import CORSMiddleware

    return [
        partial(
            CORSMiddleware,
            allow_origins=settings.cors_origins,
            allow_methods=["GET", "POST", "DELETE"],
            allow_headers=["*"],
            expose_headers=["x-request-id", "retry-after"],
        )
    ]
