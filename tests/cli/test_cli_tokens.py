"""What the command line saves an agent, measured as docs/cli.md says."""

from __future__ import annotations

import socket
import subprocess
import sys
from pathlib import Path

import pytest

SCRIPT = Path(__file__).resolve().parents[2] / "benchmarks" / "cli_tokens.py"


@pytest.mark.nightly
def test_five_tasks_cost_at_most_a_third(smollm2_path: Path) -> None:
    """Red if an agent spends more than a third of curl's tokens on one of the tasks in the documentation."""
    with socket.socket() as probe:
        if probe.connect_ex(("127.0.0.1", 8000)) == 0:
            pytest.skip("the table is about a server at the default address, where one runs already")
    done = subprocess.run(
        [sys.executable, str(SCRIPT)], capture_output=True, text=True, timeout=900, check=False
    )
    assert done.returncode == 0, done.stdout + done.stderr
    assert done.stdout.count("\n| ") == 7
