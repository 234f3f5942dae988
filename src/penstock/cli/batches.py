"""`penstock batches list|show|cancel`: the batches of a running server, of OpenAI's API and Anthropic's."""

from __future__ import annotations

from datetime import UTC, datetime
from typing import TYPE_CHECKING, Annotated, Any

import typer
from msgspec import Struct

from penstock.cli.remote import DEFAULT_URL, ApiKey, Url

if TYPE_CHECKING:
    from penstock.cli.remote import Server

app = typer.Typer(help="Look after the batches of a running server.", no_args_is_help=True)

OPENAI, ANTHROPIC = "/v1/batches", "/v1/messages/batches"

Id = Annotated[str, typer.Argument(metavar="ID", help="as `penstock batches list` shows it")]


class Batch(Struct, frozen=True):
    """Counts are requests. results: the file of answers or the address of the results; "" before the end."""

    id: str
    status: str
    total: int
    succeeded: int
    failed: int
    created_at: datetime
    expires_at: datetime
    results: str


@app.command("list")
def list_(
    limit: Annotated[int, typer.Option("--limit", min=1, max=100, help="newest ones of each API")] = 20,
    url: Url = DEFAULT_URL,
    api_key: ApiKey = None,
) -> None:
    """Batches of a running server, newest first."""
    from penstock.cli import output
    from penstock.cli.remote import Server

    server = Server(url, api_key)
    found = [_batch(body) for path in (OPENAI, ANTHROPIC) for body in _page(server, path, limit)]
    found.sort(key=lambda batch: batch.created_at, reverse=True)
    output.rows(found, Batch)
    if not found:
        output.hint("no batch yet; POST /v1/files and /v1/batches, or /v1/messages/batches, make one")


@app.command("show")
def show(name: Id, url: Url = DEFAULT_URL, api_key: ApiKey = None) -> None:
    """One batch of a running server."""
    from penstock.cli import output
    from penstock.cli.remote import Server

    found = _batch(Server(url, api_key).get(_path(name)))
    output.result(found, _told(found))


@app.command("cancel")
def cancel(name: Id, url: Url = DEFAULT_URL, api_key: ApiKey = None) -> None:
    """End a batch; its answers so far are kept."""
    from penstock.cli import output
    from penstock.cli.remote import Server

    found = _batch(Server(url, api_key).post(_path(name) + "/cancel", {}))
    output.result(found, _told(found))


def _page(server: Server, path: str, limit: int) -> list[dict[str, Any]]:
    found: list[dict[str, Any]] = server.get(f"{path}?limit={limit}")["data"]
    return found


def _path(name: str) -> str:
    from urllib.parse import quote

    return f"{ANTHROPIC if name.startswith('msgbatch_') else OPENAI}/{quote(name, safe='')}"


def _batch(body: dict[str, Any]) -> Batch:
    """As either API shows it."""
    counts = body["request_counts"]
    if body.get("object") == "batch":
        created, expires = (datetime.fromtimestamp(body[name], UTC) for name in ("created_at", "expires_at"))
        done, failed, total = counts["completed"], counts["failed"], counts["total"]
        status, results = body["status"], body["output_file_id"]
    else:
        created, expires = (datetime.fromisoformat(body[name]) for name in ("created_at", "expires_at"))
        done, total = counts["succeeded"], sum(counts.values())
        failed = total - done - counts["processing"]
        status, results = body["processing_status"], body["results_url"]
    return Batch(body["id"], status, total, done, failed, created, expires, results or "")


def _told(batch: Batch) -> str:
    where = f" · results: {batch.results}" if batch.results else ""
    counts = f"{batch.succeeded} of {batch.total} answered, {batch.failed} failed"
    return f"{batch.id}: {batch.status}, {counts}{where}"
