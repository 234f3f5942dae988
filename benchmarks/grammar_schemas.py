"""How a grammar backend does on real JSON schemas: which instances it takes, and what masks cost.

    python benchmarks/grammar_schemas.py jsonschemabench.jsonl [--backend llguidance] [--show]

Every instance is written as JSON, tokenized and followed through the schema's grammar. A schema passes if all
its valid instances are accepted to the end and all invalid ones are not. Printed: schemas that pass, are
refused, reject a valid instance, accept an invalid one; microseconds of compiling and of masks.
"""

from __future__ import annotations

import argparse
import json
import time
from collections import Counter, defaultdict
from pathlib import Path

import numpy as np

from penstock.decoding.grammar.backend import CompiledGrammar, Vocabulary, mask_words
from penstock.decoding.grammar.backends import make_backend
from penstock.decoding.grammar.spec import spec_of_schema
from penstock.errors import PenstockError
from penstock.models.sources import resolve
from penstock.text.tokenizer import Tokenizer


def accepts(
    grammar: CompiledGrammar, tokens: list[int], eos: int, mask: np.ndarray, times: list[float]
) -> bool:
    """Whether an answer of these tokens is one that the masks let through, token by token, and may end."""
    matcher = grammar.matcher()
    for token in [*tokens, eos]:
        began = time.perf_counter()
        matcher.fill(mask)
        times.append((time.perf_counter() - began) * 1e6)
        if not mask[token // 32] >> (token % 32) & 1:
            return False
        if token != eos and not matcher.consume(token):
            raise AssertionError("a token that the mask allows was refused")
    return True


def main() -> None:
    raw = argparse.RawDescriptionHelpFormatter
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=raw)
    parser.add_argument("data", type=Path)
    parser.add_argument("--backend", default="auto")
    parser.add_argument("--show", action="store_true", help="why each schema failed")
    options = parser.parse_args()
    tokenizer = Tokenizer.load(resolve("smollm2"))
    backend = make_backend(options.backend, lambda: Vocabulary(tokenizer, tokenizer.vocab_size))
    eos = tokenizer.eos_ids[0]
    mask = np.zeros(mask_words(tokenizer.vocab_size), np.int32)
    counts: Counter[str] = Counter()
    times: defaultdict[str, list[float]] = defaultdict(list)
    for line in options.data.read_text().splitlines():
        row = json.loads(line)
        began = time.perf_counter()
        try:
            grammar = backend.compile(spec_of_schema(row["schema"], "json_schema"))
        except PenstockError as refusal:
            counts["refused"] += 1
            if options.show:
                print("refused", row["id"], refusal.message[:200])
            continue
        times["compile"].append((time.perf_counter() - began) * 1e6)
        wrong = set()
        for test in row["tests"]:
            tokens = tokenizer.encode(json.dumps(test["data"], ensure_ascii=False))
            if accepts(grammar, tokens, eos, mask, times["mask"]) != test["valid"]:
                wrong.add("false reject" if test["valid"] else "false accept")
        counts["pass" if not wrong else " and ".join(sorted(wrong))] += 1
        if wrong and options.show:
            print(", ".join(wrong), row["id"], row["features"])
    print(dict(counts))
    for name, values in times.items():
        p50, p95, p99 = np.percentile(values, [50, 95, 99])
        print(f"{name}: p50 {p50:,.0f}, p95 {p95:,.0f}, p99 {p99:,.0f}, most {max(values):,.0f} us")


if __name__ == "__main__":
    main()
