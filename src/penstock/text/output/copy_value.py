"""Copies one value out of model output as JSON text, while it comes.

A dialect says what the value is written in: JSON, Python literals, or the braces with marked strings of the
Gemma models. What is valid in the dialect is passed on as it is (white space included); what is not is mended
where there is one way to understand it, and every mend is named in `repairs`. All else is NotCallError: a
value that ends in the middle of a string, number or word could have gone on, so only what is missing after a
whole member is closed.

Invariants: nothing is held but the character in question; nesting is counted, not recursive.
"""

from __future__ import annotations

import json
import re
from typing import Literal

from msgspec import Struct

from penstock.text.output.scan import Cursor, Emit, Markers, NotCallError, Wait, markers

MAX_DEPTH = 200  # a reader of the arguments recurses

_RUN = {quote: re.compile(rf"[^{quote}\"\\\x00-\x1f]+") for quote in "\"'"}
_NUMBER_CHARS = re.compile(r"[-+.0-9A-Za-z_]+")
_WORD_CHARS = re.compile(r"\w+")
_KEY_CHARS = re.compile(r"[^\s:,{}\[\]]+")
_BARE_CHARS = re.compile(r"[^,{}\[\]<]+")
_NUMBER = re.compile(r"-?(?:0|[1-9][0-9]*)(?:\.[0-9]+)?(?:[eE][-+]?[0-9]+)?")
_LOOSE_NUMBER = re.compile(r"([-+]?)([0-9][0-9_]*)?(?:\.([0-9_]*))?([eE][-+]?[0-9]+)?")
_HEX = re.compile(r"[0-9a-fA-F]+")
_CLOSERS = {"{": "}", "[": "]", "(": ")"}
_WORDS = {"true": "true", "false": "false", "null": "null"}
_PYTHON_WORDS = {"True": "true", "False": "false", "None": "null"}
_NONE = markers()


class Dialect(Struct, frozen=True):
    """`quote`: the marker around strings, where it is not a quotation mark."""

    kind: Literal["json", "python", "marked"]
    quote: str = ""


JSON = Dialect("json")
PYTHON = Dialect("python")


def escape(text: str) -> str:
    """The inside of a JSON string."""
    return json.dumps(text, ensure_ascii=False)[1:-1]


def number(text: str) -> str | None:
    """A number as people and Python write it (+1, 007, 1_000, .5, 5.), as JSON; None if it is none."""
    found = _LOOSE_NUMBER.fullmatch(text)
    if found is None or not (found[2] or found[3]):
        return None
    whole = (found[2] or "0").replace("_", "").lstrip("0") or "0"
    fraction = "" if found[3] is None else "." + (found[3].replace("_", "") or "0")
    return ("-" if found[1] == "-" else "") + whole + fraction + (found[4] or "")


