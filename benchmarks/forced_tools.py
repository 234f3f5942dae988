"""Forced tool calls over BFCL rows: are they valid against their schemas, do answers end by themselves.

    python benchmarks/forced_tools.py bfcl.jsonl [--rows 60] [--tokens 256]

`jsonschema_rs` judges (of the test dependencies). An answer is complete if it did not run into its limit.
"""

from __future__ import annotations

import argparse
import itertools
import json
from collections import Counter
from pathlib import Path

import jsonschema_rs

from penstock.call import SamplingParams, ToolSpec
from penstock.engine.tool_schema import argument_schema
from penstock.llm import LLM


def main() -> None:
    raw = argparse.RawDescriptionHelpFormatter
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=raw)
    parser.add_argument("data", type=Path)
    parser.add_argument("--rows", type=int, default=60)
    parser.add_argument("--tokens", type=int, default=256)
    options = parser.parse_args()
    counts: Counter[str] = Counter()
    params = SamplingParams(max_tokens=options.tokens, temperature=0.0)
    with LLM("smollm2") as llm, options.data.open() as lines:
        for line in itertools.islice(lines, options.rows):
            row = json.loads(line)
            tools = {
                f["name"]: ToolSpec(f["name"], f.get("description"), f["parameters"]) for f in row["function"]
            }
            (result,) = llm.chat(
                row["question"][0], params, tools=list(tools.values()), tool_choice="required"
            )
            counts["incomplete" if result.finish_reason == "length" else "complete"] += 1
            for call in result.tool_calls:
                valid = jsonschema_rs.is_valid(argument_schema(tools[call.name]), json.loads(call.arguments))
                counts["valid call" if valid else "invalid call"] += 1
    print(dict(counts))


if __name__ == "__main__":
    main()
