"""`penstock serve` as a process, for tests that need a real model behind the socket."""

from __future__ import annotations

import os
import re
import subprocess
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

_SOURCES = Path(__file__).resolve().parents[2] / "src"
_READY = re.compile(r"· (http://\S+) · ready in")


@contextmanager
def served(model: str | Path, data: Path, *flags: str) -> Iterator[str]:
    """The address of a server of `model` on a free port, once it is ready. `data`: its data folder."""
    environment = os.environ | {"PYTHONPATH": str(_SOURCES), "XDG_DATA_HOME": str(data), "NO_COLOR": "1"}
    command = [
        sys.executable,
        "-m",
        "penstock",
        "--output",
        "human",
        "serve",
        str(model),
        "--port",
        "0",
        *flags,
    ]
    process = subprocess.Popen(command, stderr=subprocess.PIPE, text=True, env=environment)
    assert process.stderr
    said = ""
    try:
        for line in process.stderr:
            said += line
            if found := _READY.search(line):
                break
        else:
            raise AssertionError(f"the server does not start: {said}")
        yield found[1]
    finally:
        process.terminate()
        process.communicate(timeout=60)
