"""Reasoning sections: what begins and ends them, and whether the prompt has opened one already.

- A template whose generation prompt ends in the opening marker (DeepSeek R1, Qwen3 Thinking, QwQ) makes the
  model begin inside the section; only the very end of the prompt counts, because a user may write a marker
  too.
- White space at the edges of a section belongs to its markers: templates write
  `<think>\\n…\\n</think>\\n\\n`.
- A closing marker without a section (before any section) is dropped; what came before it was given as text
  already.
- A section that never closes is reasoning to the end.
"""

from __future__ import annotations

from msgspec import Struct


class ReasoningMarkers(Struct, frozen=True):
    """`also`: further pairs that the family knows. `ended_by`: markers of calls that end a section too.

    `before_answer`, `before_calls`: what a message format puts between a section and what follows it.
    """

    begin: str
    end: str
    also: tuple[tuple[str, str], ...] = ()
    ended_by: tuple[str, ...] = ()
    before_answer: str = ""
    before_calls: str = ""

    @property
    def pairs(self) -> tuple[tuple[str, str], ...]:
        return ((self.begin, self.end), *self.also)

    def end_of(self, begin: str) -> str:
        return dict(self.pairs)[begin]

    def open_at_end(self, prompt: str) -> str | None:
        """The opening marker in which the prompt ends, if it does."""
        end = prompt[-400:].rstrip()
        return next((begin for begin, _ in self.pairs if end.endswith(begin.rstrip())), None)

    def closed_at_end(self, prompt: str) -> bool:
        """Whether the prompt ends in a closing marker: the template wrote an empty section."""
        end = prompt[-400:].rstrip()
        return any(end.endswith(marker.rstrip()) for _, marker in self.pairs)


THINK = ReasoningMarkers("<think>", "</think>")
