"""A batch whose answers are bound by grammars against the same batch free, alternating in one process.

    python benchmarks/constrained_batch.py [--batch 32] [--tokens 100] [--repeats 5]

Printed per form: tokens/s, and the median ratio to the free batch of the same round.
"""

from __future__ import annotations

import argparse
import statistics
import time
from collections import defaultdict
from typing import Any

from penstock.call import SamplingParams
from penstock.llm import LLM

FORMS: dict[str, dict[str, Any]] = {
    "free": {"ignore_eos": True},
    "strings in a list": {
        "json_schema": {"type": "array", "items": {"type": "string", "maxLength": 60}, "minItems": 60}
    },
    "letters": {"regex": "[a-z ]{2000}"},
}


def main() -> None:
    raw = argparse.RawDescriptionHelpFormatter
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=raw)
    parser.add_argument("--batch", type=int, default=32)
    parser.add_argument("--tokens", type=int, default=100)
    parser.add_argument("--repeats", type=int, default=5)
    options = parser.parse_args()
    rates: dict[str, list[float]] = defaultdict(list)
    with LLM("smollm2") as llm:
        prompts = [f"Once upon a time number {i}" for i in range(options.batch)]
        for repeat in range(options.repeats + 1):
            for name, form in FORMS.items():
                params = SamplingParams(max_tokens=options.tokens, temperature=0.0, **form)
                began = time.perf_counter()
                results = llm.generate(prompts, params, progress=False)
                seconds = time.perf_counter() - began
                if repeat:
                    rates[name].append(sum(len(result.token_ids) for result in results) / seconds)
    for name, values in rates.items():
        ratio = statistics.median(a / b for a, b in zip(values, rates["free"], strict=True))
        print(f"{name:18} {statistics.median(values):7.0f} tokens/s, {ratio:.3f} of free")


if __name__ == "__main__":
    main()
