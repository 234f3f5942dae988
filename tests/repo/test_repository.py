"""What holds for the repository as a whole: imports, pages, sizes, paths, make targets."""

from __future__ import annotations

import re
import subprocess
import sys
from pathlib import Path

import pytest

from penstock.cli.settings_page import page
from penstock.config import EngineSettings, ServerSettings, SpeculationSettings, describe

ROOT = Path(__file__).resolve().parents[2]
SRC = ROOT / "src" / "penstock"
MAX_LINES = 600


def tracked() -> list[Path]:
    """Files under version control (or, in an unpacked archive, every file outside hidden folders)."""
    listed = subprocess.run(["git", "ls-files", "-z"], cwd=ROOT, capture_output=True, text=True, check=False)
    if listed.returncode == 0:
        names = [name for name in listed.stdout.split("\0") if name]
        return [ROOT / name for name in names if (ROOT / name).is_file()]
    return [
        path for path in ROOT.rglob("*") if path.is_file() and "/." not in str(path.relative_to(ROOT.parent))
    ]


def test_imports_point_one_way() -> None:
    """Red if a layer imports a higher one, a leaf imports a layer, or anything under src imports torch."""
    pytest.importorskip("importlinter", reason="import-linter is part of the lint extra")
    # In a process of its own: it sets logging up for itself, which makes every logger of this one deaf.
    command = "from importlinter.cli import lint_imports_command; lint_imports_command()"
    done = subprocess.run(
        [sys.executable, "-c", command, "--no-cache"], cwd=ROOT, capture_output=True, text=True, check=False
    )
    assert done.returncode == 0, done.stdout + done.stderr


def test_settings_page_is_current() -> None:
    """Red if a setting is added, renamed or described anew without renewing docs/settings.md."""
    assert (ROOT / "docs" / "settings.md").read_text() == page(), (
        "run: python -m penstock.cli.settings_page > docs/settings.md"
    )


@pytest.mark.parametrize("record", [EngineSettings, SpeculationSettings, ServerSettings])
def test_every_setting_says_what_it_is(record: type) -> None:
    """Red if a setting has no description: it would show as an empty help text."""
    assert [name for name, _, _, description in describe(record) if not description] == []


def test_source_files_stay_short() -> None:
    """Red if a file under src passes the limit: split it before the next feature."""
    long = {
        str(path.relative_to(ROOT)): count
        for path in SRC.rglob("*.py")
        if (count := path.read_text().count("\n")) > MAX_LINES
    }
    assert long == {}


def test_no_machine_paths() -> None:
    """Red if a tracked file names a path or a host that exists on one machine only."""
    # Spelled in pieces, or this file would find itself.
    patterns = [
        "/wo" + "rk/",
        "/tm" + "p/venv",
        "/ro" + "ot/",
        "/ho" + r"me/[a-z]",
        "files." + "pythonhosted",
    ]
    pattern = re.compile("|".join(patterns))
    found = []
    for path in tracked():
        try:
            text = path.read_text()
        except UnicodeDecodeError:
            continue
        found += [f"{path.relative_to(ROOT)}: {match[0]}" for match in [pattern.search(text)] if match]
    assert found == []


def test_make_targets_exist() -> None:
    """Red if a target that the README or CI calls is gone from the Makefile."""
    for target in ("serve", "test", "lint", "bench", "clean"):
        dry = subprocess.run(
            ["make", "--dry-run", target], cwd=ROOT, capture_output=True, text=True, check=False
        )
        assert dry.returncode == 0, f"make {target}: {dry.stderr}"
    assert "make test" in (ROOT / ".ci" / "run").read_text()


def test_ci_script_is_executable_and_fails_on_failure() -> None:
    """Red if CI can pass although make test failed."""
    script = ROOT / ".ci" / "run"
    assert script.stat().st_mode & 0o111
    assert "set -euo pipefail" in script.read_text()


def test_test_file_names_are_unique() -> None:
    """Red if two test files share a name: without packages pytest can't tell them apart."""
    names = [path.name for path in (ROOT / "tests").rglob("test_*.py")]
    assert sorted(names) == sorted(set(names))


BLOCK_OTHERS = """
import importlib, pkgutil, sys

ALLOWED = {"numpy", "msgspec", "penstock"}
STDLIB = sys.stdlib_module_names

class Guard:
    def find_spec(self, name, path=None, target=None):
        top = name.partition(".")[0]
        if top in ALLOWED or top in STDLIB or top.startswith("_"):
            return None
        raise ImportError(f"third-party module {name} at import time")

sys.meta_path.insert(0, Guard())
EXEMPT = set(sys.argv[2:])
package = importlib.import_module(sys.argv[1])
for info in pkgutil.walk_packages(package.__path__, package.__name__ + "."):
    if info.name not in EXEMPT and not info.name.endswith("__main__"):
        importlib.import_module(info.name)
"""

# Modules that own a socket: they are imported by the process that opens one, never by the core.
SOCKET_MODULES = [
    f"penstock.engine.{name}" for name in ("client", "front", "process", "supervisor", "transport", "service")
]


@pytest.mark.parametrize("package", ["engine", "kv", "models", "decoding", "kernels"])
def test_core_imports_with_numpy_and_msgspec_alone(package: str) -> None:
    """Red if a core module imports a third-party library (or torch) while it is being imported."""
    command = [sys.executable, "-c", BLOCK_OTHERS, f"penstock.{package}", *SOCKET_MODULES]
    result = subprocess.run(command, capture_output=True, text=True, check=False)
    assert result.returncode == 0, result.stderr[-2000:]


def test_import_of_the_package_is_light() -> None:
    """Red if `import penstock` pulls in numpy, msgspec or anything else before it is used."""
    code = "import sys; before = set(sys.modules); import penstock; print(sorted(set(sys.modules) - before))"
    result = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    heavy = {"numpy", "msgspec", "zmq", "tokenizers", "typer", "starlette"}
    assert not heavy & {name.partition(".")[0] for name in eval(result.stdout)}


def test_help_needs_no_model_code() -> None:
    """Red if `penstock --help` imports numpy or an engine: help would be slow to come."""
    code = (
        "import sys\nfrom penstock.cli.main import main\nsys.argv = ['penstock', '--help']\n"
        "try:\n    main()\nexcept SystemExit:\n    pass\n"
        "print('MODULES', *sorted(sys.modules))"
    )
    result = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    modules = set(result.stdout.partition("MODULES")[2].split())
    assert not {"numpy", "zmq", "tokenizers", "starlette", "uvicorn", "penstock.llm"} & modules
