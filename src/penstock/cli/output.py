"""What a command has to say, for people, agents and programs. Commands hand over records, this renders them.

    human   tables and sentences; colours and bars on a terminal only
    agent   tab-separated rows under a header, nothing cut, no colour, ISO 8601 times in UTC; what is not
            printable is a backslash escape (\\t, \\n, \\x1b, \\\\), so a row is a line; absent is empty
    json    one document: a list of rows, or the object of a single record

The mode is `--output`, else agent where an agent's environment shows (`penstock.cli.agents`), else human.
Results go to stdout. Hints, notes and errors go to stderr; in the modes agent and json an error is one JSON
object, `{"error": {"kind", "message", "exit_code", …}}`, on the last line.

A field's name says how people read it: `_bytes` with a unit, `_s` in seconds.
"""

from __future__ import annotations

import json
import os
import sys
from collections.abc import Callable, Iterable, Sequence
from datetime import UTC, datetime
from typing import TYPE_CHECKING, Any, Literal, get_args

import msgspec
from msgspec import Struct

from penstock.cli import agents, console
from penstock.errors import (
    ConfigError,
    DeadlineExceeded,
    EngineUnavailable,
    Forbidden,
    InvalidRequest,
    NotFound,
    Overloaded,
    PenstockError,
    Unauthorized,
)

if TYPE_CHECKING:
    from rich.console import RenderableType

Mode = Literal["human", "agent", "json"]
MODES: tuple[Mode, ...] = get_args(Mode)

# Exit codes: stable, in docs/cli.md. 130 (interrupted) and 141 (nobody reads) are the shell's own.
FAILED = 1
MEND = 2  # the command line, a setting, or a name
TRY_AGAIN = 3  # no server or engine answers, or it is busy
NOT_ALLOWED = 4

_CODES: tuple[tuple[type[PenstockError], int], ...] = (
    (ConfigError, MEND),
    (InvalidRequest, MEND),
    (NotFound, MEND),
    (EngineUnavailable, TRY_AGAIN),
    (Overloaded, TRY_AGAIN),
    (DeadlineExceeded, TRY_AGAIN),
    (Unauthorized, NOT_ALLOWED),
    (Forbidden, NOT_ALLOWED),
)
_STYLES = {"ok": "green", "note": "yellow", "broken": "bold red"}

_chosen: Mode | None = None


def choose(mode: Mode | None) -> None:
    """Set the mode for this process; None goes back to what the environment says."""
    global _chosen
    _chosen = mode


def mode() -> Mode:
    if _chosen is not None:
        return _chosen
    return "agent" if agents.detect(os.environ, terminal=sys.stdout.isatty()) else "human"


def for_people() -> bool:
    return mode() == "human"


def rows(
    items: Iterable[Struct], of: type[Struct], human: Callable[[], Iterable[RenderableType]] | None = None
) -> None:
    """Rows of one type. `human` makes another view for people than the table of all fields."""
    found = list(items)
    chosen = mode()
    if chosen == "agent":
        console.write(_tsv(found, of))
    elif chosen == "json":
        console.write(msgspec.json.encode(found).decode() + "\n")
    else:
        for renderable in human() if human is not None else [_table(found, of)]:
            console.out().print(renderable)


def record(item: Struct) -> None:
    """A single record: for people a line per field."""
    if mode() != "human":
        _single(item)
        return
    from rich.table import Table
    from rich.text import Text

    table = Table(box=None, show_header=False)
    table.add_column(style="bold")
    table.add_column(overflow="fold")
    for name in item.__struct_fields__:
        table.add_row(_label(name), Text(_shown(name, getattr(item, name))))
    console.out().print(table)


def result(item: Struct, human: str) -> None:
    """What a command did: for people the sentence on stderr, else the record on stdout."""
    if mode() == "human":
        console.note(human)
    else:
        _single(item)


def hint(text: str) -> None:
    """What could be done next, on stderr."""
    console.note(f"hint: {text}")


