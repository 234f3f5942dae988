"""Every code block of docs/clients is run: by the page's own test, or here."""

from __future__ import annotations

import os
import re
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import NamedTuple

import pytest

from support.client_script import RULES
from support.recorded_script import RecordedScript
from support.threaded_server import live_servers

CLIENTS = Path(__file__).parent
DOCS = CLIENTS.parents[1] / "docs" / "clients"
APART = Path(sys.prefix) / "clients" / "bin" / "python"
FENCE = re.compile(r"^```(\w*)\n(.*?)^```$", re.DOTALL | re.MULTILINE)
ADDRESS = "http://127.0.0.1:8000"

# Pages whose Python is run by a test of their own.
RUN_BY = {
    "openai.md": "test_openai_docs.py",
    "anthropic.md": "test_anthropic_live.py",
    "ollama.md": "test_ollama_engine.py",
    "embeddings.md": "test_embeddings_docs.py",
}
# The page whose every line of code is run by tests/cli/test_launch.py, with the agents' programs doubled.
AGENTS = "agents.md"


# Commands on these pages. Claude Code is proprietary and not installed: in its place stands Anthropic's SDK,
# which reads the same variables.
COMMANDS = [
    (
        "anthropic.md",
        "ANTHROPIC_BASE_URL=http://127.0.0.1:8000 ANTHROPIC_AUTH_TOKEN=none claude --model smollm2\n",
    )
]
CLAUDE = """#!{python}
import sys, anthropic
question = [{{"role": "user", "content": "hello"}}]
with anthropic.Anthropic() as client:
    print(client.messages.create(model=sys.argv[2], max_tokens=50, messages=question).content[0].text)
"""


class Page(NamedTuple):
    """A page that is run here: the package it needs, words that must be shown, and whose Python runs it."""

    package: str
    shown: tuple[str, ...]
    python: Path = Path(sys.executable)


RUN_HERE = {
    "langchain.md": Page("langchain_openai", ("You said: hello", "name='Oslo'", "{'city': 'Oslo'}")),
    "llm.md": Page("llm", ("You said: hello", '"name": "Oslo"', "Usage(input=30")),
    "litellm.md": Page("litellm", ("You said: hello 34",), APART),
    "llama-index.md": Page("llama_index", ("You said: hello", "sunny in Oslo", "name='Oslo'"), APART),
}


def blocks_of(page: Path) -> list[tuple[str, str]]:
    """(language, code)"""
    return FENCE.findall(page.read_text())


def test_every_block_of_every_page_has_a_test_that_runs_it():
    """Red if a page or a block is added that no test runs."""
    with_code = {page.name: blocks for page in DOCS.rglob("*.md") if (blocks := blocks_of(page))}
    for _, code in with_code.pop(AGENTS):
        assert all(line.startswith("penstock launch ") for line in code.splitlines()), code
    assert AGENTS in (CLIENTS.parent / "cli" / "test_launch.py").read_text()
    assert with_code.keys() == RUN_BY.keys() | RUN_HERE.keys()
    for name, test in RUN_BY.items():
        source = (CLIENTS / test).read_text()
        assert f'"{name}"' in source and "```python" in source, f"{test} does not run {name}"
        other = [code for language, code in with_code[name] if language != "python"]
        assert other == [code for page, code in COMMANDS if page == name], name
    for name in RUN_HERE:
        assert {language for language, _ in with_code[name]} <= {"python", "yaml", "sh"}, name


@pytest.fixture(scope="module")
def url() -> Iterator[str]:
    with live_servers() as start:
        yield start(make=lambda: RecordedScript(*RULES, name="smollm2")).url


def test_the_variables_for_claude_code_reach_the_server(url: str, tmp_path: Path) -> None:
    """Red if the command of the page names a variable that points nobody at the server."""
    (tmp_path / "claude").write_text(CLAUDE.format(python=sys.executable))
    (tmp_path / "claude").chmod(0o755)
    environment = os.environ | {"PATH": f"{tmp_path}{os.pathsep}{os.environ['PATH']}"}
    environment.pop("ANTHROPIC_API_KEY", None)
    [(_, command)] = COMMANDS
    done = subprocess.run(
        ["sh", "-ec", command.replace(ADDRESS, url)],
        env=environment,
        capture_output=True,
        text=True,
        check=False,
    )
    assert (done.returncode, done.stdout) == (0, "You said: hello\n"), done.stderr


@pytest.mark.parametrize("name", RUN_HERE)
def test_the_page_runs(name: str, url: str, tmp_path: Path) -> None:
    """Red if an example fails with the version that is pinned, or shows something else."""
    page = RUN_HERE[name]
    if not page.python.exists():
        pytest.skip("needs the environment of tests/clients/apart/requirements.txt; `make test` makes it")
    if page.python != APART:
        pytest.importorskip(page.package)
    blocks = [(language, code.replace(ADDRESS, url)) for language, code in blocks_of(DOCS / name)]
    path = f"{page.python.parent}{os.pathsep}{os.environ['PATH']}"
    environment = os.environ | {"LLM_USER_PATH": str(tmp_path), "PATH": path}
    shown = ""
    for code in (code for language, code in blocks if language == "yaml"):
        (tmp_path / "extra-openai-models.yaml").write_text(code)
    commands = [["sh", "-ec", code] for language, code in blocks if language == "sh"]
    python = "\n".join(code for language, code in blocks if language == "python")
    for command in (*commands, [str(page.python), "-c", python]):
        done = subprocess.run(command, env=environment, capture_output=True, text=True, check=False)
        assert done.returncode == 0, done.stderr
        shown += done.stdout
    for words in page.shown:
        assert words in shown
