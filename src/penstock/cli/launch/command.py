"""`penstock launch TOOL`: a coding agent or client, pointed at a model of this machine."""

from __future__ import annotations

import contextlib
import os
import shlex
import subprocess
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Literal

import typer
from msgspec import Struct

from penstock.cli.remote import DEFAULT_URL, ApiKey, Url
from penstock.errors import InvalidRequest

if TYPE_CHECKING:
    from penstock.cli.launch.edit import Edits
    from penstock.cli.launch.tool import Setup, Target, Tool
    from penstock.cli.remote import Server

HIDDEN = "***"


class Step(Struct, frozen=True):
    """What a launch does: `subject` is a file, a variable, an address; `detail` what it gets or says."""

    action: Literal["tool", "serve", "model", "write", "set", "run"]
    subject: str
    detail: str


def launch(
    tool: Annotated[
        Literal["claude", "codex", "opencode", "cline", "aider", "llm", "continue"],
        typer.Argument(help="what to run"),
    ],
    arguments: Annotated[
        list[str] | None, typer.Argument(metavar="[-- ARGUMENTS]", help="for the tool itself")
    ] = None,
    model: Annotated[
        str | None, typer.Option("--model", "-m", help="id of a served model; default: the first")
    ] = None,
    url: Url = DEFAULT_URL,
    api_key: ApiKey = None,
    dry_run: Annotated[
        bool, typer.Option("--dry-run", help="show what would be done, and do nothing")
    ] = False,
    configure: Annotated[
        bool, typer.Option("--configure", help="write the configuration, and don't run the tool")
    ] = False,
    restore: Annotated[
        bool, typer.Option("--restore", help="put the tool's configuration back as it was")
    ] = False,
    yes: Annotated[bool, typer.Option("--yes", "-y", help="change existing files without asking")] = False,
    force: Annotated[
        bool, typer.Option("--force", help="go on with a small context; restore over later changes")
    ] = False,
) -> None:
    """Run a coding agent or client with a model of this machine."""
    from penstock.cli.launch.edit import Edits
    from penstock.cli.launch.serving import check_context, check_tools
    from penstock.cli.launch.tools import TOOLS
    from penstock.cli.remote import Server

    chosen = TOOLS[tool]
    edits = Edits(chosen.name)
    if restore:
        _restore(edits, chosen, force)
        return
    given = arguments or []
    chosen.check_arguments(given)
    executable = chosen.find()
    steps = [Step("tool", str(executable), chosen.version(executable))]
    server = Server(url, api_key)
    if dry_run:
        target, found = _plan_target(server, model)
        if target.context and not force:
            check_context(chosen, target)
        setup = chosen.configure(target, _own_folder())
        _show([*steps, *found, *_steps(setup, executable, given, configure)], api_key)
        return
    with _served(server, model, steps) as target:
        if not force:
            check_context(chosen, target)
        if chosen.needs_tools:
            check_tools(server, target)
        setup = chosen.configure(target, _own_folder())
        _write(edits, setup, yes)
        if configure:
            _show([*steps, *_steps(setup, executable, given, configure)], api_key)
            return
        code = _run(executable, setup, given)
    raise typer.Exit(code)


def _own_folder() -> Path:
    from penstock.cli.launch.tool import state_home

    return state_home() / "penstock" / "launch"


@contextlib.contextmanager
def _served(server: Server, model: str | None, steps: list[Step]) -> Iterator[Target]:
    """The target, of a server that runs or of one that runs while inside."""
    from penstock.cli import console
    from penstock.cli.launch.serving import answers, find_target, started
    from penstock.models.sources import public_name

    if answers(server):
        yield find_target(server, model)
        return
    console.note(f"nobody serves at {server.url}: starting penstock serve {model or ''}".rstrip())
    steps.append(Step("serve", server.url, "for as long as the tool runs"))
    with started(server, model):
        yield find_target(server, model and public_name(model))


def _plan_target(server: Server, model: str | None) -> tuple[Target, list[Step]]:
    from penstock.cli.launch.serving import answers, find_target, start_command
    from penstock.cli.launch.tool import Target
    from penstock.config import EngineSettings
    from penstock.models.sources import public_name

    if answers(server):
        target = find_target(server, model)
        return target, [Step("model", target.model, f"{target.context} tokens of context at {server.url}")]
    command = ["penstock", *start_command(server, model)[3:]]
    name = public_name(model or EngineSettings().model)
    target = Target(server.url, name, 0, server.api_key)
    return target, [
        Step("serve", server.url, shlex.join(command)),
        Step("model", name, "its context and tools are checked when it runs"),
    ]


def _write(edits: Edits, setup: Setup, yes: bool) -> None:
    from penstock.cli import console, output

    strangers = edits.strangers(setup.files)
    if strangers and not yes:
        names = ", ".join(str(file.path) for file in strangers)
        output.confirm(f"change {names} (a copy is kept, --restore puts it back)", "--yes")
    for path in edits.write(setup.files):
        console.note(f"wrote {path}")


def _restore(edits: Edits, tool: Tool, force: bool) -> None:
    from penstock.cli import output
    from penstock.cli.launch.edit import Restored

    if not edits:
        raise InvalidRequest(f"{tool.name}: nothing to restore; penstock launch has changed no file of its")
    output.rows(edits.restore(force=force), Restored)


def _run(executable: Path, setup: Setup, given: Sequence[str]) -> int:
    """The tool's exit code; 128 + n for one that signal n ended."""
    process = subprocess.Popen(
        [executable, *_arguments(setup, given)], env={**os.environ, **setup.environment}
    )
    while True:
        try:
            code = process.wait()
        except KeyboardInterrupt:  # Ctrl-C went to the tool as well, and is its to answer
            continue
        return code if code >= 0 else 128 - code


def _arguments(setup: Setup, given: Sequence[str]) -> list[str]:
    return [*setup.arguments, *(given or setup.default)]


def _steps(setup: Setup, executable: Path, given: Sequence[str], configure: bool) -> list[Step]:
    steps = [Step("write", str(file.path), file.content.decode()) for file in setup.files]
    if not configure:
        steps += [Step("set", name, value) for name, value in setup.environment.items()]
        steps.append(Step("run", str(executable), shlex.join(_arguments(setup, given))))
    return steps


def _show(steps: list[Step], secret: str | None) -> None:
    from penstock.cli import output

    if secret:
        steps = [Step(step.action, step.subject, step.detail.replace(secret, HIDDEN)) for step in steps]
    output.rows(steps, Step)
