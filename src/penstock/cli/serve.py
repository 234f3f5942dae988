"""`penstock serve`: one model behind the HTTP API."""

from __future__ import annotations

import ipaddress
import secrets
from typing import Annotated, Any

import msgspec
import typer

from penstock.cli.flags import with_flags
from penstock.config import EngineSettings, ServerSettings, build


@with_flags(server=ServerSettings, settings=EngineSettings, skip=("model",))
def serve(
    model: Annotated[str | None, typer.Argument(help="name, GGUF file or folder; default: smollm2")] = None,
    *,
    server: dict[str, Any],
    settings: dict[str, Any],
) -> None:
    """Serve a model on the OpenAI API."""
    engine_settings = build(EngineSettings, **(settings if model is None else {**settings, "model": model}))
    server_settings = with_key(build(ServerSettings, **server))
    raise typer.Exit(_run(engine_settings, server_settings))


def with_key(server: ServerSettings) -> ServerSettings:
    """Beyond loopback a server needs a key: one is made and printed if none was given."""
    if server.api_key is not None or is_loopback(server.host):
        return server
    from penstock.cli import console

    key = secrets.token_urlsafe(24)
    console.note(f"{server.host} is reachable from other machines: API key for this run is {key}")
    return msgspec.structs.replace(server, api_key=key)


def is_loopback(host: str) -> bool:
    """Whether only this machine can connect. A name other than localhost counts as reachable."""
    if host == "localhost":
        return True
    try:
        return ipaddress.ip_address(host.strip("[]")).is_loopback
    except ValueError:
        return False


def _run(settings: EngineSettings, server: ServerSettings) -> int:
    raise NotImplementedError
