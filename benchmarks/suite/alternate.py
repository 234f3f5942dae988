"""The measurement: engines and probe take turns, so that a slow minute of the machine hits them all.

In each repeat every scenario visits the probe and then every engine, in a rotating order. A decode
sample is the difference of two runs over the same cached prompts, one token long and `output_len` + 1
tokens long: prefill, queueing and tokenless steps cancel out, and what remains is `output_len` decode
steps of the whole batch.
"""

from __future__ import annotations

import statistics
import sys
from dataclasses import dataclass, field

from suite.catalogue import EngineFailure
from suite.process import EngineProcess
from suite.roofline import Footprint, Probe
from suite.scenarios import Scenario, decode_prompts, prefill_prompt

LARGEST_PROBE_BYTES = 512 << 20  # beyond it every set is a set in DRAM


@dataclass
class Measured:
    """What one engine has done. rates: tokens/s per scenario and repeat; seconds: what they were made of."""

    name: str
    loaded: dict = field(default_factory=dict)
    rates: dict[str, list[float]] = field(default_factory=dict)
    seconds: dict[str, list[list[float]]] = field(default_factory=dict)
    errors: dict[str, str] = field(default_factory=dict)
    first: dict[str, list[int]] = field(default_factory=dict)
    ready_s: list[float] = field(default_factory=list)
    http_ready_s: list[float] = field(default_factory=list)
    memory: dict = field(default_factory=dict)
    unavailable: str | None = None

    def median(self, name: str) -> float | None:
        values = self.rates.get(name)
        return statistics.median(values) if values else None

    def best(self, name: str) -> float | None:
        return max(self.rates.get(name, []), default=None)


@dataclass
class Roofline:
    """What the probe said: gb_s per scenario and repeat; peaks per repeat."""

    gb_s: dict[str, list[float]] = field(default_factory=dict)
    step_bytes: dict[str, float] = field(default_factory=dict)
    set_bytes: dict[str, int] = field(default_factory=dict)
    dram_gb_s: list[float] = field(default_factory=list)
    int8_gmac_s: list[float] = field(default_factory=list)
    fma_gmac_s: list[float] = field(default_factory=list)
    int8: str = ""

    def tokens_per_s(self, scenario: Scenario) -> float | None:
        """Rows of a decode step over the time that reading its bytes takes, at the probe's median."""
        values = self.gb_s.get(scenario.name)
        if not values:
            return None
        return scenario.batch * statistics.median(values) * 1e9 / self.step_bytes[scenario.name]


class Alternation:
    """`processes` and `measured` have the same keys, in the order of the table."""

    def __init__(
        self,
        processes: dict[str, EngineProcess],
        measured: dict[str, Measured],
        probe: Probe | None,
        shape: Footprint,
        vocab_size: int,
        limit_s: float,
    ) -> None:
        self._processes, self._measured = processes, measured
        self._probe, self._shape = probe, shape
        self._vocab_size, self._limit_s = vocab_size, limit_s
        self.roofline = Roofline()
        ours = measured.get("penstock")
        self._kv_itemsize = (ours.loaded.get("kv_itemsize") if ours else None) or 2.0

    def run(self, scenarios: list[Scenario], repeats: int) -> None:
        """Repeat 0 warms caches and thread pools up and is not counted."""
        for scenario in scenarios:
            for name in self._processes:
                self._one(name, scenario, 0)
        for repeat in range(1, repeats + 1):
            self._peaks()
            for number, scenario in enumerate(scenarios):
                self._read(scenario)
                names = list(self._processes)
                turn = (repeat + number) % len(names)
                for name in names[turn:] + names[:turn]:
                    self._one(name, scenario, repeat)

    def _peaks(self) -> None:
        if self._probe is None:
            return
        peak = self._probe.peak()
        self.roofline.int8_gmac_s.append(peak["int8_gmac_s"])
        self.roofline.fma_gmac_s.append(peak["fma_gmac_s"])
        self.roofline.int8 = peak["int8"]
        self.roofline.dram_gb_s.append(self._probe.read(LARGEST_PROBE_BYTES)["gb_s"])

    def _read(self, scenario: Scenario) -> None:
        if self._probe is None or scenario.kind != "decode":
            return
        context = scenario.context + scenario.output_len / 2
        nbytes = self._shape.step_bytes(scenario.batch, context, self._kv_itemsize)
        answer = self._probe.read(min(int(nbytes), LARGEST_PROBE_BYTES))
        self.roofline.step_bytes[scenario.name] = nbytes
        self.roofline.set_bytes[scenario.name] = answer["bytes"]
        self.roofline.gb_s.setdefault(scenario.name, []).append(answer["gb_s"])

    def _one(self, name: str, scenario: Scenario, repeat: int) -> None:
        measured, process = self._measured[name], self._processes[name]
        if measured.unavailable or scenario.name in measured.errors:
            return
        try:
            self._refuse_the_endless(measured, scenario)
            if scenario.kind == "prefill":
                seconds, rate = self._prefill(process, scenario, repeat)
            else:
                seconds, rate = self._decode(process, measured, scenario, repeat)
        except EngineFailure as failure:
            measured.errors[scenario.name] = str(failure)
            if not process.alive:
                measured.unavailable = f"died at {scenario.name}: {failure}"
            print(f"{repeat} {scenario.name} {name}: {failure}", file=sys.stderr)
            return
        if scenario.kind == "prefill" or repeat:
            measured.rates.setdefault(scenario.name, []).append(rate)
            measured.seconds.setdefault(scenario.name, []).append(seconds)
            print(f"{repeat} {scenario.name} {name}: {rate:,.1f} tokens/s", file=sys.stderr)
        if repeat == 1 and scenario.kind == "prefill":  # the warm-up served the estimates
            del measured.rates[scenario.name][0], measured.seconds[scenario.name][0]

    def _refuse_the_endless(self, measured: Measured, scenario: Scenario) -> None:
        """An engine without a prefix cache may need minutes to fill the contexts of a large batch."""
        speeds = [max(rates) for name, rates in measured.rates.items() if name.startswith("prefill")]
        expected = scenario.batch * scenario.context / max(speeds) if speeds else 0.0
        if expected > self._limit_s:
            raise EngineFailure(
                f"its prefill alone would take about {expected:.0f} s (limit {self._limit_s:g} s)"
            )

    def _prefill(self, process: EngineProcess, scenario: Scenario, repeat: int) -> tuple[list[float], float]:
        prompts = prefill_prompt(scenario, repeat, self._vocab_size)
        seconds = process.ask(do="run", prompts=prompts, output_len=1)["seconds"]
        return [seconds], scenario.context / seconds

    def _decode(
        self, process: EngineProcess, measured: Measured, scenario: Scenario, repeat: int
    ) -> tuple[list[float], float]:
        prompts = decode_prompts(scenario, self._vocab_size)
        process.ask(do="run", prompts=prompts, output_len=1)
        if repeat == 0:
            return [], 0.0
        one = process.ask(do="run", prompts=prompts, output_len=1)["seconds"]
        many = process.ask(do="run", prompts=prompts, output_len=scenario.output_len + 1)
        measured.first.setdefault(scenario.name, many["first"])
        if many["seconds"] <= one:
            raise EngineFailure(
                f"{scenario.output_len + 1} tokens took {many['seconds']:.2f} s, one took {one:.2f} s"
            )
        return [one, many["seconds"]], scenario.batch * scenario.output_len / (many["seconds"] - one)
