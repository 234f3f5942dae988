"""The report of a run: one markdown page and the raw numbers as JSON."""

from __future__ import annotations

import json
import statistics
from pathlib import Path
from typing import Any

from suite.alternate import Measured, Roofline
from suite.roofline import Footprint
from suite.scenarios import Scenario

OURS = "penstock"


def best_peer(engines: list[Measured], name: str) -> float | None:
    """The highest median of all engines but ours."""
    values = [value for engine in engines if engine.name != OURS and (value := engine.median(name))]
    return max(values, default=None)


def rate_table(
    engines: list[Measured], scenarios: list[Scenario], roofline: Roofline, shape: Footprint
) -> list[str]:
    """tokens/s, median (best); ours against the best peer and against what the machine can do."""
    names = [engine.name for engine in engines]
    ours = next((engine for engine in engines if engine.name == OURS), None)
    lines = _head(["tokens/s, median (best)", *names, "÷ best peer", "of read roofline", "of int8 peak"])
    for scenario in scenarios:
        cells = [scenario.name]
        for engine in engines:
            value = engine.median(scenario.name)
            cells.append("—" if value is None else f"{value:,.1f} ({engine.best(scenario.name):,.1f})")
        mine = ours.median(scenario.name) if ours else None
        cells += _shares(mine, best_peer(engines, scenario.name), scenario, roofline, shape)
        lines.append(_row(cells))
    return lines


def _shares(
    mine: float | None, peer: float | None, scenario: Scenario, roofline: Roofline, shape: Footprint
) -> list[str]:
    read = roofline.tokens_per_s(scenario)
    peak = statistics.median(roofline.int8_gmac_s) if roofline.int8_gmac_s else 0.0
    return [
        f"{mine / peer:.2f}×" if mine and peer else "—",
        f"{mine / read:.1%}" if mine and read else "—",
        f"{mine * shape.macs_per_token / (peak * 1e9):.1%}" if mine and peak else "—",
    ]


def ttft_table(engines: list[Measured], scenarios: list[Scenario]) -> list[str]:
    """Time to first token of one new prompt, from the prefill scenarios."""
    lines = _head(["TTFT, ms, median (best)", *(engine.name for engine in engines)])
    for scenario in scenarios:
        if scenario.kind != "prefill":
            continue
        cells = [f"{scenario.context:,} prompt tokens"]
        for engine in engines:
            times = [seconds[0] * 1000 for seconds in engine.seconds.get(scenario.name, [])]
            cells.append(f"{statistics.median(times):,.1f} ({min(times):,.1f})" if times else "—")
        lines.append(_row(cells))
    return lines if len(lines) > 2 else []


def start_table(engines: list[Measured]) -> list[str]:
    """Ready time and memory; only what was measured."""
    if not any(engine.ready_s or engine.memory for engine in engines):
        return []
    head = ["", "ready in its process (s)", "ready over HTTP (s)", "resident at the end (MiB)", "peak (MiB)"]
    lines = _head(head)
    for engine in engines:
        cells = [engine.name]
        for values in (engine.ready_s, engine.http_ready_s):
            cells.append(f"{statistics.median(values):.2f} ({min(values):.2f})" if values else "—")
        for key in ("rss_bytes", "peak_bytes"):
            cells.append(f"{engine.memory[key] / 2**20:,.0f}" if engine.memory else "—")
        lines.append(_row(cells))
    return lines


def conditions(engines: list[Measured]) -> list[str]:
    """Versions, KV precision, what is missing and why, and whether the work was the same."""
    ours = next((engine for engine in engines if engine.name == OURS), None)
    lines = []
    for engine in engines:
        if engine.unavailable:
            lines.append(f"- {engine.name}: unavailable: {engine.unavailable}")
        if not engine.loaded:
            continue
        versions = ", ".join(f"{name} {version}" for name, version in engine.loaded["versions"].items())
        item = engine.loaded.get("kv_itemsize")
        width = f" ({item:.3g} bytes a number)" if item else ""
        lines.append(f"- {engine.name}: {versions}; KV {engine.loaded['kv']}{width}; {engine.loaded['note']}")
        common = [
            name for name in engine.first if ours is not None and engine is not ours and name in ours.first
        ]
        if ours is not None and common:
            equal = sum(engine.first[name] == ours.first[name] for name in common)
            lines[-1] += f"; first 16 tokens equal Penstock's in {equal} of {len(common)} scenarios"
        lines += [f"  - no figure for {name}: {reason}" for name, reason in engine.errors.items()]
    return lines


def probe_lines(roofline: Roofline, scenarios: list[Scenario]) -> list[str]:
    if not roofline.int8_gmac_s:
        return ["No roofline: the probe was not built (see the start of the run)."]
    sets = [
        f"{statistics.median(roofline.gb_s[s.name]):.1f} over {roofline.set_bytes[s.name] / 1e6:,.0f} MB"
        for s in scenarios
        if s.name in roofline.gb_s
    ]
    return [
        f"Probe, medians, interleaved: reads {statistics.median(roofline.dram_gb_s):.1f} GB/s over 537 MB"
        + (f"; {', '.join(dict.fromkeys(sets))}" if sets else "")
        + f"; int8 {statistics.median(roofline.int8_gmac_s):.0f} GMAC/s ({roofline.int8}), float32 FMA "
        f"{statistics.median(roofline.fma_gmac_s):.0f} GMAC/s, in registers.",
        "",
        "Read roofline: the rows of a step over the time that the probe takes to read the step's bytes "
        "(weights once, KV of every row at Penstock's precision). Int8 peak: multiply-accumulates of the "
        "weight matrices per token, attention left out.",
    ]


def write(stem: Path, lines: list[str], raw: dict[str, Any]) -> Path:
    """`stem`.md and `stem`.json. Returns the page's path."""
    stem.parent.mkdir(parents=True, exist_ok=True)
    page, data = stem.parent / f"{stem.name}.md", stem.parent / f"{stem.name}.json"
    page.write_text("\n".join(lines) + "\n")
    data.write_text(json.dumps(raw, indent=1) + "\n")
    return page


def _head(names: list[str]) -> list[str]:
    return [_row(names), "| --- " + "| ---: " * (len(names) - 1) + "|"]


def _row(cells: list[str]) -> str:
    return "| " + " | ".join(cells) + " |"