class Copy:
    """`ends`: markers that end the call, so that a value which stops there may be closed."""

    def __init__(self, cursor: Cursor, emit: Emit, dialect: Dialect = JSON, ends: Markers = _NONE) -> None:
        self._cursor = cursor
        self._emit = emit
        self._dialect = dialect
        self._ends = ends
        self._quote = markers(dialect.quote) if dialect.quote else _NONE
        self.cut = False  # the last word or number ended with the output: it may have gone on
        self.repairs: list[str] = []

    def value(self) -> Wait[None]:
        """Copies the value that comes next."""
        wanted: list[str] = []  # closing brackets
        while True:
            self._emit((yield from self._cursor.space()))
            char = yield from self._cursor.peek()
            if char in _CLOSERS and (char != "(" or self._dialect.kind == "python"):
                if (yield from self._open(char, wanted)):
                    continue
            else:
                yield from self._scalar(char)
            if not (yield from self._follow(wanted)):
                return

    def string(self) -> Wait[None]:
        """Copies the string that comes next."""
        char = yield from self._cursor.peek()
        if self._quote.texts:
            if (yield from self._cursor.match(self._quote)) is None:
                raise NotCallError("a string expected")
            yield from self._marked_string()
        elif char in ('"', "'"):
            yield from self._quoted_string(char)
        else:
            raise NotCallError("a string expected")

    def key(self) -> Wait[None]:
        """Copies a key and its colon."""
        char = yield from self._cursor.peek()
        if self._dialect.kind == "json" or char in ('"', "'"):
            yield from self.string()
        elif self._dialect.kind == "python":
            self._emit(f'"{(yield from self._cursor.span(_NUMBER_CHARS))}"')
        elif (yield from self._cursor.match(self._quote)) is not None:
            yield from self._marked_string()
        else:
            name = yield from self._cursor.span(_KEY_CHARS)
            if not name:
                raise NotCallError("a key expected")
            self._emit(f'"{escape(name)}"')
        self._emit((yield from self._cursor.space()))
        yield from self._cursor.expect(":")
        self._emit(":")

    def repair(self, what: str) -> None:
        if what not in self.repairs:
            self.repairs.append(what)

    # ---------------------------------------------------------------- brackets

    def _open(self, char: str, wanted: list[str]) -> Wait[bool]:
        """Whether a first member follows."""
        if len(wanted) >= MAX_DEPTH:
            raise NotCallError(f"nested deeper than {MAX_DEPTH}")
        self._cursor.take()
        wanted.append(_CLOSERS[char])
        self._emit("{" if char == "{" else "[")
        self._emit((yield from self._cursor.space()))
        if (yield from self._cursor.peek()) == wanted[-1]:
            self._close(wanted)
            return False
        if char == "{":
            yield from self.key()
        return True

    def _close(self, wanted: list[str]) -> None:
        self._cursor.take()
        self._emit("}" if wanted.pop() == "}" else "]")

    def _follow(self, wanted: list[str]) -> Wait[bool]:
        """Behind a member: whether another one follows. Without one the value is complete."""
        while wanted:
            self._emit((yield from self._cursor.space()))
            char = yield from self._cursor.peek()
            if char == ",":
                self._cursor.take()
                space = yield from self._cursor.space()
                if (yield from self._cursor.peek()) != wanted[-1]:
                    self._emit("," + space)
                    if wanted[-1] == "}":
                        yield from self.key()
                    return True
                if self._dialect.kind != "python":
                    self.repair("trailing comma")
            elif char != wanted[-1]:
                yield from self._end_early(char)
                self.repair("missing closing bracket")
                self._emit("".join("}" if closer == "}" else "]" for closer in reversed(wanted)))
                return False
            self._close(wanted)
        return False

    def _end_early(self, char: str) -> Wait[None]:
        """Fails unless the call ends here, behind a whole member."""
        if char == "":
            if self.cut:
                raise NotCallError("the output ends in a value")
        elif (yield from self._cursor.looking_at(self._ends)) is None:
            raise NotCallError(f"{char!r} where a member should end")

    # ---------------------------------------------------------------- words and numbers

    def _scalar(self, char: str) -> Wait[None]:
        if char == "":
            raise NotCallError("the output ends in a call")
        self.cut = False
        if self._quote.texts:
            yield from self._marked_scalar()
        elif char in "\"'":
            yield from self._quoted_string(char)
        else:
            numeric = char in "-+.0123456789"
            text = yield from self._cursor.span(_NUMBER_CHARS if numeric else _WORD_CHARS)
            self.cut = self._cursor.closed and self._cursor.at == len(self._cursor.buffer)
            self._emit(self._number(text) if numeric else self._word(text))

    def _number(self, text: str) -> str:
        if _NUMBER.fullmatch(text):
            return text
        loose = number(text) if self._dialect.kind != "json" else None
        if loose is None:
            raise NotCallError(f"{text[:40]!r} is no number")
        return loose

    def _word(self, text: str) -> str:
        if text in _PYTHON_WORDS and self._dialect.kind != "python":
            self.repair("Python literal")
        known = _WORDS.get(text) or _PYTHON_WORDS.get(text)
        if known is None:
            raise NotCallError(f"{text[:40]!r} is no value")
        return known

    def _marked_scalar(self) -> Wait[None]:
        if (yield from self._cursor.match(self._quote)) is not None:
            yield from self._marked_string()
            return
        text = (yield from self._cursor.span(_BARE_CHARS)).strip()
        self.cut = self._cursor.closed and self._cursor.at == len(self._cursor.buffer)
        if not text:
            raise NotCallError("a value expected")
        word = number(text) or _WORDS.get(text) or _PYTHON_WORDS.get(text)
        if word is None:
            self.repair("string without quotes")
        self._emit(word or f'"{escape(text)}"')

    # ---------------------------------------------------------------- strings

    def _marked_string(self) -> Wait[None]:
        self._emit('"')
        if (yield from self._cursor.until(self._quote, lambda piece: self._emit(escape(piece)))) is None:
            raise NotCallError("the output ends in a string")
        self._emit('"')

    def _quoted_string(self, quote: str) -> Wait[None]:
        cursor, runs = self._cursor, _RUN[quote]
        cursor.take()
        if quote == "'" and self._dialect.kind == "json":
            self.repair("single quotes")
        triple = self._dialect.kind == "python" and (yield from self._three(quote, 2))
        self._emit('"')
        while (char := (yield from cursor.peek())) != "":
            found = runs.match(cursor.buffer, cursor.at)
            if found is not None:
                self._emit(cursor.take_to(found.end()))
            elif char == "\\":
                yield from self._escape(quote)
            elif char == quote and (not triple or (yield from self._three(quote, 3))):
                if not triple:
                    cursor.take()
                self._emit('"')
                return
            else:
                if char < " " and not triple:
                    self.repair("unescaped control character")
                self._emit(escape(cursor.take()))
        raise NotCallError("the output ends in a string")

    def _three(self, quote: str, count: int) -> Wait[bool]:
        """Whether `count` more quotation marks come; they are consumed if so."""
        found = (yield from self._cursor.match(markers(quote * count))) is not None
        return found

    def _escape(self, quote: str) -> Wait[None]:
        cursor = self._cursor
        if not (yield from cursor.need(2)):
            raise NotCallError("the output ends in a string")
        char = cursor.buffer[cursor.at + 1]
        if char in '"\\bfnrt' or (char == "/" and self._dialect.kind != "python"):
            self._emit(cursor.take(2))
        elif char == "u" and (yield from self._hex(4)):
            self._emit(cursor.take(6))
        elif char == "'":
            if quote == '"' and self._dialect.kind == "json":
                self.repair("escaped apostrophe")
            cursor.take(2)
            self._emit("'")
        elif self._dialect.kind == "python" and char in "xU0av\n":
            yield from self._python_escape(char)
        else:
            if self._dialect.kind == "json":
                self.repair("unescaped backslash")
            cursor.take()
            self._emit("\\\\")

    def _hex(self, digits: int) -> Wait[bool]:
        cursor = self._cursor
        if not (yield from cursor.need(2 + digits)):
            return False
        return _HEX.fullmatch(cursor.buffer, cursor.at + 2, cursor.at + 2 + digits) is not None

    def _python_escape(self, char: str) -> Wait[None]:
        digits = {"x": 2, "U": 8}.get(char, 0)
        if digits and (yield from self._hex(digits)):
            code = int(self._cursor.take(2 + digits)[2:], 16)
            if code > 0x10FFFF:
                raise NotCallError("an escape beyond Unicode")
            self._emit(escape(chr(code)))
        elif digits:
            self._cursor.take()
            self._emit("\\\\")
        else:
            self._cursor.take(2)
            self._emit({"0": "\\u0000", "a": "\\u0007", "v": "\\u000b", "\n": ""}[char])
