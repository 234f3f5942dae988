"""`penstock settings`: every setting with its type, default and meaning, as docs/settings.md has them."""

from __future__ import annotations

from typing import Annotated, Literal

import typer
from msgspec import Struct


class Setting(Struct, frozen=True):
    flag: str
    type: str
    default: str
    meaning: str


def settings(
    part: Annotated[
        Literal["engine", "server"], typer.Argument(help="engine: of all verbs that load a model")
    ] = "engine",
) -> None:
    """List the settings of the engine or the server."""
    from penstock.cli import output
    from penstock.cli.flags import default_text
    from penstock.config import EngineSettings, ServerSettings, describe

    record = EngineSettings if part == "engine" else ServerSettings
    output.rows(
        [
            Setting(f"--{name.replace('_', '-')}", kind, default_text(name, default), meaning)
            for name, kind, default, meaning in describe(record)
        ],
        Setting,
    )
