"""Strict tool calls over BFCL rows: are they valid against their schemas, do answers end by themselves.

    python benchmarks/forced_tools.py bfcl.jsonl [--first 0] [--rows 60] [--tokens 256] [--choice auto]

`jsonschema_rs` judges (of the test dependencies). An answer is complete if it did not run into its limit.
`--choice auto` leaves it to the model whether it calls; SmolLM2 does with `--example`, seldom without.
Forced, 256 tokens: 60 of the first 60 answers are complete, 79 of the next 80, 322 of all 330; 638 of 638
calls are valid. Free, with the example: 59 of 60, 77 of 80; 131 of 131.
"""

from __future__ import annotations

import argparse
import asyncio
import itertools
import json
from collections import Counter
from pathlib import Path
from typing import Any

import jsonschema_rs

from penstock.call import Call, SamplingParams, ToolSpec
from penstock.engine.tools.schema import argument_schema
from penstock.llm import AsyncLLM, read_conversation

AT_ONCE = 16
_CALL = '<tool_call>\n{"name": "capital_of", "arguments": {"country": "%s"}}\n</tool_call>'
EXAMPLE = [
    {"role": role, "content": content}
    for country in ("Italy", "France")
    for role, content in (("user", f"What is the capital of {country}?"), ("assistant", _CALL % country))
]


def call_of(row: dict[str, Any], options: argparse.Namespace) -> Call:
    specs = [ToolSpec(f["name"], f.get("description"), f["parameters"], strict=True) for f in row["function"]]
    return Call(
        kind="chat",
        model="smollm2",
        messages=read_conversation([*(EXAMPLE if options.example else []), *row["question"][0]]),
        sampling=SamplingParams(max_tokens=options.tokens, temperature=0.0),
        tools=tuple({tool.name: tool for tool in specs}.values()),
        tool_choice=options.choice,
    )


async def measure(options: argparse.Namespace) -> Counter[str]:
    counts: Counter[str] = Counter()
    with options.data.open() as lines:
        rows = [
            json.loads(line) for line in itertools.islice(lines, options.first, options.first + options.rows)
        ]
    async with AsyncLLM("smollm2", max_running=AT_ONCE) as llm:
        calls = [call_of(row, options) for row in rows]
        results = await llm.results(calls)
    for row, call, result in zip(rows, calls, results, strict=True):
        tools = {tool.name: tool for tool in call.tools}
        complete = result.finish_reason != "length"
        counts["complete" if complete else "incomplete"] += 1
        counts["answers without a call"] += not result.tool_calls
        for made in result.tool_calls:
            schema = argument_schema(tools[made.name])
            valid = jsonschema_rs.is_valid(schema, json.loads(made.arguments))
            counts["valid call" if valid else "invalid call"] += 1
        if options.show:
            print(row["id"], result.finish_reason, [f"{c.name}({c.arguments})" for c in result.tool_calls])
            print("   ", repr(result.text))
    return counts


def main() -> None:
    raw = argparse.RawDescriptionHelpFormatter
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=raw)
    parser.add_argument("data", type=Path)
    parser.add_argument("--first", type=int, default=0)
    parser.add_argument("--rows", type=int, default=60)
    parser.add_argument("--tokens", type=int, default=256)
    parser.add_argument("--choice", choices=("required", "auto"), default="required")
    parser.add_argument("--example", action="store_true", help="calls in the history of the conversation")
    parser.add_argument("--show", action="store_true", help="print every answer")
    print(dict(asyncio.run(measure(parser.parse_args()))))


if __name__ == "__main__":
    main()
