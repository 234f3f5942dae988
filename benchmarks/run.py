"""`make bench`: Penstock, its peers and the machine's own limits, alternating, in one run.

    python benchmarks/run.py [--quick] [--peers all|NAME,…] [--parts prefill,decode,…] [--repeats N] …

benchmarks/README.md says what each figure means. Results go to benchmarks/results/DATE-NAME.{json,md,svg}.
"""

from __future__ import annotations

import argparse
import dataclasses
import datetime
import os
import signal
import sys
from pathlib import Path

from suite import chart, report
from suite.alternate import Alternation, Measured
from suite.catalogue import Engine, EngineFailure, select
from suite.native import NoCompiler, default_cache
from suite.process import EngineProcess, Launch
from suite.roofline import Footprint, Probe, footprint
from suite.scenarios import Scenario, decodes, fitting, kv_tokens, prefills
from suite.serving import Serving
from suite.start import measure_ready

PARTS = ("prefill", "decode", "mixed", "http", "ready")


def arguments() -> argparse.Namespace:
    parser = argparse.ArgumentParser(description="Penstock and its peers, side by side.")
    parser.add_argument("--quick", action="store_true", help="few shapes, two engines, under 5 minutes")
    parser.add_argument("--peers", default="", help="all, or names separated by commas")
    parser.add_argument(
        "--parts", default="", help=f"of {','.join(PARTS)}; default all, quick: prefill,decode"
    )
    parser.add_argument("--batches", default="", help="decode at these batch sizes only")
    parser.add_argument("--contexts", default="", help="decode at these contexts only")
    parser.add_argument("--repeats", type=int, help="alternations; default 5, quick: 3")
    parser.add_argument("--threads", type=int, default=os.cpu_count(), help="of every engine and the probe")
    parser.add_argument(
        "--limit-s", type=float, default=120, help="an engine that needs longer gets a reason"
    )
    parser.add_argument("--model", type=Path, help="GGUF file; default: smollm2 of the model store")
    parser.add_argument(
        "--set",
        action="append",
        default=[],
        metavar="NAME=VALUE",
        help="a setting of Penstock, as kv_dtype=int8",
    )
    parser.add_argument("--cache", type=Path, default=default_cache() / "peers")
    parser.add_argument("--output", type=Path, default=Path(__file__).resolve().parent / "results")
    parser.add_argument("--name", help="of the result files; default: bench or quick")
    options = parser.parse_args()
    options.repeats = options.repeats or (3 if options.quick else 5)
    options.name = options.name or ("quick" if options.quick else "bench")
    options.date = datetime.datetime.now(tz=datetime.UTC).date().isoformat()
    chosen = options.parts or ("prefill,decode" if options.quick else ",".join(PARTS))
    options.parts = tuple(chosen.split(","))
    unknown = set(options.parts) - set(PARTS)
    if unknown:
        parser.error(f"--parts: {', '.join(sorted(unknown))} unknown; known: {', '.join(PARTS)}")
    try:
        settings = dict(pair.split("=", 1) for pair in options.set)
        options.engines = select(options.peers, options.quick, settings)
    except ValueError as error:
        parser.error(f"--peers or --set: {error}")
    return options


def chosen_scenarios(options: argparse.Namespace) -> list[Scenario]:
    """Prefill first: its speed tells which decode scenarios an engine would not finish."""
    found = prefills(options.quick) if {"prefill", "decode"} & set(options.parts) else []
    if "decode" not in options.parts:
        return found
    batches = [int(value) for value in options.batches.split(",") if value]
    contexts = [int(value) for value in options.contexts.split(",") if value]
    return found + [
        scenario
        for scenario in decodes(options.quick)
        if (not batches or scenario.batch in batches) and (not contexts or scenario.context in contexts)
    ]


def fit_to_memory(options: argparse.Namespace, shape: Footprint) -> tuple[list[Scenario], list[str]]:
    """Scenarios whose KV fits into three quarters of the free memory, all engines loaded at once."""
    from penstock.observe.machine import available_memory

    per_token = shape.kv_elements_per_token * sum(engine.pool_itemsize for engine in options.engines)
    kept, dropped = fitting(chosen_scenarios(options), per_token, 0.75 * available_memory())
    for name in dropped:
        print(f"{name}: left out, the KV of all engines together would not fit into memory", file=sys.stderr)
    return kept, dropped


def open_probe(options: argparse.Namespace) -> Probe | None:
    try:
        return Probe(options.threads)
    except NoCompiler as reason:
        print(f"no roofline: {reason}", file=sys.stderr)
        return None


