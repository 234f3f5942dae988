"""`penstock models`: what lies in the model store."""

from __future__ import annotations

from typing import Annotated

import typer

app = typer.Typer(help="List and remove models of the model store.", no_args_is_help=True)


@app.command("list")
def list_() -> None:
    """Models in the store and in the catalogue."""
    from rich.table import Table

    from penstock.cli import console
    from penstock.models import sources

    table = Table("name", "size", box=None)
    table.add_column("path", overflow="fold")
    for model in sources.list_models():
        table.add_row(model.name, console.size(model.size_bytes), str(model.path))
    console.out().print(table)


@app.command("rm")
def rm(name: Annotated[str, typer.Argument(help="name as `penstock models list` shows it")]) -> None:
    """Remove a model from the store."""
    from penstock.cli import console
    from penstock.models import sources

    sources.remove(name)
    console.note(f"removed {name}")
