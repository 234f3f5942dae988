"""`penstock bench quality` as a user runs it."""

from __future__ import annotations

import json
import subprocess
from collections.abc import Callable
from pathlib import Path

import pytest

Penstock = Callable[..., subprocess.CompletedProcess[str]]


def test_quality_of_the_reference_is_perfect(penstock: Penstock, tiny: Path, tmp_path: Path) -> None:
    """Red if the verb compares other models than it says, or its report lacks what identifies the run."""
    report = tmp_path / "out" / "quality.json"
    result = penstock(
        "bench", "quality", "--model", tiny, "--backend", "reference", "--passages", 3, "--report", report
    )
    assert result.returncode == 0, result.stderr
    assert "mean KL                 0.000000 nats" in result.stdout
    assert "top-1 agreement         100.00%" in result.stdout
    found = json.loads(report.read_text())
    assert found["result"]["kl_mean"] == 0
    assert found["result"]["passages"] == found["workload"]["text"]["passages"] == 3
    assert found["workload"]["backend"].startswith("reference")
    assert len(found["workload"]["text"]["digest"]) == 64
    assert found["machine"]


@pytest.mark.parametrize(
    ("arguments", "words"),
    [
        (["--passages", "100000"], "passages: 100000 is outside"),
        (["--backend", "tpu"], "backend"),
        (["--weights", "int3"], "weights"),
        (["--against", "smolm2"], "did you mean smollm2?"),
    ],
)
def test_mistakes_are_one_line(penstock: Penstock, tiny: Path, arguments: list[str], words: str) -> None:
    """Red if a wrong option shows a traceback, or is found only after minutes of work."""
    result = penstock("bench", "quality", "--model", tiny, *arguments)
    assert result.returncode == 2, result.stderr
    assert result.stderr.startswith("error: ")
    assert words in result.stderr
    assert "Traceback" not in result.stderr
