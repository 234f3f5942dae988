"""One peer: a process in its own virtual environment that answers JSON lines.

    → {"do": "load", "model": "…", "threads": 2, "kv_tokens": 65536, "kv_elements_per_token": 11520,
       "options": {}}
    ← {"ok": true, "versions": {…}, "note": "…", "kv": "uint8", "kv_itemsize": 1.1875}
    → {"do": "run", "prompts": [[ids], …], "output_len": 128}
    ← {"ok": true, "seconds": 1.23, "output_tokens": 1024, "first": [ids of the first answer]}
    → {"do": "list", "requests": [{"prompt": [ids], "output_len": 12}, …], "concurrency": 32}
    ← {"ok": true, "seconds": 1.23, "output_tokens": 1024}
    → {"do": "memory"}
    ← {"ok": true, "rss_bytes": …, "peak_bytes": …}

Standard library only: every peer's environment imports it. A subclass writes `load` and `run`, and
`list` if it can. The clock runs around the peer's own work, inside the peer: pipes and JSON are not measured.
"""

from __future__ import annotations

import importlib.metadata
import json
import os
import sys
import time
import traceback
from dataclasses import dataclass, field
from pathlib import Path


@dataclass
class Load:
    """model: GGUF file, or the folder made of it. The KV pool must hold `kv_tokens` tokens, each of
    `kv_elements_per_token` numbers. options: of the catalogue's entry."""

    model: str
    threads: int
    kv_tokens: int
    kv_elements_per_token: int
    options: dict[str, str] = field(default_factory=dict)


class Peer:
    packages: tuple[str, ...] = ()  # whose versions are reported
    note = ""  # precision, attention, whatever makes its numbers what they are
    kv = "unknown"  # precision of the KV
    kv_itemsize: float | None = None  # bytes per number of KV, scales included

    def load(self, given: Load) -> None:
        raise NotImplementedError

    def run(self, prompts: list[list[int]], output_len: int) -> list[list[int]]:
        """Greedy, exactly `output_len` tokens per prompt; returns the generated ids."""
        raise NotImplementedError

    def list(self, requests: list[dict], concurrency: int) -> int:
        """Greedy, each with its own `output_len`, `concurrency` at once; returns the generated tokens."""
        raise NotImplementedError("this peer has no lists of requests with lengths of their own")

    def versions(self) -> dict[str, str]:
        return {name: importlib.metadata.version(name) for name in self.packages}

    def close(self) -> None:
        """Give everything back."""


def main(peer: Peer) -> None:
    # Libraries print to stdout: the protocol keeps its own copy of it, everybody else gets stderr.
    protocol = os.fdopen(os.dup(1), "w", buffering=1)
    os.dup2(2, 1)
    for line in sys.stdin:
        message = json.loads(line)
        try:
            answer = {"ok": True, **_answer(peer, message)}
        except Exception as error:  # noqa: BLE001  # whatever a peer raises is its result
            traceback.print_exc()
            reason = str(error).strip().splitlines()
            answer = {"ok": False, "error": f"{type(error).__name__}: {reason[0] if reason else ''}"[:300]}
        protocol.write(json.dumps(answer) + "\n")
    peer.close()


def _answer(peer: Peer, message: dict) -> dict:
    kind = message.pop("do")
    if kind == "load":
        peer.load(Load(**message))
        return {
            "versions": peer.versions(),
            "note": peer.note,
            "kv": peer.kv,
            "kv_itemsize": peer.kv_itemsize,
        }
    if kind == "memory":
        return _memory()
    start = time.perf_counter()
    if kind == "list":
        count = peer.list(message["requests"], message["concurrency"])
        seconds = time.perf_counter() - start
        expected = sum(request["output_len"] for request in message["requests"])
        if count != expected:
            raise RuntimeError(f"{count} tokens instead of {expected}")
        return {"seconds": seconds, "output_tokens": count}
    answers = peer.run(message["prompts"], message["output_len"])
    seconds = time.perf_counter() - start
    short = [len(ids) for ids in answers if len(ids) != message["output_len"]]
    if short:
        raise RuntimeError(f"answers of {short[:4]} tokens instead of {message['output_len']}")
    return {"seconds": seconds, "output_tokens": sum(map(len, answers)), "first": answers[0][:16]}


def _memory() -> dict:
    """Resident now and at its highest."""
    rows = Path("/proc/self/status").read_text().splitlines()
    kilobytes = {row.split(":")[0]: int(row.split()[1]) for row in rows if row.startswith(("VmRSS", "VmHWM"))}
    return {"rss_bytes": kilobytes["VmRSS"] * 1024, "peak_bytes": kilobytes["VmHWM"] * 1024}
