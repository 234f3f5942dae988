"""`penstock launch` over stand-ins for the tools: what they are told, what is written, what is put back."""

from __future__ import annotations

import itertools
import json
import shlex
import socket
import stat
import subprocess
import sys
import tomllib
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import yaml

from penstock.cli.launch.edit import Edits, with_block
from penstock.cli.launch.tool import ConfigFile, Target
from penstock.cli.launch.tools import TOOLS
from penstock.errors import InvalidRequest

Penstock = Callable[..., subprocess.CompletedProcess[str]]

# Says its version, or writes down what it was given and ends with code 7.
STAND_IN = """#!{python}
import json, os, sys
if sys.argv[1:] == ["--version"]:
    print("tool v{version} (test)")
    sys.exit(0)
with open({seen!r}, "w") as file:
    json.dump({{"arguments": sys.argv[1:], "environment": dict(os.environ)}}, file)
sys.exit(7)
"""
TARGET = Target("http://127.0.0.1:8000", "org/name", 40_000, "sk-secret")


class Launcher:
    """Runs `penstock launch` in a home of its own, with only the tools that were installed on PATH."""

    def __init__(self, penstock: Penstock, environment: dict[str, str], folder: Path, url: str) -> None:
        self.home, self._bin, self._seen = folder / "home", folder / "bin", folder / "seen.json"
        self.home.mkdir()
        self._bin.mkdir()
        self._penstock, self._url = penstock, url
        gone = ("XDG_CONFIG_HOME", "XDG_STATE_HOME", "LLM_USER_PATH")
        self.environment = {name: value for name, value in environment.items() if name not in gone}
        self.environment |= {"HOME": str(self.home), "PATH": str(self._bin)}

    def install(self, name: str, version: str = "99.1.0") -> None:
        path = self._bin / TOOLS[name].executable
        path.write_text(STAND_IN.format(python=sys.executable, version=version, seen=str(self._seen)))
        path.chmod(0o755)

    def __call__(self, *arguments: str, url: str | None = None) -> subprocess.CompletedProcess[str]:
        """The scripted model has 512 tokens of context, hence --force."""
        name, *rest = arguments
        command = ("launch", name, "--url", url or self._url, "--force", *rest)
        return self._penstock(*command, env=self.environment)

    def seen(self) -> dict[str, Any]:
        return json.loads(self._seen.read_text())

    @property
    def ran(self) -> bool:
        return self._seen.exists()

    def files(self) -> dict[str, bytes]:
        return {str(p.relative_to(self.home)): p.read_bytes() for p in self.home.rglob("*") if p.is_file()}


@pytest.fixture
def launch(penstock: Penstock, environment: dict[str, str], tmp_path: Path, scripted_url: str) -> Launcher:
    return Launcher(penstock, environment, tmp_path, scripted_url)


def told(launch: Launcher, name: str, *arguments: str) -> tuple[list[str], dict[str, str]]:
    """What the stand-in of a tool was given; the tool's exit code comes through."""
    launch.install(name)
    result = launch(name, "--yes", *arguments)
    assert result.returncode == 7, result.stderr
    seen = launch.seen()
    return seen["arguments"], seen["environment"]


def test_claude_is_told_by_its_environment(launch: Launcher, scripted_url: str) -> None:
    """Red if Claude Code asks another server or model, or puts a nonce in front of its prompts."""
    arguments, environment = told(launch, "claude", "--", "-p", "hi")
    assert arguments == ["--model", "scripted", "-p", "hi"]
    expected = {
        "ANTHROPIC_BASE_URL": scripted_url,
        "ANTHROPIC_API_KEY": "",
        "ANTHROPIC_AUTH_TOKEN": "penstock",
        "ANTHROPIC_DEFAULT_OPUS_MODEL": "scripted",
        "ANTHROPIC_DEFAULT_SONNET_MODEL": "scripted",
        "ANTHROPIC_DEFAULT_HAIKU_MODEL": "scripted",
        "CLAUDE_CODE_SUBAGENT_MODEL": "scripted",
        "CLAUDE_CODE_AUTO_COMPACT_WINDOW": "512",
        "CLAUDE_CODE_ATTRIBUTION_HEADER": "0",
        "CLAUDE_CODE_DISABLE_FEEDBACK_SURVEY": "1",
    }
    assert expected.items() <= environment.items()
    assert launch.files() == {}


