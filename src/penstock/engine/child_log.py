"""ChildLog: the stderr of a child process, line by line, in this process's log."""

from __future__ import annotations

import asyncio
import logging
from collections import deque

STDERR_LINES = 20  # kept as the reason of a death


class ChildLog:
    """Reads from its creation to the child's end, so that the child never waits for a full pipe."""

    def __init__(self, process: asyncio.subprocess.Process, name: str, log: logging.Logger) -> None:
        """name: of the child, in front of its lines."""
        self._lines: deque[str] = deque(maxlen=STDERR_LINES)
        self._task = asyncio.create_task(self._pump(process, name, log), name=f"penstock-{name}-log")

    @property
    def last_words(self) -> str:
        """`: ` and the last line so far, "" if there is none: after the end it is the reason of a death."""
        return f": {self._lines[-1]}" if self._lines else ""

    async def end(self) -> None:
        """Return when all is read: the pipe ends with the process."""
        await self._task

    async def _pump(self, process: asyncio.subprocess.Process, name: str, log: logging.Logger) -> None:
        assert process.stderr is not None
        while True:
            try:
                line = await process.stderr.readline()
            except ValueError:
                continue  # a line over the reader's limit: its buffer was cleared
            if not line:
                return
            text = line.decode("utf-8", "replace").rstrip()
            self._lines.append(text)
            log.info("%s %d: %s", name, process.pid, text)
