"""Suffix drafter: what most often followed the longest suffix of a request that stood somewhere before.

Suffix decoding (arXiv:2411.04975): the longest match, in the request's own tokens and in the outputs that its
tenant's requests finished; from there the most frequent next token, again and again, while the product of
the frequencies stays likely enough; the longer the match, the more tokens. Of the two sources the one with
the higher expected number of correct tokens is taken.

Other than in the paper there is no tree: a node's occurrences are a range of sorted contexts (see contexts),
and what follows them is read from the text, for at most `sampled` of them. Along one path the product of the
frequencies is the share of the occurrences that go on as the path does.
"""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np

from penstock.decoding.drafting.contexts import NO_TOKEN, ContextIndex, find
from penstock.decoding.drafting.drafter import NOTHING, Proposal
from penstock.decoding.drafting.outputs import FinishedOutputs
from penstock.errors import PenstockError


class Request:
    """One request's tokens, sorted by context."""

    __slots__ = ("index", "prompt_len", "tenant")

    def __init__(self, tokens: np.ndarray, prompt_len: int, tenant: str, depth: int) -> None:
        self.index = ContextIndex(depth)
        self.index.extend(tokens)
        self.prompt_len = prompt_len
        self.tenant = tenant


class SuffixDrafter:
    """See `penstock.decoding.drafting.drafter.HostDrafter`."""

    name = "suffix"

    def __init__(
        self,
        *,
        depth: int = 24,
        max_spec_factor: float = 1.0,
        max_spec_offset: float = 0.0,
        least_probability: float = 0.1,
        sampled: int = 16,
        kept_tokens: int = 1 << 17,
    ) -> None:
        """depth: longest match in tokens. A match of length m proposes at most max_spec_factor * m +
        max_spec_offset tokens, as long as they are right with `least_probability`. sampled: occurrences
        whose continuations are counted. kept_tokens: of finished outputs, over all tenants."""
        if depth < 1 or sampled < 1:
            raise ValueError(f"depth {depth} and sampled {sampled} must be at least 1")
        self._depth = depth
        self._factor = max_spec_factor
        self._offset = max_spec_offset
        self._least = least_probability
        self._sampled = sampled
        self._requests: dict[int, Request] = {}
        self.outputs = FinishedOutputs(depth, kept_tokens)

    def admit(self, slot: int, tokens: np.ndarray, tenant: str, prompt_len: int | None = None) -> None:
        length = len(tokens) if prompt_len is None else prompt_len
        self._requests[slot] = Request(tokens, length, tenant, self._depth)

    def extend(self, slot: int, tokens: Sequence[int]) -> None:
        append = self._request(slot).index.append
        for token in tokens:
            append(token)

    def propose(self, slot: int, most: int) -> Proposal:
        request = self._request(slot)
        own = self._draft((request.index,), request.index, most)
        expected = sum(own.survival)
        outputs = self.outputs.of(request.tenant)
        if not outputs or expected >= most:
            return own
        shared = self._draft(outputs, request.index, most)
        return shared if sum(shared.survival) > expected else own

    def release(self, slot: int, finished: bool = False) -> None:
        request = self._requests.pop(slot, None)
        if request is not None and finished:
            tokens = np.array(request.index.tokens, np.int32)
            self.outputs.add(request.tenant, tokens, request.prompt_len)

    def _draft(self, sources: Sequence[ContextIndex], text: ContextIndex, most: int) -> Proposal:
        """What the sources know to follow the end of `text`."""
        known = min(len(text), self._depth)
        length, found = find(sources, text.context, known, self._sampled)
        limit = min(most, int(self._factor * length + self._offset))
        if not length or limit <= 0:
            return NOTHING
        following = [
            [*index.tokens[place : place + limit], NO_TOKEN] for index, places in found for place in places
        ]
        tokens, survival = most_frequent_path(following, limit, self._least)
        return Proposal(tokens, survival, length) if tokens else NOTHING

    def _request(self, slot: int) -> Request:
        request = self._requests.get(slot)
        if request is None:
            raise PenstockError(f"slot {slot} holds no request; admit one before drafting for it")
        return request


def most_frequent_path(following: list[list[int]], limit: int, least: float) -> tuple[list[int], list[float]]:
    """The most frequent next token, then the most frequent one after that, and so on.

    following: what came after each occurrence, the latest occurrence first (it decides between equally
    frequent tokens): at least one sequence, each of `limit` tokens or ended by NO_TOKEN. Returns (tokens,
    survival), where survival[i] >= least is the share of all occurrences that went on as tokens[: i + 1].
    """
    total = len(following)
    tokens: list[int] = []
    survival: list[float] = []
    for depth in range(limit):
        column = [path[depth] for path in following]
        token, count = column[0], column.count(column[0])
        if count < len(column):
            for other in dict.fromkeys(column):
                times = column.count(other)
                if other != NO_TOKEN and (times > count or token == NO_TOKEN):
                    token, count = other, times
            following = [path for path in following if path[depth] == token]
        if token == NO_TOKEN or count / total < least:
            break
        tokens.append(token)
        survival.append(count / total)
    return tokens, survival
