"""Metrics of a run, against the definitions of the naming dictionary in plain Python."""

from __future__ import annotations

import statistics

import pytest
from hypothesis import assume, given
from hypothesis import strategies as st

from penstock.bench.metrics import Drafts, Record, Targets, spread, summarize
from penstock.bench.report import headline


@st.composite
def records(draw: st.DrawFn) -> Record:
    sent = draw(st.floats(0, 100))
    gaps = draw(st.lists(st.floats(0.001, 5), min_size=1, max_size=8))
    arrivals = [sent + sum(gaps[: i + 1]) for i in range(len(gaps))]
    extra = draw(st.integers(0, 3))
    return Record(
        index=0,
        sent_s=sent,
        input_tokens=draw(st.integers(1, 100)),
        arrivals_s=arrivals,
        output_tokens=len(arrivals) + extra,
        end_s=arrivals[-1],
    )


@given(st.lists(records(), min_size=1, max_size=12), st.floats(0.1, 5), st.floats(0.1, 5))
def test_summary_follows_the_definitions(items: list[Record], ttft_s: float, tpot_s: float) -> None:
    """Red if TTFT, TPOT, ITL, throughput or goodput comes to mean something else."""
    summary = summarize(items, Targets(ttft_s, tpot_s))
    duration = max(r.end_s for r in items) - min(r.sent_s for r in items)
    tpots = [
        ((r.end_s - r.sent_s) - (r.arrivals_s[0] - r.sent_s)) / (r.output_tokens - 1)
        for r in items
        if r.output_tokens > 1
    ]
    assert summary.duration_s == pytest.approx(duration)
    assert summary.ttft is not None
    assert summary.ttft.mean_s == pytest.approx(statistics.fmean(r.arrivals_s[0] - r.sent_s for r in items))
    assert summary.ttft.p50_s == pytest.approx(statistics.median(r.arrivals_s[0] - r.sent_s for r in items))
    if tpots:
        assert summary.tpot is not None
        assert summary.tpot.mean_s == pytest.approx(statistics.fmean(tpots))
    gaps = sum(len(r.arrivals_s) - 1 for r in items)
    assert (summary.itl.count if summary.itl else 0) == gaps
    assert summary.output_tokens_per_s == pytest.approx(sum(r.output_tokens for r in items) / duration)
    firsts = [r.arrivals_s[0] - r.sent_s for r in items]
    # A latency that equals its target may fall on either side by rounding.
    assume(all(abs(first - ttft_s) > 1e-6 for first in firsts))
    assume(all(abs(tpot - tpot_s) > 1e-6 for tpot in tpots))
    meets = [
        first <= ttft_s
        and (r.output_tokens < 2 or (r.end_s - r.arrivals_s[0]) / (r.output_tokens - 1) <= tpot_s)
        for r, first in zip(items, firsts, strict=True)
    ]
    assert summary.goodput_rps == pytest.approx(sum(meets) / duration)


def test_failed_requests_are_counted_and_kept_out() -> None:
    """Red if a failed request lowers a percentile, or vanishes from the report."""
    good = Record(index=0, sent_s=0.0, input_tokens=5, arrivals_s=[1.0, 2.0], output_tokens=2, end_s=2.0)
    bad = Record(index=1, sent_s=0.0, input_tokens=5, end_s=4.0, error="HTTP 429")
    empty = Record(index=2, sent_s=0.0, input_tokens=5, end_s=3.0)
    summary = summarize([good, bad, bad, empty])
    assert (summary.requests, summary.failed) == (4, 3)
    assert summary.errors == {"HTTP 429": 2, "no token came": 1}
    assert summary.e2e is not None
    assert summary.e2e.count == 1
    assert summary.duration_s == 4.0
    assert summary.output_tokens_per_s == 0.5


def test_drafts_of_all_requests_are_reported_together() -> None:
    """Red if a request without drafts, or a failed one, changes what the report says of them."""
    records = [
        Record(
            index=i, sent_s=0.0, input_tokens=5, output_tokens=9, end_s=1.0, arrivals_s=[1.0], drafts=drafts
        )
        for i, drafts in enumerate([Drafts(2, 10, 5), None, Drafts(2, 6, 3)])
    ]
    records.append(
        Record(index=3, sent_s=0.0, input_tokens=5, end_s=1.0, error="HTTP 500", drafts=Drafts(9, 9, 9))
    )
    summary = summarize(records)
    assert summary.drafts == Drafts(4, 16, 8)
    assert "drafts 8 of 16 right, 3.00 tokens in each of 4 steps with drafts" in headline(summary)
    assert summarize(records[1:2]).drafts is None


def test_goodput_needs_all_targets() -> None:
    """Red if a request that misses one of two targets counts as good."""
    record = Record(index=0, sent_s=0.0, input_tokens=1, arrivals_s=[1.0, 5.0], output_tokens=2, end_s=5.0)
    assert Targets().met(record)
    assert Targets(ttft_s=1.0, tpot_s=4.0).met(record)
    assert not Targets(ttft_s=0.9, tpot_s=4.0).met(record)
    assert not Targets(ttft_s=1.0, tpot_s=3.9).met(record)


def test_spread_of_nothing_is_none() -> None:
    """Red if a quantity that was never seen is reported as zero."""
    assert spread([]) is None
    assert summarize([]).ttft is None
