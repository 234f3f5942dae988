"""Thinking budgets in the engine: exact at each one, and the same tokens whatever happens to a request."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
from tiny_models import make_tiny
from token_engine import TokenEngine

from penstock.decoding.params import TokenSampling
from penstock.decoding.thinking import ThinkingSpec

BUDGETS = range(13)
PROMPTS = [[7, 8, 9], list(range(10, 50)), [200, 201, 202]]
# Many ids are markers, so that a random model ends sections and opens new ones by itself.
ONE = {"starts": tuple((t,) for t in range(3, 320, 13)), "ends": ((250,), *((t,) for t in range(5, 320, 29)))}
SEVERAL = {"starts": ((7, 8), *ONE["starts"]), "ends": ((250, 251, 252), *((t,) for t in range(5, 320, 29)))}


@pytest.fixture(scope="module")
def model(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return make_tiny("llama", tmp_path_factory.mktemp("llama"))


@pytest.fixture(scope="module")
def alone(model: Path) -> Iterator[TokenEngine]:
    settings: dict[str, Any] = {"async_depth": 0, "window": 1, "prefix_cache": False}
    with TokenEngine(model, block_size=4, kv_bytes=2**22, max_context=128, **settings) as engine:
        yield engine


def _sampling(i: int, budget: int | None, markers: dict[str, Any], **fields: Any) -> TokenSampling:
    thinking = None if budget is None else ThinkingSpec(budget=budget, open=True, used=i % 3, **markers)
    fields = {"max_tokens": 40, "seed": i, "temperature": 1.2, "thinking": thinking, **fields}
    return TokenSampling(**fields)


def _sections(tokens: list[int], spec: ThinkingSpec) -> list[int]:
    """Tokens of each section, markers left out."""
    counts, begin, inside = [spec.used], 0, True
    for at in range(1, len(tokens) + 1):
        stretch = tuple(tokens[begin:at])
        counts[-1] += inside
        found = [m for m in (spec.ends if inside else spec.starts) if stretch[-len(m) :] == m]
        if found:
            counts[-1] -= inside * max(map(len, found))
            inside, begin = not inside, at
            counts += [0] * inside
    if inside:  # the limit may have come in the middle of a marker
        begun = (spec.ends[0][:n] for n in range(1, len(spec.ends[0])))
        counts[-1] -= max((len(m) for m in begun if tuple(tokens[begin:])[-len(m) :] == m), default=0)
    return counts


@pytest.mark.parametrize("markers", [ONE, SEVERAL], ids=["one token", "several tokens"])
@pytest.mark.parametrize(
    "settings",
    [
        {"async_depth": 0, "window": 1, "backend": "reference"},
        {"async_depth": 1, "window": 8},
        {"speculation": {"method": "ngram", "k": 6, "adaptive": False}},
        {"async_depth": 1, "window": 1, "token_budget": 7, "prefix_cache": False, "tight": True},
    ],
    ids=["reference", "depth 1, windows", "drafts", "preempted"],
)
def test_every_budget_holds_and_batching_changes_nothing(
    model: Path, alone: TokenEngine, markers: dict[str, Any], settings: dict[str, Any]
) -> None:
    """Red if an answer thinks beyond its budget, or otherwise in a batch, in flight or after a preemption."""
    settings = dict(settings)
    blocks = alone.core.kv.layout.blocks_for(128, 512) + 6
    kv_bytes = blocks * alone.core.kv.layout.block_bytes if settings.pop("tight", False) else 2**22
    names = {}
    with TokenEngine(model, block_size=4, kv_bytes=kv_bytes, max_context=128, **settings) as engine:
        for budget in BUDGETS:
            for i, prompt in enumerate(PROMPTS):
                # Greedy tiny models repeat themselves, which is what drafts are for.
                temperature = 0.0 if "speculation" in settings else 1.2
                sampling = _sampling(i, budget, markers, temperature=temperature)
                names[f"{budget}-{i}"] = (prompt, sampling)
                engine.submit(f"{budget}-{i}", prompt, sampling)
        engine.run()
        assert "token_budget" not in settings or engine.core.scheduler.preemptions > 0
        assert "speculation" not in settings or sum(engine.core.progress().accepted_tokens) > 20
    seen = set()
    for name, (prompt, sampling) in names.items():
        spec, tokens = sampling.thinking, engine.answers[name].tokens
        assert spec is not None and spec.budget is not None
        if "backend" not in settings:  # another backend rounds otherwise
            assert tokens == alone.alone(prompt, sampling).tokens
        counts = _sections(tokens, spec)
        assert sum(counts) <= max(spec.budget, spec.used)
        seen |= {len(counts) > 1, sum(counts) == spec.budget}
    assert seen == {True, False}


def test_what_the_budget_leaves_free_is_as_without_one(alone: TokenEngine) -> None:
    """Red if a budget changes tokens before it is spent, or ends a model that has stopped by itself."""
    free = alone.alone(PROMPTS[0], _sampling(0, None, ONE)).tokens
    for budget in BUDGETS:
        spec = {"starts": ((319,),), "ends": ((250, 251),)}
        assert 319 not in free and 250 not in free[:12]
        got = alone.alone(PROMPTS[0], _sampling(0, budget, spec)).tokens
        assert got[: budget + 2] == [*free[:budget], 250, 251]
        stopping = _sampling(0, budget, spec, stop_token_ids=(free[4],))
        ended = alone.alone(PROMPTS[0], stopping)
        if budget > 4:
            assert (ended.tokens, ended.finish) == (free[:5], "stop")


def test_a_limit_may_cut_the_end_marker(alone: TokenEngine) -> None:
    """Red if max_tokens is passed to finish a marker."""
    spec = {"starts": ((319,),), "ends": ((250, 251, 252),)}
    answer = alone.alone(PROMPTS[0], _sampling(0, 3, spec, max_tokens=5))
    assert answer.tokens[3:] == [250, 251]
    assert answer.finish == "length"


def test_siblings_each_have_their_own_budget(alone: TokenEngine) -> None:
    """Red if samples of one prompt share a count."""
    sampling = {f"s{i}": _sampling(i * 3, 4, {"starts": ((319,),), "ends": ((250,),)}) for i in range(3)}
    for name, one in sampling.items():
        leader = {} if name == "s0" else {"leader": "s0"}
        alone.submit(name, PROMPTS[1], one, cache_salt="\x00private:s0", **leader)
    alone.run()
    answers = [alone.answers[name].tokens for name in sampling]
    assert all(tokens[4] == 250 and 250 not in tokens[:4] for tokens in answers)
    assert len({tuple(tokens) for tokens in answers}) == 3
