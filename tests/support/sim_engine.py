"""A real engine core (scheduler, KV, policies) over a device that computes nothing.

Tokens are a function of the prompt and the position, so a test can say what must come out. As a
script it is an engine process: `python sim_engine.py --address … --parent-fd 0 --model sim:…`.

`model` is "sim:" and comma-separated words: `step_ms=5` (device time of a step), `refuse` (the model
is refused), `die` (the process dies while loading), `die_once=FILE` (only if FILE does not exist yet),
`path=DIR` (model path that the caller sees), `vocab=N`, `first=N` (tokens are in [first, vocab)),
`crash=N` (the device fails in step N).
"""

from __future__ import annotations

import os
import sys
import time
from collections.abc import Callable
from pathlib import Path

import numpy as np

from penstock.config import EngineSettings
from penstock.engine.build import assemble_core
from penstock.engine.drive import Core, Sink
from penstock.engine.messages import Loading, Ready
from penstock.engine.plan import StepPlan, StepResult
from penstock.engine.shape import CoreShape
from penstock.errors import ModelRefused
from penstock.kv.groups import LayerKV, plan_layout

MAX_CONTEXT = 20_000
FIRST_TOKEN = 100


def expected_tokens(prompt_len: int, count: int, first: int = FIRST_TOKEN, vocab: int = 1000) -> list[int]:
    """What a request with a prompt of this length generates."""
    return [first + (prompt_len + i) % (vocab - first) for i in range(count)]


class TimedDevice:
    """Executes at launch; a step's result can be had `step_s` after the previous one's."""

    def __init__(self, step_s: float, first: int, vocab: int, crash: int) -> None:
        self._step_s, self._first, self._span = step_s, first, vocab - first
        self._free_at = 0.0
        self._crash = crash

    def launch(self, plan: StepPlan) -> TimedStep:
        if plan.step == self._crash:
            raise RuntimeError("the device is lost")
        ends = plan.starts + plan.counts
        tokens = np.where(plan.samples, self._first + ends % self._span, -1).astype(np.int32)
        self._free_at = max(self._free_at, time.monotonic()) + self._step_s
        return TimedStep(StepResult(step=plan.step, tokens=tokens), self._free_at)

    def close(self) -> None:
        """Nothing to stop."""


class TimedStep:
    def __init__(self, result: StepResult, ends_at: float) -> None:
        self._result, self._ends_at = result, ends_at

    def wait(self) -> StepResult:
        time.sleep(max(0.0, self._ends_at - time.monotonic()))  # the device's time, not the test's
        return self._result


def build_sim(
    settings: EngineSettings, sink: Sink, on_loading: Callable[[Loading], None]
) -> tuple[Core, Ready]:
    words = dict((word + "=").split("=")[:2] for word in settings.model.removeprefix("sim:").split(","))
    on_loading(Loading("weights", 0.5))
    if "refuse" in words:
        raise ModelRefused(f"{settings.model}: needs 9.00 GiB, 1.00 GiB are free")
    if "die" in words or ("die_once" in words and not Path(words["die_once"]).exists()):
        if "die_once" in words:
            Path(words["die_once"]).touch()
        sys.stderr.write("out of luck\n")
        sys.stderr.flush()
        os._exit(7)
    vocab = int(words.get("vocab") or 1000)
    max_context = min(MAX_CONTEXT, settings.max_context or MAX_CONTEXT)
    shape = CoreShape(
        layout=plan_layout([LayerKV(kv_heads=1, head_dim=4)], settings.block_size, itemsize=4),
        num_blocks=100_000,
        num_slots=settings.max_running,
        max_context=max_context,
        token_budget=settings.token_budget,
        async_depth=settings.async_depth,
        max_queue=settings.max_queue,
        prefix_cache=settings.prefix_cache,
        namespace=bytes(32),
        deadline_s=settings.deadline_s,
    )
    first = int(words.get("first") or FIRST_TOKEN)
    device = TimedDevice(float(words.get("step_ms") or 1) / 1000, first, vocab, int(words.get("crash") or -1))
    core = assemble_core(shape, device, sink, time.monotonic)
    ready = Ready(
        model_id="sim",
        model_path=words.get("path", "sim"),
        max_context=max_context,
        vocab_size=vocab,
        backend="sim",
        plan={"weights": 1, "workspace": 2, "kv": 4},
        timings={"load_s": 0.0},
    )
    return core, ready


if __name__ == "__main__":
    from penstock.engine.process import main

    sys.exit(main(build_sim))
