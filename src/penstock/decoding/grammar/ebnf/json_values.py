"""Shapes of JSON values as rules of a grammar.

White space is that of the other backends: between two parts at most one piece of it. Strings without a
pattern may use every escape of JSON; elsewhere characters have their shortest spelling, so that no two texts
say one thing.
"""

from __future__ import annotations

import json
from collections.abc import Sequence
from typing import Any

from penstock.decoding.grammar.ebnf import automata, numbers
from penstock.decoding.grammar.ebnf.automata import Automaton
from penstock.decoding.grammar.ebnf.expressions import whole
from penstock.decoding.grammar.ebnf.json_schema import Document
from penstock.decoding.grammar.ebnf.possible import Possible
from penstock.decoding.grammar.ebnf.rules import Rules, UnkeptError, literal
from penstock.decoding.grammar.ebnf.shapes import (
    Array,
    Conjunction,
    Literals,
    Number,
    Object,
    Shape,
    Text,
    canonical,
)
from penstock.decoding.grammar.ebnf.texts import QUOTE, Texts

SPACE = r"([ \t]|\r?\n[ \t]{0,64})?"  # penstock.decoding.grammar.spec.WHITESPACE
_BEHIND_SPACE = r"""(= ["{\[0-9,:}\]\-tfn])"""
_BEHIND_NAME = r"(= [ \t\r\n:])"
_MAX_COUNTED = 1_000_000
_MAX_CHAINED = 64  # items or members that are counted by rules
_MAX_UNIQUE = 6  # values of a list without repetition: a rule for each set of them
_TOLD_APART = 24  # states that tell the names of further members from those that are listed


