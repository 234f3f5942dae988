"""A caller's own grammar in GBNF (llama.cpp's notation), checked before the library reads it.

The library reads more than the notation: names of its own (`Regex(…)`, `Token(…)`), attributes and assertions
that it does not hold to. And a rule that comes to itself inside of `{…}` overflows its stack (version 0.2.8).
"""

from __future__ import annotations

import re

from msgspec import Struct

from penstock.decoding.grammar.ebnf.expressions import MAX_REPEATS
from penstock.decoding.grammar.ebnf.rules import Rules, UnkeptError

_MACROS = frozenset(["TagDispatch", "Token", "ExcludeToken", "TokenTagDispatch", "Regex", "Substring"])
_TOKEN = re.compile(
    r'(?P<text>"(?:\\.|[^"\\\n])*")|(?P<chars>\[(?:\\.|[^\]\\\n])*\])|(?P<comment>#[^\n]*)'
    r"|(?P<head>[A-Za-z_.-][\w.-]*\s*::=)|(?P<name>[A-Za-z_.-][\w.-]*)"
    r"|(?P<repeat>\*|\+|\?|\{\s*\d+\s*(?:,\s*\d*\s*)?\})|(?P<other>::=|\S)"
)


class _Part(Struct):
    """A piece of a rule: what it costs, in about milliseconds, and the rules that it names."""

    cost: int = 0
    names: frozenset[str] = frozenset()

    def add(self, part: _Part) -> None:
        self.cost += part.cost
        self.names |= part.names


def check(source: str, rules: Rules) -> None:
    """Raises UnkeptError for what the library would not take for GBNF, or takes too long to compile."""
    named: dict[str, set[str]] = {}  # by rule, those that it names
    repeated: list[tuple[str, str]] = []  # a rule, and one that it names inside of {…}
    rule, groups, last, before = "", [_Part()], _Part(), ""
    for token in _TOKEN.finditer(source):
        kind, text = token.lastgroup, token.group()
        _check_token(kind, text, before)
        if kind == "head":
            rule = text.removesuffix("::=").rstrip()
            named.setdefault(rule, set())
            last = _Part(cost=1)
        elif kind == "repeat":
            last = _Part(last.cost * (_times(text) - 1), last.names)
            if text[0] == "{":
                repeated += [(rule, name) for name in last.names]
        elif text == "(":
            groups.append(_Part())
            last = _Part()
        elif text == ")":
            last = groups.pop() if len(groups) > 1 else _Part()
        elif kind == "name":
            last = _Part(names=frozenset([text]))
            named.setdefault(rule, set()).add(text)
        elif kind in ("text", "chars"):
            last = _Part(cost=10 if kind == "chars" else 1 + len(text) // 50)
        if kind in ("head", "repeat", "name", "text", "chars") or text == ")":
            groups[-1].add(last)
        if kind != "comment":
            before = kind if kind in ("text", "chars") else text
    rules.spend(sum(group.cost for group in groups))
    for rule, name in repeated:
        if rule in _reached(name, named):
            raise UnkeptError(f"{name} comes to itself inside of {{…}}; write the repetition as a rule")


def _check_token(kind: str | None, text: str, before: str) -> None:
    if kind in ("name", "head") and text.split("::=")[0].rstrip() in _MACROS:
        raise UnkeptError(f"{text} can't be the name of a rule")
    if text == "::=":
        raise UnkeptError("attributes of rules can't be kept" if before == "chars" else "::= without a name")
    if text == "=" and before == "(":
        raise UnkeptError("(=…) can't be kept")


def _reached(name: str, named: dict[str, set[str]]) -> set[str]:
    """The rules that `name` comes to, itself included."""
    found, todo = {name}, [name]
    while todo:
        for further in named.get(todo.pop(), set()) - found:
            found.add(further)
            todo.append(further)
    return found


def _times(quantifier: str) -> int:
    counts = [int(count) for count in re.findall(r"\d+", quantifier)]
    return min(max([1, *counts]), MAX_REPEATS)
