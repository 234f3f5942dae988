"""How far a model as it is served is from its own weights in float32: KL divergence, agreement, perplexity.

Both models see the same passages (bench/passages.py), teacher-forced: at every position each gives
its distribution of the next token. The reference is the `reference` backend, numpy in float32 over
dequantized weights, of the same file or of the one a quantized folder was made from.
"""

from __future__ import annotations

import hashlib
import platform
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
from msgspec import Struct

from penstock.bench.passages import passages
from penstock.errors import ConfigError

if TYPE_CHECKING:
    from penstock.models.teacher import TaughtModel

PASSAGE_TOKENS = 128
BATCH_TOKENS = 2048  # in one forward pass
LOGIT_ROWS = 64  # compared at once: 25 MB of float64 a model for a vocabulary of 49k


class Quality(Struct, frozen=True, kw_only=True):
    """Over `positions` next-token predictions of `passages` passages.

    kl_*: nats of KL(reference || tested) at a position; top1_agreement: share of positions where both
    find the same token likeliest; perplexities: exp of the mean nats of the passages' own tokens.
    """

    passages: int
    positions: int
    kl_mean: float
    kl_p99: float
    kl_max: float
    top1_agreement: float
    reference_perplexity: float
    perplexity: float


class Text(Struct, frozen=True):
    """What was read: `digest` is SHA-256 over all passages' token ids."""

    source: str
    passages: int
    tokens: int
    digest: str


def read_passages(tokenizer_path: Path, count: int) -> tuple[Text, list[np.ndarray]]:
    """The passages as int32[2 … PASSAGE_TOKENS], cut, with what the model expects before a text."""
    from penstock.text.tokenizer import Tokenizer

    encoded = Tokenizer.load(tokenizer_path).encode_many(passages(count), add_special=True)
    sequences = [np.array(ids[:PASSAGE_TOKENS], np.int32) for ids in encoded]
    digest = hashlib.sha256(b"".join(s.astype("<u4").tobytes() for s in sequences)).hexdigest()
    name = f"documentation strings of Python {platform.python_version()}"
    return Text(name, count, sum(map(len, sequences)), digest), sequences


def compare(
    reference: TaughtModel,
    tested: TaughtModel,
    sequences: Sequence[np.ndarray],
    on_done: Callable[[], None] = lambda: None,
    *,
    kv_itemsize: int = 4,
) -> Quality:
    """Run both over `sequences` in batches; `on_done` is called once per sequence. `kv_itemsize`: bytes of
    an element of the tested model's KV.

    ConfigError if their vocabularies differ. Memory: a batch's hidden states and LOGIT_ROWS rows of
    logits of each.
    """
    from penstock.models.teacher import TeacherForcing, in_batches

    sizes = reference.spec.vocab_size, tested.spec.vocab_size
    if sizes[0] != sizes[1]:
        raise ConfigError(f"vocabularies of {sizes[0]} and {sizes[1]} tokens can't be compared")
    rows = max(len(batch) for batch in in_batches(sequences, BATCH_TOKENS))
    runners = (
        TeacherForcing(reference, BATCH_TOKENS, rows),
        TeacherForcing(tested, BATCH_TOKENS, rows, kv_itemsize),
    )
    kl: list[np.ndarray] = []
    nats = np.zeros(2)
    agreed = positions = 0
    for batch in in_batches(sequences, BATCH_TOKENS):
        hidden = [runner.hidden(batch) for runner in runners]
        ends = np.cumsum([len(sequence) for sequence in batch])
        predicts = np.delete(np.arange(ends[-1]), ends - 1)  # the last token of a passage predicts nothing
        targets = np.concatenate(batch)[predicts + 1]
        for at in range(0, len(predicts), LOGIT_ROWS):
            chosen, wanted = predicts[at : at + LOGIT_ROWS], targets[at : at + LOGIT_ROWS]
            p, q = (
                log_softmax(runner.model.logits(states[chosen]))
                for runner, states in zip(runners, hidden, strict=True)
            )
            kl.append(np.einsum("nv,nv->n", np.exp(p), p - q))
            agreed += int((p.argmax(axis=1) == q.argmax(axis=1)).sum())
            each = np.arange(len(wanted))
            nats -= p[each, wanted].sum(), q[each, wanted].sum()
        positions += len(predicts)
        for _ in batch:
            on_done()
    divergences = np.concatenate(kl)
    return Quality(
        passages=len(sequences),
        positions=positions,
        kl_mean=float(divergences.mean()),
        kl_p99=float(np.quantile(divergences, 0.99)),
        kl_max=float(divergences.max()),
        top1_agreement=agreed / positions,
        reference_perplexity=float(np.exp(nats[0] / positions)),
        perplexity=float(np.exp(nats[1] / positions)),
    )


def log_softmax(logits: Any) -> np.ndarray:
    """float64[n, V] of logits [n, V]."""
    x = np.asarray(logits, np.float64)
    x = x - x.max(axis=1, keepdims=True)
    x -= np.log(np.exp(x).sum(axis=1, keepdims=True))
    return x


def lines(quality: Quality) -> list[tuple[str, str]]:
    """(quantity, value) for the terminal."""
    change = quality.perplexity / quality.reference_perplexity - 1
    return [
        ("mean KL", f"{quality.kl_mean:.6f} nats"),
        ("p99 KL", f"{quality.kl_p99:.6f} nats"),
        ("top-1 agreement", f"{quality.top1_agreement:.2%}"),
        ("perplexity, reference", f"{quality.reference_perplexity:.4f}"),
        ("perplexity, tested", f"{quality.perplexity:.4f} ({change:+.2%})"),
    ]