def start_all(engines: list[Engine], launch: Launch) -> tuple[dict[str, EngineProcess], dict[str, Measured]]:
    processes, measured = {}, {}
    for engine in engines:
        row = measured[engine.name] = Measured(engine.name)
        try:
            process = processes[engine.name] = EngineProcess(engine, launch)
            row.loaded = process.loaded
            print(f"{engine.name}: loaded in {process.ready_s:.1f} s", file=sys.stderr)
        except EngineFailure as failure:
            row.unavailable = str(failure)
            print(f"{engine.name}: {failure}", file=sys.stderr)
    return processes, measured


def read_memory(processes: dict[str, EngineProcess], measured: dict[str, Measured]) -> None:
    for name, process in processes.items():
        if process.alive:
            answer = process.ask(do="memory")
            measured[name].memory = {key: answer[key] for key in ("rss_bytes", "peak_bytes")}


def page(
    options: argparse.Namespace,
    scenarios: list[Scenario],
    alternation: Alternation,
    serving: Serving,
    engines: list[Measured],
    shape: Footprint,
    load: list[float],
    dropped: list[str],
) -> list[str]:
    """The report's lines."""
    from penstock.observe.machine import describe_machine

    described = describe_machine()
    head = [
        f"# Benchmark, {options.date}, {options.name}",
        "",
        f"{described['cpu']}, {described['cpus']} cores, {described['total_memory_bytes'] / 2**30:.0f} GiB; "
        f"{options.threads} thread(s) for every engine; model {options.model.name}; greedy, exactly as many "
        f"tokens as asked; {options.repeats} alternating repeats; load average {load[0]:.1f} before, "
        f"{load[1]:.1f} after. "
        "What each figure means: [benchmarks/README.md](../README.md).",
    ]
    parts = [
        report.rate_table(engines, scenarios, alternation.roofline, shape) if scenarios else [],
        report.ttft_table(engines, scenarios),
        report.start_table(engines),
        serving.lines(engines),
        report.probe_lines(alternation.roofline, scenarios) if scenarios else [],
        report.conditions(engines),
        [f"Left out, too much KV for the memory here: {'; '.join(dropped)}."] if dropped else [],
        [f"Made by `python benchmarks/run.py {' '.join(sys.argv[1:])}`."],
    ]
    lines = head
    for part in parts:
        lines += ["", *part] if part else []
    return lines


def main() -> None:
    signal.signal(signal.SIGTERM, lambda *_: sys.exit(1))  # engines and servers are closed on the way out
    options = arguments()
    if options.model is None:
        from penstock.models import sources

        options.model = sources.pull("smollm2")
    options.model = options.model.resolve()
    options.cache.mkdir(parents=True, exist_ok=True)
    shape, vocab_size = footprint(options.model)
    scenarios, dropped = fit_to_memory(options, shape)
    launch = Launch(
        options.model,
        options.cache,
        options.threads,
        kv_tokens(scenarios),
        shape.kv_elements_per_token,
        options.limit_s,
    )
    load = [os.getloadavg()[0]]
    probe = open_probe(options)
    processes, measured = start_all(options.engines, launch)
    serving = Serving(options.engines, launch, vocab_size, options.quick)
    try:
        alternation = Alternation(processes, measured, probe, shape, vocab_size, options.limit_s)
        alternation.run(scenarios, options.repeats)
        if {"mixed", "http"} & set(options.parts):
            serving.run(processes, measured, options.repeats, over_http="http" in options.parts)
        read_memory(processes, measured)
        if "ready" in options.parts:
            measure_ready(options.engines, launch, measured, options.repeats)
    finally:
        for process in processes.values():
            process.close()
        if probe is not None:
            probe.close()
    load.append(os.getloadavg()[0])
    engines = list(measured.values())
    raw = {
        "date": options.date,
        "arguments": sys.argv[1:],
        "threads": options.threads,
        "model": options.model.name,
        "load_average": load,
        "footprint": dataclasses.asdict(shape),
        "scenarios": [dataclasses.asdict(scenario) for scenario in scenarios],
        "engines": [dataclasses.asdict(engine) for engine in engines],
        "roofline": dataclasses.asdict(alternation.roofline),
        "serving": serving.raw,
    }
    stem = options.output / f"{options.date}-{options.name}"
    path = report.write(
        stem, page(options, scenarios, alternation, serving, engines, shape, load, dropped), raw
    )
    chart.write(stem, engines, scenarios, alternation.roofline)
    print(path.read_text())


if __name__ == "__main__":
    main()
