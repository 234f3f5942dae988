"""Shapes: what a JSON value of one type must be. A schema is a union of shapes.

What a shape says about the values inside of it are Conjunctions: schemas that must all hold, {} for anything.
"""

from __future__ import annotations

import json
from collections.abc import Sequence
from decimal import Decimal
from functools import reduce
from typing import Any, NamedTuple

from msgspec import Struct
from msgspec.structs import replace

from penstock.decoding.grammar.ebnf.automata import (
    NOTHING,
    Automaton,
    counted,
    difference,
    intersection,
    of_expression,
    of_words,
)
from penstock.decoding.grammar.ebnf.characters import EVERY, Characters
from penstock.decoding.grammar.ebnf.expressions import ANYTHING, Chars, Node, Repeat
from penstock.decoding.grammar.ebnf.numbers import Bounds

# Lengths up to which an automaton counts, of strings of any length and of one.
COUNTED, COUNTED_FIXED = 16, 64
ANY_TEXT = of_expression(ANYTHING)


class Part(NamedTuple):
    """A schema by its number, less the keywords of it that were decided already."""

    schema: int
    decided: frozenset[str] = frozenset()


Conjunction = frozenset[Part]


class Literals(Struct, frozen=True):
    """One of these values."""

    values: tuple[Any, ...]


class Text(Struct, frozen=True):
    """A string: `least` to `most` characters of a set that `automata` match, and none of `excluded`.

    `is_partial`: the schema allows more of them than the shape.
    """

    characters: Characters = EVERY
    least: int = 0
    most: int | None = None
    automata: tuple[Automaton, ...] = ()
    excluded: frozenset[str] = frozenset()
    is_partial: bool = False

    def matching(self, node: Node) -> Text:
        """And `node` matches it."""
        if isinstance(node, Repeat) and isinstance(node.part, Chars):
            both = replace(self, characters=self.characters & node.part.of)
            return both.within(node.least, node.most)
        return replace(self, automata=(*self.automata, of_expression(node)))

    def within(self, least: int, most: int | None) -> Text:
        known = [limit for limit in (self.most, most) if limit is not None]
        return replace(self, least=max(self.least, least), most=min(known, default=None))

    def limited(self) -> tuple[Automaton, int | None]:
        """What it must match; and how many characters it may have at most, if the automaton does not say.

        It says so where it must: where it could not end at any length from there on. Raises UnkeptError if it
        has too many states.
        """
        found = self._whatever_length()
        if self.most is None or ((longest := found.longest) is not None and longest <= self.most):
            return found, None
        exact = self.most <= (COUNTED_FIXED if self.least == self.most else COUNTED)
        if exact or not found.may_end_from(self.most):
            return intersection(found, counted(EVERY, 0, self.most)), None
        return found, self.most

    def whole(self) -> Automaton:
        """Raises UnkeptError if it has too many states."""
        found, most = self.limited()
        return found if most is None else intersection(found, counted(EVERY, 0, most))

    def _whatever_length(self) -> Automaton:
        if self.most is not None and self.least > self.most:
            return NOTHING
        found = reduce(intersection, self.automata) if self.automata else ANY_TEXT
        if self.characters != EVERY or self.least:
            found = intersection(found, counted(self.characters, self.least, None))
        if self.excluded:
            found = difference(found, of_words(self.excluded, max(map(len, self.excluded)) + 1))
        return found

    def permits(self, text: str) -> bool:
        enough = self.least <= len(text) and (self.most is None or len(text) <= self.most)
        matching = all(automaton.matches(text) for automaton in self.automata)
        return enough and matching and text not in self.excluded and all(c in self.characters for c in text)


class Number(Struct, frozen=True):
    """`step`: it is a multiple of this."""

    bounds: Bounds = Bounds()
    step: Decimal | None = None

    def permits(self, value: float) -> bool:
        exact = Decimal(repr(value))
        return self.bounds.holds(exact) and (self.step is None or exact % self.step == 0)


class Array(Struct, frozen=True):
    """`rest`: of the items behind `prefix`; None if there may be none."""

    prefix: tuple[Conjunction, ...] = ()
    rest: Conjunction | None = frozenset()
    least: int = 0
    most: int | None = None
    unique: bool = False


class Member(NamedTuple):
    name: str
    value: Conjunction
    required: bool


class Object(Struct, frozen=True):
    """`named`: all names that are spoken of, those that may not come included. `patterns`: further members by
    what their names match, None for such as may not come. `others`: of all further members, None if there may
    be none. `names`: of further members."""

    members: tuple[Member, ...] = ()
    named: frozenset[str] = frozenset()
    patterns: tuple[tuple[Automaton, Conjunction | None], ...] = ()
    others: Conjunction | None = frozenset()
    names: Text | None = None
    least: int = 0
    most: int | None = None


Shape = Literals | Text | Number | Array | Object
JSON_TYPES = ("object", "array", "string", "number", "boolean", "null")


def type_of(value: Any) -> str:
    """The JSON type of a value; "number" for integers too."""
    if isinstance(value, bool):
        return "boolean"
    if value is None:
        return "null"
    kinds = {dict: "object", list: "array", str: "string", int: "number", float: "number"}
    return kinds[type(value)]


def canonical(value: Any) -> str:
    """Equal for values that are equal as JSON."""
    if isinstance(value, float) and value.is_integer():
        return str(int(value))
    if isinstance(value, list):
        return f"[{','.join(map(canonical, value))}]"
    if isinstance(value, dict):
        members = sorted(f"{json.dumps(name)}:{canonical(inner)}" for name, inner in value.items())
        return "{" + ",".join(members) + "}"
    return json.dumps(value)


def types_of(shape: Shape) -> Sequence[str]:
    """The types that its values may have."""
    match shape:
        case Literals():
            return tuple(map(type_of, shape.values))
        case Text():
            return ("string",)
        case Number():
            return ("number",)
        case Array():
            return ("array",)
        case Object():
            return ("object",)