def test_codex_is_told_by_overrides(launch: Launcher, scripted_url: str) -> None:
    """Red if an override is no TOML, names another API than responses, or config.toml is touched; or if Codex
    has no instructions or no tool that edits files, which both come from the catalogue."""
    arguments, environment = told(launch, "codex", "--model", "org/name", "--", "exec", "fix it")
    assert arguments[-4:] == ["-m", "org/name", "exec", "fix it"]
    overrides = [value for flag, value in itertools.pairwise(arguments) if flag == "-c"]
    config = tomllib.loads("\n".join(overrides))
    assert config["model_provider"] == "penstock"
    provider = config["model_providers"]["penstock"]
    assert provider == {
        "name": "Penstock",
        "base_url": f"{scripted_url}/v1",
        "wire_api": "responses",
        "env_key": "PENSTOCK_API_KEY",
    }
    assert environment[provider["env_key"]] == "penstock"
    (entry,) = json.loads(Path(config["model_catalog_json"]).read_text())["models"]
    assert (entry["slug"], entry["context_window"]) == ("org/name", 512)
    assert entry["apply_patch_tool_type"] == "freeform"
    assert "apply_patch" in entry["base_instructions"]
    assert not (launch.home / ".codex").exists()


def test_opencode_is_told_inline(launch: Launcher, scripted_url: str) -> None:
    """Red if OpenCode's titles go to a hosted model, it learns another context size, or summarizes for ever
    what can't become shorter, its own prompt."""
    arguments, environment = told(launch, "opencode")
    assert arguments == []
    config = json.loads(environment["OPENCODE_CONFIG_CONTENT"])
    assert config["model"] == config["small_model"] == "penstock/scripted"
    provider = config["provider"]["penstock"]
    assert provider["options"] == {"baseURL": f"{scripted_url}/v1", "apiKey": "penstock"}
    assert provider["models"]["scripted"]["limit"] == {"context": 512, "output": 128}
    assert config["compaction"] == {"auto": False}
    roomy = TOOLS["opencode"].configure(TARGET, launch.home).environment["OPENCODE_CONFIG_CONTENT"]
    assert "compaction" not in json.loads(roomy)


def test_aider_is_told_by_flags(launch: Launcher, scripted_url: str) -> None:
    """Red if aider talks to the default host, or guesses the context."""
    arguments, environment = told(launch, "aider", "--", "--yes-always")
    assert arguments[:2] == ["--model", "openai/scripted"]
    assert arguments[-1] == "--yes-always"
    assert environment["OPENAI_API_BASE"] == f"{scripted_url}/v1"
    metadata = json.loads(Path(arguments[arguments.index("--model-metadata-file") + 1]).read_text())
    assert metadata["openai/scripted"]["max_input_tokens"] == 512


def test_continue_gets_a_file_of_its_own(launch: Launcher, scripted_url: str) -> None:
    """Red if Continue's file is no YAML, or lacks what makes it call tools."""
    arguments, _ = told(launch, "continue")
    config = yaml.safe_load(Path(arguments[arguments.index("--config") + 1]).read_text())
    (model,) = config["models"]
    assert (model["apiBase"], model["model"]) == (f"{scripted_url}/v1", "scripted")
    assert model["capabilities"] == ["tool_use"]
    assert model["defaultCompletionOptions"]["contextLength"] == 512


def test_cline_gets_a_provider_beside_the_others(launch: Launcher, scripted_url: str) -> None:
    """Red if what Cline's user has set up is lost, or the new provider is not the one in use."""
    path = launch.home / ".cline/data/settings/providers.json"
    path.parent.mkdir(parents=True)
    path.write_text(
        '{"version": 1, "lastUsedProvider": "x", "modes": {"a": 1}, "providers": {"x": {"y": "ü"}}}'
    )
    path.chmod(0o640)
    told(launch, "cline")
    config = json.loads(path.read_text())
    assert config["providers"]["x"] == {"y": "ü"}
    assert config["modes"] == {"a": 1}
    assert config["lastUsedProvider"] == "openai-compatible"
    assert config["providers"]["openai-compatible"]["settings"] == {
        "provider": "openai-compatible",
        "apiKey": "penstock",
        "model": "scripted",
        "baseUrl": f"{scripted_url}/v1",
        "contextWindow": 512,
    }
    assert stat.S_IMODE(path.stat().st_mode) == 0o640


