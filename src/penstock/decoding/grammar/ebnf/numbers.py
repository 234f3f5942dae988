"""Numbers within bounds as regular expressions of JSON's spelling.

Numbers with bounds are written without an exponent, and with so few digits that no two of them round to one
double: a validator that compares doubles sees the same side of every bound.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from decimal import Decimal

from msgspec import Struct

from penstock.decoding.grammar.ebnf.rules import UnkeptError

EXACT_DIGITS = 15  # decimals of so many digits are told apart by doubles
MAX_MULTIPLES = 1000  # of a bounded range, written one by one
INTEGER = "-?(0|[1-9][0-9]*)"
# Two digits of exponent: with the digits that an answer may have in a row it stays a finite double.
NUMBER = INTEGER + r"(\.[0-9]+)?([eE][+-]?[0-9]{1,2})?"


class Bounds(Struct, frozen=True):
    """`low`, `high`: None for no limit. `open_low`, `open_high`: the limit itself is outside."""

    low: Decimal | None = None
    high: Decimal | None = None
    open_low: bool = False
    open_high: bool = False

    def holds(self, value: Decimal) -> bool:
        above = self.low is None or value > self.low or (value == self.low and not self.open_low)
        below = self.high is None or value < self.high or (value == self.high and not self.open_high)
        return above and below

    def both(self, other: Bounds) -> Bounds:
        """What is within both."""
        low, open_low = _stricter(self.low, self.open_low, other.low, other.open_low, 1)
        high, open_high = _stricter(self.high, self.open_high, other.high, other.open_high, -1)
        return Bounds(low, high, open_low, open_high)

    @property
    def is_empty(self) -> bool:
        if self.low is None or self.high is None:
            return False
        return self.low > self.high or (self.low == self.high and (self.open_low or self.open_high))


def _stricter(
    one: Decimal | None, one_open: bool, other: Decimal | None, other_open: bool, sign: int
) -> tuple[Decimal | None, bool]:
    if one is None or other is None:
        return (other, other_open) if one is None else (one, one_open)
    if one == other:
        return one, one_open or other_open
    return (one, one_open) if (one - other) * sign > 0 else (other, other_open)


def common_multiple(steps: Sequence[Decimal]) -> Decimal | None:
    """The smallest number that is a multiple of all; None without any."""
    if not steps:
        return None
    scale = Decimal(10) ** max(0, *(-int(step.as_tuple().exponent) for step in steps))
    return Decimal(math.lcm(*(int(step * scale) for step in steps))) / scale


def expression(bounds: Bounds, step: Decimal | None) -> str | None:
    """The multiples of `step` within `bounds`; None if there are none. Raises UnkeptError."""
    if step is None:
        return decimals(bounds, EXACT_DIGITS)
    places = -step.adjusted()
    if places > 0 and step == Decimal(1).scaleb(-places):
        return decimals(bounds, places)
    if step != int(step):
        raise UnkeptError(f"multipleOf: {step} is neither whole nor a power of ten")
    return integers(bounds, int(step))


def integers(bounds: Bounds, step: int) -> str | None:
    """Integers within `bounds` that are multiples of `step`; None if there are none. Raises UnkeptError."""
    low = None if bounds.low is None else _whole(bounds.low, bounds.open_low, 1)
    high = None if bounds.high is None else _whole(bounds.high, bounds.open_high, -1)
    if step > 1:
        return _multiples(low, high, step)
    if low is None and high is None:
        return INTEGER
    found = []
    if low is None or low < 0:
        least = 1 if high is None or high >= 0 else -high
        found += [f"-{part}" for part in [_naturals(least, None if low is None else -low)] if part]
    if high is None or high >= 0:
        found += [part for part in [_naturals(max(low or 0, 0), high)] if part]
    return f"({'|'.join(found)})" if found else None


def _whole(limit: Decimal, is_open: bool, sign: int) -> int:
    """The first integer on the right side of a limit."""
    nearest = int(limit.to_integral_value("ROUND_CEILING" if sign > 0 else "ROUND_FLOOR"))
    return nearest + sign if is_open and nearest == limit else nearest


def _multiples(low: int | None, high: int | None, step: int) -> str | None:
    if low is None and high is None:
        zeros = len(str(step)) - 1
        if step != 10**zeros:
            raise UnkeptError(f"multipleOf: {step} without minimum and maximum")
        return f"(0|-?[1-9][0-9]*0{{{zeros}}})"
    if low is None or high is None or (high - low) // step > MAX_MULTIPLES:
        raise UnkeptError(f"multipleOf: {step} without bounds of at most {MAX_MULTIPLES} multiples")
    found = [str(value) for value in range(-(-low // step) * step, high + 1, step)]
    return f"({'|'.join(found)})" if found else None


def _naturals(low: int, high: int | None) -> str | None:
    """Integers from `low` (>= 0) to `high`."""
    if high is not None and high < low:
        return None
    found = []
    longest = len(str(low)) if high is None else len(str(high))
    for length in range(len(str(low)), longest + 1):
        first, last = max(low, 10 ** (length - 1) if length > 1 else 0), 10**length - 1
        last = last if high is None else min(last, high)
        if first <= last:
            found.append(_same_length(str(first), str(last)))
    if high is None:
        found.append(f"[1-9][0-9]{{{longest},}}")
    return f"({'|'.join(found)})"


def _same_length(low: str, high: str) -> str:
    """Digits that are, as text, from `low` to `high`, which have one length."""
    if not low:
        return ""
    if low.strip("0") == "" and high.strip("9") == "":
        return _digits(len(low))
    if low[0] == high[0]:
        return low[0] + _same_length(low[1:], high[1:])
    rest, inner = len(low) - 1, (int(low[0]) + 1, int(high[0]) - 1)
    options = [low[0] + _same_length(low[1:], "9" * rest), high[0] + _same_length("0" * rest, high[1:])]
    if inner[0] <= inner[1]:
        options.append(_one_of(*inner) + _digits(rest))
    return f"({'|'.join(options)})"


def _digits(least: int, most: int | None = None) -> str:
    """So many digits; the library's `{0}` is not what it says."""
    if most is None:
        return "[0-9]" * least if least < 4 else f"[0-9]{{{least}}}"
    return f"[0-9]{{{least},{most}}}" if most else ""


