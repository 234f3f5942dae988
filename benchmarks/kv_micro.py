"""Cost of the KV resource's calls, in µs of one core: `python benchmarks/kv_micro.py`.

Rows are decoding requests of 2,000 tokens, blocks of 16 tokens, one full-attention group (or, below,
a full and a sliding one). Medians over many steps; "border" rows complete a block in that step.
"""

from __future__ import annotations

import statistics
import time
from collections.abc import Callable

import numpy as np

from penstock.kv.groups import LayerKV, plan_layout
from penstock.kv.resource import KVResource

BLOCK_SIZE = 16
CONTEXT = 2000


class Request:
    """A holder of random tokens; `shared` leading ones are the same for all."""

    def __init__(self, index: int, length: int, shared: int = 0) -> None:
        self.id = str(index)
        self.prompt_len = length
        self.cache_salt = ""
        self.cache_read = True
        self.cache_store = True
        tokens = np.random.default_rng(index).integers(0, 50_000, length, dtype=np.int32)
        tokens[:shared] = np.arange(shared)
        self.known = tokens


def make_resource(rows: int, window: int | None) -> KVResource:
    layers = [LayerKV(3, 64), LayerKV(3, 64, window)]
    layout = plan_layout(layers, BLOCK_SIZE, 4)
    blocks = rows * len(layout.groups) * (2 * CONTEXT // BLOCK_SIZE)
    return KVResource(layout, blocks, rows, 2 * CONTEXT, b"n" * 32)


def timed(call: Callable[[], object]) -> float:
    start = time.perf_counter()
    call()
    return (time.perf_counter() - start) * 1e6


def decode_costs(rows: int, window: int | None) -> dict[str, float]:
    """Median µs of `short` and `commit` where no row is at a border, and per border row of `reserve`,
    `take_updates` and `commit`."""
    kv = make_resource(rows, window)
    slots = np.arange(rows, dtype=np.int32)
    for slot in range(rows):
        kv.admit(slot, Request(slot, 2 * CONTEXT))
        kv.reserve(slot, CONTEXT)
    kv.commit(slots, np.full(rows, CONTEXT))
    kv.take_updates()
    samples: dict[str, list[float]] = {}

    def note(name: str, us: float) -> None:
        samples.setdefault(name, []).append(us)

    for length in range(CONTEXT + 1, CONTEXT + 40 * BLOCK_SIZE):
        upto = np.full(rows, length)
        short = kv.short(slots, upto)
        cost = timed(lambda upto=upto: kv.short(slots, upto))
        if short.any():
            note("reserve /row", timed(lambda n=length: [kv.reserve(slot, n) for slot in range(rows)]) / rows)
            note("take_updates /row", timed(kv.take_updates) / rows)
        quiet = length % BLOCK_SIZE and (window is None or (length - window + 1) % BLOCK_SIZE)
        commit = timed(lambda upto=upto: kv.commit(slots, upto))
        if length % BLOCK_SIZE == 0:
            note("commit, border /row", commit / rows)
        elif quiet:
            note("short", cost)
            note("commit", commit)
    kv.check()
    return {name: statistics.median(values) for name, values in samples.items()}


def admit_costs(rows: int, window: int | None, shared: int) -> dict[str, float]:
    """Median µs of `admit` and `release` of a 2,000-token request of which `shared` tokens hit."""
    kv = make_resource(rows, window)
    requests = [Request(i, CONTEXT, shared) for i in range(rows)]
    if shared:
        kv.admit(0, requests[0])
        kv.reserve(0, CONTEXT)
        kv.commit(np.array([0]), np.array([CONTEXT]))
        kv.release(0)
    admits = [timed(lambda slot=slot: kv.admit(slot, requests[slot])) for slot in range(rows)]
    prefill: list[float] = []
    for slot in range(rows):
        kv.reserve(slot, CONTEXT)
        prefill.append(timed(lambda slot=slot: kv.commit(np.array([slot]), np.array([CONTEXT]))))
    releases = [timed(lambda slot=slot: kv.release(slot)) for slot in range(rows)]
    return {
        f"admit, {shared} hit": statistics.median(admits),
        f"commit all, {shared} hit": statistics.median(prefill),
        f"release, {shared} hit": statistics.median(releases),
    }


def main() -> None:
    for window in (None, 512):
        groups = "one full group" if window is None else f"full + window {window}"
        print(f"\n{CONTEXT} tokens a row, {groups}, µs")
        for rows in (16, 256, 1024):
            costs = decode_costs(rows, window)
            costs |= admit_costs(rows, window, 0) | admit_costs(rows, window, 1024)
            print(f"{rows:5d} rows  " + "  ".join(f"{name} {us:.1f}" for name, us in costs.items()))


if __name__ == "__main__":
    main()
