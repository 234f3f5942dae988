"""Traces of renders: what of its messages a chat template had read when it wrote what.

A template is a deterministic program. What it has written, and the state that it is in, follow from what it
has read by then: so they are the same for every conversation that begins with the messages read so far. A
`Mark` is such a state, between two passes of the template's loop over its messages, and a render may begin
at a mark instead of at the first message. Nothing is assumed about a template: one that looks at the end
first (for the last question, say) leaves no marks behind that look, and is rendered whole.

What makes a state between two passes: the attributes of namespaces, the loop's index and its previous item,
and the clock. Variables of a loop's body end with the pass, and the sandbox lets nothing be changed in
place. Whatever else a template does with its messages raises `Untraced`, and what can't be restored leaves
no mark.

Only a loop that stands alone (not inside another loop, a macro, a block that is captured) is the main one:
its text is written when it is made. `template_sandbox` marks those loops.
"""

from __future__ import annotations

from collections import deque
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextvars import ContextVar
from typing import Any

import jinja2
from jinja2 import nodes
from jinja2.runtime import LoopContext, Undefined
from jinja2.utils import Namespace
from msgspec import Struct

END = 1 << 62  # messages read by a template that knows where they end
MARKS = 3  # the last ones of a render: the next turn nearly always goes on from one of them
_SCALARS = (str, int, float, type(None), Undefined)
# Filters whose values are iterators: kept in a variable, such a one would be state that no mark has.
_ITERATORS = frozenset(
    {"batch", "items", "map", "reject", "rejectattr", "reverse", "select", "selectattr", "slice", "unique"}
)

Messages = Sequence[Mapping[str, Any]]


class Untraced(Exception):
    """The template uses its messages in a way that is not followed."""


class Mark(Struct, frozen=True):
    """The state of a render before item `index` of its main loop, `length` characters written.

    It is the state of every conversation whose first `needs` messages are the same, while the clock, asked
    for each of the formats of `clock`, gives the same text.
    """

    index: int
    needs: int
    length: int
    namespaces: tuple[dict[str, Any], ...]
    clock: dict[str, str]


class Trace:
    """One render of `messages`. from_mark: where it begins; None: at the beginning.

    `marks`: the last of those that it leaves. `skipped`: set when it jumps to `from_mark`; what was written
    before is to be thrown away. `written`: characters so far, counted by whoever collects them.
    """

    def __init__(self, messages: Messages, from_mark: Mark | None = None) -> None:
        self.messages = messages
        self.marks: deque[Mark] = deque(maxlen=MARKS)
        self.written = 0
        self.skipped = False
        self.spend: Callable[[int], None] = lambda passes: None
        self._from = from_mark
        self._reach = 0  # messages read, counted from the first
        self._main: Cursor | None = None
        self._namespaces: list[Namespace] = []
        self._num_outer = 0  # namespaces that were made before the main loop
        self._clock: dict[str, str] = {}

    def view(self) -> View:
        return View(self, 0)

    def read(self, upto: int) -> None:
        self._reach = max(self._reach, upto)

    def made(self, namespace: Namespace) -> None:
        self._namespaces.append(namespace)

    def asked_time(self, form: str, answer: str) -> None:
        self._clock[form] = answer

    def before_pass(self, cursor: Cursor, index: int) -> int:
        """The main loop, or another one, is about to draw item `index`; returns the one that it shall
        draw."""
        if self._main is None:
            self._main = cursor
            self._num_outer = len(self._namespaces)
            if self._from is not None:
                return self._jump(cursor, self._from)
        if cursor is self._main and self._reach < END:
            self._leave_mark(index)
        return index

    def _jump(self, cursor: Cursor, mark: Mark) -> int:
        if cursor.start + mark.index >= len(self.messages) or len(mark.namespaces) != self._num_outer:
            raise Untraced("nothing is left to render behind the mark")
        for namespace, attributes in zip(self._namespaces, mark.namespaces, strict=True):
            held = _attributes(namespace)
            held.clear()
            held.update(attributes)
        self.read(mark.needs)
        self._clock |= mark.clock
        self.skipped, self.written = True, mark.length
        return mark.index

    def _leave_mark(self, index: int) -> None:
        found = []
        for namespace in self._namespaces[: self._num_outer]:
            attributes = dict(_attributes(namespace))
            if not all(_is_restorable(value) for value in attributes.values()):
                return
            found.append(attributes)
        self.marks.append(Mark(index, self._reach, self.written, tuple(found), dict(self._clock)))


class View:
    """The messages from `start` on, as a template sees them: whatever it reads is noted."""

    __slots__ = ("_is_main", "_start", "_trace")

    def __init__(self, trace: Trace, start: int, is_main: bool = False) -> None:
        self._trace = trace
        self._start = start
        self._is_main = is_main

    def main(self, spend: Callable[[int], None]) -> View:
        """The same for a loop that stands alone. Its passes are paid for by `spend`."""
        self._trace.spend = spend
        return View(self._trace, self._start, True)

    def _rest(self) -> list[Any]:
        self._trace.read(END)
        return list(self._trace.messages[self._start :])

    def __len__(self) -> int:
        self._trace.read(END)
        return max(0, len(self._trace.messages) - self._start)

    def __bool__(self) -> bool:
        there = self._start < len(self._trace.messages)
        self._trace.read(self._start + 1 if there else END)
        return there

    def __getitem__(self, key: Any) -> Any:
        if isinstance(key, slice):
            if key.step in (None, 1) and key.stop is None and (key.start or 0) >= 0:
                return View(self._trace, self._start + (key.start or 0))
            return self._rest()[key]
        if not isinstance(key, int):
            raise Untraced(f"messages[{key!r}]")
        place = self._start + key
        if key < 0 or place >= len(self._trace.messages):
            return self._rest()[key]
        self._trace.read(place + 1)
        return self._trace.messages[place]

    def __iter__(self) -> Iterator[Any]:
        return Cursor(self._trace, self._start, self._is_main)

    def __getattr__(self, name: str) -> Any:
        raise Untraced(f"messages.{name}")

    def _refuse(self, *_: Any) -> Any:
        raise Untraced("messages as a value")

    __eq__ = __ne__ = __contains__ = __add__ = __radd__ = __mul__ = __rmul__ = __mod__ = _refuse
    __str__ = __repr__ = __format__ = __hash__ = _refuse


