"""What a way of drawing costs: a batch drawn in each way against the same batch taken greedily, alternating.

    python benchmarks/sampling_cost.py [--batch 32] [--tokens 100] [--repeats 5] [--forms greedy penalties]

Printed per form: tokens/s of its best repeat, and what that adds to the time of the best greedy one: whatever
else runs on the machine only ever makes a repeat slower.
"""

from __future__ import annotations

import argparse
import time
from collections import defaultdict
from typing import Any

from penstock.call import SamplingParams
from penstock.llm import LLM

FORMS: dict[str, dict[str, Any]] = {
    "greedy": {"temperature": 0.0},
    "temperature": {"temperature": 0.8},
    "top-k, top-p": {"temperature": 0.8, "top_k": 50, "top_p": 0.95},
    "min-p": {"temperature": 1.0, "min_p": 0.05},
    "penalties": {"temperature": 0.8, "repetition_penalty": 1.1, "frequency_penalty": 0.3},
    "greedy, penalties": {"temperature": 0.0, "repetition_penalty": 1.1, "presence_penalty": 0.3},
    "bias": {"temperature": 0.8, "logit_bias": dict.fromkeys(range(100, 200), -5.0)},
    "logprobs": {"temperature": 0.0, "logprobs": 5},
    "masks": {"temperature": 0.0, "regex": "[A-Za-z ,.]{2000}"},
    "sampled masks": {"temperature": 0.8, "regex": "[A-Za-z ,.]{2000}"},
    "masks of a schema": {
        "temperature": 0.0,
        "json_schema": {"type": "array", "items": {"type": "string", "maxLength": 60}, "minItems": 60},
    },
}


def main() -> None:
    raw = argparse.RawDescriptionHelpFormatter
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=raw)
    parser.add_argument("--batch", type=int, default=32)
    parser.add_argument("--tokens", type=int, default=100)
    parser.add_argument("--repeats", type=int, default=5)
    parser.add_argument("--forms", nargs="+", default=list(FORMS), choices=list(FORMS))
    options = parser.parse_args()
    forms = {name: FORMS[name] for name in ["greedy", *options.forms]}
    rates: dict[str, list[float]] = defaultdict(list)
    with LLM("smollm2") as llm:
        prompts = [f"Once upon a time number {i}" for i in range(options.batch)]
        for repeat in range(options.repeats + 1):
            for name, form in forms.items():
                free = {} if "regex" in form or "json_schema" in form else {"ignore_eos": True}
                params = SamplingParams(max_tokens=options.tokens, seed=repeat, **form, **free)
                began = time.perf_counter()
                results = llm.generate(prompts, params, progress=False)
                seconds = time.perf_counter() - began
                if repeat:
                    rates[name].append(sum(len(result.token_ids) for result in results) / seconds)
    for name, values in rates.items():
        added = max(rates["greedy"]) / max(values) - 1
        print(f"{name:18} {max(values):7.0f} tokens/s, a step takes {added:+.1%}")


if __name__ == "__main__":
    main()