class JsonValues:
    def __init__(self, document: Document, rules: Rules) -> None:
        self._possible, self._rules = Possible(document.shapes), rules
        self._texts = Texts(rules)
        self._names: dict[Conjunction, str] = {}
        self.space = self._texts.plain(automata.of_expression(whole(SPACE)), _BEHIND_SPACE)
        self.comma = rules.made(f'{self.space} "," {self.space}')
        self.colon = rules.made(f'{self.space} ":" {self.space}')

    def rule(self, conjunction: Conjunction) -> str:
        """The rule of the values that are valid under all of it. Raises UnkeptError."""
        if conjunction not in self._names:
            shapes = self._possible.shapes(conjunction)
            if not shapes:
                raise UnkeptError("nothing is valid under the schema")
            name = self._names[conjunction] = self._rules.named()
            self._rules.define(name, " | ".join(map(self._shape, shapes)))
        return self._names[conjunction]

    def _shape(self, shape: Shape) -> str:
        match shape:
            case Literals():
                return " | ".join(map(self.literal, shape.values))
            case Text():
                return self._text(shape)
            case Number():
                return self._number(shape)
            case Array():
                return self._array(shape)
            case Object():
                return _Members(self, self._rules, shape).rule()

    def literal(self, value: Any) -> str:
        """One value; white space may stand in it as in any other."""
        if isinstance(value, dict):
            members = [f"{quoted(name)} {self.colon} {self.literal(inner)}" for name, inner in value.items()]
            return self._enclosed("{", members, "}")
        if isinstance(value, list):
            return self._enclosed("[", list(map(self.literal, value)), "]")
        if isinstance(value, str):
            return quoted(value)
        return literal(canonical(value))

    def _enclosed(self, begin: str, parts: Sequence[str], end: str) -> str:
        inner = f" {self.comma} ".join(parts)
        return " ".join(
            filter(None, [literal(begin), self.space, inner, self.space if inner else "", literal(end)])
        )

    # -------------------------------------------------------------------------- strings and numbers

    def _text(self, text: Text) -> str:
        automaton, most = text.limited()
        if most is None:
            return self._texts.string(automaton)
        # The library counts what is written, where an escape is several characters: never too few.
        limit = f"[max_chars={min(most, _MAX_COUNTED)}]"
        return f"{QUOTE} {self._rules.made(self._texts.inside(automaton), limit)} {QUOTE}"

    def _number(self, number: Number) -> str:
        expression = numbers.expression(number.bounds, number.step)
        if expression is None:
            raise UnkeptError("minimum, maximum: no number is between them")
        return self._texts.plain(automata.of_expression(whole(expression)))

    # -------------------------------------------------------------------------- arrays

    def _array(self, array: Array) -> str:
        if array.unique:
            return self._unique(array)
        prefix = array.prefix if array.most is None else array.prefix[: array.most]
        counted = max(len(prefix), array.least, array.most or 0)
        if counted > _MAX_CHAINED:
            return self._repeated(array)
        end = f'{self.space} "]"'
        tail = ""  # behind so many items
        if array.most is None:
            assert array.rest is not None
            tail = self._rules.named()
            self._rules.define(tail, f"{self.comma} {self.rule(array.rest)} {tail} | {end}")
        for at in range(counted, 0, -1):
            item = array.prefix[at] if at < len(array.prefix) else array.rest
            options = [end] if at >= array.least else []
            if item is not None and (array.most is None or at < array.most):
                options.append(f"{self.comma} {self.rule(item)} {tail}")
            tail = self._rules.made(" | ".join(options)) if at < counted or array.most is not None else tail
        first = prefix[0] if prefix else array.rest
        options = [f'"[" {self.space} "]"'] if array.least == 0 else []
        if first is not None and array.most != 0:
            options.append(f'"[" {self.space} {self.rule(first)} {tail}')
        return " | ".join(options)

    def _repeated(self, array: Array) -> str:
        if array.prefix or array.rest is None:
            raise UnkeptError(f"minItems, maxItems: more than {_MAX_CHAINED} beside a list of items")
        item = self.rule(array.rest)
        most = "" if array.most is None else str(array.most - 1)
        further = f"({self.comma} {item}){{{max(0, array.least - 1)},{most}}}"
        some = f'"[" {self.space} {item} {further} {self.space} "]"'
        return some if array.least else f'{some} | "[" {self.space} "]"'

    def _unique(self, array: Array) -> str:
        """A list of few possible values: a rule for each set of those that are left."""
        shapes = () if array.rest is None else self._possible.shapes(array.rest)
        values = [value for shape in shapes if isinstance(shape, Literals) for value in shape.values]
        if (
            array.prefix
            or len(values) > _MAX_UNIQUE
            or not all(isinstance(shape, Literals) for shape in shapes)
        ):
            raise UnkeptError(f"uniqueItems: of anything but {_MAX_UNIQUE} values")
        most = len(values) if array.most is None else min(array.most, len(values))
        made: dict[frozenset[int], str] = {}

        def behind(left: frozenset[int]) -> str:
            if left not in made:
                taken = len(values) - len(left)
                options = [f'{self.space} "]"'] if taken >= array.least else []
                if taken < most:
                    separator = self.comma if taken else self.space
                    options += [
                        f"{separator} {self.literal(values[at])} {behind(left - {at})}" for at in left
                    ]
                made[left] = self._rules.made(" | ".join(options))
            return made[left]

        if array.least > most:
            raise UnkeptError("uniqueItems: there are fewer values than minItems")
        return f'"[" {behind(frozenset(range(len(values))))}'

    # -------------------------------------------------------------------------- names of members

    def matching_name(self, shape: Object, pattern: Automaton) -> str | None:
        """The name of a member that is not listed and matches a pattern; None if there is none."""
        if shape.names is not None:
            pattern = automata.intersection(pattern, shape.names.whole())
        named = automata.of_words(shape.named, max(map(len, shape.named), default=0) + 1)
        return self._name(automata.difference(pattern, named))

    def other_name(self, shape: Object) -> str | None:
        """The name of a member that is not listed and matches no pattern; None if there is none.

        Those that begin as a listed one does are left out where telling them apart takes too many states.
        """
        names = (shape.names or Text()).whole()
        for pattern, _ in shape.patterns:
            names = automata.difference(names, pattern)
        depth = automata.depth_within(shape.named, _TOLD_APART)
        return self._name(automata.difference(names, automata.of_words(shape.named, depth)))

    def _name(self, names: Automaton) -> str | None:
        return None if names.is_empty else self._texts.string(names, _BEHIND_NAME)


