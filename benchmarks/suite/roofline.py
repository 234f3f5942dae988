"""The roofline: the probe's process, and what a decode step of a model must read and multiply."""

from __future__ import annotations

import json
import subprocess
from dataclasses import dataclass
from pathlib import Path

from suite.native import build


class Probe:
    """benchmarks/native/probe.c as a process: asleep between questions, threads pinned and made once."""

    def __init__(self, threads: int, cache: Path | None = None) -> None:
        """NoCompiler if it can't be built here."""
        self._process = subprocess.Popen(
            [str(build("probe", cache)), str(threads)],
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            text=True,
        )

    @property
    def pid(self) -> int:
        return self._process.pid

    def read(self, nbytes: int, budget_ms: int = 300) -> dict:
        """Bandwidth over a set of `nbytes`: gb_s (highest median of a variant), best_gb_s, variants."""
        return self._ask(f"read {nbytes} {budget_ms}")

    def peak(self, budget_ms: int = 200) -> dict:
        """int8_gmac_s and fma_gmac_s, in registers, over all threads; 0 where not measured."""
        return self._ask(f"peak {budget_ms}")

    def _ask(self, command: str) -> dict:
        assert self._process.stdin and self._process.stdout
        self._process.stdin.write(command + "\n")
        self._process.stdin.flush()
        line = self._process.stdout.readline()
        if not line:
            raise RuntimeError(f"the probe ended with status {self._process.wait()} at: {command}")
        answer = json.loads(line)
        if "error" in answer:
            raise RuntimeError(f"probe: {answer['error']}")
        return answer

    def close(self) -> None:
        assert self._process.stdin
        self._process.stdin.close()
        self._process.wait()
        assert self._process.stdout
        self._process.stdout.close()


@dataclass(frozen=True)
class Footprint:
    """What one decode step must touch. MACs and bytes of the weight matrices per step or token; a tied
    embedding counts once, as head; of an untied one a step reads only its rows, which is left out."""

    weight_bytes: int
    macs_per_token: int
    kv_elements_per_token: int  # keys and values of all layers

    def step_bytes(self, batch: int, context: float, kv_itemsize: float) -> float:
        return self.weight_bytes + batch * context * self.kv_elements_per_token * kv_itemsize


def footprint(model: Path) -> tuple[Footprint, int]:
    """Of a GGUF file, in the precision of the file; and the size of its vocabulary."""
    from penstock.formats.gguf import GGUFFile

    file = GGUFFile.open(model)
    meta, arch = file.metadata, file.metadata["general.architecture"]
    heads = int(meta[f"{arch}.attention.head_count"])
    kv_heads = int(meta.get(f"{arch}.attention.head_count_kv", heads))
    width = int(meta.get(f"{arch}.attention.key_length", int(meta[f"{arch}.embedding_length"]) // heads))
    tied = "output.weight" not in file.tensors
    nbytes = macs = 0
    for name, tensor in file.tensors.items():
        if name == "token_embd.weight" and not tied:
            continue
        nbytes += tensor.nbytes
        if len(tensor.shape) == 2:
            macs += tensor.shape[0] * tensor.shape[1]
    found = Footprint(nbytes, macs, 2 * int(meta[f"{arch}.block_count"]) * kv_heads * width)
    return found, file.tensors["token_embd.weight"].shape[0]
