"""`penstock serve scripted:FILE`: the HTTP API over fixed replies, for tests of clients and agents."""

from __future__ import annotations

import logging
from typing import TYPE_CHECKING, Any

from msgspec import Struct

from penstock.config import ServerSettings
from penstock.errors import ConfigError

if TYPE_CHECKING:
    from penstock.cli.start import Clock

log = logging.getLogger("penstock.start")


class ServingScript(Struct, frozen=True):
    """A server of a script that is ready."""

    model: str
    url: str
    backend: str
    max_context: int
    rules: int
    start_s: float


async def serve_scripted(model: str, server: ServerSettings, clock: Clock, given: dict[str, Any]) -> None:
    """Until a signal. given: the engine settings that were asked for. Raises NotFound and ConfigError."""
    from penstock.api.app import create_app
    from penstock.api.server import serve_app
    from penstock.cli import output
    from penstock.observe.metrics import Metrics
    from penstock.simulate.scripted.library import ScriptedLibrary
    from penstock.simulate.scripted.script import read_script
    from penstock.simulate.scripted.service import ScriptedModelService

    for name in given:
        if name != "model":
            raise ConfigError(f"{name}: a scripted model has no engine to set; leave it out")
    if server.engine is not None:
        raise ConfigError(f"engine: {server.engine}; a scripted model needs none, leave it out")
    script = read_script(model)
    service = ScriptedModelService(script, server.served_model_name)
    app = create_app(service, server, metrics=Metrics(), library=ScriptedLibrary(service, model))

    def listening(url: str) -> None:
        clock.lap("server")
        context = script.max_context
        served = ServingScript(
            service.name, url, "script", context, len(script.rules), round(clock.total_s, 2)
        )
        rules = f"{served.rules} rule{'s' * (served.rules != 1)}"
        output.result(served, f"{service.name} of {rules} · {url} · ready in {clock.total_s:.1f} s")

    await serve_app(app, server, listening)
