"""Where a long prompt's time goes, and how near its linear layers come to their own inner loop.

    python benchmarks/linear_share.py [--model smollm2] [--tokens 1024] [--repeats 9]

One thread. Alternating with the prompt, a probe runs the kernel of the layers' weights on 8 rows and the
panels that fit the first level of cache: the same loads, unpacking, products and scales, nothing to wait for.
"""

from __future__ import annotations

import argparse
import statistics
import time
from collections import defaultdict

import numpy as np

from penstock.kernels.backend import BackendOptions
from penstock.kernels.batch import Batch
from penstock.kernels.cpu import _native
from penstock.kernels.program import AddLinear, GatedLinear, Linear
from penstock.kv.groups import LayerKV, plan_layout
from penstock.models import sources
from penstock.models.load import inspect_model, load_model
from penstock.models.spec import kv_layers

CHUNK = 512
BLOCK = 16
LAYERS = ("linear", "add_linear", "gated_linear")


class Prompt:
    """One prompt through the model, in chunks."""

    def __init__(self, model: str, tokens: int) -> None:
        info = inspect_model(sources.resolve(model))
        self.lowered = load_model(info, "cpu", options=BackendOptions(threads=1))
        layout = plan_layout([LayerKV(*layer) for layer in kv_layers(info.spec)], BLOCK, 2)
        blocks = (-(-tokens // BLOCK) + 1) * len(layout.groups)
        self.kv = self.lowered.allocate_kv(layout, blocks)
        table = np.arange(blocks, dtype=np.int32).reshape(len(layout.groups), 1, -1)
        ids = np.random.default_rng(0).integers(0, info.spec.vocab_size, tokens).astype(np.int32)
        self.batches = []
        for start in range(0, tokens, CHUNK):
            part = ids[start : start + CHUNK]
            end = start + len(part)
            self.batches.append(
                Batch(
                    tokens=part,
                    positions=np.arange(start, end, dtype=np.int32),
                    offsets=np.array([0, len(part)], np.int32),
                    starts=np.array([start], np.int32),
                    contexts=np.array([end], np.int32),
                    tables=tuple(table),
                )
            )
        program = self.lowered.executable.program
        weights = [op.weight for op in program.operations if isinstance(op, (Linear, AddLinear, GatedLinear))]
        self.macs = tokens * sum(part.n * part.k for w in weights for part in getattr(w, "parts", (w,)))
        self.format = getattr(weights[0], "parts", weights)[0].format

    def run(self) -> dict[str, float]:
        executable = self.lowered.executable
        executable.take_clocks()
        for batch in self.batches:
            self.lowered.forward(batch, self.kv)
        return executable.take_clocks()


class Probe:
    """Eight rows by four panels of 576 inputs, again and again."""

    rows, k, repeat = 8, 576, 2000

    def __init__(self, form: int) -> None:
        panel = _native.packed_bytes(form, 16, self.k, 1, False)
        self.n = 16 * max(1, 24576 // panel)
        data = np.random.default_rng(1).integers(0, 60, panel * self.n // 16).astype(np.uint8)
        self.view = _native.PanelView(form, self.n, self.k, False, data)
        self.kernels = _native.Kernels("auto")
        groups = self.k // 32
        self.x = np.random.default_rng(2).standard_normal((self.rows, self.k)).astype(np.float32)
        shapes = ((32 * groups, np.int8), (groups, np.float32), (groups, np.float32))
        shapes += ((groups, np.int32), (2 * groups, np.int32))
        self.quantized = tuple(np.zeros((self.rows, width), kind) for width, kind in shapes)
        self.kernels.quantize(self.x, self.quantized)
        self.out = np.zeros((self.rows, self.n), np.float32)

    def run(self) -> float:
        """Multiply-accumulates per second."""
        began = time.perf_counter()
        self.kernels.linear(self.view, None, self.quantized, self.out, None, repeat=self.repeat)
        return self.repeat * self.rows * self.n * self.k / (time.perf_counter() - began)


def main() -> None:
    raw = argparse.RawDescriptionHelpFormatter
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=raw)
    parser.add_argument("--model", default="smollm2")
    parser.add_argument("--tokens", type=int, default=1024)
    parser.add_argument("--repeats", type=int, default=9)
    options = parser.parse_args()
    prompt = Prompt(options.model, options.tokens)
    probe = Probe(prompt.format)
    seconds: dict[str, list[float]] = defaultdict(list)
    shares, reached, possible = [], [], []
    for repeat in range(options.repeats + 1):
        hot = probe.run()
        clocks = prompt.run()
        if repeat == 0:
            continue
        linear = sum(clocks[name] for name in LAYERS)
        reached.append(prompt.macs / linear)
        possible.append(hot)
        shares.append(reached[-1] / hot)
        for name, value in clocks.items():
            seconds[name].append(value)
    total = sum(statistics.median(values) for values in seconds.values())
    for name, values in seconds.items():
        if statistics.median(values) > 0.001 * total:
            middle = statistics.median(values)
            print(f"{name:14} {middle * 1e3:8.1f} ms {middle / total:6.1%}")
    print(f"linear layers  {statistics.median(reached) / 1e9:8.1f} GMAC/s")
    print(f"inner loop     {statistics.median(possible) / 1e9:8.1f} GMAC/s")
    print(f"share          {statistics.median(shares):8.1%}")


if __name__ == "__main__":
    main()
