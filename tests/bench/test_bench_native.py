"""The compiled parts of the benchmark suite: they build, and they count right.

Skipped, saying so, where there is no compiler.
"""

from __future__ import annotations

import asyncio
import json
import subprocess
import sys
from collections.abc import Iterator
from itertools import pairwise
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parents[2]
SERVER = ROOT / "tests" / "support" / "scripted_server.py"
sys.path.insert(0, str(ROOT / "benchmarks"))

from suite import native
from suite.roofline import Probe
from suite.scenarios import Scenario, fitting, http_line, kv_tokens
from suite.serving import gaps_while


@pytest.fixture(scope="session")
def cache(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tmp_path_factory.mktemp("native")


def built(name: str, cache: Path) -> Path:
    try:
        return native.build(name, cache)
    except native.NoCompiler as reason:
        pytest.skip(str(reason))


@pytest.fixture(scope="session")
def loadgen(cache: Path) -> Path:
    return built("loadgen", cache)


@pytest.fixture(scope="module")
def port() -> Iterator[int]:
    """A scripted server in a process of its own: it echoes token prompts, one token each."""
    process = subprocess.Popen(
        [sys.executable, str(SERVER)], stdout=subprocess.PIPE, stderr=subprocess.DEVNULL, text=True
    )
    assert process.stdout is not None
    yield int(process.stdout.readline().strip().rsplit(":", 1)[1])
    process.terminate()
    process.wait()
    process.stdout.close()


def run(
    loadgen: Path, port: int, folder: Path, lines: list[str], concurrency: int
) -> tuple[dict, list[dict]]:
    requests, raw = folder / "requests.jsonl", folder / "raw.jsonl"
    requests.write_text("\n".join(lines) + "\n")
    command = [str(loadgen), "--port", str(port), "--requests", str(requests), "--raw", str(raw)]
    command += ["--concurrency", str(concurrency), "--timeout-s", "60"]
    done = subprocess.run(command, capture_output=True, text=True, check=True)
    return json.loads(done.stdout), [json.loads(line) for line in raw.read_text().splitlines()]


def overlap(rows: list[dict]) -> int:
    """The most requests that were open at once."""
    marks = sorted([(row["sent_s"], 1) for row in rows] + [(row["end_s"], -1) for row in rows])
    running = most = 0
    for _, change in marks:
        running += change
        most = max(most, running)
    return most


def test_every_stream_is_counted(loadgen: Path, port: int, tmp_path: Path) -> None:
    """Red if tokens are lost or doubled, or more streams run at once than were asked for."""
    lengths = [1, 5, 17, 64, 3, 40, 2, 9, 33, 12]
    lines = [http_line(list(range(n)), n, "scripted", "trace") for n in lengths]
    summary, rows = run(loadgen, port, tmp_path, lines, concurrency=3)
    assert (summary["requests"], summary["failed"], summary["errors"]) == (len(lengths), 0, {})
    assert [row["output_tokens"] for row in rows] == lengths
    assert summary["output_tokens"] == sum(lengths)
    assert all(len(row["arrivals_s"]) <= n for row, n in zip(rows, lengths, strict=True))
    assert all(a <= b for row in rows for a, b in pairwise([row["sent_s"], *row["arrivals_s"], row["end_s"]]))
    assert overlap(rows) <= 3
    assert summary["tags"]["trace"]["ttft"]["count"] == len(lengths)
    assert summary["generator_cpu_s"] > 0


def test_open_loop_requests_do_not_wait_for_a_place(loadgen: Path, port: int, tmp_path: Path) -> None:
    """Red if a request with an arrival time queues behind the closed loop, or leaves before its time."""
    body = {"model": "scripted", "stream": True, "messages": [{"role": "user", "content": "/flood 400"}]}
    flood = json.dumps({"path": "/v1/chat/completions", "tag": "flood", "body": body})
    late = http_line([1, 2, 3], 3, "scripted", "open", arrival_s=0.05)
    summary, rows = run(loadgen, port, tmp_path, [flood, late, flood], concurrency=1)
    assert summary["failed"] == 0
    assert rows[1]["sent_s"] >= 0.05
    assert [row["output_tokens"] for row in rows][1] == 3
    assert overlap([rows[0], rows[2]]) == 1


def test_failures_are_named_and_not_measured(loadgen: Path, port: int, tmp_path: Path) -> None:
    """Red if a refused or broken stream passes for a fast one."""

    def chat(text: str) -> str:
        body = {"model": "scripted", "stream": True, "messages": [{"role": "user", "content": text}]}
        return json.dumps({"path": "/v1/chat/completions", "tag": "chat", "body": body})

    lines = [
        chat("/fail rate_limit"),
        chat("/cut"),
        chat("one two three"),
        http_line([1], 1, "nobody", "chat"),
    ]
    summary, rows = run(loadgen, port, tmp_path, lines, concurrency=2)
    assert summary["failed"] == 3
    assert rows[2]["error"] is None
    assert rows[2]["output_tokens"] == 3
    assert rows[3]["error"].startswith("HTTP 404")
    assert summary["tags"]["chat"]["ttft"]["count"] == 1
    assert sum(summary["errors"].values()) == 3


@pytest.mark.parametrize("chunked", [True, False])
async def test_any_cut_of_the_answer_counts_the_same(loadgen: Path, tmp_path: Path, chunked: bool) -> None:
    """Red if a token is lost where a packet or a chunk ends inside a line, a number or a chunk's size."""
    events = [
        {"choices": [{"index": 0, "text": 'a "quoted" } ] text', "finish_reason": None}]},
        {"choices": [{"index": 0, "text": "", "finish_reason": None}]},  # half a character: still a token
        {"choices": [{"index": 0, "text": "b\\", "finish_reason": None}], "usage": None},
        {"choices": [{"index": 0, "text": "", "finish_reason": "length"}]},
        {"choices": [], "usage": {"prompt_tokens": 4, "completion_tokens": 3}},
    ]
    stream = b"".join(b"data: %s\n\n" % json.dumps(event).encode() for event in events) + b"data: [DONE]\n\n"

    async def answer(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        head = await reader.readuntil(b"\r\n\r\n")
        step = int(
            json.loads(await reader.readexactly(int(head.lower().split(b"content-length:")[1].split()[0])))[
                "step"
            ]
        )
        kind = b"transfer-encoding: chunked" if chunked else b"content-length: %d" % len(stream)
        writer.write(b"HTTP/1.1 200 OK\r\ncontent-type: text/event-stream\r\n" + kind + b"\r\n\r\n")
        for start in range(0, len(stream), step):
            piece = stream[start : start + step]
            text = b"%x\r\n%s\r\n" % (len(piece), piece) if chunked else piece
            for byte in range(0, len(text), 7):
                writer.write(text[byte : byte + 7])
                await writer.drain()
        if chunked:
            writer.write(b"0\r\n\r\n")
        writer.close()

    server = await asyncio.start_server(answer, "127.0.0.1", 0)
    async with server:
        address = server.sockets[0].getsockname()[1]
        lines = [
            json.dumps({"path": "/v1/completions", "tag": "x", "body": {"step": step}})
            for step in (1, 2, 3, 10, 37, 100, 10_000)
        ]
        summary, rows = await asyncio.to_thread(run, loadgen, address, tmp_path, lines, 4)
    assert summary["errors"] == {}
    assert [row["output_tokens"] for row in rows] == [3] * len(lines)
    assert all(1 <= len(row["arrivals_s"]) <= 3 for row in rows)


def asleep(pid: int) -> bool:
    states = Path(f"/proc/{pid}/task").glob("*/stat")
    return {path.read_text().rpartition(")")[2].split()[0] for path in states} == {"S"}


def test_probe_answers_and_sleeps(cache: Path) -> None:
    """Red if the probe reads nothing, skips a variant, or burns a core between questions."""
    built("probe", cache)
    probe = Probe(2, cache)
    try:
        answer = probe.read(8 << 20, 20)
        assert answer["bytes"] == 8 << 20
        assert answer["threads"] == 2
        assert len(answer["variants"]) == 6
        assert all(0 < v["median"] <= v["best"] and v["passes"] >= 5 for v in answer["variants"].values())
        assert answer["gb_s"] == max(v["median"] for v in answer["variants"].values())
        assert probe.read(4 << 20, 20)["bytes"] == 4 << 20
        assert probe.peak(20)["threads"] == 2
        with pytest.raises(RuntimeError, match="no buffer of 0 bytes"):
            probe.read(0)
        assert any(asleep(probe.pid) for _ in range(100_000))  # a helper may still be on its way to bed
    finally:
        probe.close()


def test_a_changed_source_is_built_anew(cache: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Red if an edited header, which only another file includes, leaves the old binary in use."""
    first = built("loadgen", cache)
    copied = tmp_path / "native"
    copied.mkdir()
    for path in native.SOURCES.iterdir():
        (copied / path.name).write_bytes(path.read_bytes())
    monkeypatch.setattr(native, "SOURCES", copied)
    assert native.build("loadgen", cache) == first
    header = copied / "json_scan.hpp"
    header.write_text(header.read_text() + "// changed\n")
    assert native.build("loadgen", cache) != first


def test_without_a_compiler_the_reason_says_what_to_install(
    cache: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Red if a machine without a compiler gets a traceback instead of a package to install."""
    monkeypatch.setenv("PATH", "")
    with pytest.raises(native.NoCompiler, match="install"):
        native.build("probe", cache)


def test_gaps_count_only_while_a_long_prompt_waits() -> None:
    """Red if gaps before or after a long prompt's prefill dilute the percentile of those during it."""
    stream = {"tag": "stream", "sent_s": 0.0, "arrivals_s": [1.0, 1.1, 1.2, 3.0, 3.1, 9.0]}
    long = {"tag": "long", "sent_s": 1.15, "arrivals_s": [3.05]}
    found = gaps_while([stream, long], "stream", "long")
    assert found["count"] == 3  # 1.1-1.2, 1.2-3.0, 3.0-3.1
    assert found["p50_s"] == pytest.approx(0.1)
    assert found["p99_s"] > 1.7


def test_scenarios_that_memory_cannot_hold_are_dropped_and_named() -> None:
    """Red if a run on a small machine starts engines whose KV pools can't all be held."""
    large, small = Scenario("decode", 64, 2048, 64), Scenario("decode", 8, 128, 64)
    need = kv_tokens([large, small])
    assert need >= 64 * 2048 + 8 * 128
    assert fitting([large, small], 10.0, 10.0 * need) == ([large, small], [])
    assert fitting([large, small], 10.0, 10.0 * need - 1) == ([small], [large.name])
