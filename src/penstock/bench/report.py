"""Reports: a table for the terminal, JSON for keeping. Both name the machine and the workload."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import msgspec
from msgspec import Struct

from penstock.bench.metrics import Spread, Summary


def as_json(summary: Struct, workload: dict[str, Any], machine: dict[str, Any], date: str | None) -> bytes:
    """One indented JSON object. `date` is passed in: a report is a function of its inputs."""
    report = {"date": date, "machine": machine, "workload": workload, "result": summary}
    return msgspec.json.format(msgspec.json.encode(report), indent=2) + b"\n"


def save(path: Path, report: bytes) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_bytes(report)


def rows(summary: Summary) -> list[tuple[str, ...]]:
    """(quantity, mean, p50, p90, p95, p99) in milliseconds, for quantities that were seen."""
    found = []
    for name, value in (
        ("TTFT", summary.ttft),
        ("TPOT", summary.tpot),
        ("ITL", summary.itl),
        ("E2E", summary.e2e),
    ):
        if value is not None:
            found.append((f"{name} (ms)", *_milliseconds(value)))
    return found


def headline(summary: Summary) -> list[str]:
    """The run's totals, one sentence a line."""
    lines = [
        f"{summary.requests - summary.failed} of {summary.requests} requests in {summary.duration_s:.2f} s "
        f"({summary.requests_per_s:.2f} requests/s)",
        f"input {summary.input_tokens} tokens ({summary.input_tokens_per_s:.1f} tokens/s, "
        f"{summary.cached_tokens} from the prefix cache)",
        f"output {summary.output_tokens} tokens ({summary.output_tokens_per_s:.1f} tokens/s)",
    ]
    if (drafts := summary.drafts) is not None and drafts.steps:
        lines.append(
            f"drafts {drafts.accepted} of {drafts.drafted} right, "
            f"{1 + drafts.accepted / drafts.steps:.2f} tokens in each of {drafts.steps} steps with drafts"
        )
    targets = summary.targets
    wanted = [
        f"{name} ≤ {value * 1000:g} ms"
        for name, value in (("TTFT", targets.ttft_s), ("TPOT", targets.tpot_s))
        if value is not None
    ]
    if wanted:
        lines.append(f"goodput {summary.goodput_rps:.2f} requests/s ({', '.join(wanted)})")
    lines += [f"failed {count}×: {reason}" for reason, count in summary.errors.items()]
    return lines


def print_summary(summary: Summary) -> None:
    """The table, on stdout."""
    from rich.console import Console
    from rich.table import Table

    console = Console(highlight=False)
    for line in headline(summary):
        console.print(line, markup=False)
    table = Table("", "mean", "p50", "p90", "p95", "p99", box=None)
    for column in table.columns[1:]:
        column.justify = "right"
    for row in rows(summary):
        table.add_row(*row)
    console.print(table)


def _milliseconds(value: Spread) -> tuple[str, ...]:
    return tuple(
        f"{seconds * 1000:.2f}"
        for seconds in (value.mean_s, value.p50_s, value.p90_s, value.p95_s, value.p99_s)
    )
