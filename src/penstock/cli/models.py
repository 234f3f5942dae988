"""`penstock list`, `cp`, `rm`: what lies in the model store. `penstock models …` are the same verbs."""

from __future__ import annotations

from datetime import datetime
from typing import Annotated, Literal

import typer
from msgspec import Struct

app = typer.Typer(help="List, copy and remove models of the model store.", no_args_is_help=True)

Name = Annotated[str, typer.Argument(help="name as `penstock list` shows it")]


class Model(Struct, frozen=True):
    name: str
    size_bytes: int
    modified_at: datetime
    source: str
    path: str


class Changed(Struct, frozen=True):
    name: str
    change: Literal["copied", "removed"]
    path: str


@app.command("list")
def list_() -> None:
    """Models in the model store."""
    from penstock.cli import output
    from penstock.models import sources

    found = sources.list_models()
    output.rows(
        [Model(m.name, m.size_bytes, m.modified_at, m.source, str(m.path)) for m in found],
        Model,
    )
    if not found:
        output.hint("the model store is empty; `penstock pull smollm2` brings a small model")


@app.command("cp")
def cp(
    source: Name, name: Annotated[str, typer.Argument(metavar="NAME", help="of the copy; it must be free")]
) -> None:
    """Give a model of the store a second name; both share the files on disk."""
    from penstock.cli import output
    from penstock.models import sources

    path = sources.copy(source, name)
    output.result(Changed(name, "copied", str(path)), f"{source} is {name} too")


@app.command("rm")
def rm(name: Name) -> None:
    """Remove a model from the store."""
    from penstock.cli import output
    from penstock.models import sources

    path = sources.remove(name)
    output.result(Changed(name, "removed", str(path)), f"removed {name}")
