"""The Jinja environment of chat templates: transformers' dialect, with a budget.

Templates come with a model file from anywhere, so they run sandboxed (no underscore attributes, no
changing of arguments), and bounded: every loop pass and call, and every text made, spends steps; every
value made by an operator, filter or call has a greatest size, and so has the output. Each limit is far
above what a conversation that fits a context needs; beyond it the render ends with a TemplateLimit.

Invariant: within the limits, output is what transformers' `apply_chat_template` renders.
"""

from __future__ import annotations

import functools
import json
import re
from collections.abc import Callable, Iterable, Iterator
from contextvars import ContextVar
from datetime import datetime
from typing import Any

import jinja2
import jinja2.ext
from jinja2 import nodes
from jinja2.runtime import Context, Undefined
from jinja2.sandbox import ImmutableSandboxedEnvironment
from jinja2.utils import Cycler, Joiner
from jinja2.visitor import NodeTransformer

from penstock.text.template_trace import (
    Trace,
    View,
    end_tracing,
    install,
    keeps_iterators,
    loops_alone,
    note_time,
    refuse_if_traced,
    traced_namespace,
    tracing,
)
from penstock.text.tokenizer import MAX_TEXT_CHARS

MAX_STEPS = 2_000_000  # loop passes; about a second of empty ones
CALL_STEPS = 20  # what a call costs, in passes
COPY_CHARS = 1024  # characters copied in the time of a pass
WRITE_CHARS = 16  # characters of JSON and the like written in that time
MAX_VALUE = 2 * MAX_TEXT_CHARS  # characters of one value
MAX_BITS = 4096  # of one integer
MAX_ITEMS = 200_000  # entries of one list or object, nested ones included
MAX_OUTPUT_CHARS = MAX_TEXT_CHARS  # what the tokenizer takes
MAX_INDENT = 64  # per line of text or JSON
_WRITERS = frozenset({"format", "join", "pprint", "string", "tojson", "urlencode", "xmlattr"})
_WIDE_FORMAT = re.compile(r"\d{7,}|\*")  # widths in format strings are allocated before they can be measured


class TemplateLimit(jinja2.TemplateError):
    """The template asked for more than a limit allows."""


class Budget:
    """Steps left in one render."""

    def __init__(self, steps: int) -> None:
        self.left = steps

    def spend(self, steps: int) -> None:
        self.left -= steps
        if self.left < 0:
            raise TemplateLimit(f"the chat template takes more than {MAX_STEPS} steps")


_budget: ContextVar[Budget | None] = ContextVar("budget", default=None)  # None: folding constants


def _spend(steps: int) -> None:
    budget = _budget.get()
    if budget is not None:
        budget.spend(steps)


