"""`penstock tune self-draft` as a user runs it."""

from __future__ import annotations

import json
import subprocess
from collections.abc import Callable
from pathlib import Path

import pytest

Penstock = Callable[..., subprocess.CompletedProcess[str]]


def test_tuning_prints_a_table_and_keeps_what_it_found(
    penstock: Penstock, tiny: Path, tmp_path: Path
) -> None:
    """Red if the verb says that self-drafting pays where its own figures say otherwise, or the reverse."""
    prompts, report = tmp_path / "prompts.txt", tmp_path / "found.json"
    prompts.write_text("Once upon a time\n\nThe old lighthouse keeper\n")
    result = penstock(
        "tune", "self-draft", tiny, "--prompts", prompts, "--tokens", 40, "--k", 2, "--report", report
    )
    assert result.returncode == 0, result.stderr
    found = json.loads(report.read_text())["result"]
    assert len(found["verify_s"]) == 3
    assert [len(judged["layers"]) for judged in found["exits"]] == [1, 2]
    ratio = found["measured_ratio"] or found["best"]["ratio"]
    if ratio > 1:
        assert f"--speculation '{json.dumps(found['setting'])}'" in result.stdout
        assert penstock("doctor", tiny, "--speculation", json.dumps(found["setting"])).returncode == 0
    else:
        assert found["setting"] is None and "none pays" in result.stdout


def test_programs_are_told_in_one_record(penstock: Penstock, tiny: Path) -> None:
    """Red if a program has to read what is meant for people."""
    result = penstock(
        *("tune", "self-draft", tiny, "--seconds", 1, "--tokens", 32, "--k", 1, "--output", "json")
    )
    assert result.returncode == 0, result.stderr
    told = json.loads(result.stdout)
    assert len(told["layers"]) > 0 and (told["setting"] is None) == (
        (told["measured_ratio"] or told["promised_ratio"]) <= 1.0
    )


@pytest.mark.parametrize(
    ("text", "words"), [("\n\n", "has no line of two tokens"), (b"\xff\xfe\n", "is not UTF-8 text")]
)
def test_prompts_that_say_nothing_are_refused(
    penstock: Penstock, tiny: Path, tmp_path: Path, text: str | bytes, words: str
) -> None:
    """Red if a wrong file is a traceback, or the search runs on nothing."""
    prompts = tmp_path / "prompts.txt"
    prompts.write_bytes(text if isinstance(text, bytes) else text.encode())
    result = penstock("tune", "self-draft", tiny, "--prompts", prompts)
    assert result.returncode == 2
    assert words in result.stderr
