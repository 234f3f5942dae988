"""Automata as rules, one for each state: texts as they are, or as JSON strings (RFC 8259)."""

from __future__ import annotations

from penstock.decoding.grammar.ebnf.automata import Automaton, Step
from penstock.decoding.grammar.ebnf.characters import EVERY, Characters, characters
from penstock.decoding.grammar.ebnf.rules import Rules, literal

QUOTE = literal('"')
PLAIN = EVERY - characters((0, 0x1F), '"\\')  # stand for themselves in a JSON string
_ESCAPES = {'"': '"', "\\": "\\", "\b": "b", "\f": "f", "\n": "n", "\r": "r", "\t": "t"}
_BACKSLASH = literal("\\")
_HEX = "[0-9A-Fa-f]"
_WIDE_MS, _MIDDLE_MS = 15, 4  # of compiling a state where nearly every token may come, and where many may


class Texts:
    def __init__(self, rules: Rules) -> None:
        self._rules = rules
        self._known: dict[tuple[Automaton, str, str], str] = {}

    def plain(self, automaton: Automaton, behind: str = "") -> str:
        """Of texts as they are. Raises UnkeptError if the grammar gets too large.

        `behind`: an assertion of what follows them wherever the rule stands: tokens that go on otherwise need
        not be tried while masks are made."""
        return self._written(automaton, '""', behind, is_json=False)

    def string(self, automaton: Automaton, behind: str = "") -> str:
        """Of JSON strings.

        Where any character may come it may come in every spelling; elsewhere characters have their shortest
        one, and control characters that have none do not come.
        """
        return self._rules.made(f"{QUOTE} {self.inside(automaton, QUOTE, behind)}")

    def inside(self, automaton: Automaton, end: str = '""', behind: str = "") -> str:
        """Of what stands in a JSON string, and of `end` behind it."""
        return self._written(automaton, end, behind, is_json=True)

    def _written(self, automaton: Automaton, end: str, behind: str, is_json: bool) -> str:
        key = (automaton, f"{is_json} {end}", behind)
        if key not in self._known:
            names = [self._rules.named() for _ in automaton.steps]
            self._known[key] = names[0]
            for state, steps in enumerate(automaton.steps):
                self._rules.spend(sum(map(_milliseconds, steps)))
                options = [
                    f"{one_of(shown)} {names[to]}"
                    for chars, to in steps
                    if (shown := _shown(chars, is_json)).ranges
                ]
                if is_json and (escapes := self._escapes(steps, names)):
                    options.append(f"{_BACKSLASH} {self._rules.made(escapes)}")
                if state in automaton.ends:
                    options.append(end)
                self._rules.define(names[state], f"{' | '.join(options)} {behind}".rstrip())
        return self._known[key]

    def _escapes(self, steps: tuple[Step, ...], names: list[str]) -> str:
        """What may stand behind a backslash."""
        options = []
        for chars, to in steps:
            short = "".join(code for char, code in _ESCAPES.items() if char in chars)
            short += "/" * (chars == EVERY)
            if short:
                options.append(f"{one_of(characters(short))} {names[to]}")
            if chars == EVERY:
                options.append(f'"u" {self._rules.made(_code_units(names[to]))}')
        return " | ".join(options)


def _code_units(behind: str) -> str:
    """Four digits of a UTF-16 code unit; of a surrogate only with its other half."""
    low = rf'"\\u" [dD] [C-Fc-f] {_HEX} {_HEX}'
    surrogate = f"[0-7] {_HEX} {_HEX} {behind} | [89ABab] {_HEX} {_HEX} {low} {behind}"
    return f"[0-9A-CE-Fa-ce-f] {_HEX} {_HEX} {_HEX} {behind} | [dD] ({surrogate})"


def one_of(chars: Characters) -> str:
    """A character of a set that is not empty."""
    ranges = (_code(low) if low == high else f"{_code(low)}-{_code(high)}" for low, high in chars.ranges)
    return f"[{''.join(ranges)}]"


def _code(code: int) -> str:
    char = chr(code)
    return char if char.isascii() and char.isalnum() else f"\\U{code:08x}"


def _shown(chars: Characters, is_json: bool) -> Characters:
    return chars & PLAIN if is_json else chars


def _milliseconds(step: Step) -> int:
    """About what a step costs while it is compiled for 50,000 tokens."""
    width = len(step[0])
    return _WIDE_MS if width > 1000 else _MIDDLE_MS if width > 20 else 1
