"""A grammar being written in llguidance's notation (Lark): rules, texts with special tokens in them, JSON.

Texts come from the formats of model families. Which part of one is a special token depends on the tokenizer:
such a part is written as its id, because its characters alone can never be that token.
"""

from __future__ import annotations

import json
import re
from collections.abc import Mapping, Sequence
from typing import Any

from msgspec import Struct

# JSON that shares a place with raw text: white space, if any, is part of its separators, because text has
# none that could be skipped.
COMPACT = {"whitespace_flexible": False, "item_separator": ", ?", "key_separator": ": ?"}
ANYTHING = "/(?s:.*)/"


class Specials(Struct, frozen=True):
    """A tokenizer's special tokens by their text. `ends`: those that end an answer."""

    ids: Mapping[str, int] = {}
    ends: frozenset[int] = frozenset()

    def split(self, text: str) -> list[str | int]:
        """`text` as texts and ids of special tokens."""
        if not text or not self.ids:
            return [text] if text else []
        longest_first = sorted((special for special in self.ids if special in text), key=len, reverse=True)
        if not longest_first:
            return [text]
        pattern = "|".join(re.escape(special) for special in longest_first)
        parts = re.split(f"({pattern})", text)
        return [self.ids[part] if at % 2 else part for at, part in enumerate(parts) if part]


class Lark:
    def __init__(self, specials: Specials) -> None:
        self.specials = specials
        self._rules: dict[str, str] = {}
        self._names: dict[tuple[str, str], str] = {}

    @property
    def source(self) -> str:
        return "\n".join(f"{head}: {body}" for head, body in self._rules.items())

    def rule(self, head: str, body: str) -> str:
        """A rule under a name of its own; `body` "" for one that matches nothing but the empty text."""
        self._rules[head] = body or '""'
        return head

    def made(self, body: str, *, lazy: bool = False, prefix: str = "r") -> str:
        """The name of a rule with this body. A lazy one is a terminal that ends where it first can."""
        key = (prefix + "[lazy]" * lazy, body)
        if key not in self._names:
            name = f"{prefix}{len(self._names)}"
            self._names[key] = name
            self._rules[name + "[lazy]" * lazy] = body or '""'
        return self._names[key]

    def terminal(self, body: str) -> str:
        return self.made(body, prefix="T")

    def text(self, *texts: str) -> str:
        """The texts one after the other."""
        parts = self.specials.split("".join(texts))
        return " ".join(f"<[{part}]>" if isinstance(part, int) else quoted(part) for part in parts)

    def json(self, schema: Any, options: Mapping[str, Any] = COMPACT) -> str:
        schema = {} if schema is True else schema
        return f"%json {json.dumps({**schema, 'x-guidance': dict(options)}, ensure_ascii=False)}"


def quoted(text: str) -> str:
    return json.dumps(text, ensure_ascii=False)


def pattern(text: str) -> str:
    """A regular expression, without its slashes, of exactly this text."""
    return "".join(char if char.isalnum() or ord(char) > 127 else f"\\x{ord(char):02x}" for char in text)


def without(texts: Sequence[str], body: str = ANYTHING) -> str:
    """A terminal's body: `body` where none of `texts` occurs."""
    if not texts:
        return body
    return f"{body} & ~/(?s:.*)({'|'.join(map(pattern, texts))})(?s:.*)/"
