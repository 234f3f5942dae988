"""Whether nothing is valid under both of two schemas: yes, or not known."""

from __future__ import annotations

from collections.abc import Callable

from penstock.decoding.grammar.ebnf import work
from penstock.decoding.grammar.ebnf.automata import intersection
from penstock.decoding.grammar.ebnf.rules import UnkeptError
from penstock.decoding.grammar.ebnf.shapes import (
    Array,
    Conjunction,
    Literals,
    Number,
    Object,
    Shape,
    Text,
    canonical,
    type_of,
)

_MAX_DEPTH = 4


class Disjoint:
    def __init__(self, shapes: Callable[[Conjunction], tuple[Shape, ...]]) -> None:
        self._shapes = shapes

    def of_shapes(self, first: tuple[Shape, ...], second: tuple[Shape, ...], depth: int = 0) -> bool:
        return all(self._pair(one, other, depth) for one in first for other in second)

    def of_values(self, first: Conjunction, second: Conjunction, depth: int) -> bool:
        if depth > _MAX_DEPTH or first == second:
            return False
        try:
            return self.of_shapes(self._shapes(first), self._shapes(second), depth)
        except UnkeptError:  # what can't be kept is refused where it is written
            return False

    def _pair(self, one: Shape, other: Shape, depth: int) -> bool:
        work.spend(1)
        if isinstance(other, Literals) and not isinstance(one, Literals):
            one, other = other, one
        match one, other:
            case Literals(), Literals():
                known = {canonical(value) for value in other.values}
                return not any(canonical(value) in known for value in one.values)
            case Literals(), _:
                return not any(_may_be(value, other) for value in one.values)
            case Object(), Object():
                return self._objects(one, other, depth)
            case Array(), Array():
                return self._arrays(one, other, depth)
            case Number(), Number():
                return one.bounds.both(other.bounds).is_empty
            case Text(), Text():
                return _texts(one, other)
        return True  # of different types

    def _objects(self, one: Object, other: Object, depth: int) -> bool:
        """A member that one needs and the other can't have."""
        for needing, having in ((one, other), (other, one)):
            for member in needing.members:
                if not member.required:
                    continue
                value = _of_member(having, member.name)
                if value is None or self.of_values(member.value, value, depth + 1):
                    return True
        return False

    def _arrays(self, one: Array, other: Array, depth: int) -> bool:
        for longer, shorter in ((one, other), (other, one)):
            if shorter.most is not None and longer.least > shorter.most:
                return True
        first, second = _first_item(one), _first_item(other)
        if max(one.least, other.least) == 0 or first is None or second is None:
            return False
        return self.of_values(first, second, depth + 1)


def _may_be(value: object, shape: Shape) -> bool:
    match shape:
        case Text():
            return isinstance(value, str) and (shape.is_partial or shape.permits(value))
        case Number():
            number = isinstance(value, int | float) and not isinstance(value, bool)
            return number and shape.permits(value)  # type: ignore[arg-type]
        case Array():
            return type_of(value) == "array"
        case Object():
            return type_of(value) == "object"
    return True


def _of_member(shape: Object, name: str) -> Conjunction | None:
    """What a member must be in `shape`; None if it can't be there."""
    for member in shape.members:
        if member.name == name:
            return member.value
    return frozenset() if shape.others is not None or shape.patterns else None


def _first_item(shape: Array) -> Conjunction | None:
    return shape.prefix[0] if shape.prefix else shape.rest


def _texts(one: Text, other: Text) -> bool:
    if one.is_partial or other.is_partial:
        return False
    both = one.within(other.least, other.most)
    if both.most is not None and both.least > both.most:
        return True
    return intersection(one.whole(), other.whole()).is_empty
