"""Draft networks that read the target's hidden states: what they are asked, whatever their kind.

Such a network keeps keys and values of its own for what the target has computed, one row per *feature*: the
hidden states that the target had at a position after chosen layers. A row depends on its position alone (and
for some networks on the token that follows), not on other rows, so a context may lack positions: what was
never computed here, because the target found it in its prefix cache, is absent and nothing else changes.
Acceptance falls, though. Of 5 drafts of tiny networks fitted to their texts so many were right without the
first 0, 10, 25, 50, 75 % of the context: DFlash 5.0, 3.5, 1.5, 0.1, 0.1; EAGLE-3 4.4, 3.6, 2.3, 1.5, 0.5; MTP
5.0, 4.9, 4.1, 2.3, 0.7. (vllm#47930: 0.3-0.8 % instead of 38 % with all cached tokens absent.)

    features of verified tokens ──context()──> keys, values ──┐
    last token, features before it ───────────────────────────┴──draft()──> tokens
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any, Protocol

import numpy as np
from msgspec import Struct


class Target(Protocol):
    """What a draft network uses of the model that it drafts for."""

    spec: Any

    @property
    def final_norm(self) -> np.ndarray:
        """float32[d]: the gain of the norm before the head."""
        ...

    def embedding(self, tokens: np.ndarray) -> np.ndarray:
        """int32[n] -> float32[n, d], not scaled."""
        ...

    def logits(self, hidden: Any) -> Any:
        """Final-normed float32[n, d] -> float32[n, V]. Only while no step runs, so only when drafting."""
        ...


class CacheShape(Struct, frozen=True):
    """Keys and values of a position: `layers` times [kv_heads, head_dim] each."""

    layers: int
    kv_heads: int
    head_dim: int

    @property
    def token_bytes(self) -> int:
        """Of keys and values, float32."""
        return 4 * 2 * self.layers * self.kv_heads * self.head_dim


class Anchor(Struct, frozen=True):
    """Where a request's drafts begin.

    keys, values: float32[L, N, G, D] and positions: int32[N]; the first `length` rows are the context,
    ascending by position; behind them is room for `DraftNetwork.scratch_rows` rows that the network may
    write and that mean nothing afterwards.
    token: the last known token, at `position`; features: float32[w] of the position before it.
    most: drafts wanted at most.
    """

    keys: np.ndarray
    values: np.ndarray
    positions: np.ndarray
    length: int
    token: int
    position: int
    features: np.ndarray
    most: int


class DraftNetwork(Protocol):
    """One loaded drafter.

    capture: layers of the target whose results are its features; cache_shape: of its context;
    looks_ahead: a position's context depends on the token that follows it; scratch_rows: see Anchor;
    most_missing: share of the context without which drafts are not worth their price.
    """

    name: str
    capture: tuple[int, ...]
    cache_shape: CacheShape
    looks_ahead: bool
    scratch_rows: int
    most_missing: float

    def context(
        self, features: np.ndarray, following: np.ndarray, positions: np.ndarray
    ) -> tuple[np.ndarray, np.ndarray]:
        """Keys and values float32[L, n, G, D] of n positions.

        features: float32[n, w]; following: int32[n], the token after each; positions: int32[n]."""
        ...

    def draft(self, anchors: Sequence[Anchor]) -> list[list[int]]:
        """Up to `most` tokens for each: the likeliest, one after the other."""
        ...