def confirm(question: str, flag: str) -> None:
    """Ask a person at a terminal. InvalidRequest naming `flag` if nobody can answer, or for a no."""
    if mode() != "human" or not (sys.stdin.isatty() and sys.stderr.isatty()):
        raise InvalidRequest(f"{question}: nobody is here to answer; pass {flag} to agree", param=flag)
    sys.stderr.write(f"{question}? [y/N] ")
    sys.stderr.flush()
    if sys.stdin.readline().strip().lower() not in ("y", "yes"):
        raise InvalidRequest("not confirmed; nothing was changed", param=flag)


def fail(error: PenstockError | str, code: int | None = None) -> int:
    """Tell an error on stderr; returns the exit code, `code` if given."""
    told = error if isinstance(error, PenstockError) else PenstockError(error)
    code = exit_code(told) if code is None else code
    if mode() == "human":
        console.fail(told.message)
        return code
    kind = told.kind if isinstance(error, PenstockError) else {MEND: "usage_error"}.get(code, "failed")
    fields = {
        "kind": kind,
        "message": told.message,
        "exit_code": code,
        "param": told.param,
        "code": told.code,
    }
    if told.retry_after_s is not None:
        fields["retry_after_s"] = told.retry_after_s
    body = {name: value for name, value in fields.items() if value is not None}
    sys.stderr.write(json.dumps({"error": body}, ensure_ascii=True) + "\n")
    return code


def exit_code(error: PenstockError) -> int:
    return next((code for kind, code in _CODES if isinstance(error, kind)), FAILED)


def _single(item: Struct) -> None:
    if mode() == "agent":
        console.write(_tsv([item], type(item)))
    else:
        console.write(msgspec.json.encode(item).decode() + "\n")


def _tsv(found: Sequence[Struct], of: type[Struct]) -> str:
    names = of.__struct_fields__
    lines = ["\t".join(names)]
    lines += ["\t".join(_escape(_plain(getattr(item, name))) for name in names) for item in found]
    return "\n".join(lines) + "\n"


def _plain(value: Any) -> str:
    """A value as agents read it: whole, without units."""
    if value is None:
        return ""
    if isinstance(value, bool):
        return "true" if value else "false"
    if isinstance(value, datetime):
        return value.astimezone(UTC).strftime("%Y-%m-%dT%H:%M:%SZ")
    if isinstance(value, tuple | list):
        return ",".join(map(_plain, value))
    if isinstance(value, dict | Struct):
        return msgspec.json.encode(value).decode()
    return str(value)


def _escape(text: str) -> str:
    if text.isprintable() and "\\" not in text:
        return text
    return "".join(_ESCAPED.get(c, c) if c.isprintable() else _code(c) for c in text)


_ESCAPED = {"\\": "\\\\"}


def _code(character: str) -> str:
    return character.encode("unicode_escape").decode("ascii")


def _table(found: Sequence[Struct], of: type[Struct]) -> RenderableType:
    from rich.table import Table
    from rich.text import Text

    names = of.__struct_fields__
    table = Table(box=None)
    for name in names:
        numbers = all(isinstance(getattr(item, name), int | float) for item in found)
        table.add_column(_label(name), overflow="fold", justify="right" if found and numbers else "left")
    for item in found:
        values = [_shown(name, getattr(item, name)) for name in names]
        table.add_row(*(Text(value, style=_STYLES.get(value, "")) for value in values))
    return table


def _label(name: str) -> str:
    return name.removesuffix("_bytes").removesuffix("_s").removesuffix("_at").replace("_", " ")


def _shown(name: str, value: Any) -> str:
    """A value as people read it."""
    if value is None or value == "":
        return "—"
    if isinstance(value, bool):
        return "yes" if value else "no"
    if isinstance(value, datetime):
        return value.astimezone().strftime("%Y-%m-%d %H:%M")
    if isinstance(value, tuple | list):
        return ", ".join(map(str, value)) or "—"
    if name.endswith("_bytes"):
        return console.size(value)
    if isinstance(value, float):
        return f"{value:,.2f} s" if name.endswith("_s") else f"{value:,.4g}"
    return f"{value:,}" if isinstance(value, int) else str(value)
