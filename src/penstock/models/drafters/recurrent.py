"""What EAGLE-3 heads and MTP modules have in common: one decoder layer that reads, at every position, a
hidden state and the token that follows it, and whose own result is the hidden state of the next draft.

    position t: (hidden(t), token(t + 1)) -> layer -> hidden'(t) -> token(t + 2)
    verified:   hidden(t) is made of the target's features
    drafting:   hidden'(t) stands for hidden(t + 1), the draft for token(t + 2)

The layer is the only one, so a position's keys and values depend on its hidden state and token alone. Those
made while drafting lie in the anchor's spare room and are gone with the round: the context of verified tokens
is always of true features (vllm#14649 measured what keeping the approximated ones costs).
"""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np

from penstock.kernels.reference.norm import rms_norm
from penstock.models.drafters.layer import DraftLayer
from penstock.models.drafters.network import Anchor, CacheShape

MOST_DRAFTS = 32  # of a request in one step: the limit of `speculation.k`


class RecurrentNetwork:
    """The drafting of a `network.DraftNetwork`; subclasses say what the layer reads."""

    looks_ahead = True
    most_missing = 0.5
    scratch_rows = MOST_DRAFTS

    def __init__(self, layer: DraftLayer, feed_gain: np.ndarray) -> None:
        """feed_gain: of the norm before the MLP."""
        self._layer = layer
        self._feed_gain = feed_gain
        heads = layer.heads
        self.cache_shape = CacheShape(1, heads.kv_heads, heads.head_dim)

    def hidden(self, features: np.ndarray) -> np.ndarray:
        """float32[n, w] -> float32[n, d]"""
        raise NotImplementedError

    def enter(self, hidden: np.ndarray, tokens: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
        """hidden float32[n, d], the tokens that follow int32[n] -> the residual [n, d], attention's input."""
        raise NotImplementedError

    def tokens(self, hidden: np.ndarray) -> np.ndarray:
        """float32[n, d] -> int[n], the likeliest tokens."""
        raise NotImplementedError

    def context(
        self, features: np.ndarray, following: np.ndarray, positions: np.ndarray
    ) -> tuple[np.ndarray, np.ndarray]:
        _, x = self.enter(self.hidden(features), following)
        keys, values = self._layer.keys_values(x, positions)
        return keys[None], values[None]

    def draft(self, anchors: Sequence[Anchor]) -> list[list[int]]:
        drafts: list[list[int]] = [[] for _ in anchors]
        hidden = self.hidden(np.stack([anchor.features for anchor in anchors]))
        tokens = np.array([anchor.token for anchor in anchors], np.int32)
        going = np.arange(len(anchors))
        for step in range(max(anchor.most for anchor in anchors)):
            more = np.array([anchors[i].most > step for i in going.tolist()])
            going, hidden, tokens = going[more], hidden[more], tokens[more]
            hidden = self._step([anchors[i] for i in going.tolist()], hidden, tokens, step)
            tokens = self.tokens(hidden).astype(np.int32)
            for i, token in zip(going.tolist(), tokens.tolist(), strict=True):
                drafts[i].append(token)
        return drafts

    def _step(
        self, anchors: Sequence[Anchor], hidden: np.ndarray, tokens: np.ndarray, step: int
    ) -> np.ndarray:
        """The layer's results [n, d] for a position of each request, `step` behind the last verified one."""
        layer = self._layer
        positions = np.array([anchor.position - 1 + step for anchor in anchors], np.int32)
        residual, x = self.enter(hidden, tokens)
        queries = layer.queries(x, positions)
        if step:  # the first one's keys and values are the last of the context
            keys, values = layer.keys_values(x, positions)
        mixed = []
        for i, anchor in enumerate(anchors):
            end = anchor.length + step
            if step:
                anchor.keys[0, end - 1], anchor.values[0, end - 1] = keys[i], values[i]
                anchor.positions[end - 1] = positions[i]
            mixed.append(
                layer.attend(
                    queries[i : i + 1],
                    positions[i : i + 1],
                    anchor.keys[0, :end],
                    anchor.values[0, :end],
                    anchor.positions[:end],
                )
            )
        x = residual + np.concatenate(mixed)
        return np.asarray(x + layer.feed(rms_norm(x, self._feed_gain, layer.eps)))
