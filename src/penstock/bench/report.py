"""Reports: a table for people, single measures for programs, JSON with machine and workload for keeping."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path
from typing import TYPE_CHECKING, Any

import msgspec
from msgspec import Struct

from penstock.bench.metrics import Spread, Summary

if TYPE_CHECKING:
    from rich.console import RenderableType


class Measure(Struct, frozen=True):
    """One figure. Its unit is in the name: `_s` seconds, `_per_s` per second."""

    measure: str
    value: float | str


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


def measures(report: Struct) -> list[Measure]:
    """Every figure of a report, those of inner records as `ttft.p50_s`. What was not measured is left out."""
    return list(_measures(msgspec.to_builtins(report), ""))


def _measures(values: dict[str, Any], prefix: str) -> Iterator[Measure]:
    for name, value in values.items():
        if isinstance(value, dict):
            yield from _measures(value, f"{prefix}{name}.")
        elif isinstance(value, float):
            yield Measure(prefix + name, float(f"{value:.6g}"))
        elif value is not None:
            yield Measure(prefix + name, value)


def view(summary: Summary) -> list[RenderableType]:
    """Sentences and a table of the quantities that were seen."""
    from rich.table import Table
    from rich.text import Text

    table = Table("", "mean", "p50", "p90", "p95", "p99", box=None)
    for column in table.columns[1:]:
        column.justify = "right"
    for row in rows(summary):
        table.add_row(*row)
    return [*map(Text, headline(summary)), table]


def _milliseconds(value: Spread) -> tuple[str, ...]:
    return tuple(
        f"{seconds * 1000:.2f}"
        for seconds in (value.mean_s, value.p50_s, value.p90_s, value.p95_s, value.p99_s)
    )