LLM_FILE = ".config/io.datasette.llm/extra-openai-models.yaml"


def test_llm_gets_an_entry_beside_the_others(launch: Launcher, scripted_url: str) -> None:
    """Red if other entries, comments or a file without a last line break are damaged."""
    path = launch.home / LLM_FILE
    path.parent.mkdir(parents=True)
    path.write_text("# mine\n- model_id: other\n  model_name: o")
    arguments, environment = told(launch, "llm")
    assert arguments == ["chat"]
    assert environment["LLM_MODEL"] == "penstock/scripted"
    text = path.read_text()
    assert text.startswith("# mine\n- model_id: other\n  model_name: o\n")
    other, ours = yaml.safe_load(text)
    assert other == {"model_id": "other", "model_name": "o"}
    assert ours == {
        "model_id": "penstock/scripted",
        "model_name": "scripted",
        "api_base": f"{scripted_url}/v1",
        "supports_tools": True,
        "supports_schema": True,
    }


@pytest.mark.parametrize(
    ("name", "file", "before"),
    [
        ("llm", LLM_FILE, "- model_id: other\r\n  model_name: o\n\n"),
        ("llm", LLM_FILE, None),
        ("cline", ".cline/data/settings/providers.json", '{"providers":{},\t"version":1}'),
        ("cline", ".cline/data/settings/providers.json", None),
    ],
)
def test_restore_is_byte_identical(launch: Launcher, name: str, file: str, before: str | None) -> None:
    """Red if launching twice (with another model) keeps our own bytes as the copy, or leaves a trace."""
    path = launch.home / file
    if before is not None:
        path.parent.mkdir(parents=True)
        path.write_bytes(before.encode())
    launch.install(name)
    first = launch(name, "--yes", "--configure")
    assert first.returncode == 0, first.stderr
    once = launch.files()
    assert launch(name, "--configure").returncode == 0  # without --yes: the file is ours by now
    assert launch.files() == once
    assert launch(name, "--configure", "--model", "org/name").returncode == 0
    assert launch.files() != once
    assert not launch.ran
    result = launch(name, "--restore", "--output", "agent")
    change = "removed" if before is None else "restored"
    assert result.stdout == f"path\tchange\n{path}\t{change}\n"
    assert launch.files() == ({} if before is None else {file: before.encode()})
    assert "nothing to restore" in launch(name, "--restore").stderr