def decimals(bounds: Bounds, places: int) -> str | None:
    """Numbers within `bounds` with at most so many digits behind the point; None if there are none. Raises
    UnkeptError."""
    if bounds.low is None and bounds.high is None:
        return NUMBER if places >= EXACT_DIGITS else rf"{INTEGER}(\.[0-9]{{1,{places}}})?"
    found = []
    zero = Bounds(low=Decimal(0))
    below = Bounds(_negative(bounds.high), _negative(bounds.low), bounds.open_high, bounds.open_low)
    for sign, part in (("-", below.both(Bounds(low=Decimal(0), open_low=True))), ("", bounds.both(zero))):
        expression = None if part.is_empty else _positive(part, places)
        if expression is not None:
            found.append(sign + expression)
    return f"({'|'.join(found)})" if found else None


def _negative(limit: Decimal | None) -> Decimal | None:
    return None if limit is None else -limit


def _positive(bounds: Bounds, places: int) -> str | None:
    """Of bounds from 0 on."""
    assert bounds.low is not None
    low, low_digits = _split(bounds.low)
    high, high_digits = (None, "") if bounds.high is None else _split(bounds.high)
    exact = EXACT_DIGITS - len(str(low if high is None else high))
    if exact < max(len(low_digits), len(high_digits)):
        raise UnkeptError(f"minimum, maximum: more than {EXACT_DIGITS} digits")
    fraction = _Fractions(low_digits, high_digits, bounds, min(places, exact))
    parts = [(str(low), fraction.text(True, low == high))]
    if high is None or high > low + 1:
        parts.append(
            (_naturals(low + 1, None if high is None else high - 1) or "", fraction.text(False, False))
        )
    if high is not None and high > low:
        parts.append((str(high), fraction.text(False, True)))
    found = [whole + tail for whole, tail in parts if tail is not None]
    return f"({'|'.join(found)})" if found else None


def _split(value: Decimal) -> tuple[int, str]:
    """The whole part, and the digits of the fraction."""
    whole, _, digits = f"{value:f}".partition(".")
    return int(whole), digits.rstrip("0")


class _Fractions:
    """What may stand behind a whole part that equals that of the lower bound, the upper one, or none."""

    def __init__(self, low: str, high: str, bounds: Bounds, places: int) -> None:
        self._low, self._high, self._bounds, self._places = low, high, bounds, places

    def text(self, at_low: bool, at_high: bool) -> str | None:
        """Nothing, or a point and digits; None if neither may come."""
        some = self._digits(0, at_low, at_high, first=True)
        alone = self._may_end(0, at_low, at_high)
        if some is None:
            return "" if alone else None
        return rf"(\.{some})?" if alone else rf"\.{some}"

    def _may_end(self, place: int, at_low: bool, at_high: bool) -> bool:
        """Whether the number may end before this place, as if with zeros."""
        enough = not at_low or (place >= len(self._low) and not self._bounds.open_low)
        return enough and (not at_high or place < len(self._high) or not self._bounds.open_high)

    def _digits(self, place: int, at_low: bool, at_high: bool, first: bool = False) -> str | None:
        """Digits from this place on; at least one if `first`. `at_low`: so far all are those of the bound."""
        may_end = not first and self._may_end(place, at_low, at_high)
        if at_low and place >= len(self._low) and not self._bounds.open_low:
            at_low = False
        if place >= self._places:
            return "" if may_end else None
        if not at_low and not at_high:
            return _digits(int(first), self._places - place)
        if at_high and place >= len(self._high) and not at_low:
            return None if self._bounds.open_high else f"0{{{int(first)},{self._places - place}}}"
        low = int(self._low[place : place + 1] or 0) if at_low else 0
        high = int(self._high[place : place + 1] or 0) if at_high else 9
        options: list[str] = []
        inner = list(range(low, high + 1))
        for digit in sorted({low, high}) if low <= high else ():
            tight = at_low and digit == low, at_high and digit == high
            if any(tight):
                inner.remove(digit)
                rest = self._digits(place + 1, *tight)
                if rest is not None:
                    options.append(f"{digit}{rest}")
        if inner:
            rest = _digits(0, self._places - place - 1)
            options.append(f"{_one_of(inner[0], inner[-1])}{rest}")
        if not options:
            return "" if may_end else None
        return f"({'|'.join(options)})" + "?" * may_end


def _one_of(low: int, high: int) -> str:
    return str(low) if low == high else f"[{low}-{high}]"
