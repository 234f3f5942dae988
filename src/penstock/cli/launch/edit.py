"""Changing configuration that belongs to somebody else: read it, write it whole or not at all, put it back.

    $XDG_STATE_HOME/penstock/launch/TOOL/     (default ~/.local/state)
      edits.json                              what was written where, and what was there before
      0, 1, …                                 the bytes from before

Invariants: the bytes from before are kept before the first change and never replaced by bytes of ours;
`restore` puts back exactly them, or removes what was not there.
"""

from __future__ import annotations

import contextlib
import hashlib
import json
import os
import shutil
import tempfile
from collections.abc import Iterable
from pathlib import Path
from typing import Any, Literal

import msgspec
from msgspec import Struct

from penstock.cli.launch.tool import ConfigFile, state_home
from penstock.errors import InvalidRequest

BEGIN, END = "# penstock launch: begin", "# penstock launch: end"
PRIVATE = 0o600  # configurations hold keys


class Edit(Struct):
    """One file. `kept`: name of the copy from before, "" if there was no file. `digest`: SHA-256 of what was
    written last. `changed`: somebody else wrote it in between."""

    path: str
    kept: str
    digest: str
    changed: bool = False


class Restored(Struct, frozen=True):
    path: str
    change: Literal["restored", "removed"]


class Edits:
    """The edits made for one tool."""

    def __init__(self, tool: str) -> None:
        self.folder = state_home() / "penstock" / "launch" / tool
        self._index = self.folder / "edits.json"
        try:
            self._edits = msgspec.json.decode(self._index.read_bytes(), type=list[Edit])
        except FileNotFoundError:
            self._edits = []
        except msgspec.DecodeError as error:
            raise InvalidRequest(f"{self._index}: unreadable ({error}); the copies lie beside it") from None

    def __bool__(self) -> bool:
        return bool(self._edits)

    def strangers(self, files: Iterable[ConfigFile]) -> list[ConfigFile]:
        """Those whose writing would change a file that was not made by us."""
        ours = {edit.path for edit in self._edits}
        return [
            file
            for file in files
            if not file.ours and file.path.exists() and str(file.path) not in ours and _differs(file)
        ]

    def write(self, files: Iterable[ConfigFile]) -> list[Path]:
        """Write what differs; returns those paths. What was there before is kept."""
        written = []
        for file in files:
            if not file.ours:
                self._keep(file)
            if _differs(file):
                replace(file.path, file.content)
                written.append(file.path)
        return written

    def restore(self, *, force: bool = False) -> list[Restored]:
        """Put every file back. Raises InvalidRequest, before any change, if one was written by somebody else
        since; with `force` their changes are lost."""
        for edit in self._edits:
            if (edit.changed or _digest(Path(edit.path)) != edit.digest) and not force:
                raise InvalidRequest(
                    f"{edit.path}: changed by somebody else since; --force puts back the copy from before "
                    f"({self.folder / edit.kept if edit.kept else 'no file'}) and loses those changes",
                    param="--force",
                )
        done = []
        for edit in self._edits:
            path = Path(edit.path)
            if edit.kept:
                replace(path, (self.folder / edit.kept).read_bytes())
                done.append(Restored(edit.path, "restored"))
            else:
                path.unlink(missing_ok=True)
                done.append(Restored(edit.path, "removed"))
        shutil.rmtree(self.folder, ignore_errors=True)
        self._edits = []
        return done

    def _keep(self, file: ConfigFile) -> None:
        digest = hashlib.sha256(file.content).hexdigest()
        for edit in self._edits:
            if edit.path == str(file.path):
                edit.changed = edit.changed or _digest(file.path) != edit.digest
                edit.digest = digest
                break
        else:
            if not _differs(file):
                return
            kept = ""
            if file.path.exists():
                kept = str(len(self._edits))
                replace(self.folder / kept, file.path.read_bytes())
            self._edits.append(Edit(str(file.path), kept, digest))
        replace(self._index, msgspec.json.format(msgspec.json.encode(self._edits)))


def replace(path: Path, content: bytes) -> None:
    """Give a file new content by one rename; its mode stays, a new one is private. A link stays a link."""
    path = path.resolve()
    path.parent.mkdir(parents=True, exist_ok=True)
    mode = path.stat().st_mode & 0o777 if path.exists() else PRIVATE
    handle, name = tempfile.mkstemp(prefix=f".{path.name}.", dir=path.parent)
    try:
        with os.fdopen(handle, "wb") as file:
            file.write(content)
            file.flush()
            os.fsync(file.fileno())
        Path(name).chmod(mode)
        Path(name).rename(path)
    except BaseException:
        with contextlib.suppress(FileNotFoundError):
            Path(name).unlink()
        raise


def read_object(path: Path) -> dict[str, Any]:
    """A JSON object, {} where there is no file. Raises InvalidRequest for anything that would be lost."""
    try:
        found = json.loads(path.read_bytes())
    except FileNotFoundError:
        return {}
    except ValueError as error:
        raise InvalidRequest(f"{path}: not plain JSON ({error}); mend or move it") from None
    if not isinstance(found, dict):
        raise InvalidRequest(f"{path}: not a JSON object; mend or move it")
    return found


def with_block(path: Path, lines: str) -> bytes:
    """The text of a YAML list with `lines` in a marked block at its end, in place of an earlier block.

    Raises InvalidRequest where the file is no list that can be continued at the left margin.
    """
    try:
        text = path.read_text(encoding="utf-8")
    except FileNotFoundError:
        text = ""
    except UnicodeDecodeError as error:
        raise InvalidRequest(f"{path}: not UTF-8 ({error}); mend or move it") from None
    begin, end = text.find(f"{BEGIN}\n"), text.find(f"{END}\n")
    if 0 <= begin < end:
        text = text[:begin] + text[end + len(END) + 1 :]
    first = next(
        (line for line in text.splitlines() if line.strip() and not line.startswith(("#", "---"))), "-"
    )
    if not first.startswith("-"):
        raise InvalidRequest(
            f"{path}: not a list of entries that begin with `- ` at the margin; add\n{lines}"
        )
    if text and not text.endswith("\n"):
        text += "\n"
    return f"{text}{BEGIN}\n{lines}\n{END}\n".encode()


def _differs(file: ConfigFile) -> bool:
    try:
        return file.path.read_bytes() != file.content
    except FileNotFoundError:
        return True


def _digest(path: Path) -> str:
    try:
        return hashlib.sha256(path.read_bytes()).hexdigest()
    except FileNotFoundError:
        return ""
