"""MTP modules (multi-token prediction, arXiv:2412.19437): one layer over the target's last hidden state.

    hidden(t) = the target's state after its final norm                verified positions
    x = eh_proj(concat(rms_norm(embedding(token)), rms_norm(hidden)))  the residual; then a decoder layer
    draft = argmax of the target's head over rms_norm(result)

The result, before that norm, is the hidden state of the next draft: one module drafts all of them. Embedding
and head are the target's, copies of them in the checkpoint are left alone.

Source: DeepSeek-V3's report, tensor names as in its checkpoints (`layers.N.enorm` …, GLM-4.5 has the same);
which states are normed as in vLLM's deepseek_mtp. The layer has ordinary attention and a dense MLP.
"""

from __future__ import annotations

from pathlib import Path

import numpy as np

from penstock.errors import ModelRefused
from penstock.kernels.reference.linear import linear
from penstock.kernels.reference.norm import rms_norm
from penstock.models.drafters.layer import load_layer
from penstock.models.drafters.network import Target
from penstock.models.drafters.recurrent import RecurrentNetwork
from penstock.models.drafters.weights import DraftWeights


class MtpNetwork(RecurrentNetwork):
    """See `penstock.models.drafters.network.DraftNetwork`."""

    name = "mtp"

    def __init__(self, path: Path, target: Target, context: int) -> None:
        """`context` is the longest that is served."""
        weights = DraftWeights(path)
        spec = target.spec
        hidden = int(weights.config.need("hidden_size"))
        if hidden != spec.hidden_size:
            raise ModelRefused(
                f"{path}: hidden_size {hidden}, the model it shall draft for has {spec.hidden_size}"
            )
        modules = [n.removesuffix("enorm.weight") for n in weights.names() if n.endswith("enorm.weight")]
        if len(modules) != 1:
            raise ModelRefused(f"{path}: {len(modules)} MTP modules; checkpoints with one are served")
        prefix = modules[0]
        self.capture = captured_layers(len(spec.layers))
        self._target = target
        self._eps = float(weights.config.get("rms_norm_eps", 1e-6))
        names = ("enorm", "hnorm", "input_layernorm", "post_attention_layernorm", "shared_head.norm")
        self._embed_gain, self._hidden_gain, self._attend_gain, feed_gain, self._norm = (
            weights.take(f"{prefix}{name}.weight", hidden) for name in names
        )
        self._project = weights.take(f"{prefix}eh_proj.weight", hidden, 2 * hidden)
        super().__init__(
            load_layer(weights, prefix, hidden, window=None, causal=True, context=context), feed_gain
        )
        copies = (f"{prefix}embed_tokens.weight", f"{prefix}shared_head.head.weight")
        weights.finish(*copies, *(name for name in weights.names() if not name.startswith(prefix)))

    def hidden(self, features: np.ndarray) -> np.ndarray:
        return rms_norm(features, self._target.final_norm, self._target.spec.norm_eps)

    def enter(self, hidden: np.ndarray, tokens: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
        embedded = rms_norm(self._target.embedding(tokens), self._embed_gain, self._eps)
        both = np.concatenate([embedded, rms_norm(hidden, self._hidden_gain, self._eps)], axis=1)
        x = linear(both, self._project)
        return x, rms_norm(x, self._attend_gain, self._eps)

    def tokens(self, hidden: np.ndarray) -> np.ndarray:
        return np.asarray(self._target.logits(rms_norm(hidden, self._norm, self._eps))).argmax(axis=1)


def captured_layers(num_layers: int) -> tuple[int, ...]:
    """The last layer of a target of `num_layers`."""
    return (num_layers - 1,)
