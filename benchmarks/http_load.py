"""The compiled load generator against any server of /v1/completions, with requests of a trace.

    python benchmarks/http_load.py --port 8000 --model smollm2 [--requests 96] [--concurrency 32 | --rate 4]

With --concurrency so many streams run at once, always (closed loop); with --rate requests arrive by
themselves, Poisson, whatever is running (open loop). Prompts are random token ids. Prints the
generator's JSON (benchmarks/native/loadgen.cpp); --raw keeps the arrival time of every token.
"""

from __future__ import annotations

import argparse
import itertools
import random
import subprocess
import sys
import tempfile
from pathlib import Path

from suite.native import build
from suite.scenarios import http_line, sample, sample_requests


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--port", type=int, required=True)
    parser.add_argument("--model", required=True, help="as /v1/models names it")
    parser.add_argument("--requests", type=int, default=96)
    parser.add_argument("--max-input", type=int, default=1024)
    parser.add_argument("--max-output", type=int, default=128)
    parser.add_argument("--vocab-size", type=int, default=8192, help="prompts are token ids below it")
    parser.add_argument("--concurrency", type=int, default=32)
    parser.add_argument("--rate", type=float, help="requests per second; open loop")
    parser.add_argument("--seed", default="0", help="another seed, other prompts: no prefix cache helps")
    parser.add_argument("--raw", type=Path)
    options = parser.parse_args()
    chosen = sample(options.requests, options.max_input, options.max_output)
    print(chosen.source, file=sys.stderr)
    requests = sample_requests(chosen, options.vocab_size, options.seed)
    times: itertools.repeat[None] | list[float] = itertools.repeat(None)
    if options.rate:
        draw = random.Random(options.seed)
        times = list(itertools.accumulate(draw.expovariate(options.rate) for _ in requests))
    lines = [
        http_line(request["prompt"], request["output_len"], options.model, "trace", arrival_s)
        for request, arrival_s in zip(requests, times, strict=False)
    ]
    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder) / "requests.jsonl"
        path.write_text("\n".join(lines) + "\n")
        command = [str(build("loadgen")), "--port", str(options.port), "--requests", str(path)]
        command += ["--concurrency", str(options.concurrency)]
        if options.raw:
            command += ["--raw", str(options.raw)]
        sys.exit(subprocess.run(command, check=False).returncode)


if __name__ == "__main__":
    main()
