"""Metrics of a run, from the times at which tokens came.

Definitions (seconds inside, unit in the name outside):
- TTFT: from sending a request to its first token.
- ITL: gap between two consecutive arrivals of tokens of one request; several tokens that arrive
  together are one arrival, so ITL is what a reader sees.
- TPOT: (latency − TTFT) ÷ (output − 1), for requests of two tokens or more.
- E2E: from sending to the last token.
- goodput: requests per second that meet all targets.
- throughput: tokens of successful requests ÷ duration of the whole run.

A failed request counts in `failed` and in no percentile.
"""

from __future__ import annotations

import math

import numpy as np
from msgspec import Struct

PERCENTILES = (50, 90, 95, 99)


class Drafts(Struct, frozen=True):
    """Steps that verified drafts, the drafts, and how many were right: 1 + accepted / steps is the mean
    acceptance length."""

    steps: int = 0
    drafted: int = 0
    accepted: int = 0


class Record(Struct, kw_only=True):
    """What happened to one request. Times are seconds on one monotonic clock.

    arrivals_s: when tokens came, ascending. output_tokens may exceed len(arrivals_s).
    """

    index: int
    sent_s: float
    input_tokens: int
    arrivals_s: list[float] = []
    output_tokens: int = 0
    cached_tokens: int = 0
    drafts: Drafts | None = None
    end_s: float = 0.0
    error: str | None = None

    @property
    def ok(self) -> bool:
        return self.error is None and self.output_tokens > 0

    @property
    def ttft_s(self) -> float:
        return self.arrivals_s[0] - self.sent_s

    @property
    def e2e_s(self) -> float:
        return self.end_s - self.sent_s

    @property
    def tpot_s(self) -> float | None:
        """None for a request of one token: there is no token after the first."""
        if self.output_tokens < 2:
            return None
        return (self.e2e_s - self.ttft_s) / (self.output_tokens - 1)

    @property
    def itl_s(self) -> list[float]:
        return [b - a for a, b in zip(self.arrivals_s, self.arrivals_s[1:], strict=False)]


class Targets(Struct, frozen=True):
    """Goodput targets in seconds; None: not demanded."""

    ttft_s: float | None = None
    tpot_s: float | None = None

    def met(self, record: Record) -> bool:
        if self.ttft_s is not None and record.ttft_s > self.ttft_s:
            return False
        return self.tpot_s is None or (record.tpot_s or 0.0) <= self.tpot_s


class Spread(Struct, frozen=True):
    """Mean and percentiles of one quantity, in seconds."""

    count: int
    mean_s: float
    p50_s: float
    p90_s: float
    p95_s: float
    p99_s: float


class Summary(Struct, frozen=True, kw_only=True):
    """One run. Token counts and rates are over successful requests."""

    requests: int
    failed: int
    duration_s: float
    input_tokens: int
    output_tokens: int
    cached_tokens: int
    drafts: Drafts | None = None
    requests_per_s: float
    input_tokens_per_s: float
    output_tokens_per_s: float
    goodput_rps: float
    targets: Targets
    ttft: Spread | None
    tpot: Spread | None
    itl: Spread | None
    e2e: Spread | None
    errors: dict[str, int] = {}


def spread(values: list[float]) -> Spread | None:
    """None for no values. Percentiles are linear between order statistics (numpy's default)."""
    if not values:
        return None
    array = np.asarray(values, dtype=np.float64)
    points = [float(p) for p in np.percentile(array, PERCENTILES)]
    return Spread(len(values), float(array.mean()), *points)


def _all_drafts(drafts: list[Drafts]) -> Drafts | None:
    if not drafts:
        return None
    return Drafts(
        sum(d.steps for d in drafts), sum(d.drafted for d in drafts), sum(d.accepted for d in drafts)
    )


def summarize(records: list[Record], targets: Targets = Targets()) -> Summary:  # noqa: B008
    """Fold the records of one run. The run lasts from the first sending to the last end."""
    good = [record for record in records if record.ok]
    errors: dict[str, int] = {}
    for record in records:
        if not record.ok:
            reason = record.error or "no token came"
            errors[reason] = errors.get(reason, 0) + 1
    duration = max((r.end_s for r in records), default=0.0) - min((r.sent_s for r in records), default=0.0)

    def per_s(amount: float) -> float:
        return amount / duration if duration > 0 else math.nan

    input_tokens = sum(r.input_tokens for r in good)
    output_tokens = sum(r.output_tokens for r in good)
    return Summary(
        requests=len(records),
        failed=len(records) - len(good),
        duration_s=duration,
        input_tokens=input_tokens,
        output_tokens=output_tokens,
        cached_tokens=sum(r.cached_tokens for r in good),
        drafts=_all_drafts([r.drafts for r in good if r.drafts is not None]),
        requests_per_s=per_s(len(good)),
        input_tokens_per_s=per_s(input_tokens),
        output_tokens_per_s=per_s(output_tokens),
        goodput_rps=per_s(sum(targets.met(r) for r in good)),
        targets=targets,
        ttft=spread([r.ttft_s for r in good]),
        tpot=spread([t for r in good if (t := r.tpot_s) is not None]),
        itl=spread([gap for r in good for gap in r.itl_s]),
        e2e=spread([r.e2e_s for r in good]),
        errors=errors,
    )
