"""What a call says about thinking, resolved against its model: one budget, and the markers in token ids.

A switch to false reaches the template under each name that templates have for it, and is a budget of 0 where
the template ignores it. A budget for a model that shows no reasoning has nothing to bound and does nothing.
"""

from __future__ import annotations

from collections.abc import Sequence, Set
from typing import TYPE_CHECKING, Any

import msgspec
import numpy as np
from msgspec import Struct

from penstock.decoding.thinking import Marker, ThinkingSpec
from penstock.thinking import (
    SWITCHES,
    check_agreement,
    claim_of_budget,
    claim_of_effort,
    claims_of_template_args,
)

if TYPE_CHECKING:
    from penstock.text.output.reasoning import ReasoningMarkers
    from penstock.text.tokenizer import Tokenizer

TokenIds = Sequence[int] | np.ndarray

# What ordinary text around a marker may share a token with it, in the usual vocabularies.
_BEFORE = ("", " ", "\n", "\n\n", ".", ".\n", ".\n\n")
_BEHIND = ("", " ", "\n", "\n\n")


class ThinkingWish(Struct, frozen=True):
    """`budget`: thinking tokens at most, None for any number. `off`: the template was told not to think.
    `template_args`: the call's, with what follows from them."""

    budget: int | None
    off: bool
    template_args: dict[str, Any]


def read_wish(
    thinking_budget: int | None, template_args: dict[str, Any], variables: Set[str]
) -> ThinkingWish:
    """variables: what the template reads. Raises InvalidRequest for what is malformed or contradictory."""
    args = dict(template_args)
    efforts = claim_of_effort(args.get("reasoning_effort"), variables)
    told = claims_of_template_args(args)
    claims = [*claim_of_budget("thinking_budget", thinking_budget), *efforts, *told]
    check_agreement(claims)
    budget = next((claim.budget for claim in claims if claim.budget is not None), None)
    switch = next((claim.thinks for claim in (*efforts, *told) if claim.thinks is not None), None)
    if switch is not None:
        args |= {name: switch for name in SWITCHES if args.get(name) is None}
    if budget is not None and "thinking_budget" in variables:
        args["thinking_budget"] = budget  # such a template tells its model
    return ThinkingWish(budget, switch is False, args)


def bounded(
    spec: ThinkingSpec, budget: int | None, max_tokens: int, grammar: bool, lead_in: Marker
) -> ThinkingSpec | None:
    """What the sampler of an answer has to know; None if nothing: rows that draw by themselves are faster.

    grammar: the answer has one, which begins behind the reasoning and `lead_in`.
    """
    if budget is not None and spec.used + max_tokens <= budget - len(spec.closing):
        budget = None  # the answer is over first
    if grammar:
        return msgspec.structs.replace(spec, budget=budget, starts=spec.starts[:1], lead_in=lead_in)
    return None if budget is None else msgspec.structs.replace(spec, budget=budget)


class ThinkingMarkers:
    """A model's reasoning markers in its own tokens."""

    def __init__(self, tokenizer: Tokenizer, closing: str = "") -> None:
        """closing: the sentence before an end marker that is forced."""
        self._tokenizer = tokenizer
        self._closing = tuple(tokenizer.encode_continuation(closing)) if closing else ()
        self._known: dict[str, tuple[Marker, ...]] = {}

    def of_chat(
        self, marks: ReasoningMarkers, source: str, text: str, ids: TokenIds, calls: bool
    ) -> ThinkingSpec | None:
        """How the answer to a rendered prompt reasons. source: its template, which shows one of `marks`."""
        opened = marks.open_at_end(text)
        begin = opened or next(begin for begin, _ in marks.pairs if begin in source)
        spec = self._spec(marks, begin, calls)
        if spec is None or opened is None:  # markers before the very end may be those of a user's text
            return spec
        return msgspec.structs.replace(_inside(spec, ids), open=True)

    def of_completion(self, ids: TokenIds) -> ThinkingSpec | None:
        """How a raw prompt goes on: by the markers that the model's chat template shows, else `<think>` where
        the vocabulary has it."""
        from penstock.text.output.choose import format_for_template
        from penstock.text.output.reasoning import THINK

        source = self._tokenizer.chat_template
        marks: ReasoningMarkers | None = THINK
        if source is not None:
            marks = format_for_template(source).reasoning
            begin = next((begin for begin, _ in marks.pairs if begin in source), None) if marks else None
        else:
            known = all(self._tokenizer.token_id(marker) is not None for marker in THINK.pairs[0])
            begin = THINK.begin if known else None
        if marks is None or begin is None:
            return None
        spec = self._spec(marks, begin, False)
        return None if spec is None else _inside(spec, ids)

    def _spec(self, marks: ReasoningMarkers, begin: str, calls: bool) -> ThinkingSpec | None:
        """Of sections that `begin` (one of `marks`) opens; None if the vocabulary can't spell them. calls:
        markers of calls end them too."""
        starts, ends = self.spellings(begin), self.spellings(marks.end_of(begin))
        if not (starts and ends):
            return None
        return ThinkingSpec(
            starts=starts,
            ends=ends,
            ended_by=tuple(ids for text in (marks.ended_by if calls else ()) for ids in self.spellings(text)),
            closing=self._closing,
        )

    def ids(self, text: str) -> Marker:
        """Of a text between markers, which may be empty."""
        return tuple(self._tokenizer.encode_continuation(text)) if text else ()

    def spellings(self, marker: str) -> tuple[Marker, ...]:
        """The token sequences that `marker` may be written in: as it stands alone first, then with tokens
        that it shares with the text around it. A special token has one spelling."""
        found = self._known.get(marker)
        if found is None:
            alone = tuple(self._tokenizer.encode_continuation(marker))
            spelled = b"".join(self._tokenizer.piece(token) for token in alone)
            every = {alone: None} if spelled == marker.encode() else {}
            if every and len(alone) > 1:
                for before in _BEFORE:
                    for behind in _BEHIND:
                        every[self._within(before, marker, behind)] = None
                every.pop((), None)
            found = self._known[marker] = tuple(every)
        return found

    def _within(self, before: str, marker: str, behind: str) -> Marker:
        """The tokens of `marker` in a text, () if the tokens do not add up to it."""
        head, text = f"a{before}".encode(), f"a{before}{marker}{behind}a"
        ids = self._tokenizer.encode_continuation(text)
        pieces = [self._tokenizer.piece(token) for token in ids]
        if b"".join(pieces) != text.encode():
            return ()
        first, last = len(head), len(head) + len(marker.encode())
        found, at = [], 0
        for token, piece in zip(ids, pieces, strict=True):
            if at < last and at + len(piece) > first:
                found.append(token)
            at += len(piece)
        return tuple(found)


def _inside(spec: ThinkingSpec, tokens: TokenIds) -> ThinkingSpec:
    """`spec` for a prompt: inside a section if `tokens` begin one behind the last that they end."""
    heads = {marker[-1] for marker in (*spec.starts, *spec.ends)}
    for end in range(len(tokens), 0, -1):
        if tokens[end - 1] not in heads:
            continue
        if _ends_in(tokens, end, spec.ends):
            return spec
        if _ends_in(tokens, end, spec.starts):
            return msgspec.structs.replace(spec, open=True, used=len(tokens) - end)
    return spec


def _ends_in(tokens: TokenIds, end: int, markers: Sequence[Marker]) -> bool:
    return any(end >= len(m) and tuple(tokens[end - len(m) : end]) == m for m in markers)
