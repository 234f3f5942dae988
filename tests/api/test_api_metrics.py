"""Metrics and logs: every declared series is real, counted once, and documented."""

from __future__ import annotations

import io
import json
import logging
from pathlib import Path

from prometheus_client.parser import text_string_to_metric_families

from conftest import request
from penstock.engine.messages import Progress
from penstock.observe import log, metrics
from penstock.observe.metrics import TABLE, Metrics
from support.scripted_service import MODEL

CHAT = "/v1/chat/completions"


def samples(exposition: bytes) -> dict[tuple[str, tuple[str, ...]], float]:
    return {
        (sample.name, tuple(value for _, value in sorted(sample.labels.items(), key=_place))): sample.value
        for family in text_string_to_metric_families(exposition.decode())
        for sample in family.samples
    }


def _place(label: tuple[str, str]) -> int:
    """Labels in the table's order: the exposition sorts them."""
    order = [
        "route",
        "status",
        "finish_reason",
        "model",
        "model_name",
        "state",
        "cause",
        "le",
        "version",
        "python",
    ]
    return order.index(label[0])


def body(text: str = "a b c", **fields) -> bytes:
    return json.dumps({"model": MODEL, "messages": [{"role": "user", "content": text}]} | fields).encode()


async def test_requests_and_tokens_are_counted_once(serve):
    """Red if a request, its tokens or its latencies are missing, doubled, or under another label."""
    server = await serve()
    await server.post(CHAT, body())
    await server.post(CHAT, body(stream=True, max_tokens=2))
    await server.post(CHAT, b"{")
    await server.get("/nowhere/one")
    await server.get("/nowhere/two")
    seen: dict = {}
    while seen.get(("penstock_http_inflight", ())) != 1:  # counted just after an answer's last byte
        _, headers, exposition = await server.get("/metrics")
        seen = samples(exposition)
    assert headers["content-type"].startswith("text/plain; version=0.0.4")
    assert seen["penstock_requests_total", (CHAT, "200", "stop")] == 1
    assert seen["penstock_requests_total", (CHAT, "200", "length")] == 1
    assert seen["penstock_requests_total", (CHAT, "400", "")] == 1
    assert seen["penstock_requests_total", ("other", "404", "")] == 2, "a client's paths make no labels"
    assert seen["penstock_prompt_tokens_total", (MODEL,)] == 6
    assert seen["penstock_cached_tokens_total", (MODEL,)] == 2
    assert seen["penstock_generated_tokens_total", (MODEL,)] == 5
    assert seen["penstock_ttft_seconds_count", (MODEL,)] == 2
    assert seen["penstock_itl_seconds_count", (MODEL,)] == 2 + 1
    assert seen["penstock_e2e_seconds_count", (MODEL,)] == 2
    assert seen["penstock_queue_seconds_sum", (MODEL,)] == 0.002
    assert seen["penstock_engine_ready", (MODEL,)] == 1


async def test_models_that_are_not_served_make_no_labels(serve):
    """Red if a client can make series without end by inventing model names."""
    server = await serve()
    for i in range(3):
        assert (await server.post(CHAT, body(model=f"invented-{i}")))[0] == 404
    assert b"invented" not in (await server.get("/metrics"))[2]


def test_engine_counters_go_on_over_a_restart():
    """Red if a restarted engine, which counts from zero, makes a counter fall or stand still."""
    subject = Metrics()
    subject.engine(
        "m", Progress(steps=10, generated_tokens=100, kv_blocks_total=8, kv_blocks_owned=2, waiting=3)
    )
    subject.engine("m", Progress(steps=12, generated_tokens=130, kv_blocks_total=8, kv_blocks_owned=4))
    subject.engine(
        "m", Progress(steps=1, generated_tokens=5, kv_blocks_total=8, kv_blocks_owned=1, waiting=2)
    )
    subject.engine_state("m", True, 1)
    subject.engine_state("m", True, 1)
    seen = samples(subject.expose())
    assert seen["penstock_steps_total", ("m",)] == 13
    assert seen["penstock_sampled_tokens_total", ("m",)] == 135
    assert seen["penstock_engine_restarts_total", ("m",)] == 1
    assert seen["penstock_kv_use_ratio", ("m",)] == seen["vllm:kv_cache_usage_perc", ("m",)] == 1 / 8
    assert seen["penstock_waiting", ("m",)] == seen["vllm:num_requests_waiting", ("m",)] == 2


