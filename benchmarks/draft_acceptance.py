"""What the host drafters would save and cost: `python benchmarks/draft_acceptance.py MODEL.gguf [--requests 40]`.

Real text is replayed as if the model had written it: at each step the drafter proposes k tokens, the right
ones are accepted and one more comes from the model. Workloads:

    editing    prompt: a module of the Python standard library (up to 3,000 tokens) and an instruction;
               answer: the module with one of its functions renamed
    free text  prompt: a docstring's first sentence; answer: the rest of it
    tool calls prompt: functions and a question of BFCL; answer: the calls as JSON, if the data is at hand

Requests of a workload share a tenant and finish one after another. Accepted length counts the model's own
token; correct is of the proposed tokens; drafted is the share of steps with a proposal.
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
    extend_us: float = 0.0
    propose_us: float = 0.0

    def line(self) -> str:
        return (
            f"{self.emitted / self.steps:8.2f} {self.drafted / self.steps:8.0%} "
            f"{self.correct / max(self.proposed, 1):8.0%} {self.extend_us / self.emitted:10.1f} "
            f"{self.propose_us / self.steps:10.1f} {statistics.median(self.admit_us) / 1e3:10.2f}"
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


def replay(drafter: HostDrafter, workload: Workload, k: int) -> Tally:
    tally = Tally()
    for prompt, answer in workload:
        start = time.perf_counter()
        drafter.admit(0, prompt, "tenant", len(prompt))
        tally.admit_us.append((time.perf_counter() - start) * 1e6)
        done = 0
        while done < len(answer):
            start = time.perf_counter()
            tokens = drafter.propose(0, k).tokens
            tally.propose_us += (time.perf_counter() - start) * 1e6
            correct = 0
            while correct < len(tokens) and answer[done + correct : done + correct + 1] == [tokens[correct]]:
                correct += 1
            emitted = answer[done : done + correct + 1]
            start = time.perf_counter()
            drafter.extend(0, emitted)
            tally.extend_us += (time.perf_counter() - start) * 1e6
            done += len(emitted)
            tally.steps += 1
            tally.emitted += len(emitted)
            tally.drafted += bool(tokens)
            tally.proposed += len(tokens)
            tally.correct += correct
        drafter.release(0, finished=True)
    return tally


def costs(make: Callable[[], HostDrafter], text: np.ndarray, context: int) -> str:
    """admit in ms; extend per token and propose at k = 8 in us, medians over the 300 steps that follow."""
    drafter = make()
    start = time.perf_counter()
    drafter.admit(0, text[:context], "tenant")
    admit = (time.perf_counter() - start) * 1e3
    extends, proposes = [], []
    for token in text[context : context + 300].tolist():
        start = time.perf_counter()
        drafter.propose(0, 8)
        middle = time.perf_counter()
        drafter.extend(0, [token])
        proposes.append((middle - start) * 1e6)
        extends.append((time.perf_counter() - middle) * 1e6)
    return (
        f"{admit:10.2f} {statistics.median(extends):10.1f} {statistics.median(proposes):10.1f} "
        f"{np.percentile(proposes, 99):10.1f}"
    )


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawTextHelpFormatter)
    parser.add_argument("model", type=Path, help="a GGUF file or a folder with tokenizer.json")
    parser.add_argument("--requests", type=int, default=40, help="per workload")
    args = parser.parse_args()
    tokenizer = Tokenizer.load(args.model)
    drafters: dict[str, Callable[[], HostDrafter]] = {"ngram": NgramDrafter, "suffix": SuffixDrafter}
    head = ("accepted", "drafted", "correct", "extend us", "propose us", "admit ms")
    for workload_of in (editing, free_text, tool_calls):
        workload = tokens_of(workload_of(tokenizer), tokenizer, args.requests)
        name = workload_of.__name__.replace("_", " ")
        print(f"\n{name}: {len(workload)} requests, {sum(len(a) for _, a in workload)} tokens of answers")
        print(" " * 12 + "{:>8} {:>8} {:>8} {:>10} {:>10} {:>10}".format(*head))
        for k in DRAFTS:
            for drafter, make in drafters.items():
                print(f"k={k} {drafter:7} {replay(make(), workload, k).line()}")
    text = np.array([token for module in modules() for token in tokenizer.encode(module)][:31_000], np.int32)
    print(f"\n{'context':15}{'admit ms':>10} {'extend us':>10} {'propose us':>10} {'p99':>10}")
    for context in (100, 2000, 30_000):
        for drafter, make in drafters.items():
            print(f"{context:6} {drafter:8}{costs(make, text, context)}")


if __name__ == "__main__":
    main()
