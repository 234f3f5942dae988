"""What is handed to xgrammar for a GrammarSpec: rules that are written here, or a caller's own, checked.

The library reads more than the notations that callers know: names of its own (`Regex(…)`, `Token(…)`),
attributes and assertions that it does not hold to. In a caller's grammar they are refused.
"""

from __future__ import annotations

import json
import re
from typing import Any

from penstock.decoding.grammar.ebnf import automata, work
from penstock.decoding.grammar.ebnf.expressions import MAX_REPEATS, whole
from penstock.decoding.grammar.ebnf.json_schema import Document
from penstock.decoding.grammar.ebnf.json_values import JsonValues
from penstock.decoding.grammar.ebnf.rules import Rules, UnkeptError, literal
from penstock.decoding.grammar.ebnf.texts import Texts
from penstock.decoding.grammar.spec import GrammarSpec

_MACROS = frozenset(["TagDispatch", "Token", "ExcludeToken", "TokenTagDispatch", "Regex", "Substring"])
_GBNF = re.compile(
    r'(?P<text>"(?:\\.|[^"\\\n])*")|(?P<chars>\[(?:\\.|[^\]\\\n])*\])|(?P<comment>#[^\n]*)'
    r"|(?P<name>[A-Za-z_.-][\w.-]*)|(?P<repeat>\*|\+|\?|\{\s*\d+\s*(?:,\s*\d*\s*)?\})|(?P<other>::=|\S)"
)


def source_of(spec: GrammarSpec, vocab_size: int) -> str:
    """Raises UnkeptError naming what can't be kept."""
    try:
        with work.bounded():
            return _source(spec, Rules(vocab_size))
    except RecursionError:
        raise UnkeptError("it is nested too deep to compile; make it simpler") from None


def _source(spec: GrammarSpec, rules: Rules) -> str:
    match spec.kind:
        case "json_schema":
            return rules.text(_json(rules, json.loads(spec.source)))
        case "json_object":
            return rules.text(_json(rules, {"type": "object"}))
        case "regex":
            automaton = automata.of_expression(whole(spec.source))
            if automaton.is_empty:
                raise UnkeptError("it matches nothing")
            return rules.text(Texts(rules).plain(automaton))
        case "choice":
            choices = json.loads(spec.source)
            rules.spend(sum(map(len, choices)) // 100)
            return rules.text(rules.made(" | ".join(map(literal, choices))))
        case "grammar":
            if "::=" not in spec.source:
                # The library's reader of Lark crashes the process on rules such as `x: x?` (version 0.2.8).
                raise UnkeptError("Lark's notation is llguidance's; write GBNF (root ::= …) for xgrammar")
            _check_gbnf(spec.source, rules)
            return spec.source
        case "structural_tag":
            return rules.text(_structural_tag(rules, json.loads(spec.source)))


def _json(rules: Rules, schema: Any) -> str:
    document = Document(schema)
    return JsonValues(document, rules).rule(document.root)


def _structural_tag(rules: Rules, tag: Any) -> str:
    """Free text in which each trigger begins one of the structures that begin with it."""
    structures, triggers = tag.get("structures"), tag.get("triggers")
    if not structures or not triggers or not all(isinstance(t, str) and t for t in triggers):
        raise UnkeptError("needs `structures` and `triggers`, neither empty")
    bodies: dict[str, list[str]] = {trigger: [] for trigger in triggers}
    for structure in structures:
        begin, end = structure.get("begin", ""), structure.get("end", "")
        trigger = next((trigger for trigger in triggers if begin.startswith(trigger)), None)
        if trigger is None:
            raise UnkeptError(f"no trigger is the beginning of {begin!r}")
        schema = structure.get("schema", {})
        body = _json(rules, {} if schema is True else schema)
        bodies[trigger].append(f"{literal(begin[len(trigger) :])} {body} {literal(end)}")
    pairs = [f"({literal(t)}, {rules.made(' | '.join(found))})" for t, found in bodies.items() if found]
    return rules.made(f"TagDispatch({', '.join(pairs)})")


def _check_gbnf(source: str, rules: Rules) -> None:
    """Raises UnkeptError for what is no GBNF, and for what takes too long to compile."""
    costs, last, before = [0], 0, ""  # of the open groups, and of the latest part
    for token in _GBNF.finditer(source):
        kind, text = token.lastgroup, token.group()
        if kind == "name" and text in _MACROS:
            raise UnkeptError(f"{text} can't be the name of a rule")
        if text == "::=" and before == "chars":
            raise UnkeptError("attributes of rules can't be kept")
        if text == "=" and before == "(":
            raise UnkeptError("(=…) can't be kept")
        if kind == "repeat":
            last *= _times(text)
            costs[-1] += last
        elif text == "(":
            costs.append(0)
        elif text == ")":
            last = costs.pop() if len(costs) > 1 else 0
            costs[-1] += last
        elif kind in ("text", "chars"):
            last = 10 if kind == "chars" else 1 + len(text) // 50
            costs[-1] += last
        if kind != "comment":
            before = kind if kind in ("text", "chars") else text
    rules.spend(sum(costs))


def _times(quantifier: str) -> int:
    counts = [int(count) for count in re.findall(r"\d+", quantifier)]
    return min(max([1, *counts]), MAX_REPEATS)
