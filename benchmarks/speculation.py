"""What speculation brings: engines with and without it in one process, alternating.

    python benchmarks/speculation.py [--methods ngram suffix] [--batches 1 8 32] [--tokens 200] [--repeats 5]

Workloads: *editing*, return a given function with one name changed (the model is shown the file and begins
to write it again), and *free text*, stories without repetition. Printed per workload, batch and method:
tokens/s, the median ratio to plain decoding of the same round, mean accepted length of the steps with drafts,
and the share of drafts that were right. The answers are compared: they must be the same tokens.
"""

from __future__ import annotations

import argparse
import inspect
import json
import shlex
import statistics
import textwrap
import time
from collections import defaultdict
from collections.abc import Callable
from typing import Any

from penstock.call import SamplingParams
from penstock.llm import LLM

SOURCES: list[Callable[..., Any]] = [
    textwrap.TextWrapper._wrap_chunks,
    json.JSONEncoder.iterencode,
    inspect.getsourcelines,
    statistics.quantiles,
    textwrap.dedent,
    inspect.getdoc,
    statistics.harmonic_mean,
    json.loads,
    inspect.getmodule,
    statistics.mode,
    textwrap.indent,
    inspect.cleandoc,
    json.JSONDecoder.raw_decode,
    statistics.median_grouped,
    inspect.findsource,
    shlex.shlex.read_token,
]


def editing(count: int, repeat: int) -> list[str]:
    """Others in each repeat: the answers of one must not help the next."""
    prompts = []
    for i in range(repeat * count, (repeat + 1) * count):
        source = textwrap.dedent(inspect.getsource(SOURCES[i % len(SOURCES)]))
        name = SOURCES[i % len(SOURCES)].__name__
        changed = source.replace(name, f"{name}_{i}", 1)
        start = "\n".join(changed.splitlines()[:2])
        prompts.append(
            f"File:\n```python\n{source}```\nWith {name} renamed to {name}_{i}:\n```python\n{start}\n"
        )
    return prompts


def free_text(count: int, repeat: int) -> list[str]:
    themes = ("a lighthouse", "two rivers", "the last train", "an old map", "winter", "a clockmaker")
    numbers = range(repeat * count, (repeat + 1) * count)
    return [f"A story about {themes[i % len(themes)]}, number {i}: Once" for i in numbers]


WORKLOADS = {"editing": editing, "free text": free_text}


def main() -> None:
    raw = argparse.RawDescriptionHelpFormatter
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=raw)
    parser.add_argument("--methods", nargs="+", default=["ngram", "suffix"])
    parser.add_argument("--batches", nargs="+", type=int, default=[1, 8, 32])
    parser.add_argument("--tokens", type=int, default=200)
    parser.add_argument("--repeats", type=int, default=5)
    parser.add_argument("--k", type=int, default=7)
    parser.add_argument("--workloads", nargs="+", default=list(WORKLOADS))
    options = parser.parse_args()
    engines = {"plain": LLM("smollm2", kv_bytes=2**29)}
    for method in options.methods:
        speculation = {"method": method, "k": options.k}
        engines[method] = LLM("smollm2", kv_bytes=2**29, speculation=speculation)
    for workload in options.workloads:
        for batch in options.batches:
            compare(engines, workload, batch, options)
    for engine in engines.values():
        engine.close()


def compare(engines: dict[str, LLM], workload: str, batch: int, options: argparse.Namespace) -> None:
    rates: dict[str, list[float]] = defaultdict(list)
    notes: dict[str, str] = {}
    # Sampled free text does not fall into the loops that a small model's greedy text ends in.
    temperature = 0.0 if workload == "editing" else 0.8
    for repeat in range(options.repeats + 1):
        answers, prompts = [], WORKLOADS[workload](batch, repeat)
        for name, llm in engines.items():
            params = SamplingParams(
                max_tokens=options.tokens, temperature=temperature, seed=repeat, ignore_eos=True
            )
            began = time.perf_counter()
            results = llm.generate(prompts, params, progress=False)
            seconds = time.perf_counter() - began
            answers.append([result.token_ids for result in results])
            if repeat:
                rates[name].append(sum(map(len, answers[-1])) / seconds)
                usages = [result.usage.speculation for result in results if result.usage.speculation]
                notes[name] = _note(usages)
        assert all(answer == answers[0] for answer in answers), "speculation changed an answer"
    for name, values in rates.items():
        ratio = statistics.median(a / b for a, b in zip(values, rates["plain"], strict=True))
        median = statistics.median(values)
        line = f"{workload:10} {batch:3} {name:8} {median:7.0f} tokens/s, {ratio:.3f} of plain"
        print(line + notes[name])


def _note(usages: list[Any]) -> str:
    steps = sum(usage.steps for usage in usages)
    if not steps:
        return ""
    accepted, drafted = sum(u.accepted_tokens for u in usages), sum(u.drafted_tokens for u in usages)
    return (
        f"; {steps} steps with drafts, {1 + accepted / steps:.2f} tokens each, {accepted / drafted:.0%} right"
    )


if __name__ == "__main__":
    main()
