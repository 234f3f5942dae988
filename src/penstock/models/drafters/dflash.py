"""DFlash: a block of drafts from one forward pass (block diffusion, arXiv:2602.06036).

The context of a position is made of the target's hidden states after several layers; the block is the last
known token and masks behind it:

    ctx(t) = rms_norm(fc(features(t)))                      keys and values of ctx(t): the context
    x = target's embedding of [token, MASK, …, MASK]        keys and values of x: this round's only
    each layer: q from x, k and v from ctx and x by the same weights; a block's positions see each other
    drafts = argmax of the target's head over norm(x), from the second position on

The block always has the length that the network was trained with: a shorter one would draft differently,
since its positions see each other, and costs hardly less. What is not asked for is left out.

Source: the reference of z-lab/dflash (`dflash/model.py`); causality as vLLM resolves it: `is_causal`, then
`dflash_config.causal`, then sliding layers are causal and full ones are not.
"""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np

from penstock.errors import ModelRefused
from penstock.kernels.reference.linear import linear
from penstock.kernels.reference.norm import rms_norm
from penstock.models.arch.config import Config
from penstock.models.drafters.layer import DraftLayer, load_layer
from penstock.models.drafters.network import Anchor, CacheShape, Target
from penstock.models.drafters.weights import DraftWeights

DEFAULT_BLOCK = 16


class DflashNetwork:
    """See `penstock.models.drafters.network.DraftNetwork`."""

    name = "dflash"
    looks_ahead = False
    most_missing = 0.25

    def __init__(self, path: Path, target: Target, context: int) -> None:
        """`context` is the longest that is served."""
        weights = DraftWeights(path)
        c, spec = weights.config, target.spec
        hidden = int(c.need("hidden_size"))
        if hidden != spec.hidden_size:
            raise ModelRefused(
                f"{path}: hidden_size {hidden}, the model it shall draft for has {spec.hidden_size}"
            )
        self.capture = captured_layers(c, len(spec.layers))
        self._target = target
        self._eps = float(c.get("rms_norm_eps", 1e-6))
        self._block = int(_value(c, "block_size", DEFAULT_BLOCK))
        self._mask = int(_need(path, c, "mask_token_id"))
        if not 0 <= self._mask < spec.vocab_size or self._block < 2:
            raise ModelRefused(
                f"{path}: mask_token_id {self._mask} of {spec.vocab_size} tokens, block_size {self._block}; "
                "a block needs a mask that the model has an embedding of, and 2 tokens"
            )
        self._embedding_scale = np.float32(_value(c, "input_embedding_scale", 1.0))
        self._fc = weights.take("fc.weight", hidden, hidden * len(self.capture))
        self._context_gain = weights.take("hidden_norm.weight", hidden)
        self._norm = weights.take("norm.weight", hidden)
        self._layers: list[tuple[DraftLayer, np.ndarray, np.ndarray]] = []
        for index, slides in enumerate(c.sliding(lambda layer: False)):
            prefix = f"layers.{index}."
            layer = load_layer(
                weights,
                prefix,
                hidden,
                window=int(c.need("sliding_window")) if slides else None,
                causal=_is_causal(c, slides),
                context=context,
            )
            norms = ("input_layernorm.weight", "post_attention_layernorm.weight")
            before, after = (weights.take(prefix + name, hidden) for name in norms)
            self._layers.append((layer, before, after))
        weights.finish()
        heads = c.heads
        self.cache_shape = CacheShape(len(self._layers), heads.kv_heads, heads.head_dim)
        self.scratch_rows = self._block

    def context(
        self, features: np.ndarray, following: np.ndarray, positions: np.ndarray
    ) -> tuple[np.ndarray, np.ndarray]:
        del following
        x = rms_norm(linear(features, self._fc), self._context_gain, self._eps)
        made = [layer.keys_values(x, positions) for layer, _, _ in self._layers]
        return np.stack([keys for keys, _ in made]), np.stack([values for _, values in made])

    def draft(self, anchors: Sequence[Anchor]) -> list[list[int]]:
        size, count = self._block, len(anchors)
        tokens = np.full((count, size), self._mask, np.int32)
        tokens[:, 0] = [anchor.token for anchor in anchors]
        starts = np.array([anchor.position for anchor in anchors], np.int32)
        positions = (starts[:, None] + np.arange(size, dtype=np.int32)).reshape(-1)
        x = self._target.embedding(tokens.reshape(-1)) * self._embedding_scale
        for index, (layer, before, after) in enumerate(self._layers):
            x = x + self._attend(index, layer, rms_norm(x, before, self._eps), positions, anchors)
            x = x + layer.feed(rms_norm(x, after, self._eps))
        drafted = np.arange(count * size) % size > 0
        hidden = rms_norm(x[drafted], self._norm, self._eps)
        best = np.asarray(self._target.logits(hidden)).argmax(axis=1).reshape(count, size - 1)
        return [row[: anchor.most].tolist() for row, anchor in zip(best, anchors, strict=True)]

    def _attend(
        self, index: int, layer: DraftLayer, h: np.ndarray, positions: np.ndarray, anchors: Sequence[Anchor]
    ) -> np.ndarray:
        """h [anchors · block, d]: every block over its request's context and itself."""
        queries = layer.queries(h, positions)
        keys, values = layer.keys_values(h, positions)
        parts = []
        for number, anchor in enumerate(anchors):
            block = slice(number * self._block, (number + 1) * self._block)
            rows = slice(anchor.length, anchor.length + self._block)
            anchor.keys[index, rows], anchor.values[index, rows] = keys[block], values[block]
            anchor.positions[rows] = positions[block]
            seen = slice(0, rows.stop)
            parts.append(
                layer.attend(
                    queries[block],
                    positions[block],
                    anchor.keys[index, seen],
                    anchor.values[index, seen],
                    anchor.positions[seen],
                )
            )
        return np.concatenate(parts)


def captured_layers(c: Config, num_layers: int) -> tuple[int, ...]:
    """`target_layer_ids`; without them spread over the target's `num_layers`, as the reference does."""
    ids = _value(c, "target_layer_ids")
    if ids is None:
        count = c.num_layers
        last = num_layers - 3
        spread = [round(1 + i * (last - 1) / (count - 1)) for i in range(count)] if count > 1 else []
        ids = spread or [num_layers // 2]
    return tuple(int(layer) for layer in ids)


def _value(c: Config, key: str, default: Any = None) -> Any:
    """Of the group `dflash_config`, or beside it."""
    group = c.get("dflash_config", {})
    value = group.get(key)
    return c.get(key, default) if value is None else value


def _need(path: Path, c: Config, key: str) -> Any:
    value = _value(c, key)
    if value is None:
        raise ModelRefused(f"{path}: config.json has no {key!r}; it is no DFlash drafter")
    return value


def _is_causal(c: Config, slides: bool) -> bool:
    for stated in (c.get("is_causal"), c.get("dflash_config", {}).get("causal")):
        if stated is not None:
            return bool(stated)
    return slides
