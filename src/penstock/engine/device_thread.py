"""DeviceThread: runs steps one after the other on one thread, with microseconds between them.

A `ThreadPoolExecutor` would do; between two queued items it spends 30 to 50 us in futures and
conditions, which is 1 % of a 5 ms step. Here it is one C queue and one lock per step.
"""

from __future__ import annotations

import threading
from collections.abc import Callable
from queue import SimpleQueue

from penstock.engine.plan import StepPlan, StepResult


class QueuedStep:
    """A launched step (`penstock.engine.plan.Pending`)."""

    __slots__ = ("_done", "_error", "_result", "plan")

    def __init__(self, plan: StepPlan) -> None:
        self.plan = plan
        self._done = threading.Lock()
        self._done.acquire()
        self._result: StepResult | None = None
        self._error: BaseException | None = None

    def run(self, execute: Callable[[StepPlan], StepResult]) -> None:
        try:
            self._result = execute(self.plan)
        except BaseException as error:  # noqa: BLE001  raised again where it is waited for
            self._error = error
        self._done.release()

    def wait(self) -> StepResult:
        with self._done:
            pass
        if self._error is not None:
            raise self._error
        assert self._result is not None
        return self._result


class DeviceThread:
    """`execute` runs on the thread, plans in the order of `launch`."""

    def __init__(self, execute: Callable[[StepPlan], StepResult]) -> None:
        self._execute = execute
        self._queue: SimpleQueue[QueuedStep | None] = SimpleQueue()
        self._thread = threading.Thread(target=self._run, name="penstock-device", daemon=True)
        self._thread.start()

    def launch(self, plan: StepPlan) -> QueuedStep:
        step = QueuedStep(plan)
        self._queue.put(step)
        return step

    def close(self) -> None:
        """Finish what was launched, then end the thread."""
        self._queue.put(None)
        self._thread.join()

    def _run(self) -> None:
        while (step := self._queue.get()) is not None:
            step.run(self._execute)
