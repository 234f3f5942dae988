"""What of a document's shapes any value has: shapes less the members and items that nothing is valid for."""

from __future__ import annotations

from collections.abc import Callable

from msgspec.structs import replace

from penstock.decoding.grammar.ebnf.shapes import Array, Conjunction, Object, Shape, Text


class Possible:
    def __init__(self, shapes: Callable[[Conjunction], tuple[Shape, ...]]) -> None:
        """shapes: of a Conjunction, as the document says."""
        self._document_shapes = shapes
        self._known: dict[Conjunction, bool] = {}

    def shapes(self, conjunction: Conjunction) -> tuple[Shape, ...]:
        """Those that a value may have; none if nothing is valid. Raises UnkeptError."""
        reduced = map(self._reduced, self._document_shapes(conjunction))
        return tuple(shape for shape in reduced if shape is not None)

    def of(self, conjunction: Conjunction) -> bool:
        """Whether anything is valid. Of a schema inside of itself yes is assumed."""
        if conjunction not in self._known:
            self._known[conjunction] = True
            self._known[conjunction] = bool(self.shapes(conjunction))
        return self._known[conjunction]

    def _reduced(self, shape: Shape) -> Shape | None:
        match shape:
            case Object():
                return self._object(shape)
            case Array():
                return self._array(shape)
            case Text():
                return None if shape.limited()[0].is_empty else shape
        return shape

    def _object(self, shape: Object) -> Object | None:
        members = tuple(member for member in shape.members if self.of(member.value))
        if sum(member.required for member in members) < sum(member.required for member in shape.members):
            return None
        patterns = tuple(
            (names, value if value is not None and self.of(value) else None)
            for names, value in shape.patterns
        )
        others = shape.others if shape.others is not None and self.of(shape.others) else None
        return replace(shape, members=members, patterns=patterns, others=others)

    def _array(self, shape: Array) -> Array | None:
        items: list[Conjunction] = []
        most = shape.most
        for item in shape.prefix:
            if not self.of(item):
                most = len(items) if most is None else min(len(items), most)
                break
            items.append(item)
        rest = shape.rest if shape.rest is not None and self.of(shape.rest) else None
        if rest is None:
            most = len(items) if most is None else min(len(items), most)
        if most is not None and shape.least > most:
            return None
        unique = shape.unique and most not in (0, 1)
        return replace(shape, prefix=tuple(items), rest=rest, most=most, unique=unique)
