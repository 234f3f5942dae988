"""The terminal: data to stdout, everything else to stderr, readable without colour.

What is no terminal gets no escape sequence, whatever FORCE_COLOR says, and no line is cut to a width. Rich
honours NO_COLOR by itself. It is imported on first use: `penstock --help` and a completed command without a
progress bar do not pay for it twice.
"""

from __future__ import annotations

import sys
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from functools import cache
from typing import TYPE_CHECKING, TextIO

if TYPE_CHECKING:
    from rich.console import Console

PIPE_COLUMNS = 100_000  # of what is no terminal: nothing is wrapped

_plain = False


def set_plain(plain: bool) -> None:
    """Whether to treat terminals as files and leave progress untold: for agents and programs."""
    global _plain
    _plain = plain
    err.cache_clear()
    out.cache_clear()


@cache
def err() -> Console:
    """Messages, progress and logs."""
    return _console(sys.stderr)


@cache
def out() -> Console:
    """Tables that are the command's result."""
    return _console(sys.stdout)


def _console(stream: TextIO) -> Console:
    from rich.console import Console

    if stream.isatty() and not _plain:
        return Console(file=stream, highlight=False)
    return Console(file=stream, highlight=False, force_terminal=False, width=PIPE_COLUMNS)


def note(message: str) -> None:
    """One line on stderr."""
    err().print(message, markup=False, soft_wrap=True)


def write(text: str) -> None:
    """Data, unbuffered: a stream shows as it comes."""
    sys.stdout.write(text)
    sys.stdout.flush()


def fail(message: str) -> None:
    """`error: message` on stderr."""
    from rich.text import Text

    err().print(Text.assemble(("error", "bold red"), ": ", message), soft_wrap=True)


Advance = Callable[[str, int, int | None], None]


@contextmanager
def byte_progress() -> Iterator[Advance]:
    """A bar for bytes: call the yielded function with (phase, done, total or None).

    One bar per phase; without a terminal one line per phase; nothing for agents and programs.
    """
    if _plain:
        yield lambda phase, done, total: None
        return
    console = err()
    if not console.is_terminal:
        seen: set[str] = set()

        def tell(phase: str, done: int, total: int | None) -> None:
            if phase not in seen:
                seen.add(phase)
                note(f"{phase} …" if not total else f"{phase} ({size(total)}) …")

        yield tell
        return

    from rich.progress import BarColumn, DownloadColumn, Progress, TextColumn, TransferSpeedColumn

    columns = (TextColumn("{task.description}"), BarColumn(), DownloadColumn(), TransferSpeedColumn())
    with Progress(*columns, console=console) as progress:
        bars: dict[str, int] = {}

        def advance(phase: str, done: int, total: int | None) -> None:
            if phase not in bars:
                bars[phase] = progress.add_task(phase, total=total or None)
            progress.update(bars[phase], completed=done, total=total or None)  # type: ignore[arg-type]

        yield advance


@contextmanager
def count_progress(what: str, total: int, done: int = 0) -> Iterator[Callable[[], None]]:
    """A bar for counted things; call the yielded function once per one. Silent without a terminal."""
    console = err()
    if not console.is_terminal:
        yield lambda: None
        return

    from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeRemainingColumn

    columns = (TextColumn("{task.description}"), BarColumn(), MofNCompleteColumn(), TimeRemainingColumn())
    with Progress(*columns, console=console) as progress:
        task = progress.add_task(what, total=total, completed=done)
        yield lambda: progress.advance(task)


def size(num_bytes: float) -> str:
    """`3.2 GiB`: three figures, binary units."""
    value = float(num_bytes)
    for unit in ("B", "KiB", "MiB", "GiB"):
        if abs(value) < 1024:
            return f"{value:.0f} {unit}" if unit == "B" or value >= 100 else f"{value:.1f} {unit}"
        value /= 1024
    return f"{value:.1f} TiB"