def checked(value: Any, chars_per_step: int = COPY_CHARS) -> Any:
    """`value`, its making paid for, or TemplateLimit if it is too large."""
    size, most = 0, MAX_VALUE
    if isinstance(value, int):
        size, most = value.bit_length(), MAX_BITS
    elif isinstance(value, str | bytes):
        size = len(value)
        _spend(size // chars_per_step)
    elif isinstance(value, list | tuple | dict):
        size, most = len(value), MAX_ITEMS
    if size > most:
        raise TemplateLimit(f"the chat template makes a value of size {size}, at most {most} is allowed")
    return value


def measured(value: Any) -> Any:
    """`value`, or TemplateLimit if it is too large written out: a list may hold another a thousand times
    over, at no cost until something turns it into text."""
    size, items, pending = 0, 0, [value]
    while pending:
        item = pending.pop()
        items += 1
        if isinstance(item, str | bytes):
            size += len(item)
        elif isinstance(item, dict):
            pending.extend(item)
            pending.extend(item.values())
        elif isinstance(item, list | tuple):
            pending.extend(item)
        if size > MAX_VALUE or items > MAX_ITEMS:
            raise TemplateLimit(
                f"the chat template writes out a value above {MAX_ITEMS} entries or {MAX_VALUE} characters"
            )
    return value


def _written(value: Any) -> Any:
    return measured(value) if isinstance(value, list | tuple | dict) else value


def _check_replace(text: Any = "", old: Any = "", new: Any = "", *_: Any) -> None:
    if all(isinstance(part, str) for part in (text, old, new)) and text.count(old) * len(new) > MAX_VALUE:
        raise TemplateLimit(f"the chat template's replace makes a text above {MAX_VALUE} characters")


def _repeated(part: Any, times: Any) -> int:
    return len(part) * times if isinstance(part, str | list | tuple) and isinstance(times, int) else 0


def _check_operands(operator: str, left: Any, right: Any) -> None:
    """Refuse what would be too large before it is made."""
    if operator == "*":
        size = max(_repeated(left, right), _repeated(right, left))
    elif operator == "**" and isinstance(left, int) and isinstance(right, int):
        size = left.bit_length() * abs(right) * (MAX_VALUE // MAX_BITS)
    elif operator == "%" and isinstance(left, str):
        _written(right)
        size = MAX_VALUE + 1 if _WIDE_FORMAT.search(left) else 0
    else:
        return
    if size > MAX_VALUE:
        raise TemplateLimit(f"the chat template's {operator!r} makes a value above the limit of {MAX_VALUE}")


def _check_arguments(args: Iterable[Any], most: int) -> None:
    """Refuse counts and widths (`ljust`, `center`, `indent`, …) that would be too large a value."""
    for arg in args:
        if isinstance(arg, int) and abs(arg) > most:
            raise TemplateLimit(f"the chat template passes {arg} to a function, at most {most} is allowed")


def _bounded_filter(name: str, function: Callable[..., Any]) -> Callable[..., Any]:
    @functools.wraps(function)  # keeps Jinja's marks (pass_context, …)
    def bounded(*args: Any, **kwargs: Any) -> Any:
        rest = (*args[1:], *kwargs.values())
        _check_arguments(rest, MAX_INDENT if name in ("indent", "tojson") else MAX_VALUE)
        if name in _WRITERS:
            for arg in args:
                _written(arg)
        if name == "format" and _WIDE_FORMAT.search(str(args[0])):
            raise TemplateLimit("the chat template formats with a width of a million or more")
        if name == "replace":
            _check_replace(*args[1:4])  # Jinja's replace takes the evaluation context first
        return checked(function(*args, **kwargs), WRITE_CHARS if name in _WRITERS else COPY_CHARS)

    return bounded


def _check_text_method(text: str, name: str, args: tuple[Any, ...]) -> None:
    if name in ("format", "format_map", "join"):
        for arg in args:
            _written(arg)
    if name in ("format", "format_map") and _WIDE_FORMAT.search(text):
        raise TemplateLimit("the chat template formats with a width of a million or more")
    if name == "replace":
        _check_replace(text, *args[:2])


class _BudgetTransformer(NodeTransformer):
    """Routes what code generation would inline (loops, `~`) through filters that spend and check."""

    def __init__(self, alone: list[nodes.For]) -> None:
        self._alone = {id(node) for node in alone}

    def visit_For(self, node: nodes.For) -> nodes.Node:
        name = "_passes_alone" if id(node) in self._alone else "_passes"
        self.generic_visit(node)
        node.iter = nodes.Filter(node.iter, name, [], [], None, None, lineno=node.lineno)
        return node

    def visit_Concat(self, node: nodes.Concat) -> nodes.Node:
        self.generic_visit(node)
        parts = nodes.List(node.nodes, lineno=node.lineno)
        return nodes.Filter(parts, "_joined", [], [], None, None, lineno=node.lineno)


@jinja2.pass_context  # a context filter is never evaluated at compile time
def _passes(context: Context, value: Any) -> Any:
    """An iterable whose passes are paid for: at once where the length is known, else one by one."""
    if isinstance(value, Undefined):
        return value
    try:
        count = len(value)
    except TypeError:
        return _paid(iter(value))
    _spend(count)
    return value


@jinja2.pass_context
def _passes_alone(context: Context, value: Any) -> Any:
    """`_passes` of a loop that may leave marks (`template_trace`)."""
    return value.main(_spend) if isinstance(value, View) else _passes(context, value)


def _paid(items: Iterator[Any]) -> Iterator[Any]:
    for item in items:
        _spend(1)
        yield item


def _joined(parts: list[Any]) -> str:
    measured(parts)
    return str(checked("".join([str(part) for part in parts])))


class _GenerationTag(jinja2.ext.Extension):
    """`{% generation %}…{% endgeneration %}` marks assistant text for training; here it is only a scope."""

    tags = {"generation"}

    def parse(self, parser: jinja2.parser.Parser) -> nodes.Node:
        line = next(parser.stream).lineno
        return nodes.Scope(parser.parse_statements(("name:endgeneration",), drop_needle=True), lineno=line)


class TemplateEnvironment(ImmutableSandboxedEnvironment):
    """Jinja with the functions that chat templates use."""

    intercepted_binops = frozenset({"+", "*", "**", "%"})

    def __init__(self) -> None:
        super().__init__(
            trim_blocks=True,
            lstrip_blocks=True,
            extensions=[_GenerationTag, "jinja2.ext.loopcontrols"],
            finalize=_written,
        )
        self.filters["tojson"] = _tojson
        self.filters = {name: _bounded_filter(name, function) for name, function in self.filters.items()}
        self.filters.update(_passes=_passes, _passes_alone=_passes_alone, _joined=_joined)
        self.globals.pop("lipsum")
        self.globals.update(raise_exception=_raise_exception, strftime_now=_strftime_now)
        self.globals.update(namespace=traced_namespace, cycler=_cycler, joiner=_joiner)

    def load_source(self, source: str) -> jinja2.Template:
        """Compile with the budget built in. Raises jinja2.TemplateSyntaxError."""
        tree = self.parse(source)
        alone = [] if keeps_iterators(tree) else loops_alone(tree)
        return install(self.from_string(_BudgetTransformer(alone).visit(tree)))

    def call(__self, __context: Context, __obj: Any, *args: Any, **kwargs: Any) -> Any:
        _spend(CALL_STEPS)
        _check_arguments((*args, *kwargs.values()), MAX_VALUE)
        method = getattr(__obj, "__wrapped__", __obj)  # the sandbox wraps `format`
        owner, name = getattr(method, "__self__", None), getattr(method, "__name__", "")
        if isinstance(owner, str):
            _check_text_method(owner, name, args)
        return checked(super().call(__context, __obj, *args, **kwargs))

    def call_binop(self, context: Context, operator: str, left: Any, right: Any) -> Any:
        _check_operands(operator, left, right)
        return checked(super().call_binop(context, operator, left, right))


def render(template: jinja2.Template, variables: dict[str, Any], trace: Trace | None = None) -> str:
    """Render within the limits. Raises whatever the template raises, TemplateLimit among it.

    trace: follows what is read of its messages, which `variables` hold as its view. Where it begins at a mark
    the text is what comes behind that mark.
    """
    token, tracing_token = _budget.set(Budget(MAX_STEPS)), tracing(trace)
    try:
        parts: list[str] = []
        size, skipped = 0, False
        for part in template.generate(variables):
            if trace is not None:
                if trace.skipped and not skipped:
                    skipped, size = True, trace.written
                    parts.clear()
                trace.written += len(part)
            size += len(part)
            if size > MAX_OUTPUT_CHARS:
                raise TemplateLimit(f"the chat template's output is above {MAX_OUTPUT_CHARS} characters")
            parts.append(part)
        return "" if trace is not None and trace.skipped and not skipped else "".join(parts)
    finally:
        end_tracing(tracing_token)
        _budget.reset(token)


def _tojson(
    value: Any,
    ensure_ascii: bool = False,
    indent: int | None = None,
    separators: tuple[str, str] | None = None,
    sort_keys: bool = False,
) -> str:
    """JSON as models have seen it in training: no HTML escapes, characters as they are."""
    return json.dumps(
        value, ensure_ascii=ensure_ascii, indent=indent, separators=separators, sort_keys=sort_keys
    )


def _raise_exception(message: str) -> None:
    raise jinja2.TemplateError(message)


def _strftime_now(format: str) -> str:
    return note_time(format, datetime.now().strftime(format))


def _cycler(*items: Any) -> Cycler:
    refuse_if_traced("cycler")
    return Cycler(*items)


def _joiner(sep: str = ", ") -> Joiner:
    refuse_if_traced("joiner")
    return Joiner(sep)
