"""A grammar being written in xgrammar's notation (EBNF as in llama.cpp's GBNF)."""

from __future__ import annotations

import json

BUDGET_MS = 5000  # of compiling one grammar, for a vocabulary of TOKENS
TOKENS = 50_000
MAX_RULES = 4096  # the library's time grows with their square and more


class UnkeptError(Exception):
    """What can't be kept, in words that begin with the keyword."""


class Rules:
    def __init__(self, vocab_size: int = TOKENS) -> None:
        """`vocab_size`: of the tokens that the library tries in every state while it compiles."""
        self._bodies: dict[str, str] = {}
        self._shared: dict[str, str] = {}
        self.budget = BUDGET_MS * TOKENS // max(vocab_size, TOKENS // 10)  # ms of 50,000 tokens

    def text(self, root: str) -> str:
        """The grammar that begins with the rule `root`."""
        rules = [f"root ::= {root}", *(f"{name} ::= {body}" for name, body in self._bodies.items())]
        return "\n".join(rules) + "\n"

    def named(self) -> str:
        """A name to refer to before its rule is defined."""
        self.spend(1)
        name = f"r{len(self._bodies)}"
        self._bodies[name] = '""'
        return name

    def define(self, name: str, body: str) -> str:
        self._bodies[name] = body
        return name

    def made(self, body: str, attribute: str = "") -> str:
        """The name of a rule with this body; equal ones are shared."""
        key = f"{attribute} {body}"
        if key not in self._shared:
            self.spend(1)
            name = f"r{len(self._bodies)}"
            self._bodies[name + attribute] = body
            self._shared[key] = name
        return self._shared[key]

    def spend(self, milliseconds: int) -> None:
        """Of compiling. Raises UnkeptError when there are none left, or too many rules."""
        self.budget -= milliseconds
        if self.budget < 0 or len(self._bodies) > MAX_RULES:
            raise UnkeptError("it is too large to compile; make it simpler")


def literal(text: str) -> str:
    return json.dumps(text, ensure_ascii=False)
