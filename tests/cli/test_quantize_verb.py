"""`penstock quantize` as a user runs it."""

from __future__ import annotations

import subprocess
from collections.abc import Callable
from pathlib import Path

import pytest

Penstock = Callable[..., subprocess.CompletedProcess[str]]


@pytest.fixture(scope="session")
def tiny64(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A tiny llama whose sizes groups of 32 divide."""
    from support.tiny_models import make_tiny

    sizes = {"hidden_size": 64, "intermediate_size": 96, "head_dim": 16}
    return make_tiny("llama", tmp_path_factory.mktemp("models") / "tiny64", **sizes)


@pytest.mark.parametrize("weights", ["int8", "int4"])
def test_a_quantized_folder_runs(penstock: Penstock, tiny64: Path, tmp_path: Path, weights: str) -> None:
    """Red if the folder lacks what serving needs, or `--against` does not compare with the source."""
    out = tmp_path / "new" / "folder"
    made = penstock("quantize", tiny64, out, "--weights", weights)
    assert made.returncode == 0, made.stderr
    assert weights in made.stderr
    assert made.stdout == ""
    assert [path.name for path in out.parent.iterdir()] == ["folder"]
    run = penstock("run", "--model", out, "--max-tokens", "4", "--backend", "reference", "hello")
    assert run.returncode == 0, run.stderr
    measured = penstock(
        "bench", "quality", "--model", out, "--against", tiny64, "--backend", "reference", "--passages", "2"
    )
    assert measured.returncode == 0, measured.stderr
    mean = float(measured.stdout.split("mean KL")[1].split()[0])
    assert 0 < mean < 0.5


@pytest.mark.parametrize(
    ("arguments", "code", "words"),
    [
        (["--weights", "int4", "--group", "64"], 1, "use --group 32"),
        (["--weights", "int4", "--group", "48"], 2, "groups of 32, 64 or 128"),
        (["--weights", "int8", "--calibrate", "missing.txt"], 1, "missing.txt"),
    ],
)
def test_mistakes_leave_nothing_behind(
    penstock: Penstock, tiny64: Path, tmp_path: Path, arguments: list[str], code: int, words: str
) -> None:
    """Red if a refusal is a traceback, or a half-written folder stays."""
    before = set(tmp_path.iterdir())
    result = penstock("quantize", tiny64, tmp_path / "out", *arguments)
    assert result.returncode == code, result.stderr
    assert result.stderr.startswith("error: ")
    assert words in result.stderr
    assert "Traceback" not in result.stderr
    assert {path for path in tmp_path.iterdir() if path not in before} <= {tmp_path / "data"}
