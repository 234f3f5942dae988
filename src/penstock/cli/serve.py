"""`penstock serve`: one model behind the HTTP API.

The start shows what it waits for and ends in one line: model, memory plan, address, seconds. Where
the seconds went is a line of the log.
"""

from __future__ import annotations

import asyncio
import contextlib
import logging
from typing import TYPE_CHECKING, Annotated, Any

import typer
from msgspec import Struct

from penstock.cli.flags import with_flags
from penstock.config import EngineSettings, ServerSettings, build
from penstock.errors import PenstockError

if TYPE_CHECKING:
    from penstock.cli.start import Clock
    from penstock.engine.messages import Ready
    from penstock.engine.service import EngineService
    from penstock.engine.transport import Transport

SHOW_EVERY_S = 0.1


class Serving(Struct, frozen=True):
    """A server that is ready."""

    model: str
    url: str
    backend: str
    max_context: int
    start_s: float


log = logging.getLogger("penstock.start")


@with_flags(server=ServerSettings, settings=EngineSettings, skip=("model",))
def serve(
    model: Annotated[str | None, typer.Argument(help="name, GGUF file or folder; default: smollm2")] = None,
    *,
    server: dict[str, Any],
    settings: dict[str, Any],
) -> None:
    """Serve a model on the OpenAI API."""
    settings = settings if model is None else {**settings, "model": model}
    engine_settings = build(EngineSettings, **settings)
    _run(engine_settings, build(ServerSettings, **server), settings)


def _run(settings: EngineSettings, server: ServerSettings, given: dict[str, Any]) -> None:
    """given: the engine settings that were not left alone."""
    import uvloop

    from penstock.api.security import with_api_key
    from penstock.cli import console
    from penstock.cli.start import Clock, ensure_model, setup_logging
    from penstock.simulate.scripted.script import is_scripted

    clock = Clock()
    clock.lap("command")
    setup_logging(server.log_level)
    server, made = with_api_key(server)
    if made:
        console.note(
            f"{server.host} can be reached from other machines; API key for this run: {server.api_key}"
        )
    if is_scripted(settings.model):
        from penstock.cli.serve_scripted import serve_scripted

        uvloop.run(serve_scripted(settings.model, server, clock, given))
        return
    if server.engine is None:
        ensure_model(settings.model)
    clock.lap("model")
    uvloop.run(_serve(settings, server, clock))


async def _serve(settings: EngineSettings, server: ServerSettings, clock: Clock) -> None:
    """Until a signal. Raises the error that keeps the model from being served."""
    from penstock.api.app import create_app
    from penstock.api.server import serve_app
    from penstock.engine.embedding.service import LocalEmbeddings
    from penstock.engine.service import EngineService
    from penstock.gateway.local_library import LocalLibrary
    from penstock.models.sources import public_name
    from penstock.observe.metrics import Metrics

    metrics = Metrics()
    name = server.served_model_name or public_name(settings.model)
    # An engine that was started elsewhere knows best what it serves.
    asked = server.served_model_name is not None or settings.model != EngineSettings().model
    adopt = server.engine is not None and not asked
    service = EngineService(settings, _transport_to(server.engine), name, metrics, adopt_name=adopt)

    def served() -> dict[str, str]:
        return {service.name: service.ready.model_path if service.ready else settings.model}

    embeddings, library = LocalEmbeddings(server, generating=served), LocalLibrary(served)
    app = create_app(service, server, embeddings=embeddings, metrics=metrics, library=library)
    stop = asyncio.Event()
    tasks: list[asyncio.Task[None]] = []

    def listening(url: str) -> None:
        clock.lap("server")
        tasks.append(asyncio.create_task(_announce(service, url, clock, stop)))

    try:
        await serve_app(app, server, listening, stop=stop)
    finally:
        for task in tasks:
            with contextlib.suppress(asyncio.CancelledError):
                task.cancel()
                await task  # raises what kept the model from being served


def _transport_to(address: str | None) -> Any:
    """A factory settings → Transport: a stand-alone engine at `address`, or one of our own."""

    def connect(settings: EngineSettings) -> Transport:
        if address is not None:
            from penstock.engine.client import ZmqTransport

            return ZmqTransport(address)
        from penstock.engine.supervisor import SupervisedTransport

        return SupervisedTransport(settings)

    return connect


async def _announce(service: EngineService, url: str, clock: Clock, stop: asyncio.Event) -> None:
    """Show phases until ready, then the one line. A model that can't be served stops the server."""
    from penstock.cli import output
    from penstock.cli.start import Phases, memory_plan

    phases = Phases()
    try:
        waiting = asyncio.ensure_future(service.wait_ready())
        while not waiting.done():
            phases.show(service.health().detail)
            await asyncio.wait([waiting], timeout=SHOW_EVERY_S)
        ready = waiting.result()
    except PenstockError:
        if not stop.is_set():
            stop.set()
            raise
        return
    finally:
        phases.close()
    clock.lap("engine")
    served = f"{service.name} on {ready.backend} · {memory_plan(ready.plan)}"
    output.result(
        Serving(service.name, url, ready.backend, ready.max_context, round(clock.total_s, 2)),
        f"{served} · {url} · ready in {clock.total_s:.1f} s",
    )
    log.info("the start took %.2f s: %s", clock.total_s, _where(clock, ready))


def _where(clock: Clock, ready: Ready) -> str:
    """`command 0.21, model 0.00, server 0.35, engine 2.10 (inspect 0.04, weights 1.31, …) s`."""
    parts = [f"{name} {seconds:.2f}" for name, seconds in clock.laps.items()]
    inner = {name.removesuffix("_s"): seconds for name, seconds in ready.timings.items()}
    inner["process and tokenizer"] = max(0.0, clock.laps["engine"] - sum(inner.values()))
    return f"{', '.join(parts)} ({', '.join(f'{name} {seconds:.2f}' for name, seconds in inner.items())}) s"
