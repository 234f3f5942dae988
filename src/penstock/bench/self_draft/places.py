"""Places: where drafts are tried on what the model wrote itself.

The model continues each prompt, and keeps the KV of what it wrote. A place is the beginning of a block in
there: what is before it is the model's, as it is when an engine drafts; drafts get a block of their own, so
all places are drafted for in one batch, again and again with other layers. A draft is right if it is what
the model wrote.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import msgspec
import numpy as np

from penstock.decoding.params import TokenSampling
from penstock.decoding.sampling import Sampler
from penstock.engine.drafts.model_drafter import ModelDrafter, NextTokens
from penstock.kernels.batch import Batch
from penstock.kv.groups import LayerKV, plan_layout
from penstock.models.forward import Model
from penstock.models.lowered import LoweredModel
from penstock.models.spec import kv_layers

BLOCK_SIZE = 16
MOST_DRAFTS = BLOCK_SIZE  # at a place: they have one block


class Places:
    """Also the `penstock.engine.drafts.model_drafter.DraftBlocks` of drafters that are tried, a slot a place.

    tokens: int32[known + drafts] of each place, the `drafts` last of which are to be found.
    """

    def __init__(
        self,
        model: Model | LoweredModel,
        prompts: Sequence[np.ndarray],
        sampling: TokenSampling,
        drafts: int,
        kv_itemsize: int,
    ) -> None:
        """sampling: of the continuations, which are as long as its `max_tokens`; request i has its seed + i.
        drafts: at a place, at most MOST_DRAFTS. kv_itemsize: bytes of an element of the model's KV."""
        self.model, self.drafts = model, drafts
        layers = [LayerKV(*layer) for layer in kv_layers(model.spec)]
        layout = plan_layout(layers, BLOCK_SIZE, kv_itemsize)
        lengths = [len(prompt) + sampling.max_tokens for prompt in prompts]
        width = -(-max(lengths) // BLOCK_SIZE)
        found = [
            (text, at)
            for text, (prompt, length) in enumerate(zip(prompts, lengths, strict=True))
            for at in range(-(-(len(prompt) - 1) // BLOCK_SIZE) * BLOCK_SIZE, length - drafts, BLOCK_SIZE)
        ]
        own = len(prompts) * width  # blocks of a group that the texts have
        per_group = own + len(found)
        self.kv: Any = model.allocate_kv(layout, per_group * len(layout.groups))
        texts = np.arange(own, dtype=np.int32).reshape(len(prompts), width)
        groups = range(len(layout.groups))
        written = _continue(
            model, self.kv, prompts, sampling, tuple(texts + group * per_group for group in groups)
        )
        table = texts[[text for text, _ in found]]
        for place, (_, at) in enumerate(found):
            table[place, at // BLOCK_SIZE] = own + place
        self.tables = tuple(table + np.int32(group * per_group) for group in groups)
        self.tokens = [written[text][: at + 1 + drafts] for text, at in found]

    def __len__(self) -> int:
        return len(self.tokens)

    def survival(self, next_tokens: NextTokens) -> np.ndarray:
        """float64[drafts]: share of the places at which so many leading drafts are right."""
        slots = range(len(self))
        proposals = self.drafter(next_tokens).propose_all(slots, [self.drafts] * len(slots))
        drafts = np.array([proposal.tokens for proposal in proposals])
        right = drafts == np.array([tokens[-self.drafts :] for tokens in self.tokens])
        return np.asarray(np.logical_and.accumulate(right, axis=1).mean(axis=0))

    def drafter(self, next_tokens: NextTokens) -> ModelDrafter:
        """One that knows all places."""
        drafter = ModelDrafter("self", next_tokens, self, token_budget=len(self))
        for place, tokens in enumerate(self.tokens):
            drafter.admit(place, tokens[: -self.drafts], "")
        return drafter

    def reach(self, slot: int, upto: int) -> bool:
        return True

    def computed(self, slot: int, written: int) -> int:
        return len(self.tokens[slot]) - self.drafts - 1

    def release(self, slot: int) -> None:
        pass


def _continue(
    model: Model | LoweredModel,
    kv: Any,
    prompts: Sequence[np.ndarray],
    sampling: TokenSampling,
    tables: tuple[np.ndarray, ...],
) -> list[np.ndarray]:
    """int32[n] each: prompt and continuation."""
    sampler = Sampler(len(prompts), model.spec.vocab_size)
    for slot, prompt in enumerate(prompts):
        own = msgspec.structs.replace(sampling, seed=sampling.seed + slot)
        sampler.admit(slot, prompt, len(prompt), own)
    texts = [prompt.tolist() for prompt in prompts]
    slots = np.arange(len(prompts), dtype=np.int32)
    new = [list(text) for text in texts]
    while len(texts[0]) < len(prompts[0]) + sampling.max_tokens:
        counts = np.array([len(tokens) for tokens in new], np.int32)
        batch = batch_of(new, np.array([len(text) for text in texts], np.int32) - counts, tables)
        hidden = model.forward(batch, kv)
        logits = np.ascontiguousarray(model.logits(hidden[batch.offsets[1:] - 1]), np.float32)
        positions = np.array([len(text) for text in texts], np.int32)
        new = [[token] for token in sampler.sample(logits, slots, positions)[0].tolist()]
        for text, tokens in zip(texts, new, strict=True):
            text += tokens
    return [np.array(text, np.int32) for text in texts]


def batch_of(
    tokens: Sequence[Sequence[int] | np.ndarray], starts: np.ndarray, tables: tuple[np.ndarray, ...]
) -> Batch:
    """Rows of `tokens` from positions int32[R] `starts` on."""
    counts = np.array([len(each) for each in tokens], np.int32)
    offsets = np.concatenate([[0], np.cumsum(counts)]).astype(np.int32)
    owner = np.repeat(np.arange(len(tokens)), counts)
    return Batch(
        tokens=np.concatenate(tokens).astype(np.int32),
        positions=(np.arange(offsets[-1]) - offsets[owner] + starts[owner]).astype(np.int32),
        offsets=offsets,
        starts=starts.astype(np.int32),
        contexts=(starts + counts).astype(np.int32),
        tables=tables,
    )