def test_restore_does_not_overwrite_later_changes(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Red if what somebody wrote after us is thrown away without --force, also after we wrote once more."""
    monkeypatch.setenv("XDG_STATE_HOME", str(tmp_path / "state"))
    path = tmp_path / "config"
    path.write_bytes(b"first")
    Edits("t").write([ConfigFile(path, b"ours")])
    path.write_bytes(b"theirs")
    with pytest.raises(InvalidRequest, match="--force"):
        Edits("t").restore()
    Edits("t").write([ConfigFile(path, b"ours again")])
    with pytest.raises(InvalidRequest, match="--force"):
        Edits("t").restore()
    assert path.read_bytes() == b"ours again"
    Edits("t").restore(force=True)
    assert path.read_bytes() == b"first"


def test_a_link_stays_a_link(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Red if a configuration that is a link into somebody's dotfiles becomes a file beside them."""
    monkeypatch.setenv("XDG_STATE_HOME", str(tmp_path / "state"))
    (tmp_path / "dotfiles").write_bytes(b"first")
    path = tmp_path / "config"
    path.symlink_to("dotfiles")
    Edits("t").write([ConfigFile(path, b"ours")])
    assert path.is_symlink()
    assert (tmp_path / "dotfiles").read_bytes() == b"ours"
    Edits("t").restore()
    assert path.is_symlink()
    assert path.read_bytes() == b"first"


@pytest.mark.parametrize(
    "text", ["a: 1\n", "[{model_id: x}]\n", "  - model_id: x\n", b"- \xff\n".decode("latin-1")]
)
def test_a_list_that_cannot_be_continued_is_refused(tmp_path: Path, text: str) -> None:
    """Red if an entry is put behind text that it makes invalid."""
    path = tmp_path / "f.yaml"
    path.write_bytes(text.encode("latin-1"))
    with pytest.raises(InvalidRequest, match=r"f\.yaml"):
        with_block(path, "- {}")


def test_broken_configuration_is_left_alone(launch: Launcher) -> None:
    """Red if a file with comments, which we can't keep, is rewritten without them."""
    path = launch.home / ".cline/data/settings/providers.json"
    path.parent.mkdir(parents=True)
    path.write_text("{} // mine")
    launch.install("cline")
    result = launch("cline", "--yes")
    assert result.returncode == 2
    assert "not plain JSON" in result.stderr
    assert path.read_text() == "{} // mine"
    assert not launch.ran


@pytest.mark.parametrize("name", TOOLS)
def test_a_missing_tool_says_how_to_install_it(launch: Launcher, name: str) -> None:
    """Red if a tool that is absent is configured all the same, or found only after a model was loaded."""
    result = launch(name, "--yes", "--output", "agent")
    assert result.returncode == 2
    body = json.loads(result.stderr)["error"]
    assert body["kind"] == "not_found_error"
    assert TOOLS[name].install in body["message"]
    assert launch.files() == {}


@pytest.mark.parametrize(
    ("name", "arguments"),
    [
        ("claude", ["--model", "opus"]),
        ("codex", ["-m", "gpt"]),
        ("codex", ["--profile", "work"]),
        ("codex", ["exec", "-c", "model_provider=openai"]),
        ("codex", ["--config", "model_providers.penstock.base_url=x"]),
        ("opencode", ["--model=x/y"]),
        ("cline", ["-P", "cline"]),
        ("aider", ["--openai-api-base=x"]),
        ("llm", ["-m", "gpt"]),
        ("continue", ["--config", "x"]),
    ],
)
def test_arguments_that_would_undo_the_setup_are_refused(
    launch: Launcher, name: str, arguments: list[str]
) -> None:
    """Red if a tool quietly uses another model or server than the one it was launched for."""
    launch.install(name)
    result = launch(name, "--yes", "--", *arguments)
    assert result.returncode == 2
    assert "penstock launch sets it" in result.stderr
    assert not launch.ran


def test_other_overrides_of_codex_pass() -> None:
    """Red if every -c is refused because some are."""
    TOOLS["codex"].check_arguments(
        ["-c", "sandbox_mode=x", "-c", "model_reasoning_effort=low", "exec", "model"]
    )


def test_an_old_tool_is_refused(launch: Launcher) -> None:
    """Red if a version that reads another configuration is launched with this one."""
    launch.install("cline", "2.9.1")
    result = launch("cline", "--yes")
    assert result.returncode == 2
    assert "cline 2.9.1 is too old, 3.0 or newer" in result.stderr


def test_a_file_of_somebody_else_is_asked_about(launch: Launcher) -> None:
    """Red if a user's file is changed without a yes, or a prompt waits where nobody is."""
    path = launch.home / LLM_FILE
    path.parent.mkdir(parents=True)
    path.write_text("- model_id: other\n")
    launch.install("llm")
    result = launch("llm", "--output", "agent")
    body = json.loads(result.stderr.splitlines()[-1])["error"]
    assert body["param"] == "--yes"
    assert body["exit_code"] == result.returncode == 2
    assert path.read_text() == "- model_id: other\n"
    assert not launch.ran


@pytest.mark.parametrize("name", TOOLS)
def test_a_dry_run_shows_everything_and_does_nothing(launch: Launcher, name: str) -> None:
    """Red if a dry run writes, runs, or leaves out a step; or shows a key."""
    launch.install(name)
    shown = {}
    for mode in ("human", "agent", "json"):
        result = launch(name, "--dry-run", "--api-key", "sk-secret", "--output", mode)
        assert result.returncode == 0, result.stderr
        assert "sk-secret" not in result.stdout
        shown[mode] = result.stdout
    steps = json.loads(shown["json"])
    assert [step["action"] for step in steps][:2] == ["tool", "model"]
    assert steps[-1]["action"] == "run"
    assert len(shown["agent"].splitlines()) == len(steps) + 1
    for step in steps:
        assert step["subject"] in shown["human"]
    assert launch.files() == {}
    assert not launch.ran


def test_a_small_context_is_refused(launch: Launcher, penstock: Penstock, scripted_url: str) -> None:
    """Red if an agent is launched whose prompt alone overflows the model."""
    launch.install("codex")
    result = penstock("launch", "codex", "--url", scripted_url, env=launch.environment)
    assert result.returncode == 2
    assert "512 tokens, codex needs about 16,384" in result.stderr
    assert not launch.ran


def test_a_model_that_is_not_served_is_refused(launch: Launcher) -> None:
    """Red if a wrong name is found only by the tool."""
    launch.install("llm")
    result = launch("llm", "--model", "nosuch")
    assert result.returncode == 2
    assert "served are scripted, org/name" in result.stderr


def test_a_server_elsewhere_is_not_started_here(launch: Launcher) -> None:
    """Red if a mistyped address starts a server on this machine."""
    launch.install("llm")
    result = launch("llm", url="http://127.0.0.2:9")
    assert result.returncode == 3
    assert "on this machine only" in result.stderr


def test_a_server_is_started_for_the_tool_and_ends_with_it(launch: Launcher, tiny: Path) -> None:
    """Red if the tool runs before its server is ready, or the server stays when it has ended."""
    launch.install("llm")
    with socket.create_server(("127.0.0.1", 0)) as free:
        port = free.getsockname()[1]
    url = f"http://127.0.0.1:{port}"
    plan = launch("llm", "--model", str(tiny), "--dry-run", "--output", "agent", url=url)
    assert f"serve {tiny} --port {port}" in plan.stdout
    result = launch("llm", "--model", str(tiny), url=url)
    assert result.returncode == 7, result.stderr
    assert launch.seen()["environment"]["LLM_MODEL"] == f"penstock/{tiny.name}"
    with socket.socket() as probe:
        assert probe.connect_ex(("127.0.0.1", port)) != 0


def test_a_server_that_does_not_start_says_why(launch: Launcher) -> None:
    """Red if a model that can't be served leaves the user with a time-out."""
    launch.install("llm")
    with socket.create_server(("127.0.0.1", 0)) as free:
        port = free.getsockname()[1]
    result = launch("llm", "--model", "nosuchmodel", url=f"http://127.0.0.1:{port}")
    assert result.returncode == 3
    assert "no such model" in result.stderr
    assert not launch.ran


@pytest.mark.parametrize("name", TOOLS)
def test_a_setup_is_a_function_of_its_target(
    name: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Red if a tool's file loses the key, the address or the model, or two calls differ (no idempotence)."""
    monkeypatch.setenv("HOME", str(tmp_path))
    monkeypatch.delenv("XDG_CONFIG_HOME", raising=False)
    monkeypatch.delenv("LLM_USER_PATH", raising=False)
    setup = TOOLS[name].configure(TARGET, tmp_path / "own")
    everything = " ".join(
        [*setup.arguments, *setup.environment.values(), *(file.content.decode() for file in setup.files)]
    )
    for part in (TARGET.url, TARGET.model, "sk-secret"):
        assert part in everything
    for file in setup.files:
        file.path.parent.mkdir(parents=True, exist_ok=True)
        file.path.write_bytes(file.content)
    assert TOOLS[name].configure(TARGET, tmp_path / "own") == setup


AGENTS_PAGE = Path(__file__).parents[2] / "docs" / "clients" / "agents.md"
EXAMPLES = [line for line in AGENTS_PAGE.read_text().splitlines() if line.startswith("penstock launch")]


@pytest.mark.parametrize("line", EXAMPLES)
def test_the_examples_of_the_page_run_the_tool(launch: Launcher, line: str) -> None:
    """Red if an example in the documentation is refused, or its arguments don't reach the tool."""
    _, _, name, behind, *arguments = shlex.split(line)
    assert behind == "--"
    given, _ = told(launch, name, "--", *arguments)
    assert given[-len(arguments) :] == arguments