def test_tokens_taken_back_by_a_stop_string_are_no_restart():
    """Red if a count that falls by two tokens is taken for a new engine's and added once more."""
    subject = Metrics()
    for steps, tokens in ((10, 100), (10, 98), (11, 99), (12, 103)):
        subject.engine("m", Progress(steps=steps, generated_tokens=tokens))
    assert samples(subject.expose())["penstock_sampled_tokens_total", ("m",)] == 103


def test_every_declared_series_is_fed_and_no_other():
    """Red if the table declares a series that nothing feeds, or a method feeds an undeclared one."""
    subject = Metrics()
    subject.request_started()
    subject.request_ended("/x", 200, "stop")
    subject.cancelled("disconnect")
    subject.batch_lines_ended("succeeded", 1)
    for observe in (subject.observe_ttft, subject.observe_itl, subject.observe_e2e, subject.observe_queue):
        observe("m", 0.1)
    subject.count_tokens("m", 1, 1, 1)
    subject.engine("m", Progress(steps=1, accepted_tokens=(1,)))
    subject.engine_state("m", True, 0)
    families = {family.name: family for family in text_string_to_metric_families(subject.expose().decode())}
    fed = {name for name, family in families.items() if family.samples}
    assert fed - {name for name in fed if name.endswith("_created")} == {
        row.name.removesuffix("_total") if row.kind == "counter" else row.name for row in TABLE
    }
    for row in TABLE:
        assert (
            families[row.name.removesuffix("_total") if row.kind == "counter" else row.name].type == row.kind
        )
        assert row.name.startswith(("penstock_", "vllm:"))
        assert row.name.endswith("_total") == (row.kind == "counter")


def test_the_reference_page_is_of_this_table():
    """Red if docs/metrics.md lags behind; run `python -m penstock.observe.metrics > docs/metrics.md`."""
    page = Path(__file__).resolve().parents[2] / "docs" / "metrics.md"
    assert page.read_text() == metrics.reference_page()


async def test_access_log(serve, caplog):
    """Red if a request leaves no line, or its id, status or tokens are not in it."""
    server = await serve()
    with caplog.at_level(logging.INFO, "penstock.access"):
        await server.post(CHAT, body(), "X-Request-Id: abc")
        await server.send(request("GET", "/a%20b%0Aforged", b"", "Connection: close"))
    first, second = [record.getMessage() for record in caplog.records if record.name == "penstock.access"]
    for part in (
        f"method=POST path={CHAT} status=200 ms=",
        "prompt=3 cached=1 generated=3 finish=stop id=abc call=",
    ):
        assert part in first
    assert 'path="/a b\\nforged" status=404' in second
    assert "\n" not in second


def test_log_setup_writes_once_per_line():
    """Red if setting the log up twice doubles its lines, or the level is not honoured."""
    logger = logging.getLogger("penstock")
    before = (logger.handlers[:], logger.level, logger.propagate)
    try:
        out = io.StringIO()
        log.setup("info", io.StringIO())
        log.setup("warning", out)
        logging.getLogger("penstock.part").warning("one")
        logging.getLogger("penstock.part").info("two")
        assert out.getvalue().endswith("W penstock.part one\n")
        assert out.getvalue().count("\n") == 1
    finally:
        logger.handlers[:], logger.level, logger.propagate = before


def test_log_fields():
    """Red if a value can forge a field or a line."""
    assert log.fields(a=1, b=None, c="x y", d='q"', e=1.25, f="", g="l\n", h="k=v") == (
        'a=1 c="x y" d="q\\"" e=1.2 f="" g="l\\n" h="k=v"'
    )