class Cursor:
    """Draws the messages one by one. `is_main`: it is asked between passes only, by a loop of its own."""

    __slots__ = ("_at", "_is_main", "_trace", "start")

    def __init__(self, trace: Trace, start: int, is_main: bool) -> None:
        self.start = start
        self._trace = trace
        self._is_main = is_main
        self._at = 0

    def __iter__(self) -> Cursor:
        return self

    def __next__(self) -> Any:
        if self._is_main:
            self._at = self._trace.before_pass(self, self._at)
        place = self.start + self._at
        if place >= len(self._trace.messages):
            self._trace.read(END)
            raise StopIteration
        self._at += 1
        self._trace.read(place + 1)
        self._trace.spend(1)
        return self._trace.messages[place]

    def held_by_loop(self) -> bool:
        """A loop with a `loop` variable, which may look ahead, asks `before_pass` itself. Whether it has
        to."""
        was_main, self._is_main = self._is_main, False
        return was_main

    def jump(self, index: int) -> int:
        """The index to go on with in place of `index`, which is the next."""
        target = self._trace.before_pass(self, index)
        if target != index:
            self._at = target
        return target

    def before(self, index: int) -> Any:
        return self._trace.messages[self.start + index - 1]


class TracedLoop(LoopContext):
    """Jinja's `loop`, between whose passes marks are left."""

    def __init__(self, *args: Any, **kwargs: Any) -> None:
        super().__init__(*args, **kwargs)
        cursor = self._iterator
        self._cursor = cursor if isinstance(cursor, Cursor) and cursor.held_by_loop() else None

    def __next__(self) -> tuple[Any, LoopContext]:
        if self._cursor is not None:
            index = self.index0 + 1
            target = self._cursor.jump(index)
            if target != index:
                self.index0 = target - 1
                if target:
                    self._current = self._cursor.before(target)
        return super().__next__()

    def changed(self, *value: Any) -> bool:
        if self._cursor is not None:
            raise Untraced("loop.changed")
        return super().changed(*value)


# --------------------------------------------------------------------------- the render in progress

_trace: ContextVar[Trace | None] = ContextVar("trace", default=None)


def tracing(trace: Trace | None) -> Any:
    """Make `trace` the one that notes what happens from now on; returns a token for `end_tracing`."""
    return _trace.set(trace)


def end_tracing(token: Any) -> None:
    _trace.reset(token)


def traced_namespace(*args: Any, **kwargs: Any) -> Namespace:
    """Jinja's `namespace`."""
    made = Namespace(*args, **kwargs)
    trace = _trace.get()
    if trace is not None:
        trace.made(made)
    return made


def note_time(form: str, answer: str) -> str:
    trace = _trace.get()
    if trace is not None:
        trace.asked_time(form, answer)
    return answer


def refuse_if_traced(what: str) -> None:
    """For objects with a state of their own."""
    if _trace.get() is not None:
        raise Untraced(what)


# --------------------------------------------------------------------------- templates


def loops_alone(tree: nodes.Template) -> list[nodes.For]:
    """The loops whose text is written when it is made, pass by pass."""
    found: list[nodes.For] = []

    def walk(body: Sequence[nodes.Node]) -> None:
        for node in body:
            if isinstance(node, nodes.If):
                walk(node.body)
                walk(node.elif_)
                walk(node.else_)
            elif isinstance(node, nodes.Scope):
                walk(node.body)
            elif isinstance(node, nodes.For) and not (node.recursive or node.test or node.else_):
                found.append(node)

    walk(tree.body)
    return found


def keeps_iterators(tree: nodes.Template) -> bool:
    """Whether a variable of the template may hold an iterator."""
    return any(
        isinstance(part, nodes.Filter) and part.name in _ITERATORS
        for node in tree.find_all(nodes.Assign)
        for part in _results(node.node)
    )


def _results(node: nodes.Node | None) -> list[nodes.Node]:
    """Expressions that may be the value of `node`."""
    if isinstance(node, nodes.CondExpr):
        return [*_results(node.expr1), *_results(node.expr2)]
    if isinstance(node, nodes.Or | nodes.And):
        return [*_results(node.left), *_results(node.right)]
    if isinstance(node, nodes.Tuple | nodes.List):
        return [result for item in node.items for result in _results(item)]
    return [] if node is None else [node]


def install(template: jinja2.Template) -> jinja2.Template:
    """Let the loops of a compiled template leave marks."""
    template.root_render_func.__globals__["LoopContext"] = TracedLoop
    return template


def _attributes(namespace: Namespace) -> dict[str, Any]:
    found: dict[str, Any] = object.__getattribute__(namespace, "_Namespace__attrs")
    return found


def _is_restorable(value: Any) -> bool:
    if isinstance(value, list | tuple):
        return all(_is_restorable(item) for item in value)
    if isinstance(value, dict):
        return all(_is_restorable(item) for item in value.values())
    return isinstance(value, _SCALARS)
