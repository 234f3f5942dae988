"""`penstock stop MODEL`: take a model out of a running server's memory."""

from __future__ import annotations

from typing import Annotated

import typer
from msgspec import Struct

from penstock.cli.remote import DEFAULT_URL, ApiKey, Url
from penstock.errors import InvalidRequest, NotFound


class Stopped(Struct, frozen=True):
    model: str
    url: str


def stop(
    model: Annotated[str, typer.Argument(help="id as `penstock ps` shows it")],
    url: Url = DEFAULT_URL,
    api_key: ApiKey = None,
) -> None:
    """Unload a model from a running server; its next request loads it again."""
    from penstock.cli import output
    from penstock.cli.remote import Server

    server = Server(url, api_key)
    ids = [str(found["id"]) for found in server.models()]
    if model not in ids:
        raise NotFound(f"{model}: not served at {server.url}; served are {', '.join(ids) or 'none'}")
    try:
        # The Ollama API has the only common form of this: a request without a prompt that keeps nothing.
        server.post("/api/generate", {"model": model, "keep_alive": 0, "stream": False})
    except NotFound as error:
        raise InvalidRequest(
            f"{server.url}: can't unload single models ({error.message}); end the server itself"
        ) from None
    output.result(Stopped(model, server.url), f"stopped {model}")
