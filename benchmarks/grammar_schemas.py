"""How a grammar backend does on real JSON schemas: which instances it takes, and what masks cost.

    python benchmarks/grammar_schemas.py jsonschemabench.jsonl [--drafts 0-8] [--thinking] [--show]

Every instance is written as JSON, tokenized and followed through the schema's grammar: by its masks alone,
and with `--drafts` as answers of the engine with so many drafts per round (suite/schema_answers.py), with
`--thinking` also behind a section of reasoning. A schema passes if all its valid instances are accepted to
the end and all invalid ones are not. Printed by mode: schemas that pass, are refused, reject a valid
instance, accept an invalid one, crash; microseconds of masks. Exits with 1 if a verdict depends on the mode.
"""

from __future__ import annotations

import argparse
import sys
import time
from collections import Counter
from pathlib import Path

import numpy as np

from penstock.decoding.grammar.backend import Vocabulary
from penstock.decoding.grammar.backends import make_backend
from penstock.models.sources import resolve
from penstock.text.tokenizer import Tokenizer
from suite.schema_answers import VERDICTS, Mode, SchemaAnswers, Verdict, read_schemas


def counts_of(text: str) -> list[int]:
    """Of "4" or "0-8"."""
    first, _, last = text.partition("-")
    return list(range(int(first), int(last or first) + 1))


def main() -> None:
    raw = argparse.RawDescriptionHelpFormatter
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=raw)
    parser.add_argument("data", type=Path)
    parser.add_argument("--backend", default="auto")
    parser.add_argument("--drafts", type=counts_of, default=[], metavar="K", help="a number, or first-last")
    parser.add_argument("--thinking", action="store_true", help="each number of drafts inside reasoning too")
    parser.add_argument("--show", action="store_true", help="why each schema failed")
    options = parser.parse_args()
    tokenizer = Tokenizer.load(resolve("smollm2"))
    backend = make_backend(options.backend, lambda: Vocabulary(tokenizer, tokenizer.vocab_size))
    schemas = read_schemas(options.data)
    answers = SchemaAnswers(tokenizer, backend, max(options.drafts, default=0))
    modes = [Mode(None)]
    modes += [Mode(k, thinking) for thinking in (False, True)[: 1 + options.thinking] for k in options.drafts]
    print(f"| mode | {' | '.join(VERDICTS)} | masks | p50 µs | p99 µs | most µs | s |")
    print("|---" * (len(VERDICTS) + 6) + "|")
    found: dict[Mode, dict[str, Verdict]] = {}
    for mode in modes:
        began, masks = time.perf_counter(), len(answers.timed.masks)
        found[mode] = {schema.id: answers.verdict(schema, mode) for schema in schemas}
        counts, times = Counter(name for name, _ in found[mode].values()), answers.timed.masks[masks:]
        p50, p99 = np.percentile(times, [50, 99])
        cells = [str(mode), *(str(counts[verdict]) for verdict in VERDICTS), f"{len(times)}"]
        cells += [f"{p50:.0f}", f"{p99:.0f}", f"{max(times):.0f}", f"{time.perf_counter() - began:.0f}"]
        print(f"| {' | '.join(cells)} |", flush=True)
    p50, p99 = np.percentile(answers.timed.compilations, [50, 99])
    print(f"\ncompile: p50 {p50:,.0f}, p99 {p99:,.0f}, most {max(answers.timed.compilations):,.0f} µs")
    plain = found.pop(modes[0])
    for name, verdict in plain.items():
        if options.show and verdict.name != "pass":
            print(f"{name}: {verdict.name}: {verdict.why[:200]}")
    others = [(mode, name) for mode in found for name in plain if found[mode][name] != plain[name]]
    for mode, name in others:
        print(f"{name}: {mode}: {': '.join(found[mode][name])[:300]}; alone: {plain[name].name}")
    sys.exit(bool(others))


if __name__ == "__main__":
    main()
