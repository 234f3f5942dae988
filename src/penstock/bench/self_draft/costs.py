"""What drafting and verifying take, of one request: the shortest of several times.

Others on the machine make a step longer, never shorter; and of costs that are compared all must be as free
of them as can be.
"""

from __future__ import annotations

import time
from collections.abc import Callable
from functools import partial

import numpy as np

from penstock.bench.self_draft.places import Places, batch_of
from penstock.engine.drafts.model_drafter import NextTokens
from penstock.kernels.batch import Batch
from penstock.models.lowered import LoweredModel

TIMES = 25


def seconds(run: Callable[[], object], times: int = TIMES) -> float:
    """The shortest of `times` runs."""
    best = np.inf
    for _ in range(times):
        began = time.perf_counter()
        run()
        best = min(best, time.perf_counter() - began)
    return float(best)


def draft_seconds(places: Places, next_tokens: NextTokens) -> float:
    """Of one draft, the host's part included."""
    drafter, place = places.drafter(next_tokens), len(places) // 2
    return seconds(lambda: drafter.propose(place, places.drafts)) / places.drafts


def verify_seconds(places: Places) -> np.ndarray:
    """float64[drafts + 1]: of a step with 0, 1, … drafts, all of which are looked at."""
    place = len(places) // 2
    tokens, first = places.tokens[place], len(places.tokens[place]) - places.drafts - 1
    tables = tuple(table[place : place + 1] for table in places.tables)
    found = [
        seconds(partial(_step, places, batch_of([tokens[first:end]], np.array([first]), tables)))
        for end in range(first + 1, len(tokens) + 1)
    ]
    # A step of more tokens takes no less time: where it seems to, the shorter one was disturbed.
    return np.minimum.accumulate(found[::-1])[::-1]


def _step(places: Places, batch: Batch) -> None:
    """Logits behind every token."""
    model = places.model
    if isinstance(model, LoweredModel):
        rows = np.arange(len(batch.tokens), dtype=np.int32)
        logits = np.empty((len(rows), model.spec.vocab_size), np.float32)
        model.executable.forward(batch, rows, logits, np.empty(len(rows), np.int32))
    else:
        model.logits(model.forward(batch, places.kv))
