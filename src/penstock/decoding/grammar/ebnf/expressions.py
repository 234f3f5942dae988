"""Regular expressions in the notation of ECMA-262, as far as they are regular.

Read are alternatives, groups, quantifiers, classes, `\\d \\D \\w \\W \\s \\S`, `.`, escapes of characters,
`(?s:…)` and `^`, `$` where an alternative begins and ends. What else there is (look-around, references,
`\\b`, `\\p`) raises UnkeptError.
"""

from __future__ import annotations

import re
from collections.abc import Callable
from functools import lru_cache

from msgspec import Struct

from penstock.decoding.grammar.ebnf.characters import (
    DIGITS,
    EVERY,
    LAST,
    LINE_ENDS,
    SPACE,
    WORD,
    Characters,
    characters,
)
from penstock.decoding.grammar.ebnf.rules import UnkeptError

MAX_REPEATS = 128  # beyond it the library counts as it goes, and a mask takes a parser's time
_MAX_ALTERNATIVES = 64
KNOWN = 256  # expressions that are kept for the next schema
_CLASSES = {"d": DIGITS, "w": WORD, "s": SPACE}
_CONTROLS = {"n": "\n", "r": "\r", "t": "\t", "f": "\f", "v": "\v", "0": "\0"}
_QUANTIFIER = re.compile(r"\{(\d+)(,(\d*))?\}")


class Chars(Struct, frozen=True):
    """One character of a set."""

    of: Characters


class Edge(Struct, frozen=True):
    """`^` or `$`."""

    is_end: bool


class Sequence(Struct, frozen=True):
    parts: tuple[Node, ...]


class Choice(Struct, frozen=True):
    options: tuple[Node, ...]


class Repeat(Struct, frozen=True):
    """`most`: None for any number."""

    part: Node
    least: int
    most: int | None


Node = Chars | Edge | Sequence | Choice | Repeat
ANYTHING = Repeat(Chars(EVERY), 0, None)


@lru_cache(maxsize=KNOWN)
def searched(source: str) -> Node:
    """The texts in which `source` is found, as JSON Schema means its patterns. Raises UnkeptError."""
    return _without_edges(_Reader(source).read(), ANYTHING)


@lru_cache(maxsize=KNOWN)
def whole(source: str) -> Node:
    """The texts that `source` matches from end to end. Raises UnkeptError."""
    return _without_edges(_Reader(source).read(), None)


# ------------------------------------------------------------------------------ what a node says


def lengths(node: Node) -> tuple[int, int | None]:
    """The fewest and the most characters, None for no limit."""
    match node:
        case Chars():
            return 1, 1
        case Edge():
            return 0, 0
        case Repeat():
            least, most = lengths(node.part)
            return least * node.least, None if most is None or node.most is None else most * node.most
        case Choice():
            found = [lengths(option) for option in node.options]
            return min(least for least, _ in found), _all_or_none(max, [most for _, most in found])
        case Sequence():
            found = [lengths(part) for part in node.parts]
            return sum(least for least, _ in found), _all_or_none(sum, [most for _, most in found])


def _all_or_none(combine: Callable[[list[int]], int], values: list[int | None]) -> int | None:
    known = [value for value in values if value is not None]
    return combine(known) if len(known) == len(values) else None


# ------------------------------------------------------------------------------ anchors


def _without_edges(node: Node, free: Node | None) -> Node:
    """`node` as a whole text. `free`: what may stand where an alternative is not anchored."""
    found = []
    for parts in _alternatives([node]):
        begins, ends = 0, len(parts)
        while begins < ends and parts[begins] == Edge(False):
            begins += 1
        while ends > begins and parts[ends - 1] == Edge(True):
            ends -= 1
        inner = parts[begins:ends]
        if any(map(_has_edge, inner)):
            raise UnkeptError("^ or $ in the middle")
        before = [free] if free is not None and begins == 0 else []
        behind = [free] if free is not None and ends == len(parts) else []
        found.append(Sequence((*before, *inner, *behind)))
        if len(found) > _MAX_ALTERNATIVES:
            raise UnkeptError(f"more than {_MAX_ALTERNATIVES} alternatives with ^ or $")
    return found[0] if len(found) == 1 else Choice(tuple(found))


def _alternatives(parts: list[Node]) -> list[list[Node]]:
    """`parts` as alternatives of sequences, with the groups opened that have anchors at an end."""
    for at, part in enumerate(parts):
        if isinstance(part, Sequence):
            return _alternatives([*parts[:at], *part.parts, *parts[at + 1 :]])
    for at in {0, len(parts) - 1} if parts else ():
        part = parts[at]
        if isinstance(part, Choice) and (_has_edge(part) or len(parts) == 1):
            opened = [_alternatives([*parts[:at], option, *parts[at + 1 :]]) for option in part.options]
            return [alternative for alternatives in opened for alternative in alternatives]
    return [parts]


def _has_edge(node: Node) -> bool:
    match node:
        case Chars():
            return False
        case Edge():
            return True
        case Repeat():
            return _has_edge(node.part)
        case Choice():
            return any(map(_has_edge, node.options))
        case Sequence():
            return any(map(_has_edge, node.parts))


# ------------------------------------------------------------------------------ reading


