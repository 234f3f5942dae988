"""SDKs whose dependencies can't stand beside ours: their tests run in an environment of their own."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

import pytest

from support.threaded_server import Live

APART = Path(__file__).parent / "apart"
PYTHON = Path(sys.prefix) / "clients" / "bin" / "python"


@pytest.mark.parametrize(("sdk", "leavers"), [("litellm", 3), ("llama_index", 1)])
def test_an_sdk_apart(script: Live, sdk: str, leavers: int) -> None:
    """Red if the SDK fails in one of the ways that its file has, or calls outlive their callers. `leavers`:
    of its tests, those that leave an answer before its end."""
    if not PYTHON.exists():
        pytest.skip("needs the environment of tests/clients/apart/requirements.txt; `make test` makes it")
    cancelled = script.service.cancelled
    command = [PYTHON, "-m", "pytest", "-q", "-p", "no:cacheprovider", "-c", APART / "pytest.ini"]
    command += ["--url", script.url, APART / f"sdk_{sdk}.py"]
    result = subprocess.run(list(map(str, command)), capture_output=True, text=True, check=False)
    assert result.returncode == 0, result.stdout + result.stderr
    script.wait(script.service.seen(cancelled=cancelled + leavers))
    script.wait(script.service.idle())
