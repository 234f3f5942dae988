"""`penstock bench offline|serve|quality`: measure the engine alone, a server of the OpenAI API, quality.

The first two take the same workloads and show the same table; `--report` keeps it as JSON with a
description of the machine.
"""

from __future__ import annotations

import asyncio
import datetime
from collections.abc import Awaitable, Callable
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from penstock.bench.options import WorkloadOptions
from penstock.cli.bench_quality import quality
from penstock.cli.flags import with_flags
from penstock.config import EngineSettings, build
from penstock.errors import ConfigError, EngineUnavailable

if TYPE_CHECKING:
    from penstock.bench.http_client import Target
    from penstock.bench.metrics import Record
    from penstock.bench.workloads import Item

app = typer.Typer(help="Measure latency, throughput and goodput, and quality.", no_args_is_help=True)
app.command("quality")(quality)

Report = Annotated[Path | None, typer.Option("--report", "-o", help="write the report here as JSON")]
TtftMs = Annotated[float | None, typer.Option("--ttft-ms", help="goodput target: time to first token")]
TpotMs = Annotated[float | None, typer.Option("--tpot-ms", help="goodput target: time per output token")]


@app.command("offline")
@with_flags(workload=WorkloadOptions, engine=EngineSettings, skip=("model",))
def offline(
    model: Annotated[str | None, typer.Argument(help="name, GGUF file or folder; default: smollm2")] = None,
    batch: Annotated[int | None, typer.Option("--batch", min=1, help="requests in flight at most")] = None,
    ttft_ms: TtftMs = None,
    tpot_ms: TpotMs = None,
    report: Report = None,
    *,
    workload: dict[str, Any],
    engine: dict[str, Any],
) -> None:
    """Measure the engine in this process, without HTTP."""
    options = build(WorkloadOptions, **workload)
    items = options.items()
    given = engine if model is None else {**engine, "model": model}
    records = asyncio.run(_offline(given, items, batch))
    name = build(EngineSettings, **given).model
    described = {"kind": "offline", "model": name, "batch": batch, "engine": engine}
    _report(records, options, described, ttft_ms, tpot_ms, report)


async def _offline(engine: dict[str, Any], items: list[Item], batch: int | None) -> list[Record]:
    from penstock.bench.offline import run_offline
    from penstock.cli.start import open_llm

    llm = await open_llm(None, engine)
    try:
        return await _with_progress(
            len(items),
            lambda on_done: run_offline(
                llm, items, vocab_size=llm.ready.vocab_size, concurrency=batch, on_done=on_done
            ),
        )
    finally:
        await llm.close()


@app.command("serve")
@with_flags(workload=WorkloadOptions)
def serve(
    url: Annotated[str, typer.Option("--url", help="of the server")] = "http://127.0.0.1:8000",
    model: Annotated[
        str | None, typer.Option("--model", help="default: the first that /v1/models names")
    ] = None,
    api_key: Annotated[str | None, typer.Option("--api-key", help="bearer key")] = None,
    concurrency: Annotated[
        int | None, typer.Option("--concurrency", min=1, help="requests in flight at most; default: no limit")
    ] = None,
    vocab_size: Annotated[
        int, typer.Option("--vocab-size", min=2, help="prompts are random token ids below it")
    ] = 8192,
    timeout_s: Annotated[
        float, typer.Option("--timeout-s", help="seconds until a request counts as failed")
    ] = 600.0,
    ttft_ms: TtftMs = None,
    tpot_ms: TpotMs = None,
    report: Report = None,
    *,
    workload: dict[str, Any],
) -> None:
    """Measure a server over HTTP (any server of /v1/completions)."""
    from penstock.bench.http_client import Target

    options = build(WorkloadOptions, **workload)
    items = options.items()
    named = model or asyncio.run(_first_model(url, api_key))
    target = Target(url=url, model=named, api_key=api_key, vocab_size=vocab_size, timeout_s=timeout_s)
    records = asyncio.run(_serve(target, items, concurrency))
    described = {"kind": "serve", "url": url, "model": named, "concurrency": concurrency}
    _report(records, options, described, ttft_ms, tpot_ms, report)


async def _serve(target: Target, items: list[Item], concurrency: int | None) -> list[Record]:
    from penstock.bench.drive import drive
    from penstock.bench.http_client import complete

    return await _with_progress(
        len(items),
        lambda on_done: drive(
            items, lambda item: complete(target, item), concurrency=concurrency, on_done=on_done
        ),
    )


async def _with_progress(
    total: int, run: Callable[[Callable[[Record], None]], Awaitable[list[Record]]]
) -> list[Record]:
    from penstock.cli import console

    with console.count_progress("requests", total) as advance:
        return await run(lambda record: advance())


async def _first_model(url: str, api_key: str | None) -> str:
    from penstock.bench.http_client import get_json

    try:
        models = await get_json(url, "/v1/models", api_key)
    except OSError as error:
        raise EngineUnavailable(f"--url: nobody answers at {url} ({error}); is the server running?") from None
    except ValueError as error:
        raise ConfigError(f"--url: {url}/v1/models: {error}") from None
    if not models.get("data"):
        raise ConfigError(f"--url: {url}/v1/models names no model; give --model")
    return str(models["data"][0]["id"])


def _report(
    records: list[Record],
    options: WorkloadOptions,
    described: dict[str, Any],
    ttft_ms: float | None,
    tpot_ms: float | None,
    path: Path | None,
) -> None:
    import msgspec

    from penstock.bench import report
    from penstock.bench.metrics import Targets, summarize
    from penstock.cli import output
    from penstock.observe.machine import describe_machine

    def seconds(value_ms: float | None) -> float | None:
        return None if value_ms is None else value_ms / 1000

    summary = summarize(records, Targets(ttft_s=seconds(ttft_ms), tpot_s=seconds(tpot_ms)))
    output.rows(report.measures(summary), report.Measure, human=lambda: report.view(summary))
    if path is not None:
        workload = {**described, **msgspec.to_builtins(options)}
        today = datetime.datetime.now(tz=datetime.UTC).date().isoformat()
        report.save(path, report.as_json(summary, workload, describe_machine(), today))
    if summary.failed == summary.requests:
        raise typer.Exit(1)
