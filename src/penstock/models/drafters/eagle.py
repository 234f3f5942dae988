"""EAGLE-3 heads (arXiv:2503.01840): one layer over the target's low, middle and high hidden states.

    hidden(t) = fc(concat of features(t))                           verified positions
    attention reads concat(rms_norm(embedding(token)), rms_norm(hidden)); the residual is hidden
    draft = argmax lm_head(rms_norm(result)), an id of the draft vocabulary; d2t gives its distance to the
    target's id

Source: the reference of SafeAILab/EAGLE (`eagle/model/cnets.py`); checkpoints also as vLLM, SGLang and
speculators lay them out. Drafts are a chain, not a tree.
"""

from __future__ import annotations

from pathlib import Path

import numpy as np

from penstock.errors import ModelRefused
from penstock.kernels.reference.linear import linear
from penstock.kernels.reference.norm import rms_norm
from penstock.models.arch.config import Config
from penstock.models.drafters.layer import load_layer
from penstock.models.drafters.network import Target
from penstock.models.drafters.recurrent import RecurrentNetwork
from penstock.models.drafters.weights import DraftWeights

LAYER = "layers.0."


class EagleNetwork(RecurrentNetwork):
    """See `penstock.models.drafters.network.DraftNetwork`."""

    name = "eagle"

    def __init__(self, path: Path, target: Target, context: int) -> None:
        """`context` is the longest that is served."""
        weights = DraftWeights(path)
        weights.rename("midlayer.", LAYER)
        c, spec = weights.config, target.spec
        hidden = int(c.need("hidden_size"))
        self.capture = captured_layers(c, len(spec.layers))
        self._target = target
        self._eps = float(c.get("rms_norm_eps", 1e-6))
        if c.num_layers != 1:
            raise ModelRefused(f"{path}: {c.num_layers} layers; EAGLE-3 heads of one layer are served")
        if "fc.weight" not in weights or "norm.weight" not in weights:
            raise ModelRefused(f"{path}: not an EAGLE-3 head; those of EAGLE 1 and 2 are not served")
        self._fc = weights.take("fc.weight", hidden, spec.hidden_size * len(self.capture))
        gains = ("hidden_norm", "input_layernorm", "post_attention_layernorm")
        self._hidden_gain, self._embed_gain, feed_gain = (
            weights.take(f"{LAYER}{name}.weight", hidden) for name in gains
        )
        self._norm_first = bool(c.get("norm_before_residual", False))
        slides = c.sliding(lambda layer: False)[0]
        window = int(c.need("sliding_window")) if slides else None
        super().__init__(
            load_layer(weights, LAYER, 2 * hidden, window=window, causal=True, context=context), feed_gain
        )
        self._norm = weights.take("norm.weight", hidden)
        self._embed = weights.maybe("embed_tokens.weight", spec.vocab_size, hidden)
        drafted = int(c.get("draft_vocab_size", spec.vocab_size))
        self._head = weights.maybe("lm_head.weight", drafted, hidden)
        self._ids = np.arange(drafted)
        if "d2t" in weights:
            self._ids = self._ids + weights.integers("d2t")
        weights.finish("t2d")
        shared = self._embed is None or self._head is None
        if (shared and hidden != spec.hidden_size) or (self._head is None and drafted != spec.vocab_size):
            raise ModelRefused(
                f"{path}: neither has an embedding and a head of its own nor the sizes of the model that it "
                f"shall draft for ({hidden} and {drafted}, it has {spec.hidden_size} and {spec.vocab_size})"
            )
        if self._ids.min() < 0 or self._ids.max() >= spec.vocab_size:
            raise ModelRefused(f"{path}: d2t names tokens outside the vocabulary of {spec.vocab_size}")

    def hidden(self, features: np.ndarray) -> np.ndarray:
        return linear(features, self._fc)

    def enter(self, hidden: np.ndarray, tokens: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
        embedded = self._target.embedding(tokens) if self._embed is None else self._embed[tokens]
        normed = rms_norm(hidden, self._hidden_gain, self._eps)
        x = np.concatenate([rms_norm(embedded, self._embed_gain, self._eps), normed], axis=1)
        return (normed if self._norm_first else hidden), x

    def tokens(self, hidden: np.ndarray) -> np.ndarray:
        normed = rms_norm(hidden, self._norm, self._eps)
        if self._head is None:
            return np.asarray(self._target.logits(normed)).argmax(axis=1)
        return np.asarray(self._ids[linear(normed, self._head).argmax(axis=1)])


def captured_layers(c: Config, num_layers: int) -> tuple[int, ...]:
    """Layers of a target of `num_layers` whose results are the features; -1: its embeddings.

    `eagle_aux_hidden_state_layer_ids` counts hidden states, 0 being the embeddings (vLLM, speculators); in
    the group `eagle_config` it counts layers (SGLang, SpecForge). Without either: the states before layers
    2, n/2 and n - 3, as in the reference.
    """
    states = c.get("eagle_aux_hidden_state_layer_ids")
    if states is not None:
        return tuple(int(state) - 1 for state in states)
    layers = c.get("eagle_config", {}).get("eagle_aux_hidden_state_layer_ids")
    if layers is not None:
        return tuple(int(layer) for layer in layers)
    return tuple(sorted((1, num_layers // 2 - 1, num_layers - 4)))
