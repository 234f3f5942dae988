"""Host drafters: what they are asked, and what they answer.

A drafter proposes the tokens that it expects next; the target model checks all of them in one step and keeps
those that it would have chosen itself (arXiv:2211.17192). So a drafter decides about speed only, never about
what is generated. A host drafter needs nothing of the device: it knows tokens and looks them up.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Protocol, runtime_checkable

import numpy as np
from msgspec import Struct


class Proposal(Struct, frozen=True):
    """Tokens that may come next, first the next one.

    survival[i]: estimated probability in (0, 1] that tokens[: i + 1] are all right, so it never rises with i
    and its sum is the expected number of correct tokens; 1.0 throughout where one occurrence is all that is
    known. support: length in tokens of the match that the proposal rests on, 0 if there is none.
    """

    tokens: list[int]
    survival: list[float]
    support: int


NOTHING = Proposal([], [], 0)


class HostDrafter(Protocol):
    """Proposes tokens from what the host knows. One per engine; not thread-safe; called by the engine's
    thread only. `extend` and `propose` raise PenstockError for a slot that holds no request.

    A proposal is a function of the tokens and of what was shared by the tenant: a request that left its slot
    and was admitted with the tokens it had goes on as if it had never left.
    """

    name: str

    def admit(self, slot: int, tokens: np.ndarray, tenant: str, prompt_len: int | None = None) -> None:
        """A request takes the slot, whatever it held.

        tokens: int32[known], the prompt and what was generated before a preemption, which begins at
        `prompt_len` (None: all of them are prompt). tenant: names those who may see each other's text
        (the cache salt).
        """
        ...

    def extend(self, slot: int, tokens: Sequence[int]) -> None:
        """Verified tokens, appended."""
        ...

    def propose(self, slot: int, most: int) -> Proposal:
        """Up to `most` tokens to come next; maybe none."""
        ...

    def release(self, slot: int, finished: bool = False) -> None:
        """The request left the slot; a free one may be released again. finished: its output is complete and
        may serve others of its tenant; the caller asks the request's cache policy."""
        ...


@runtime_checkable
class BatchDrafter(HostDrafter, Protocol):
    """One that drafts for several requests at once, at a price for each draft."""

    def propose_all(self, slots: Sequence[int], most: Sequence[int]) -> list[Proposal]:
        """Up to most[i] tokens to come next in slots[i]; none where most[i] is 0."""
        ...


@runtime_checkable
class FeatureDrafter(BatchDrafter, Protocol):
    """One that reads the target's hidden states. It is told of a request as soon as it has a slot, and of
    every token that was computed and verified, in order; not of those that a prefix cache already had."""

    def feed(self, slot: int, first: int, features: np.ndarray) -> None:
        """features: float32[n, w] of the tokens at positions [first, first + n), all known to the drafter."""
        ...

    def keep(self, slot: int) -> None:
        """What is made of this request may serve others of its tenant, now and when it has left."""
        ...

    def missing(self, slot: int) -> int:
        """Tokens before the last known one that it has no context of, as of the last proposal."""
        ...
