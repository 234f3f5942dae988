"""What the host drafters save and cost: `python benchmarks/draft_acceptance.py MODEL.gguf [--requests 40]`.

Real text is replayed as if the model had written it: at each step the drafter proposes k tokens, the right
ones are accepted and one more comes from the model. Workloads:

    editing    prompt: a module of the Python standard library (up to 3,000 tokens) and an instruction;
               answer: the module with one of its functions renamed
    free text  prompt: a docstring's first sentence; answer: the rest of it
    tool calls prompt: functions and a question of BFCL; answer: the calls as JSON, if the data is at hand

Requests of a workload share a tenant and finish one after another. Accepted length counts the model's own
token; correct is of the proposed tokens; drafted is the share of steps with a proposal; times are medians,
extend's per token. The last table is of source code, not repeated, with and without earlier outputs.
"""

from __future__ import annotations

import argparse
import ast
import json
import re
import statistics
import sysconfig
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np

from penstock.decoding.drafting.drafter import HostDrafter
from penstock.decoding.drafting.ngram import NgramDrafter
from penstock.decoding.drafting.suffix import SuffixDrafter
from penstock.text.tokenizer import Tokenizer

LIBRARY = Path(sysconfig.get_paths()["stdlib"])
BFCL = Path(__file__).parents[2] / "shared/data/decoding/bfcl.jsonl"
DRAFTS = (2, 4, 8)

Workload = list[tuple[np.ndarray, list[int]]]  # (prompt int32[n], answer)


@dataclass
class Tally:
    steps: int = 0
    emitted: int = 0
    drafted: int = 0
    proposed: int = 0
    correct: int = 0
    admit_us: list[float] = field(default_factory=list)
    extend_us: list[float] = field(default_factory=list)
    propose_us: list[float] = field(default_factory=list)

    def line(self) -> str:
        rates = (self.drafted / self.steps, self.correct / max(self.proposed, 1))
        costs = (statistics.median(us) for us in (self.extend_us, self.propose_us))
        return (
            f"{self.emitted / self.steps:8.2f} "
            + " ".join(f"{rate:8.0%}" for rate in rates)
            + " ".join(f"{us:11.1f}" for us in costs)
            + f"{statistics.median(self.admit_us) / 1e3:9.2f}"
        )


def modules() -> Iterator[str]:
    for path in sorted(LIBRARY.glob("*.py")):
        text = path.read_text(encoding="utf-8", errors="ignore")
        if len(text) > 2000:
            yield text


def edited(text: str) -> str | None:
    """`text` with its most used own function renamed."""
    names = re.findall(r"def (\w{4,})\(", text)
    if not names:
        return None
    name = max(names, key=lambda name: len(re.findall(rf"\b{name}\b", text)))
    return re.sub(rf"\b{name}\b", f"{name}_checked", text)


def editing(tokenizer: Tokenizer) -> Iterator[tuple[str, str]]:
    for text in modules():
        text = tokenizer.decode(tokenizer.encode(text)[:3000])
        changed = edited(text)
        if changed is not None:
            yield f"Give the function a clearer name and print the whole file.\n\n{text}\n\n", changed


def free_text(_: Tokenizer) -> Iterator[tuple[str, str]]:
    for text in modules():
        for node in ast.walk(ast.parse(text)):
            if isinstance(node, ast.FunctionDef | ast.ClassDef | ast.Module):
                first, stop, rest = (ast.get_docstring(node) or "").partition(". ")
                if len(rest) > 800:
                    yield first + stop, rest


def tool_calls(_: Tokenizer) -> Iterator[tuple[str, str]]:
    for line in BFCL.read_text().splitlines() if BFCL.exists() else ():
        row = json.loads(line)
        if row["ground_truth"]:
            calls = [
                {"name": name, "arguments": {key: values[0] for key, values in arguments.items()}}
                for call in row["ground_truth"]
                for name, arguments in call.items()
            ]
            yield json.dumps(row["function"]) + json.dumps(row["question"]), json.dumps(calls)


