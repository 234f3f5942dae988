"""What the host costs beside the steps: streaming through `AsyncLLM`, the device's clock against the wall.

    python benchmarks/host_overhead.py [--model smollm2] [--windows 1 4 8 16] [--repeats 3]

Every consumer takes its events one by one while the model generates. Printed per batch and window, medians
over alternating repeats:

    overhead  1 - (time inside steps / time with requests open), decoding steps and the prefill
    step ms   time inside steps per step: grows if the host takes cores from the kernels
    host us   planning and applying per step; it overlaps with the steps
    tokens/s  of the whole run
"""

from __future__ import annotations

import argparse
import asyncio
import statistics
import time
from collections import defaultdict

from msgspec import Struct

from penstock.call import SamplingParams
from penstock.engine.messages import Progress
from penstock.llm import AsyncLLM


class Sample(Struct):
    overhead: float
    step_ms: float
    host_us: float
    tokens_per_s: float


async def consume(llm: AsyncLLM, number: int, tokens: int) -> None:
    """Read a stream event by event."""
    prompt = tuple(range(100 + number, 164 + number))
    params = SamplingParams(max_tokens=tokens, temperature=0.0, ignore_eos=True)
    async for _ in llm.generate(prompt, params):
        pass


async def settled(llm: AsyncLLM) -> Progress:
    """The engine's counters once it is idle."""
    service = llm._started()
    while service._progress.running + service._progress.waiting:
        await asyncio.sleep(0.01)
    await asyncio.sleep(0.15)
    return service._progress


async def measure(llm: AsyncLLM, batch: int, tokens: int) -> Sample:
    before = await settled(llm)
    began = time.perf_counter()
    await asyncio.gather(*(consume(llm, number, tokens) for number in range(batch)))
    wall = time.perf_counter() - began
    after = await settled(llm)
    steps = after.steps - before.steps
    device = after.device_s - before.device_s
    return Sample(
        overhead=1 - device / (after.work_s - before.work_s),
        step_ms=device / steps * 1e3,
        host_us=(after.host_s - before.host_s) / steps * 1e6,
        tokens_per_s=batch * tokens / wall,
    )


async def main() -> None:
    raw = argparse.RawDescriptionHelpFormatter
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=raw)
    parser.add_argument("--model", default="smollm2")
    parser.add_argument("--batches", type=int, nargs="+", default=[1, 32])
    parser.add_argument("--windows", type=int, nargs="+", default=[1, 4, 8, 16])
    parser.add_argument("--tokens", type=int, default=200)
    parser.add_argument("--repeats", type=int, default=3)
    options = parser.parse_args()
    samples: dict[tuple[int, int], list[Sample]] = defaultdict(list)
    for repeat in range(options.repeats + 1):
        for window in options.windows:
            settings = {"window": window, "max_context": 1024, "kv_bytes": 2**29}
            async with AsyncLLM(options.model, **settings) as llm:
                for batch in options.batches:
                    sample = await measure(llm, batch, options.tokens if batch > 1 else 2 * options.tokens)
                    if repeat:  # the first warms the file cache and the clocks of the cores
                        samples[batch, window].append(sample)
    print(f"{'batch':>6} {'window':>7} {'overhead':>9} {'step ms':>8} {'host us':>8} {'tokens/s':>9}")
    for (batch, window), taken in sorted(samples.items()):
        median = Sample(
            *(statistics.median(getattr(one, field) for one in taken) for field in Sample.__struct_fields__)
        )
        print(
            f"{batch:>6} {window:>7} {median.overhead:>9.1%} {median.step_ms:>8.2f} {median.host_us:>8.0f} "
            f"{median.tokens_per_s:>9.0f}"
        )


if __name__ == "__main__":
    asyncio.run(main())
