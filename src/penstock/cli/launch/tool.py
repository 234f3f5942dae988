"""A tool that can be launched: what it is called, what it needs, how it is pointed at a server.

One file per tool, holding one `TOOL`; `penstock.cli.launch.tools` lists them. A tool's `configure` decides
and does nothing: whoever runs it writes the files, keeps what was there, and sets the environment.
"""

from __future__ import annotations

import os
import re
import shutil
import subprocess
from collections.abc import Callable, Sequence
from pathlib import Path

from msgspec import Struct

from penstock.errors import InvalidRequest, NotFound

NO_KEY = "penstock"  # what tools send that insist on a key, to a server that needs none
VERSION_S = 30.0


class Target(Struct, frozen=True):
    """A model of a server. `url` has no trailing `/v1`; `context` is in tokens."""

    url: str
    model: str
    context: int
    api_key: str | None = None

    @property
    def openai_url(self) -> str:
        return f"{self.url}/v1"

    @property
    def key(self) -> str:
        return self.api_key or NO_KEY


class ConfigFile(Struct, frozen=True):
    """A file as it shall be. `ours`: nobody else's, so nothing needs to be kept or asked."""

    path: Path
    content: bytes
    ours: bool = False


class Setup(Struct, frozen=True):
    """`arguments` go before the user's own; `default` in their place where the user gives none."""

    arguments: tuple[str, ...] = ()
    environment: dict[str, str] = {}
    files: tuple[ConfigFile, ...] = ()
    default: tuple[str, ...] = ()


class Tool(Struct, frozen=True, kw_only=True):
    """reserved: what arguments must not set, because the setup does (`--model`, `-c model_provider`).

    min_context: tokens below which its own prompt leaves no room to work; an estimate from its size.
    min_version: the oldest that reads this configuration; () for any.
    """

    name: str
    executable: str
    install: str
    configure: Callable[[Target, Path], Setup]  # Path: a folder of Penstock's for files of its own
    reserved: tuple[str, ...] = ()
    min_context: int = 0
    min_version: tuple[int, ...] = ()
    needs_tools: bool = True

    def find(self) -> Path:
        """The executable. Raises NotFound saying how to install it."""
        found = shutil.which(self.executable)
        if found is None:
            raise NotFound(
                f"{self.name}: `{self.executable}` is not on PATH; install it with `{self.install}`"
            )
        return Path(found)

    def version(self, executable: Path) -> str:
        """What `--version` prints. Raises InvalidRequest for one that is too old, or that can't be read."""
        try:
            done = subprocess.run(
                [executable, "--version"], capture_output=True, text=True, timeout=VERSION_S, check=False
            )
        except (OSError, subprocess.TimeoutExpired) as error:
            raise InvalidRequest(
                f"{executable} --version: {error}; install it anew: `{self.install}`"
            ) from None
        text = f"{done.stdout} {done.stderr}"
        number = re.search(r"\d+(\.\d+)+", text)
        if number is None:
            raise InvalidRequest(
                f"{executable} --version says {text.strip()[:200]!r} and no version; install it anew: "
                f"`{self.install}`"
            )
        if tuple(map(int, number[0].split("."))) < self.min_version:
            needed = ".".join(map(str, self.min_version))
            raise InvalidRequest(
                f"{self.name} {number[0]} is too old, {needed} or newer is needed: `{self.install}`"
            )
        return number[0]

    def check_arguments(self, arguments: Sequence[str]) -> None:
        """Raises InvalidRequest naming the first argument that would undo the setup."""
        for before, argument in zip(("", *arguments), arguments, strict=False):
            for name in self.reserved:
                for said in (argument, f"{before} {argument}"):
                    if said == name or said.startswith((f"{name}=", f"{name}.")):
                        raise InvalidRequest(
                            f"{said}: penstock launch sets it; leave it out, or run {self.executable} itself",
                            param=name,
                        )


def home() -> Path:
    return Path.home()


def config_home() -> Path:
    """XDG_CONFIG_HOME; a relative one counts as unset."""
    folder = Path(os.environ.get("XDG_CONFIG_HOME", ""))
    return folder if folder.is_absolute() else home() / ".config"


def state_home() -> Path:
    """XDG_STATE_HOME; a relative one counts as unset."""
    folder = Path(os.environ.get("XDG_STATE_HOME", ""))
    return folder if folder.is_absolute() else home() / ".local" / "state"
