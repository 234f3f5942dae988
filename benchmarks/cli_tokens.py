"""Tokens that an agent spends on five tasks: by the command line in agent mode, and by curl reading JSON.

    python benchmarks/cli_tokens.py [--port 8000]

Starts `penstock serve smollm2`, runs every command of both ways in a shell as an agent would, and counts what
the agent writes (the commands) and reads (standard output and error), by SmolLM2's tokenizer. Bodies are read
as they come: curl's way has no jq. Prints the table of docs/cli.md; fails if a command fails, or if a task
costs more than a third by the command line.
"""

from __future__ import annotations

import argparse
import os
import shlex
import subprocess
import sys
import tempfile

from penstock.models.sources import resolve
from penstock.text.tokenizer import Tokenizer

QUESTIONS = ("What is the capital of France?", "Name three colours.", "How many days has a week?")
LIMIT = 32
MOST = 1 / 3  # of curl's tokens, for each task


def run(prompt: str, *flags: str, model: str = "smollm2") -> str:
    """The CLI's way to one answer."""
    named = [] if model == "smollm2" else ["--model", model]
    return shlex.join(["penstock", "run", prompt, *named, "--max-tokens", str(LIMIT), *flags])


def ask(url: str, prompt: str, extra: str = "", model: str = "smollm2") -> str:
    """curl's way to one answer."""
    body = (
        f'{{"model": "{model}", "messages": [{{"role": "user", "content": "{prompt}"}}], '
        f'"max_tokens": {LIMIT}{extra}}}'
    )
    return f"curl -s {url}/v1/chat/completions -H 'Content-Type: application/json' -d '{body}'"


def tasks(url: str) -> list[tuple[str, list[str], list[str]]]:
    """(task, commands of the CLI, commands of curl)."""
    models, health, ready = (f"curl -s {url}{path}" for path in ("/v1/models", "/health", "/ready"))
    where = "" if url.endswith(":8000") else f" --url {url}"
    temperatures = ("0", "0.7", "1.2")
    story = "Tell a short story."
    return [
        ("which models, how long a context, how busy", [f"penstock ps{where}"], [ready, models, health]),
        ("ask three questions", [run(q) for q in QUESTIONS], [ask(url, q) for q in QUESTIONS]),
        (
            "compare three temperatures",
            [run(story, "--temperature", t, "--seed", "1") for t in temperatures],
            [ask(url, story, f', "temperature": {t}, "seed": 1') for t in temperatures],
        ),
        (
            "recover from a wrong model name",
            [run(QUESTIONS[0], model="smolm2"), run(QUESTIONS[0])],
            [ask(url, QUESTIONS[0], model="smolm2"), models, ask(url, QUESTIONS[0])],
        ),
        (
            "see that it is ready, then follow an answer as it is made",
            [f"penstock ps{where}", run(story)],
            [ready, ask(url, story, ', "stream": true')],
        ),
    ]


def execute(commands: list[str]) -> str:
    """What the agent writes and reads."""
    shell = f'penstock() {{ {shlex.quote(sys.executable)} -m penstock "$@"; }}\n'
    said = []
    for command in commands:
        done = subprocess.run(
            ["bash", "-c", shell + command],
            env={**os.environ, "CLAUDECODE": "1"},
            capture_output=True,
            text=True,
            timeout=300,
            check=False,
        )
        if done.returncode != 0 and "smolm2" not in command:
            raise SystemExit(f"{command}: {done.returncode}\n{done.stderr}")
        said += [command, done.stdout, done.stderr]
    return "\n".join(part.rstrip("\n") for part in said if part)


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--port", type=int, default=8000)
    options = parser.parse_args()
    tokenizer = Tokenizer.load(resolve("smollm2"))
    with tempfile.TemporaryFile("w+") as log:
        serve = ["serve", "smollm2", "--port", str(options.port), "--kv-bytes", "512M", "--output", "agent"]
        server = subprocess.Popen(
            [sys.executable, "-m", "penstock", *serve],
            stdout=subprocess.PIPE,
            stderr=log,
            text=True,
        )
        try:
            assert server.stdout
            if not server.stdout.readline():
                log.seek(0)
                raise SystemExit(f"penstock serve ended: {log.read()}")
            print("| task | CLI | curl and JSON | share |\n| --- | ---: | ---: | ---: |")
            totals, dear = [0, 0], []
            for name, *ways in tasks(f"http://127.0.0.1:{options.port}"):
                counts = [len(tokenizer.encode(execute(commands))) for commands in ways]
                totals = [total + count for total, count in zip(totals, counts, strict=True)]
                dear += [name] if counts[0] > MOST * counts[1] else []
                print(f"| {name} | {counts[0]} | {counts[1]} | {counts[0] / counts[1]:.2f} |", flush=True)
            print(f"| all | {totals[0]} | {totals[1]} | {totals[0] / totals[1]:.2f} |")
            if dear:
                raise SystemExit(f"more than a third of curl's tokens: {', '.join(dear)}")
        finally:
            server.terminate()
            server.wait()


if __name__ == "__main__":
    main()
