"""Random load for a while, then: memory flat, every counter at zero.

    python benchmarks/soak.py --minutes 30 [--model smollm2] [--concurrency 12] [--output FILE.json]

Starts `penstock serve` on a free loopback port with a small KV pool (so that it fills early) and sends
random requests of every kind: streams and bodies, cancelled at random points, n > 1, stop strings,
log-probabilities, shared prefixes, bad parameters. Bounded in time and in requests at once. Every
20 s it notes the resident memory of both processes. At the end everything must be idle and given back;
the exit code is 1 if memory grew or a counter is not zero.
"""

from __future__ import annotations

import argparse
import asyncio
import contextlib
import json
import random
import re
import statistics
import sys
import time
from pathlib import Path
from typing import Any

import psutil

SAMPLE_S = 20.0
GROWTH_LIMIT = 0.03  # last quarter over second quarter
GAUGES = (
    r"^(penstock_running|penstock_waiting|penstock_kv_blocks)"
    r'(?:\{[^}]*(?:state="owned"[^}]*|model="[^",]*")\}) (\S+)$'
)
WORDS = "the river carries water past stone and field until it meets a wide and quiet sea".split()  # noqa: SIM905


class Server:
    """`penstock serve` as a child process, and what its memory does."""

    def __init__(self, model: str, kv_bytes: int) -> None:
        self._args = [
            sys.executable,
            "-m",
            "penstock",
            "serve",
            model,
            "--port",
            "0",
            "--kv-bytes",
            str(kv_bytes),
        ]
        self.samples: list[int] = []

    async def start(self) -> None:
        self.process = await asyncio.create_subprocess_exec(*self._args, stderr=asyncio.subprocess.PIPE)
        assert self.process.stderr is not None
        async with asyncio.timeout(120):
            async for line in self.process.stderr:
                found = re.search(rb"http://127\.0\.0\.1:(\d+)", line)
                if found:
                    self.port = int(found[1])
                    break
        self._drain = asyncio.create_task(self._discard())

    async def _discard(self) -> None:
        assert self.process.stderr is not None
        async for _ in self.process.stderr:
            pass

    def sample(self) -> None:
        parent = psutil.Process(self.process.pid)
        self.samples.append(sum(p.memory_info().rss for p in (parent, *parent.children(recursive=True))))

    async def stop(self) -> None:
        self.process.terminate()
        await self.process.wait()
        self._drain.cancel()


async def fetch(
    port: int, method: str, path: str, body: bytes = b"", leave_after: int | None = None
) -> bytes:
    """One request on its own connection; `leave_after`: close it after that many bytes of answer."""
    reader, writer = await asyncio.open_connection("127.0.0.1", port)
    try:
        head = f"{method} {path} HTTP/1.1\r\nhost: 127.0.0.1:{port}\r\nconnection: close\r\n"
        if body:
            head += f"content-type: application/json\r\ncontent-length: {len(body)}\r\n"
        writer.write(head.encode() + b"\r\n" + body)
        await writer.drain()
        if leave_after is not None:
            return await reader.read(leave_after)
        return await reader.read()
    finally:
        writer.close()
        with contextlib.suppress(OSError):
            await writer.wait_closed()


def random_body(rng: random.Random, model: str) -> tuple[str, dict[str, Any]]:
    """A path and a request: most are sound, some are not."""
    stem = " ".join(WORDS[: rng.randint(1, len(WORDS))]) * rng.choice([1, 1, 2, 6])
    text = stem + " " + " ".join(rng.choices(WORDS, k=rng.randint(1, 30)))
    body: dict[str, Any] = {"model": model, "max_tokens": rng.randint(1, 40), "stream": rng.random() < 0.6}
    if rng.random() < 0.3:
        body["n"] = rng.randint(2, 3)
    if rng.random() < 0.3:
        body["stop"] = rng.sample(WORDS, 2)
    if rng.random() < 0.5:
        body |= {"temperature": rng.choice([0, 0.7, 1.3]), "seed": rng.randint(0, 99), "top_p": 0.9}
    if rng.random() < 0.05:
        body |= rng.choice([{"top_p": 7}, {"n": 100_000}, {"model": "nobody"}, {"max_tokens": 10**9}])
    if rng.random() < 0.5:
        if rng.random() < 0.2:
            body |= {"logprobs": True, "top_logprobs": 3}
        return "/v1/chat/completions", {**body, "messages": [{"role": "user", "content": text}]}
    return "/v1/completions", {**body, "prompt": text, "echo": rng.random() < 0.1}


async def client(port: int, model: str, rng: random.Random, until: float, tally: dict[str, int]) -> None:
    while time.monotonic() < until:
        path, body = random_body(rng, model)
        leave = rng.choice([0, 200, 1500]) if rng.random() < 0.15 else None
        try:
            answer = await fetch(port, "POST", path, json.dumps(body).encode(), leave)
        except (OSError, asyncio.IncompleteReadError) as error:
            tally[type(error).__name__] = tally.get(type(error).__name__, 0) + 1
            continue
        status = "left" if leave is not None else answer[9:12].decode()
        tally[status] = tally.get(status, 0) + 1


async def settled(port: int) -> dict[str, float]:
    """The gauges once nothing runs, or after 30 s."""
    for _ in range(60):
        text = (await fetch(port, "GET", "/metrics")).decode()
        found = {name: float(value) for name, value in re.findall(GAUGES, text, re.MULTILINE)}
        if found and not any(found.values()):
            return found
        await asyncio.sleep(0.5)
    return found


async def run(options: argparse.Namespace) -> dict[str, Any]:
    server = Server(options.model, options.kv_bytes)
    await server.start()
    models = json.loads((await fetch(server.port, "GET", "/v1/models")).partition(b"\r\n\r\n")[2])
    model = models["data"][0]["id"]
    until = time.monotonic() + options.minutes * 60
    tally: dict[str, int] = {}
    clients = [
        asyncio.create_task(client(server.port, model, random.Random(i), until, tally))
        for i in range(options.concurrency)
    ]
    while time.monotonic() < until:
        await asyncio.sleep(min(SAMPLE_S, max(0.0, until - time.monotonic())))
        server.sample()
    await asyncio.gather(*clients)
    gauges = await settled(server.port)
    health = (await fetch(server.port, "GET", "/health"))[9:12].decode()
    await server.stop()
    quarter = max(1, len(server.samples) // 4)
    early = statistics.median(server.samples[quarter : 2 * quarter] or server.samples)
    late = statistics.median(server.samples[-quarter:])
    return {
        "minutes": options.minutes,
        "requests": tally,
        "memory_mib": [round(sample / 2**20) for sample in server.samples],
        "growth": round(late / early - 1, 4),
        "gauges_at_end": gauges,
        "health": health,
        "ok": late / early - 1 <= GROWTH_LIMIT
        and bool(gauges)
        and not any(gauges.values())
        and health == "200",
    }


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--minutes", type=float, default=30.0)
    parser.add_argument("--model", default="smollm2")
    parser.add_argument("--concurrency", type=int, default=12)
    parser.add_argument("--kv-bytes", type=int, default=128 * 2**20)
    parser.add_argument("--output", type=Path)
    options = parser.parse_args()
    report = asyncio.run(run(options))
    text = json.dumps(report, indent=1)
    print(text)
    if options.output:
        options.output.write_text(text + "\n")
    sys.exit(0 if report["ok"] else 1)


if __name__ == "__main__":
    main()
