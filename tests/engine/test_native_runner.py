"""The native runner's waiting: what ends it beside the steps themselves."""

from __future__ import annotations

import threading
from collections.abc import Iterator
from pathlib import Path

import numpy as np
import pytest
from token_engine import TokenEngine

from penstock.engine.native_runner import NativeRunner
from penstock.engine.plan import StepPlan

FOREVER_S = 3600.0


@pytest.fixture(scope="module")
def idle_runner(smollm2_path: Path) -> Iterator[NativeRunner]:
    """Its thread has ended: what is launched stays launched."""
    with TokenEngine(smollm2_path, kv_bytes=64 << 20) as engine:
        runner = engine.core._flight.device
        assert isinstance(runner, NativeRunner)
        runner.close()
        yield runner


def _window(steps: int) -> StepPlan:
    one = np.ones(1, np.int32)
    return StepPlan(
        step=1,
        slots=0 * one,
        generations=0 * one,
        starts=one,
        counts=steps * one,
        samples=one.astype(bool),
        prompt_logits=np.zeros(1, bool),
        admissions=(),
        updates=(),
        window=steps,
    )


def test_an_interrupt_before_the_wait_is_not_lost(idle_runner: NativeRunner) -> None:
    """Red if a command that arrives between looking into the inbox and waiting waits for the window."""
    steps = idle_runner.launch_window(_window(8))
    idle_runner.interrupt()
    assert idle_runner.ready(steps, FOREVER_S) == 0


def test_an_interrupt_ends_the_wait(idle_runner: NativeRunner) -> None:
    """Red if a command is not seen before the window's last step."""
    steps = idle_runner.launch_window(_window(8))
    timer = threading.Timer(0.05, idle_runner.interrupt)
    timer.start()
    assert idle_runner.ready(steps, FOREVER_S) == 0
    timer.join()


def test_a_cut_window_is_not_waited_for(idle_runner: NativeRunner) -> None:
    """Red if the loop sleeps for steps that will never run."""
    steps = idle_runner.launch_window(_window(8))
    assert idle_runner.cut() == 1
    assert idle_runner.ready(steps[1:], FOREVER_S) == 0
