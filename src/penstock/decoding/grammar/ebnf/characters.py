"""Sets of characters as ranges of code points. Surrogates are in none: text has none."""

from __future__ import annotations

from collections.abc import Iterable

from msgspec import Struct

Range = tuple[int, int]  # both ends included
LAST = 0x10FFFF
_SURROGATES = (0xD800, 0xDFFF)


class Characters(Struct, frozen=True):
    """`ranges`: sorted, not touching, without surrogates. Made by `characters` and the operators."""

    ranges: tuple[Range, ...] = ()

    def __or__(self, other: Characters) -> Characters:
        return characters(*self.ranges, *other.ranges)

    def __and__(self, other: Characters) -> Characters:
        return ~(~self | ~other)

    def __sub__(self, other: Characters) -> Characters:
        return self & ~other

    def __invert__(self) -> Characters:
        gaps, begin = [], 0
        for low, high in self.ranges:
            gaps.append((begin, low - 1))
            begin = high + 1
        return characters(*gaps, (begin, LAST))

    def __contains__(self, char: str) -> bool:
        return any(low <= ord(char) <= high for low, high in self.ranges)

    def __len__(self) -> int:
        return sum(high - low + 1 for low, high in self.ranges)


def characters(*parts: str | Range) -> Characters:
    """The union of strings, each character of which is meant, and of ranges; empty ones count nothing."""
    found: list[Range] = []
    for low, high in sorted(_without_surrogates(parts)):
        if found and low <= found[-1][1] + 1:
            found[-1] = (found[-1][0], max(found[-1][1], high))
        else:
            found.append((low, high))
    return Characters(tuple(found))


def _without_surrogates(parts: Iterable[str | Range]) -> Iterable[Range]:
    for part in parts:
        for low, high in [(ord(char), ord(char)) for char in part] if isinstance(part, str) else [part]:
            before, behind = min(high, _SURROGATES[0] - 1), max(low, _SURROGATES[1] + 1)
            if low <= before:
                yield low, before
            if behind <= high:
                yield behind, high


EVERY = characters((0, LAST))
DIGITS = characters("0123456789")
WORD = DIGITS | characters((0x41, 0x5A), (0x61, 0x7A), "_")
LINE_ENDS = characters("\n\r\u2028\u2029")
# ECMA-262, WhiteSpace and LineTerminator.
SPACE = LINE_ENDS | characters("\t\v\f \u00a0\u1680\u202f\u205f\u3000\ufeff", (0x2000, 0x200A))
