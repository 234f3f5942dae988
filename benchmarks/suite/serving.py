"""Mixed load from a trace: every engine's own pipeline offline, Penstock over HTTP, alternating; then
32 decoding streams disturbed by prompts of 4,096 tokens; and what the host costs beside the device.
"""

from __future__ import annotations

import json
import re
import statistics
import subprocess
import sys
import tempfile
import time
from pathlib import Path

from suite.alternate import Measured
from suite.catalogue import Engine, EngineFailure
from suite.native import NoCompiler, build
from suite.process import EngineProcess, Launch, Server
from suite.scenarios import http_line, sample, sample_requests, tokens

CONCURRENCY = 32
MIXED = f"mixed load, {CONCURRENCY} at once"
LONG_PROMPT = 4096
POOL_TOKENS = 131072  # of the server: no preemption at 32 streams beside long prompts
COUNTERS = re.compile(
    r"^(penstock_(?:step\w*|steps_total|busy_seconds_total|sampled_tokens_total))(?:\{[^}]*\})? (\S+)$"
)


class Serving:
    """`raw` is everything measured, as JSON; `lines` its part of the report."""

    def __init__(self, engines: list[Engine], launch: Launch, vocab_size: int, quick: bool) -> None:
        self._ours = next((engine for engine in engines if engine.name == "penstock"), None)
        self._launch, self._vocab_size = launch, vocab_size
        count, max_input, max_output = (32, 512, 64) if quick else (96, 1024, 128)
        self._sample = sample(count, max_input, max_output)
        self._stream_len = 128 if quick else 512
        self.raw: dict = {"sample": self._sample.source, "runs": [], "disturbed": [], "errors": {}}

    def run(
        self,
        processes: dict[str, EngineProcess],
        measured: dict[str, Measured],
        repeats: int,
        over_http: bool,
    ) -> None:
        server = self._server() if over_http else None
        try:
            for repeat in range(repeats + 1):
                for name in processes:
                    self._offline(name, processes[name], measured[name], repeat)
                if server is not None:
                    self._http(server, repeat)
            if server is not None:
                self._disturbed(server)
                self.raw["resident_bytes"] = server.resident_bytes()
        finally:
            if server is not None:
                server.stop()

    def _server(self) -> Server | None:
        if self._ours is None:
            return None
        kv_bytes = POOL_TOKENS * self._launch.kv_elements_per_token * 2
        server = Server(self._ours, self._launch, ("--kv-bytes", str(kv_bytes)))
        try:
            build("loadgen")
            server.start()
        except (NoCompiler, EngineFailure) as reason:
            self.raw["errors"]["http"] = str(reason)
            print(f"no load over HTTP: {reason}", file=sys.stderr)
            return None
        return server

    def _offline(self, name: str, process: EngineProcess, row: Measured, repeat: int) -> None:
        if row.unavailable or MIXED in row.errors:
            return
        requests = sample_requests(self._sample, self._vocab_size, f"offline/{repeat}")
        if repeat == 0:
            requests = requests[: len(requests) // 8]
        try:
            answer = process.ask(do="list", requests=requests, concurrency=CONCURRENCY)
        except EngineFailure as failure:
            row.errors[MIXED] = str(failure)
            if not process.alive:
                row.unavailable = f"died at {MIXED}: {failure}"
            return
        if repeat:
            row.rates.setdefault(MIXED, []).append(answer["output_tokens"] / answer["seconds"])
            print(f"{repeat} {MIXED} {name}: {row.rates[MIXED][-1]:,.1f} tokens/s", file=sys.stderr)

    def _http(self, server: Server, repeat: int) -> None:
        requests = sample_requests(self._sample, self._vocab_size, f"http/{repeat}")
        if repeat == 0:
            requests = requests[: len(requests) // 8]
        lines = [http_line(r["prompt"], r["output_len"], server.model, "trace") for r in requests]
        run = self._generate(server, lines, CONCURRENCY)
        if repeat:
            self.raw["runs"].append(run)
            print(f"{repeat} {MIXED} over HTTP: {run['output_tokens_per_s']:,.1f} tokens/s", file=sys.stderr)

    def _disturbed(self, server: Server) -> None:
        """Streams all the time, and a long prompt whenever a quarter of their expected time has passed."""
        streams = [
            http_line(tokens(f"stream/{i}", 128, self._vocab_size), self._stream_len, server.model, "stream")
            for i in range(CONCURRENCY)
        ]
        quiet = self._generate(server, streams, CONCURRENCY)
        spacing = quiet["duration_s"] / 4
        long = [
            http_line(
                tokens(f"long/{i}", LONG_PROMPT, self._vocab_size),
                1,
                server.model,
                "long",
                spacing * (i + 0.5),
            )
            for i in range(4)
        ]
        run = self._generate(server, [*streams, *long], CONCURRENCY, keep_raw=True)
        self.raw["disturbed"].append({"quiet": quiet["tags"]["stream"], **run})

    def _generate(self, server: Server, lines: list[str], concurrency: int, keep_raw: bool = False) -> dict:
        """One run of the load generator, with what server and engine counted meanwhile."""
        with tempfile.TemporaryDirectory() as folder:
            requests, raw = Path(folder) / "requests.jsonl", Path(folder) / "raw.jsonl"
            requests.write_text("\n".join(lines) + "\n")
            command = [str(build("loadgen")), "--port", str(server.port), "--requests", str(requests)]
            command += ["--concurrency", str(concurrency), "--raw", str(raw)]
            before, cpu, began = counters(server), server.cpu_s(), time.perf_counter()
            done = subprocess.run(command, capture_output=True, text=True, check=False)
            wall = time.perf_counter() - began
            if done.returncode:
                raise RuntimeError(f"loadgen: {done.stderr.strip()}")
            time.sleep(0.2)  # the engine reports its counters after the step
            after = counters(server)
            result = json.loads(done.stdout)
            result["counters"] = {name: after[name] - before.get(name, 0.0) for name in after}
            result["server_cpu_s"], result["wall_s"] = server.cpu_s() - cpu, wall
            if keep_raw:
                rows = [json.loads(line) for line in raw.read_text().splitlines()]
                result["gaps"] = gaps_while(rows, "stream", "long")
        return result

    def lines(self, engines: list[Measured]) -> list[str]:
        """Markdown; empty if nothing was measured."""
        found = []
        rates = [f"{row.name} {row.median(MIXED):,.1f}" for row in engines if row.median(MIXED)]
        if rates:
            found += [
                f"**Mixed load** ({self._sample.source}), output tokens/s, medians, {CONCURRENCY} at once: ",
                "",
            ]
            found += [f"- offline, each engine's own pipeline: {'; '.join(rates)}"]
        if self.raw["runs"]:
            found += self._http_lines(engines)
        found += [f"- Penstock over HTTP: no figure: {reason}" for reason in self.raw["errors"].values()]
        return found

    def _http_lines(self, engines: list[Measured]) -> list[str]:
        runs = self.raw["runs"]
        rate = statistics.median(run["output_tokens_per_s"] for run in runs)
        cores = statistics.median(run["generator_cpu_cores"] for run in runs)
        corrected = rate / (1 - cores / self._launch.threads)
        ours = next((row.median(MIXED) for row in engines if row.name == "penstock"), None)
        peer = next((row.median(MIXED) for row in engines if row.name == "openvino-genai"), None)
        middle = sorted(runs, key=lambda run: run["output_tokens_per_s"])[len(runs) // 2]
        tag = middle["tags"]["trace"]
        text = f"- Penstock over HTTP: {rate:,.1f}"
        text += f" ({corrected:,.1f} with the load generator's {cores:.3f} cores given back)"
        text += f"; {corrected / ours:.1%} of its offline figure" if ours else ""
        text += f"; {corrected / peer:.2f}× OpenVINO's own pipeline" if peer else ""
        failed = sum(run["failed"] for run in runs)
        lines = [
            f"{text}; TTFT p50 {_ms(tag, 'ttft', 'p50_s')}, p99 {_ms(tag, 'ttft', 'p99_s')}; "
            f"ITL p50 {_ms(tag, 'itl', 'p50_s')}, p99 {_ms(tag, 'itl', 'p99_s')}; {failed} failed",
            *host_lines(middle, self._launch.threads),
        ]
        for run in self.raw["disturbed"]:
            gaps, quiet = run["gaps"], run["quiet"]["itl"]
            p50, p99 = gaps["p50_s"] * 1e3, gaps["p99_s"] * 1e3
            lines.append(
                f"- {CONCURRENCY} streams while {LONG_PROMPT:,}-token prompts arrive: ITL p50 {p50:.1f} ms, "
                f"p99 {p99:.1f} ms, **p99 {p99 / p50:.2f}× the median** "
                f"({gaps['count']:,} gaps while one is unanswered; undisturbed "
                f"p50 {quiet['p50_s'] * 1e3:.1f}, p99 {quiet['p99_s'] * 1e3:.1f} ms); "
                f"the long prompts' TTFT p50 {_ms(run['tags']['long'], 'ttft', 'p50_s')}"
            )
        resident = self.raw.get("resident_bytes")
        if resident:
            lines.append(
                f"- Penstock's server, {resident['processes']} processes: {resident['rss'] / 2**20:,.0f} MiB "
                f"resident, {resident['pss'] / 2**20:,.0f} MiB with shared pages divided"
            )
        return lines


def host_lines(run: dict, threads: int) -> list[str]:
    """Where the time of a run over HTTP went, from the engine's counters."""
    counted = run["counters"]
    steps, busy = counted.get("penstock_steps_total", 0.0), counted.get("penstock_busy_seconds_total", 0.0)
    if not steps:
        return ["- host overhead: the server counted no steps"]
    wall = run["duration_s"]
    lines = [
        f"- host overhead over HTTP: {steps:,.0f} steps of {busy / steps * 1e3:.2f} ms; a step on the device "
        f"{busy / wall:.1%} of the time, without one {1 - busy / wall:.1%}; server and engine used "
        f"{run['server_cpu_s'] / wall:.2f} of {threads} cores, "
        f"the load generator {run['generator_cpu_cores']:.3f}"
    ]
    own = {name: value for name, value in counted.items() if name.startswith("penstock_step_")}
    if own:
        parts = ", ".join(
            f"{name} {value / steps * 1e3:.3f} ms" for name, value in own.items() if "seconds" in name
        )
        lines.append(f"  - per step: {parts}")
    return lines


def counters(server: Server) -> dict[str, float]:
    """The engine's counters of /metrics, summed over label sets."""
    found: dict[str, float] = {}
    for line in server.get_text("/metrics").splitlines():
        match = COUNTERS.match(line)
        if match:
            found[match[1]] = found.get(match[1], 0.0) + float(match[2])
    return found


def gaps_while(rows: list[dict], tag: str, while_tag: str) -> dict:
    """Gaps between tokens of `tag` streams that overlap a `while_tag` request's wait for its first token."""
    waits = [
        (row["sent_s"], row["arrivals_s"][0]) for row in rows if row["tag"] == while_tag and row["arrivals_s"]
    ]
    gaps = [
        after - before
        for row in rows
        if row["tag"] == tag
        for before, after in zip(row["arrivals_s"], row["arrivals_s"][1:], strict=False)
        if any(before < end and after > start for start, end in waits)
    ]
    if len(gaps) < 2:
        return {"count": len(gaps), "p50_s": float("nan"), "p99_s": float("nan")}
    cuts = statistics.quantiles(gaps, n=100, method="inclusive")
    return {"count": len(gaps), "p50_s": cuts[49], "p99_s": cuts[98]}


def _ms(tag: dict, kind: str, key: str) -> str:
    return f"{tag[kind][key] * 1e3:,.1f} ms" if tag[kind] else "—"
