"""The command as a user runs it: a process, with a tiny model, in folders of its own."""

from __future__ import annotations

import os
import subprocess
import sys
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest

from penstock.cli.agents import SIGNS

Penstock = Callable[..., subprocess.CompletedProcess[str]]


@pytest.fixture(scope="session")
def tiny(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A random llama of three layers, in a folder that can be served."""
    from support.tiny_models import make_tiny

    return make_tiny("llama", tmp_path_factory.mktemp("models") / "tiny-llama")


@pytest.fixture
def environment(tmp_path: Path) -> dict[str, str]:
    """Folders of the test's own, no colour, no width of a terminal, and no agent that runs the tests."""
    runtime = tmp_path / "run"
    runtime.mkdir(mode=0o700)
    own = {"XDG_DATA_HOME": str(tmp_path / "data"), "XDG_RUNTIME_DIR": str(runtime), "COLUMNS": "200"}
    signs = {sign.variable for sign in SIGNS}
    inherited = {name: value for name, value in os.environ.items() if name not in signs}
    return {**inherited, **own, "NO_COLOR": "1", "PYTHONUNBUFFERED": "1"}


@pytest.fixture
def agent_environment(environment: dict[str, str]) -> dict[str, str]:
    """As a coding agent's shell: standard output is no terminal either way, colour is asked for."""
    environment.pop("NO_COLOR")
    return {**environment, "CLAUDECODE": "1", "FORCE_COLOR": "1", "CLICOLOR_FORCE": "1"}


@pytest.fixture(scope="session")
def scripted_url(tmp_path_factory: pytest.TempPathFactory) -> Iterator[str]:
    """The HTTP API over fixed replies, in a process of its own."""
    script = Path(__file__).resolve().parents[1] / "support" / "scripted_server.py"
    database = f'database_url="sqlite:///{tmp_path_factory.mktemp("scripted")}/store.db"'
    process = subprocess.Popen(
        [sys.executable, str(script), database], stdout=subprocess.PIPE, stderr=subprocess.DEVNULL, text=True
    )
    assert process.stdout
    yield process.stdout.readline().strip()
    process.terminate()
    process.wait(60)
    process.stdout.close()


@pytest.fixture
def penstock(environment: dict[str, str], tmp_path: Path) -> Penstock:
    """Run `penstock ARGUMENTS…` to its end. Standard input is empty unless given."""

    def run(
        *arguments: object, input: str = "", env: dict[str, str] = environment, **options: object
    ) -> subprocess.CompletedProcess[str]:
        command = [sys.executable, "-m", "penstock", *map(str, arguments)]
        return subprocess.run(
            command,
            input=input,
            capture_output=True,
            text=True,
            timeout=300,
            env=env,
            cwd=tmp_path,
            check=False,
            **options,  # type: ignore[call-overload]
        )

    return run
