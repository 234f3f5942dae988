"""How much writing one grammar may take, counted in steps: what is refused does not depend on the machine."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from contextvars import ContextVar

from penstock.decoding.grammar.ebnf.rules import UnkeptError

MAX_STEPS = 400_000  # of 5 to 10 us

_left: ContextVar[int] = ContextVar("left", default=MAX_STEPS)


@contextmanager
def bounded(steps: int = MAX_STEPS) -> Iterator[None]:
    """What is written inside takes at most so many steps."""
    token = _left.set(steps)
    try:
        yield
    finally:
        _left.reset(token)


def spend(steps: int) -> None:
    """Raises UnkeptError when there are none left."""
    left = _left.get() - steps
    _left.set(left)
    if left < 0:
        raise UnkeptError("it takes too long to compile; make it simpler")
