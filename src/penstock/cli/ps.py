"""`penstock ps`: what a running server serves, and what it does."""

from __future__ import annotations

from typing import Literal

from msgspec import Struct

from penstock.cli.remote import DEFAULT_URL, ApiKey, Url


class Served(Struct, frozen=True):
    """running and waiting count the requests of the whole server."""

    model: str
    state: Literal["ready", "starting", "stuck"]
    max_context: int | None
    running: int
    waiting: int
    url: str


def ps(url: Url = DEFAULT_URL, api_key: ApiKey = None) -> None:
    """Show the models of a running server."""
    from penstock.cli import output
    from penstock.cli.remote import Server

    server = Server(url, api_key)
    health = server.health()
    state: Literal["ready", "starting", "stuck"] = "ready" if health["ready"] else "starting"
    if not health["alive"]:
        state = "stuck"
    found = [
        Served(
            str(model["id"]),
            state,
            model.get("max_model_len") or None,
            int(health.get("running", 0)),
            int(health.get("waiting", 0)),
            server.url,
        )
        for model in server.models()
    ]
    output.rows(found, Served)
