"""The search: from all layers down, leaving out at each level the one whose loss costs the fewest drafts.
Tried are the half of the layers that cost fewest when they were last left out.

Judged by what an engine would gain at one request: with k drafts a round brings 1 + s_1 + … + s_k tokens, s_i
being the share of places at which the first i drafts are right, and takes k drafts and a step that verifies
them. Against that stands a step per token. Subsets of one size cost the same, so that among them survival
decides. Skipping layers for drafts: arXiv:2309.08168; a greedy search instead of a Bayesian one is enough
where a subset is judged in a few batches.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from typing import Any

import numpy as np
from msgspec import Struct

from penstock.bench.self_draft.costs import draft_seconds, verify_seconds
from penstock.bench.self_draft.places import Places
from penstock.engine.drafts.model_drafter import greedy_with_layers
from penstock.errors import ConfigError

Layers = tuple[int, ...]
LEAST_TRIED = 6  # layers of a level


class Judged(Struct, frozen=True, kw_only=True):
    """Some layers as drafters. `k`: the best number of drafts in a round; `ratio`: of plain decoding's speed,
    by the measured costs; survival[i]: share of places at which the first i + 1 drafts are right."""

    layers: Layers
    survival: tuple[float, ...]
    draft_s: float
    k: int
    tokens_per_round: float
    ratio: float


class Found(Struct, frozen=True, kw_only=True):
    """What a search found. verify_s[i]: seconds of a step with i drafts; exits: some first layers, for
    comparison; sizes: the best of each number of layers, from most to fewest; measured_ratio: of plain
    decoding's speed, in an engine; setting: of `speculation`, None if none pays; is_complete: all sizes that
    could pay were tried."""

    layers: Layers
    verify_s: tuple[float, ...]
    exits: tuple[Judged, ...]
    sizes: tuple[Judged, ...]
    best: Judged
    setting: dict[str, Any] | None
    is_complete: bool
    measured_ratio: float | None = None


def find(places: Places, beam: int, goes_on: Callable[[], bool]) -> Found:
    """beam: subsets of a size that are gone on from; goes_on: False when time is up. ConfigError for a model
    of one layer."""
    total = len(places.model.spec.layers)
    if total < 2:
        raise ConfigError("self-draft: the model has one layer; there is none to leave out")
    search = Search(places, beam, goes_on)
    exits = [
        search.judge(tuple(range(count))) for count in sorted({max(1, total * i // 6) for i in range(1, 6)})
    ]
    sizes = list(search.run())
    best = max((*exits, *sizes), key=lambda judged: judged.ratio)
    setting = {"method": "self", "layers": list(best.layers), "k": best.k} if best.ratio > 1.0 else None
    return Found(
        layers=tuple(range(total)),
        verify_s=tuple(search.verify_s.tolist()),
        exits=tuple(exits),
        sizes=tuple(sizes),
        best=best,
        setting=setting,
        is_complete=search.is_complete,
    )


def judge(layers: Layers, survival: np.ndarray, draft_s: float, verify_s: np.ndarray) -> Judged:
    """verify_s: float64[len(survival) + 1], of a step with so many drafts."""
    drafts = np.arange(1, len(survival) + 1)
    tokens = 1 + np.cumsum(survival)
    ratios = tokens * verify_s[0] / (drafts * draft_s + verify_s[1:])
    best = int(ratios.argmax())
    return Judged(
        layers=layers,
        survival=tuple(survival.tolist()),
        draft_s=draft_s,
        k=best + 1,
        tokens_per_round=float(tokens[best]),
        ratio=float(ratios[best]),
    )


class Search:
    """`places.drafts` are the most that a round may have."""

    def __init__(self, places: Places, beam: int, goes_on: Callable[[], bool]) -> None:
        """beam: subsets of a size that are gone on from. goes_on: False when time is up."""
        self._places = places
        self._beam = beam
        self._goes_on = goes_on
        self._total = len(places.model.spec.layers)
        self._known: dict[Layers, np.ndarray] = {}
        self._without = np.full(self._total, np.inf)  # drafts right at a place when layer i was last left out
        self.verify_s = verify_seconds(places)
        self.is_complete = False

    def survival(self, layers: Layers) -> np.ndarray:
        if layers not in self._known:
            places = self._places
            forward = greedy_with_layers(places.model, layers, places.kv)
            self._known[layers] = places.survival(forward)
        return self._known[layers]

    def judge(self, layers: Layers, most_s: float = np.inf) -> Judged:
        """most_s: of a draft of more layers, which a disturbed measurement of these may exceed."""
        forward = greedy_with_layers(self._places.model, layers, self._places.kv)
        cost = min(draft_seconds(self._places, forward), most_s)
        return judge(layers, self.survival(layers), cost, self.verify_s)

    def run(self) -> Iterator[Judged]:
        """The best subset of each size, from all layers but one down. Ends when time is up, or where fewer
        layers could not pay for the price of a single one: their drafts are no better."""
        least_s = draft_seconds(self._places, greedy_with_layers(self._places.model, (0,), self._places.kv))
        level = [tuple(range(self._total))]
        cost = np.inf
        while len(level[0]) > 1:
            tried: dict[Layers, float] = {}
            for kept in level:
                for layer in self._worth_trying(kept):
                    if not self._goes_on():
                        return
                    layers = tuple(other for other in kept if other != layer)
                    tried[layers] = self._without[layer] = float(self.survival(layers).sum())
            level = sorted(tried, key=lambda layers: -tried[layers])[: self._beam]
            best = self.judge(level[0], cost)
            cost = best.draft_s
            yield best
            if judge(level[0], self.survival(level[0]), least_s, self.verify_s).ratio < 1.0:
                break
        self.is_complete = True

    def _worth_trying(self, kept: Layers) -> list[int]:
        ranked = sorted(kept, key=lambda layer: -self._without[layer])
        if np.isinf(self._without[list(kept)]).any():
            return ranked
        return ranked[: max(LEAST_TRIED, len(kept) // 2)]
