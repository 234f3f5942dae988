"""Resource: anything that a request holds while it is in a slot.

KV blocks, and later LoRA slots, encoder-cache entries, grammars, a draft's KV and state slots all
implement this. The scheduler holds a list of resources and knows none by name. Lengths are
absolute (tokens from the start of the request); `slot` is the request's place in the request table.

Life of a request in a slot:

    admit → (reserve → commit)* → [trim] → release

`reserve` answers GRANTED, WAIT (try again next step; never a reason to preempt: a grammar
compiling, a tier loading) or FULL (something must be given back first). A refused reserve changes
nothing.
"""

from __future__ import annotations

import enum
from typing import Protocol

import numpy as np
from msgspec import Struct


class Grant(enum.Enum):
    GRANTED = "granted"
    WAIT = "wait"
    FULL = "full"


class TableUpdate(Struct, frozen=True):
    """Block table of (`slot`, `group`) gets `blocks` (int32[n]) from logical index `first` on."""

    slot: int
    group: int
    first: int
    blocks: np.ndarray


class Holder(Protocol):
    """What a resource may know about the request that holds it."""

    id: str
    prompt_len: int
    cache_salt: str
    cache_read: bool  # may start from cached blocks
    cache_store: bool  # may publish its blocks

    @property
    def known(self) -> np.ndarray:
        """int32[n]: prompt and committed output, a view that stays valid until the slot is left.

        Right after `admit` it is what must be computed; it grows as tokens are committed.
        """
        ...


class Resource(Protocol):
    def admit(self, slot: int, holder: Holder) -> int:
        """The request takes `slot`. Returns how many leading tokens need no computing as far as
        this resource is concerned (the prefix hit); `len(holder.known)` if it has no opinion."""
        ...

    def short(self, slots: np.ndarray, upto: np.ndarray) -> np.ndarray:
        """bool[R]: rows whose reservation does not reach `upto` yet. Vectorized, no side effects."""
        ...

    def reserve(self, slot: int, upto: int) -> Grant:
        """Hold what tokens [0, upto) of `slot` need. Free of cost while already reserved."""
        ...

    def commit(self, slots: np.ndarray, computed: np.ndarray) -> None:
        """Tokens [0, computed) of each slot are verified and their state is written: they may be
        published (prefix cache), and what only older tokens needed (sliding windows) is freed."""
        ...

    def trim(self, slot: int, upto: int) -> None:
        """Give back the reservation beyond `upto` tokens."""
        ...

    def fork(self, parent: int, child: int) -> None:
        """`child` (freshly admitted) shares what `parent` has committed."""
        ...

    def release(self, slot: int) -> None:
        """Give everything back. Published content stays reusable until evicted."""
        ...

    def take_updates(self) -> tuple[TableUpdate, ...]:
        """Block-table changes since the last call, for the next plan; () for other resources."""
        ...