class _Members:
    """The rules of one object. In each of them the members up to one are decided."""

    def __init__(self, values: JsonValues, rules: Rules, shape: Object) -> None:
        self._values, self._rules, self._shape = values, rules, shape
        self._needed = max((at + 1 for at, m in enumerate(shape.members) if m.required), default=0)
        self._further = self._further_member()
        self._least = self._counted_least()
        # Members so far, as far as they matter.
        self._cap = self._least if shape.most is None else shape.most
        if self._cap > _MAX_CHAINED:
            raise UnkeptError(f"minProperties, maxProperties: more than {_MAX_CHAINED}")
        if len(shape.members) + (self._further is not None) <= (shape.most or 0):
            self._cap = self._least if self._further is None else self._cap
        self._pairs: dict[tuple[int, int], str | None] = {}
        self._tails: dict[tuple[int, int], str | None] = {}

    def rule(self) -> str:
        space = self._values.space
        for at in range(len(self._shape.members), 0, -1):  # the last ones first: no deep recursion
            for count in range(min(at, self._cap), -1, -1):
                self._pair(at, count)
        pair = self._pair(0, 0)
        options = [f'"{{" {space} {pair}'] if pair is not None else []
        if self._needed == 0 and self._least == 0:
            options.append(f'"{{" {space} "}}"')
        if not options:
            raise UnkeptError("minProperties: more than there can be")
        return " | ".join(options)

    def _further_member(self) -> str | None:
        shape, values = self._shape, self._values
        kinds = [
            (values.matching_name(shape, pattern), value)
            for pattern, value in shape.patterns
            if value is not None
        ]
        if shape.others is not None:
            kinds.append((values.other_name(shape), shape.others))
        found = [f"{name} {values.colon} {values.rule(value)}" for name, value in kinds if name is not None]
        return self._rules.made(" | ".join(found)) if found else None

    def _counted_least(self) -> int:
        """minProperties, as far as counting keeps it: further members may repeat a name."""
        least = self._shape.least
        if least <= sum(member.required for member in self._shape.members):
            return 0
        if self._further is not None and least > 1:
            raise UnkeptError(f"minProperties: {least} beside members that are not listed")
        return least

    def _pair(self, at: int, count: int) -> str | None:
        """A member, the first that may come being number `at`, behind `count` others; None if none may."""
        key = (at, count)
        if key not in self._pairs:
            self._pairs[key] = self._made_pair(at, count)
        return self._pairs[key]

    def _made_pair(self, at: int, count: int) -> str | None:
        members = self._shape.members
        behind = min(count + 1, self._cap)
        if self._shape.most is not None and count >= self._shape.most and self._cap == self._shape.most:
            return None
        if at == len(members):
            if self._further is None:
                return None
            name = self._rules.named()
            self._pairs[at, count] = name
            tail = self._tail(at, behind)
            if tail is None:
                self._pairs[at, count] = None
                return None
            return self._rules.define(name, f"{self._further} {tail}")
        member = members[at]
        options = []
        tail = self._tail(at + 1, behind)
        if tail is not None:
            value = self._values.rule(member.value)
            options.append(f"{quoted(member.name)} {self._values.colon} {value} {tail}")
        if not member.required and (other := self._pair(at + 1, count)) is not None:
            options.append(other)
        return self._rules.made(" | ".join(options)) if options else None

    def _tail(self, at: int, count: int) -> str | None:
        """What comes behind a member: another one from number `at` on, or the end."""
        key = (at, count)
        if key not in self._tails:
            name = self._rules.named()
            self._tails[key] = name
            options = []
            if at >= self._needed and count >= self._least:
                options.append(f'{self._values.space} "}}"')
            if (pair := self._pair(at, count)) is not None:
                options.append(f"{self._values.comma} {pair}")
            if options:
                self._rules.define(name, " | ".join(options))
            else:
                self._tails[key] = None
        return self._tails[key]


def quoted(text: str) -> str:
    """The literal of a JSON string."""
    return literal(json.dumps(text, ensure_ascii=False))