def tokens_of(texts: Iterator[tuple[str, str]], tokenizer: Tokenizer, requests: int) -> Workload:
    return [
        (np.array(tokenizer.encode(prompt), np.int32), tokenizer.encode(answer))
        for (prompt, answer), _ in zip(texts, range(requests), strict=False)
    ]


def timed(call: Callable[[], Any]) -> tuple[Any, float]:
    """(what it returns, microseconds)"""
    start = time.perf_counter()
    result = call()
    return result, (time.perf_counter() - start) * 1e6


def replay(drafter: HostDrafter, workload: Workload, k: int) -> Tally:
    tally = Tally()
    for prompt, answer in workload:
        _, us = timed(lambda prompt=prompt: drafter.admit(0, prompt, "tenant", len(prompt)))
        tally.admit_us.append(us)
        done = 0
        while done < len(answer):
            proposal, us = timed(lambda: drafter.propose(0, k))
            tally.propose_us.append(us)
            tokens = proposal.tokens
            following = answer[done : done + len(tokens)]
            correct = 0
            while correct < len(following) and following[correct] == tokens[correct]:
                correct += 1
            emitted = answer[done : done + correct + 1]
            _, us = timed(lambda emitted=emitted: drafter.extend(0, emitted))
            tally.extend_us.append(us / len(emitted))
            done += len(emitted)
            tally.steps += 1
            tally.emitted += len(emitted)
            tally.drafted += bool(tokens)
            tally.proposed += len(tokens)
            tally.correct += correct
        drafter.release(0, finished=True)
    return tally


def costs(drafter: HostDrafter, text: np.ndarray, context: int, shared: int) -> str:
    """admit in ms; extend per token and propose at k = 8 in us, medians over 300 steps and a p99; release of
    a finished request in ms. shared: tokens that the tenant's requests generated before."""
    for start in range(0, shared, 500):
        drafter.admit(1, text[start : start + 600], "tenant", 100)
        drafter.release(1, finished=True)
    text = text[-context - 300 :]
    _, admit = timed(lambda: drafter.admit(0, text[:context], "tenant", context))
    proposes, extends = [], []
    for token in text[context:].tolist():
        proposes.append(timed(lambda: drafter.propose(0, 8))[1])
        extends.append(timed(lambda token=token: drafter.extend(0, [token]))[1])
    _, release = timed(lambda: drafter.release(0, finished=True))
    return (
        f"{context:7} {shared:7} {admit / 1e3:9.2f} {statistics.median(extends):10.1f} "
        f"{statistics.median(proposes):11.1f} {np.percentile(proposes, 99):6.1f} {release / 1e3:11.2f}"
    )


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawTextHelpFormatter)
    parser.add_argument("model", type=Path, help="a GGUF file or a folder with tokenizer.json")
    parser.add_argument("--requests", type=int, default=40, help="per workload")
    args = parser.parse_args()
    tokenizer = Tokenizer.load(args.model)
    drafters: dict[str, Callable[[], HostDrafter]] = {"ngram": NgramDrafter, "suffix": SuffixDrafter}
    for texts in (editing, free_text, tool_calls):
        workload = tokens_of(texts(tokenizer), tokenizer, args.requests)
        if not workload:
            continue
        answers = sum(len(answer) for _, answer in workload)
        print(f"\n{texts.__name__.replace('_', ' ')}: {len(workload)} requests, {answers} tokens of answers")
        print(f"{'':11} accepted  drafted  correct   extend us  propose us admit ms")
        for k in DRAFTS:
            for name, make in drafters.items():
                print(f"k={k} {name:7} {replay(make(), workload, k).line()}")
    print("\n        context  shared  admit ms  extend us  propose us    p99  release ms")
    pieces = [
        np.array(tokenizer.encode(text), np.int32) for text, _ in zip(modules(), range(60), strict=False)
    ]
    text = np.concatenate(pieces)
    for context, shared in (
        (100, 0),
        (2000, 0),
        (30_000, 0),
        (100, 120_000),
        (2000, 120_000),
        (30_000, 120_000),
    ):
        for name, make in drafters.items():
            print(f"{name:8}{costs(make(), text, context, shared)}")


if __name__ == "__main__":
    main()
