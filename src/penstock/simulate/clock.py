"""VirtualClock: seconds that pass only when somebody says so."""

from __future__ import annotations


class VirtualClock:
    """Callable like `time.monotonic`. Never goes backwards."""

    def __init__(self, start_s: float = 0.0) -> None:
        self._now = start_s

    def __call__(self) -> float:
        return self._now

    def advance_to(self, time_s: float) -> None:
        """Move to `time_s`; an earlier time is ignored."""
        if time_s > self._now:
            self._now = time_s
