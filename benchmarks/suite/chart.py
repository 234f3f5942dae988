"""A chart as SVG, written by hand: grouped bars, one group per scenario. Readable on light and dark pages."""

from __future__ import annotations

from html import escape
from pathlib import Path

from suite.alternate import Measured, Roofline
from suite.scenarios import Scenario

COLOURS = ("#2f6fde", "#8a8f98", "#b59b5b", "#6b9c7d", "#a9748f", "#7c86b8")
LEFT, BAR, GAP, WIDTH, SCALE = 215, 15, 16, 880, 540
STYLE = """
text { font: 12px system-ui, sans-serif; fill: #30343b }
.quiet { fill: #6a707a }
.line { stroke: #6a707a }
@media (prefers-color-scheme: dark) {
  text { fill: #d7dae0 }
  .quiet { fill: #9aa0aa }
  .line { stroke: #9aa0aa }
}
"""


def write(stem: Path, engines: list[Measured], scenarios: list[Scenario], roofline: Roofline) -> Path | None:
    """`stem`.svg: bars relative to the fastest engine of each scenario; None if nothing was measured."""
    shown = [engine for engine in engines if engine.rates]
    groups = [scenario for scenario in scenarios if any(engine.median(scenario.name) for engine in shown)]
    if not groups:
        return None
    path = stem.parent / f"{stem.name}.svg"
    path.write_text(draw(shown, groups, roofline))
    return path


def draw(engines: list[Measured], scenarios: list[Scenario], roofline: Roofline) -> str:
    """Every group has its own scale: its longest bar is full width; the number stands beside each bar.
    A tick marks the read roofline where it lies inside the scale."""
    parts: list[str] = []
    y = _legend(parts, engines)
    for scenario in scenarios:
        values = [(i, engine.median(scenario.name)) for i, engine in enumerate(engines)]
        present = [(i, value) for i, value in values if value]
        top = max(value for _, value in present)
        limit = roofline.tokens_per_s(scenario)
        if limit and limit < 3 * top:
            top = max(top, limit)
        first = y
        for index, value in present:
            length = max(2.0, SCALE * value / top)
            parts.append(_box(LEFT, y, length, BAR - 3, index))
            parts.append(f'<text x="{LEFT + length + 6:.1f}" y="{y + BAR - 5}">{value:,.0f}</text>')
            y += BAR
        middle = (first + y) / 2 + 2
        parts.append(
            f'<text x="{LEFT - 10}" y="{middle:.0f}" text-anchor="end">{escape(scenario.name)}</text>'
        )
        if limit and limit <= top:
            x = LEFT + SCALE * limit / top
            parts.append(
                f'<line class="line" x1="{x:.1f}" y1="{first - 3}" x2="{x:.1f}" y2="{y}" '
                'stroke-dasharray="3 2"/>'
            )
        y += GAP
    size = f'viewBox="0 0 {WIDTH} {y}" width="{WIDTH}" height="{y}"'
    head = f'<svg xmlns="http://www.w3.org/2000/svg" {size} role="img">'
    title = "<title>Tokens per second (prefill: of the prompt), medians; dashed: read roofline</title>"
    return "\n".join([head, title, f"<style>{STYLE}</style>", *parts, "</svg>"]) + "\n"


def _box(x: float, y: float, width: float, height: float, engine: int) -> str:
    colour = COLOURS[engine % len(COLOURS)]
    return f'<rect x="{x}" y="{y}" width="{width:.1f}" height="{height}" fill="{colour}"/>'


def _legend(parts: list[str], engines: list[Measured]) -> int:
    """Names beside their colours; returns the y below it."""
    x, y = LEFT, 18
    for index, engine in enumerate(engines):
        width = 34 + 7 * len(engine.name)
        if x + width > WIDTH:
            x, y = LEFT, y + 20
        parts.append(_box(x, y - 10, 12, 12, index))
        parts.append(f'<text x="{x + 18}" y="{y}">{escape(engine.name)}</text>')
        x += width
    parts.append(
        f'<text class="quiet" x="{LEFT}" y="{y + 22}">tokens/s, median; each group has its own scale</text>'
    )
    return y + 38
