"""What is handed to xgrammar for a GrammarSpec: rules that are written here, or a caller's own, checked."""

from __future__ import annotations

import json
from typing import Any

from penstock.decoding.grammar.ebnf import automata, gbnf, work
from penstock.decoding.grammar.ebnf.expressions import whole
from penstock.decoding.grammar.ebnf.json_schema import Document
from penstock.decoding.grammar.ebnf.json_values import JsonValues
from penstock.decoding.grammar.ebnf.rules import Rules, UnkeptError, literal
from penstock.decoding.grammar.ebnf.texts import Texts
from penstock.decoding.grammar.spec import GrammarSpec


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
            gbnf.check(spec.source, rules)
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
