"""One peer: a process in its own virtual environment that answers JSON lines.

    → {"do": "load", "model": "…", "threads": 2}
    ← {"ok": true, "versions": {…}, "note": "…"}
    → {"do": "run", "prompts": [[ids], …], "output_len": 128}
    ← {"ok": true, "seconds": 1.23, "output_tokens": 1024, "first": [ids of the first answer]}

Standard library only: every peer's environment imports it. A subclass writes `load` and `run`.
The clock runs around `run`'s own work, inside the peer: pipes and JSON are not measured.
"""

from __future__ import annotations

import importlib.metadata
import json
import os
import sys
import time
import traceback


class Peer:
    packages: tuple[str, ...] = ()  # whose versions are reported
    note = ""  # precision, attention, whatever makes its numbers what they are

    def load(self, model: str, threads: int) -> None:
        """Load the GGUF file (or the folder that `compare.py` made of it)."""
        raise NotImplementedError

    def run(self, prompts: list[list[int]], output_len: int) -> list[list[int]]:
        """Greedy, exactly `output_len` tokens per prompt; returns the generated ids."""
        raise NotImplementedError

    def close(self) -> None:
        """Give everything back."""


def main(peer: Peer) -> None:
    # Libraries print to stdout: the protocol keeps its own copy of it, everybody else gets stderr.
    protocol = os.fdopen(os.dup(1), "w", buffering=1)
    os.dup2(2, 1)
    for line in sys.stdin:
        message = json.loads(line)
        try:
            answer = _answer(peer, message)
        except Exception as error:  # noqa: BLE001  # whatever a peer raises is its result
            traceback.print_exc()
            reason = str(error).strip().splitlines()
            answer = {"ok": False, "error": f"{type(error).__name__}: {reason[0] if reason else ''}"[:300]}
        protocol.write(json.dumps(answer) + "\n")
    peer.close()


def _answer(peer: Peer, message: dict) -> dict:
    if message["do"] == "load":
        peer.load(message["model"], message["threads"])
        versions = {name: importlib.metadata.version(name) for name in peer.packages}
        return {"ok": True, "versions": versions, "note": peer.note}
    start = time.perf_counter()
    answers = peer.run(message["prompts"], message["output_len"])
    seconds = time.perf_counter() - start
    short = [len(ids) for ids in answers if len(ids) != message["output_len"]]
    if short:
        raise RuntimeError(f"answers of {short[:4]} tokens instead of {message['output_len']}")
    return {"ok": True, "seconds": seconds, "output_tokens": sum(map(len, answers)), "first": answers[0][:16]}
