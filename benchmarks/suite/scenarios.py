"""What is measured: scenarios, their prompts, and the sample of a trace."""

from __future__ import annotations

import json
import math
import random
from dataclasses import dataclass
from pathlib import Path

FIRST_TOKEN = 256  # below it live special tokens and single bytes
TRACE = "azure_llm_2023_conv.csv"
CONTEXTS = (128, 2048)
BATCHES = (1, 4, 8, 32, 64)


@dataclass(frozen=True)
class Scenario:
    """kind "prefill": one new prompt of `context` tokens, one token out: time to first token.
    kind "decode": `batch` prompts of `context` tokens from the prefix cache, `output_len` tokens each."""

    kind: str
    batch: int
    context: int
    output_len: int

    @property
    def name(self) -> str:
        if self.kind == "prefill":
            return f"prefill {self.context:,}"
        return f"decode, batch {self.batch}, context {self.context:,}"


def prefills(quick: bool) -> list[Scenario]:
    return [Scenario("prefill", 1, context, 1) for context in ((1024,) if quick else (128, 1024, 4096))]


def decodes(quick: bool) -> list[Scenario]:
    if quick:
        return [Scenario("decode", batch, 128, 64) for batch in (1, 8, 32)]
    return [Scenario("decode", batch, context, 64) for context in CONTEXTS for batch in BATCHES]


def kv_tokens(scenarios: list[Scenario]) -> int:
    """Tokens that a pool must hold so that every decode prompt stays in the prefix cache from one repeat
    to the next, beside the prompts and outputs of one repeat that nobody asks for again."""
    kept: dict[int, int] = {}
    passing = 0
    for scenario in scenarios:
        if scenario.kind == "decode":
            kept[scenario.context] = max(
                kept.get(scenario.context, 0), scenario.batch * (scenario.context + 32)
            )
            passing += scenario.batch * (scenario.output_len + 32)
        else:
            passing += 2 * scenario.context
    return max(32768, math.ceil((sum(kept.values()) + passing) / 4096) * 4096)


def fitting(
    scenarios: list[Scenario], bytes_per_token: float, free_bytes: float
) -> tuple[list[Scenario], list[str]]:
    """The scenarios whose KV fits into `free_bytes` in all engines together, and the names of the others:
    the largest decode scenarios go first."""
    kept, dropped = list(scenarios), []
    while kv_tokens(kept) * bytes_per_token > free_bytes:
        candidates = [scenario for scenario in kept if scenario.kind == "decode"]
        if not candidates:
            break
        largest = max(candidates, key=lambda scenario: scenario.batch * scenario.context)
        kept.remove(largest)
        dropped.append(largest.name)
    return kept, dropped


def decode_prompts(scenario: Scenario, vocab_size: int) -> list[list[int]]:
    """The same in every repeat, and a smaller batch takes the first of a larger one's."""
    return [
        tokens(f"decode/{scenario.context}/{row}", scenario.context, vocab_size)
        for row in range(scenario.batch)
    ]


def prefill_prompt(scenario: Scenario, repeat: int, vocab_size: int) -> list[list[int]]:
    """New in every repeat: no prefix cache helps."""
    return [tokens(f"prefill/{repeat}", scenario.context, vocab_size, f"/{scenario.context}")]


def tokens(seed: str, count: int, vocab_size: int, salt: str = "") -> list[int]:
    """Token ids that depend on the seed alone."""
    draw = random.Random(seed + salt)
    return [draw.randrange(FIRST_TOKEN, vocab_size) for _ in range(count)]


@dataclass(frozen=True)
class Sample:
    """Requests of a trace, or drawn ones. `source` says which, with the cuts."""

    source: str
    lengths: list[tuple[int, int]]  # (prompt tokens, output tokens)


def sample(count: int, max_input: int, max_output: int) -> Sample:
    """The first `count` requests of the Azure conversation trace, or lognormal lengths where it is absent."""
    cut = f"prompts cut to {max_input:,} and outputs to {max_output:,} tokens"
    path = _trace()
    if path is not None:
        from penstock.bench.workloads import load_trace

        items = load_trace(path, max_requests=count, max_input=max_input, max_output=max_output)
        lengths = [(item.input_len, item.output_len) for item in items]
        return Sample(f"first {len(lengths)} requests of {path.name}, {cut}", lengths)
    draw = random.Random(0)
    lengths = [
        (
            min(max_input, max(1, round(draw.lognormvariate(6.6, 1.0)))),
            min(max_output, max(1, round(draw.lognormvariate(4.9, 0.8)))),
        )
        for _ in range(count)
    ]
    return Sample(f"no trace here: {count} generated requests, lognormal lengths, {cut}", lengths)


def _trace() -> Path | None:
    for parent in Path(__file__).resolve().parents:
        for folder in (parent / "shared", parent.parent / "shared"):
            found = folder / "data" / "traces" / TRACE
            if found.is_file():
                return found
    return None


def sample_requests(chosen: Sample, vocab_size: int, salt: str) -> list[dict]:
    """For a peer's `list` command: {"prompt": ids, "output_len": n}; `salt` makes the prompts new."""
    return [
        {"prompt": tokens(f"mixed/{salt}/{i}", length, vocab_size), "output_len": out}
        for i, (length, out) in enumerate(chosen.lengths)
    ]


def http_line(
    prompt: list[int], output_len: int, model: str, tag: str, arrival_s: float | None = None
) -> str:
    """One line of the load generator's request list: a greedy stream of exactly `output_len` tokens."""
    line: dict = {
        "path": "/v1/completions",
        "tag": tag,
        "body": {
            "model": model,
            "prompt": prompt,
            "max_tokens": output_len,
            "min_tokens": output_len,
            "ignore_eos": True,
            "temperature": 0,
            "stream": True,
            "stream_options": {"include_usage": True},
        },
    }
    if arrival_s is not None:
        line["arrival_s"] = round(arrival_s, 6)
    return json.dumps(line, separators=(",", ":"))