class _Reader:
    def __init__(self, source: str) -> None:
        self._source, self._at, self._depth = source, 0, 0
        self._dot = EVERY - LINE_ENDS

    def read(self) -> Node:
        node = self._choice()
        if self._at < len(self._source):
            raise self._refusal("unmatched )")
        return node

    def _refusal(self, reason: str) -> UnkeptError:
        return UnkeptError(f"{reason} in {self._source[:200]!r}")

    def _peek(self, text: str) -> bool:
        return self._source.startswith(text, self._at)

    def _take(self, text: str) -> bool:
        found = self._peek(text)
        self._at += len(text) * found
        return found

    def _next(self) -> str:
        if self._at >= len(self._source):
            raise self._refusal("an unfinished escape or class")
        self._at += 1
        return self._source[self._at - 1]

    def _choice(self) -> Node:
        self._depth += 1
        if self._depth > 100:
            raise self._refusal("groups nested deeper than 100")
        options = [self._sequence()]
        while self._take("|"):
            options.append(self._sequence())
        self._depth -= 1
        return options[0] if len(options) == 1 else Choice(tuple(options))

    def _sequence(self) -> Node:
        parts: list[Node] = []
        while self._at < len(self._source) and not self._peek("|") and not self._peek(")"):
            parts.append(self._quantified(self._atom()))
        return parts[0] if len(parts) == 1 else Sequence(tuple(parts))

    def _quantified(self, node: Node) -> Node:
        counted = _QUANTIFIER.match(self._source, self._at)
        if counted:
            self._at = counted.end()
            least = int(counted[1])
            most = least if counted[2] is None else int(counted[3]) if counted[3] else None
        elif self._take("*"):
            least, most = 0, None
        elif self._take("+"):
            least, most = 1, None
        elif self._take("?"):
            least, most = 0, 1
        else:
            return node
        if _has_edge(node):
            raise self._refusal("^ or $ that repeats")
        if most is not None and most < least:
            raise self._refusal(f"{{{least},{most}}}")
        if max(least, most or 0) > MAX_REPEATS and not isinstance(node, Chars):
            raise self._refusal(f"more than {MAX_REPEATS} repetitions of a group")
        self._take("?")  # lazy or not, the same texts match
        if self._at < len(self._source) and self._source[self._at] in "*+?":
            raise self._refusal("a quantifier of a quantifier")
        return Repeat(node, least, most)

    def _atom(self) -> Node:
        char = self._next()
        match char:
            case "(":
                return self._group()
            case "[":
                return Chars(self._class())
            case "^" | "$":
                return Edge(char == "$")
            case ".":
                return Chars(self._dot)
            case "\\":
                return Chars(self._escape(in_class=False))
            case "*" | "+" | "?":
                raise self._refusal("a quantifier of nothing")
            case _:
                return Chars(characters(char))

    def _group(self) -> Node:
        dot = self._dot
        if self._take("?"):
            if self._take("s:"):
                self._dot = EVERY
            elif not self._take(":"):
                named = re.compile(r"P?<[A-Za-z_]\w*>").match(self._source, self._at)
                if named is None:
                    raise self._refusal(f"(?{self._source[self._at : self._at + 2]}")
                self._at = named.end()
        node = self._choice()
        if not self._take(")"):
            raise self._refusal("an unclosed group")
        self._dot = dot
        return node

    def _class(self) -> Characters:
        negated = self._take("^")
        found = characters()
        while not self._take("]"):
            if any(map(self._peek, ("[:", "[.", "[=", "&&"))):
                raise self._refusal(self._source[self._at : self._at + 2])
            low = self._of_class()
            if self._peek("-") and not self._peek("-]"):
                self._at += 1
                high = self._of_class()
                if len(low) != 1 or len(high) != 1 or low.ranges[0] > high.ranges[0]:
                    raise self._refusal("a range without ends")
                low = characters((low.ranges[0][0], high.ranges[0][0]))
            found |= low
        return ~found if negated else found

    def _of_class(self) -> Characters:
        char = self._next()
        return self._escape(in_class=True) if char == "\\" else characters(char)

    def _escape(self, in_class: bool) -> Characters:
        char = self._next()
        if char.lower() in _CLASSES:
            return _CLASSES[char] if char in _CLASSES else ~_CLASSES[char.lower()]
        if char in _CONTROLS:
            if char == "0" and self._source[self._at : self._at + 1].isdigit():
                raise self._refusal("an octal escape")
            return characters(_CONTROLS[char])
        if char == "x":
            return self._coded(r"([0-9A-Fa-f]{2})|\{([0-9A-Fa-f]{1,6})\}")
        if char == "u":
            return self._coded(r"([0-9A-Fa-f]{4})|\{([0-9A-Fa-f]{1,6})\}")
        if char == "c" and (letter := self._source[self._at : self._at + 1]).isalpha() and letter.isascii():
            self._at += 1
            return characters(chr(ord(letter) % 32))
        if char == "b" and in_class:
            return characters("\b")
        if char.isalnum():
            raise self._refusal(f"\\{char}")
        return characters(char)

    def _coded(self, form: str) -> Characters:
        found = re.compile(form).match(self._source, self._at)
        if found is None:
            raise self._refusal("an escape without its digits")
        self._at = found.end()
        code = int(found[1] or found[2], 16)
        low = re.compile(r"\\u([Dd][C-Fc-f][0-9A-Fa-f]{2})").match(self._source, self._at)
        if 0xD800 <= code < 0xDC00 and low is not None:
            self._at = low.end()
            code = 0x10000 + ((code - 0xD800) << 10) + int(low[1], 16) - 0xDC00
        if code > LAST or 0xD800 <= code < 0xE000:
            raise self._refusal("half of a surrogate pair")
        return characters(chr(code))
