"""Drafters that read the target's hidden states: their drafts are those of their publications, and whatever
they draft, tokens are those of plain decoding. Networks are tiny; `fitted` ones know the target's answers."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from draft_networks import Dflash, Eagle, Mtp, TargetEnds, fit, randomize, save
from safetensors.torch import load_file, save_file
from tiny_models import make_tiny
from token_engine import Answer, TokenEngine

from penstock.config import SpeculationSettings, build
from penstock.decoding.params import TokenSampling
from penstock.engine.drafts.context import Context, ContextPool
from penstock.errors import ConfigError, ModelRefused
from penstock.models.drafters.network import CacheShape

K = 5
NEW_TOKENS = 24
SIZES: dict[str, Any] = {"block_size": 4, "max_context": 96, "kv_bytes": 2**22, "weights": "float32"}
RANDOM = np.random.default_rng(7)
PROMPTS = [RANDOM.integers(5, 250, count).tolist() for count in (3, 17, 40)] + [[200, 201, 202, 203] * 6]
GREEDY: dict[str, Any] = {"temperature": 0.0}
SAMPLED: dict[str, Any] = {"temperature": 0.3, "top_p": 0.95, "frequency_penalty": 0.1}
METHODS: dict[str, Callable[[TargetEnds], Any]] = {"dflash": Dflash, "eagle": Eagle, "mtp": Mtp}


@pytest.fixture(scope="module")
def llama(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return make_tiny("llama", tmp_path_factory.mktemp("llama"))


@pytest.fixture(scope="module")
def target(llama: Path) -> TargetEnds:
    return TargetEnds(llama)


@pytest.fixture(scope="module", params=METHODS)
def fitted(
    request: pytest.FixtureRequest, target: TargetEnds, tmp_path_factory: pytest.TempPathFactory
) -> dict[str, Any]:
    """Settings of a drafter that is nearly always right about the greedy answers to PROMPTS."""
    network = METHODS[request.param](target)
    randomize(network, 1)
    fit(network, [target.answer(prompt, NEW_TOKENS) for prompt in PROMPTS], 100)
    folder = save(network, tmp_path_factory.mktemp(request.param))
    return {"method": request.param, "model": str(folder)}


@pytest.fixture(scope="module")
def plain(llama: Path) -> Callable[..., list[Answer]]:
    found: dict[str, list[Answer]] = {}

    def answers(fields: dict[str, Any], backend: str = "cpu") -> list[Answer]:
        key = f"{fields}{backend}"
        if key not in found:
            settings = {"async_depth": 0, "window": 1, "prefix_cache": False, "backend": backend}
            with TokenEngine(llama, **settings, **SIZES) as engine:
                found[key] = [engine.alone(prompt, _sampling(i, fields)) for i, prompt in enumerate(PROMPTS)]
        return found[key]

    return answers


def _sampling(seed: int, fields: dict[str, Any]) -> TokenSampling:
    return TokenSampling(**{"max_tokens": NEW_TOKENS, "seed": seed, **fields})


def _engine(model: Path, speculation: dict[str, Any], **settings: Any) -> TokenEngine:
    return TokenEngine(model, speculation={"k": K, "adaptive": False, **speculation}, **{**SIZES, **settings})


def _all_at_once(engine: TokenEngine, fields: dict[str, Any], name: str = "", **more: Any) -> list[Answer]:
    for i, prompt in enumerate(PROMPTS):
        engine.submit(f"{name}{i}", prompt, _sampling(i, fields), **more)
    engine.run()
    return [engine.answers[f"{name}{i}"] for i in range(len(PROMPTS))]


def _same(answers: list[Answer], expected: list[Answer]) -> None:
    for answer, other in zip(answers, expected, strict=True):
        assert (answer.tokens, answer.finish, answer.error) == (other.tokens, other.finish, None)


class Counts:
    """What came of the drafts since this was made or last asked."""

    def __init__(self, engine: TokenEngine) -> None:
        drafts = engine.core.scheduler.drafts
        assert drafts is not None
        self._stats = drafts.stats
        self._before = (0, 0, 0)

    def take(self) -> tuple[int, int, int]:
        """Drafted, accepted, and tokens of context that were missing."""
        now = (self._stats.drafted, sum(self._stats.accepted), self._stats.missing)
        since = tuple(a - b for a, b in zip(now, self._before, strict=True))
        self._before = now
        return since  # type: ignore[return-value]


def _drafter(engine: TokenEngine) -> Any:
    return engine.core.scheduler.drafts._drafter  # type: ignore[union-attr]


# ------------------------------------------------------------------ drafts

SLIDING = {"layer_types": ["full_attention", "sliding_attention"], "sliding_window": 9}
SOME_TOKENS = sorted(np.random.default_rng(2).permutation(320)[:90].tolist())


def _not_causal(network: Dflash) -> Dflash:
    network.c["dflash_config"]["causal"] = False
    return network


NETWORKS: dict[str, tuple[str, Callable[[TargetEnds], Any]]] = {
    "dflash": ("dflash", Dflash),
    "dflash, one layer": ("dflash", lambda target: Dflash(target, layers=1, block=4)),
    "dflash, sliding": ("dflash", lambda target: Dflash(target, **SLIDING)),
    "dflash, sliding both ways": ("dflash", lambda target: _not_causal(Dflash(target, **SLIDING))),
    "eagle": ("eagle", Eagle),
    "eagle, own vocabulary": ("eagle", lambda target: Eagle(target, SOME_TOKENS)),
    "eagle, narrow": (
        "eagle",
        lambda target: Eagle(target, SOME_TOKENS, hidden_size=32, norm_before_residual=True),
    ),
    "mtp": ("mtp", Mtp),
}


@pytest.mark.parametrize("backend", ["cpu", "reference"])
@pytest.mark.parametrize("case", NETWORKS)
def test_drafts_are_those_of_the_publication(
    case: str, backend: str, llama: Path, target: TargetEnds, tmp_path: Path
) -> None:
    """Red if a layer id, a position, a norm, a head or the mask is another one: acceptance falls then, and
    nothing else shows it. After every position of two prompts, and all through the answers of four."""
    method, make = NETWORKS[case]
    network = make(target)
    randomize(network, 3)
    seen: list[tuple[list[int], list[int]]] = []
    speculation = {"method": method, "model": str(save(network, tmp_path / "drafter"))}
    with _engine(llama, speculation, backend=backend) as engine:
        drafter = _drafter(engine)
        propose_all = drafter.propose_all

        def watch(slots: list[int], most: list[int]) -> Any:
            proposals = propose_all(slots, most)
            for slot, proposal in zip(slots, proposals, strict=True):
                seen.append((list(drafter._requests[slot].tokens), proposal.tokens))
            return proposals

        drafter.propose_all = watch
        _all_at_once(engine, GREEDY)
        for prompt in PROMPTS[2:]:
            for count in range(1, len(prompt)):
                engine.submit(
                    f"{prompt[0]}-{count}", prompt[:count], _sampling(0, {**GREEDY, "max_tokens": 8})
                )
        engine.run()
    drafted = [(tokens, drafts) for tokens, drafts in seen if drafts]
    assert len(drafted) > 100
    lengths = {len(tokens) for tokens, _ in drafted}
    assert lengths >= set(range(2, 41))
    assert {len(drafts) for _, drafts in drafted} >= {min(K, getattr(network, "block", 9) - 1)}
    for tokens, drafts in drafted:
        assert network.drafts(tokens, len(drafts)) == drafts, f"after {len(tokens)} tokens"


# ------------------------------------------------------------------ tokens

WAYS: dict[str, dict[str, Any]] = {
    "steps": {"async_depth": 0, "window": 1},
    "depth 1, windows": {"async_depth": 1, "window": 8},
    "chunks": {"token_budget": 7},
    "no prefix cache": {"prefix_cache": False},
}


@pytest.mark.parametrize("backend", ["cpu", "reference"])
@pytest.mark.parametrize("fields", [GREEDY, SAMPLED], ids=["greedy", "sampled"])
@pytest.mark.parametrize("way", WAYS)
def test_tokens_are_those_of_plain_decoding(
    way: str, fields: dict[str, Any], backend: str, llama: Path, fitted: dict[str, Any], plain: Any
) -> None:
    """Red if an accepted or a rejected draft of such a drafter leaves a trace."""
    with _engine(llama, fitted, backend=backend, **WAYS[way]) as engine:
        _same(_all_at_once(engine, fields), plain(fields, backend))
        drafted, accepted, missing = Counts(engine).take()
        assert missing == 0
        if fields is GREEDY:
            assert accepted > 0.75 * drafted > 40
        else:
            assert 0 < accepted < drafted


def test_plain_decoding_in_between_leaves_no_hole(llama: Path, fitted: dict[str, Any], plain: Any) -> None:
    """Red if tokens that came in windows of steps are no context when drafts are tried again."""
    with _engine(llama, fitted, window=4) as engine:
        drafts = engine.core.scheduler.drafts
        assert drafts is not None
        table, windows = engine.core.table, []
        engine.core._step_log = lambda plan, result: windows.append(plan.window)
        for i, prompt in enumerate(PROMPTS):
            engine.submit(str(i), prompt, _sampling(i, GREEDY))
        for step in range(400):
            if not engine.core.has_work:
                break
            engine.core.step()
            # Drafted for, then decoding plainly, by turns.
            table.alone[engine.core.scheduler.running] = step // 6 % 2 == 1
        assert max(windows) > 1
        _same([engine.answers[str(i)] for i in range(len(PROMPTS))], plain(GREEDY))
        drafted, accepted, missing = Counts(engine).take()
        assert missing == 0
        assert accepted > 0.7 * drafted > 10


def test_adaptive_lengths_give_the_same_tokens(llama: Path, fitted: dict[str, Any], plain: Any) -> None:
    """Red if switching such a drafter off and on changes a token."""
    with _engine(llama, {**fitted, "adaptive": True}, window=8) as engine:
        for turn in "ab":
            _same(_all_at_once(engine, GREEDY, turn), plain(GREEDY))


# ------------------------------------------------------------------ prefix hits and preemption


def test_a_prefix_hit_drafts_as_a_miss_does(llama: Path, fitted: dict[str, Any], plain: Any) -> None:
    """Red if a request that the target takes from its cache has a drafter without context (vllm#47930)."""
    with _engine(llama, fitted) as engine:
        counts, rates = Counts(engine), []
        for turn in ("miss", "hit", "hit again"):
            _same(_all_at_once(engine, GREEDY, turn), plain(GREEDY))
            drafted, accepted, missing = counts.take()
            assert missing == 0
            rates.append((drafted, accepted))
        assert engine.core.progress().cached_tokens > 100
        assert rates[0] == rates[1] == rates[2]


def test_without_the_shelf_a_hit_is_a_gap_that_is_reported(
    llama: Path, fitted: dict[str, Any], plain: Any
) -> None:
    """Red if drafts are made of a context that is mostly holes, or if nobody can see that there are any."""
    with _engine(llama, fitted) as engine:
        _drafter(engine)._shelve = False
        counts = Counts(engine)
        _all_at_once(engine, GREEDY, "miss")
        drafted, _, missing = counts.take()
        assert missing == 0
        _same(_all_at_once(engine, GREEDY, "hit"), plain(GREEDY))
        rarely, _, missing = counts.take()
        assert missing > 300
        assert engine.core.progress().draft_missing == missing
        assert rarely < 0.6 * drafted


def test_siblings_share_the_context_of_the_first(llama: Path, fitted: dict[str, Any], plain: Any) -> None:
    """Red if a request can't use the context of one that still runs."""
    with _engine(llama, fitted) as engine:
        for sibling in range(3):
            family = {"leader": "first"} if sibling else {}
            salt = "\x00private:first"
            name = f"sibling {sibling}" if sibling else "first"
            engine.submit(name, PROMPTS[2], _sampling(2, GREEDY), cache_salt=salt, **family)
        engine.run()
        for name in ("first", "sibling 1", "sibling 2"):
            assert engine.answers[name].tokens == plain(GREEDY)[2].tokens
        assert engine.answers["sibling 2"].cached_tokens > 30
        drafted, accepted, missing = Counts(engine).take()
        assert missing == 0
        assert accepted > 0.75 * drafted


def test_contexts_are_shared_where_cached_blocks_are(llama: Path, fitted: dict[str, Any]) -> None:
    """Red if a tenant's context serves another, or one that shall not be stored is kept."""
    with _engine(llama, fitted) as engine:
        pool = _drafter(engine).pool
        _all_at_once(engine, GREEDY, "private", cache_store=False)
        assert pool.used == 0
        _all_at_once(engine, GREEDY, "a", tenant="a")
        held = pool.shelved
        assert pool.used == held > 0
        found = []
        find = pool.find
        pool.find = lambda *args: found.append(find(*args)) or found[-1]
        _all_at_once(engine, GREEDY, "a again", tenant="a")
        assert pool.shelved == held
        assert any(found)
        found.clear()
        _all_at_once(engine, GREEDY, "b", tenant="b", cache_salt="b")
        assert not any(found)


def test_a_preempted_request_comes_back_to_its_context(
    llama: Path, fitted: dict[str, Any], plain: Any
) -> None:
    """Red if a request that comes back has lost what its drafter knew, or has it from before it left."""
    with _engine(llama, fitted) as probe:
        layout = probe.core.kv.layout
    kv_bytes = (layout.blocks_for(96, 512) + 8) * layout.block_bytes
    with _engine(llama, {**fitted, "kv_bytes": 2**22}, kv_bytes=kv_bytes) as engine:
        _same(_all_at_once(engine, GREEDY), plain(GREEDY))
        assert engine.core.scheduler.preemptions > 0
        drafted, accepted, missing = Counts(engine).take()
        assert missing == 0
        assert accepted > 0.75 * drafted > 40


# ------------------------------------------------------------------ memory


def test_memory_is_bounded_and_comes_back(llama: Path, fitted: dict[str, Any], plain: Any) -> None:
    """Red if a context outlives its request, or room is taken that there is not."""
    with _engine(llama, fitted, prefix_cache=False) as engine:
        _same(_all_at_once(engine, GREEDY), plain(GREEDY))
        drafter = _drafter(engine)
        assert drafter.pool.used == 0
        assert not drafter._requests
        token_bytes = drafter.pool.shape.token_bytes
    for tokens in (1, 70, 150, 230):
        with _engine(llama, {**fitted, "kv_bytes": tokens * token_bytes}) as engine:
            pool = _drafter(engine).pool
            reach, most = pool.reach, [0]

            def watch(
                context: Context, rows: int, reach: Any = reach, pool: Any = pool, most: Any = most
            ) -> bool:
                done = bool(reach(context, rows))
                most[0] = max(most[0], pool.used)
                return done

            pool.reach = watch
            for turn in "ab":
                _same(_all_at_once(engine, GREEDY, turn), plain(GREEDY))
            assert most[0] <= tokens
            assert pool.used == pool.shelved <= tokens


def test_the_pool_counts_every_context() -> None:
    """Red if `used` differs from what is held, exceeds the budget, or a running context is thrown out."""
    chances = np.random.default_rng(4)
    pool = ContextPool(CacheShape(2, 1, 4), 500)
    running: list[tuple[np.ndarray, Context]] = []
    refused = 0
    for _ in range(1500):
        if chances.random() < 0.3 and len(running) < 6:
            running.append((chances.integers(0, 2, 200), Context(pool.shape)))
        elif running and chances.random() < 0.2:
            tokens, context = running.pop(int(chances.integers(len(running))))
            if chances.random() < 0.7:
                pool.shelve("ab"[int(chances.integers(2))], tokens[: context.length], context)
            else:
                pool.drop(context)
        elif running:
            _, context = running[int(chances.integers(len(running)))]
            count = int(chances.integers(1, 30))
            if context.length + count > 200:
                continue
            if pool.reach(context, context.length + count):
                rows = np.full((2, count, 1, 4), context.length, np.float32)
                context.append(np.arange(context.length, context.length + count, dtype=np.int32), rows, rows)
            else:
                refused += 1
        held = sum(context.capacity for _, context in running)
        assert pool.used == held + pool.shelved <= 500
        for _, context in running:
            assert (context.positions[: context.length] == np.arange(context.length)).all()
    assert refused > 0


def test_a_context_is_found_by_its_tokens() -> None:
    """Red if rows are taken for other tokens, or for positions whose next token differs where it counts."""
    pool = ContextPool(CacheShape(1, 1, 1), 100)

    def shelve(whose: str, tokens: list[int], present: list[int]) -> None:
        context = Context(pool.shape)
        assert pool.reach(context, len(present))
        rows = np.array(present, np.float32).reshape(1, -1, 1, 1)
        context.append(np.array(present, np.int32), rows, rows)
        pool.shelve(whose, np.array(tokens, np.int32), context)

    shelve("a", [1, 2, 3, 4, 5], [0, 1, 2, 3])
    shelve("a", [1, 2, 9, 9, 9], [1, 2, 3])
    wanted = np.array([1, 2, 3, 7, 7], np.int32)

    def find(whose: str, upto: int, ahead: int) -> list[int]:
        found = pool.find(whose, wanted, upto, ahead, [])
        return [] if found is None else found[0].positions[found[1]].tolist()

    assert find("a", 4, 0) == [0, 1, 2]
    assert find("a", 4, 1) == [0, 1]
    assert find("a", 1, 1) == [0]
    assert find("b", 4, 0) == []
    shelve("a", [1, 2, 3, 4, 5, 6], [0, 1, 2, 3, 4])  # says more than the first: in its place
    assert pool.used == 5 + 3


# ------------------------------------------------------------------ refusals


def _refused(llama: Path, method: str, folder: Path) -> str:
    with pytest.raises(ModelRefused) as refusal:
        _engine(llama, {"method": method, "model": str(folder)})
    return refusal.value.message


def _change(folder: Path, **changes: Any) -> None:
    config = json.loads((folder / "config.json").read_text())
    (folder / "config.json").write_text(json.dumps({**config, **changes}))


def test_a_drafter_of_another_model_or_kind_is_refused(
    llama: Path, target: TargetEnds, tmp_path: Path
) -> None:
    """Red if it is run all the same: it would never be right, and only that would show."""
    dflash, eagle, mtp = (save(make(target), tmp_path / name) for name, make in METHODS.items())
    group = {"target_layer_ids": [0, 7], "mask_token_id": 2}
    _change(dflash, dflash_config=group)
    assert "another model" in _refused(llama, "dflash", dflash)
    _change(dflash, dflash_config={"target_layer_ids": [0, 1], "mask_token_id": 320})
    assert "mask" in _refused(llama, "dflash", dflash)
    _change(dflash, dflash_config={"target_layer_ids": [0, 1]})
    assert "mask_token_id" in _refused(llama, "dflash", dflash)
    _change(dflash, hidden_size=64)
    assert "64" in _refused(llama, "dflash", dflash)
    assert "EAGLE-3" in _refused(llama, "eagle", mtp)
    _change(eagle, num_hidden_layers=2)
    assert "one layer" in _refused(llama, "eagle", eagle)
    assert "0 MTP modules" in _refused(llama, "mtp", eagle)
    tensors = load_file(mtp / "model.safetensors")
    extra = next(name for name in tensors if name.endswith("enorm.weight")).replace("enorm", "mlp.router")
    save_file({**tensors, extra: tensors[next(iter(tensors))].clone()}, mtp / "model.safetensors")
    assert "has no place" in _refused(llama, "mtp", mtp)
    _change(mtp, quantization_config={"bits": 4})
    assert "quantized" in _refused(llama, "mtp", mtp)


@pytest.mark.parametrize("method", METHODS)
def test_settings_that_mean_nothing_for_it_are_refused(method: str) -> None:
    """Red if a setting is taken and ignored."""
    for extra in ({}, {"model": "x", "weights": "int8"}, {"model": "x", "backend": "cpu"},
                  {"model": "x", "threads": 2}):  # fmt: skip
        with pytest.raises(ConfigError, match="speculation"):
            build(SpeculationSettings, method=method, **extra)
    with pytest.raises(ConfigError, match="take none"):
        build(SpeculationSettings, method="self", model="x")
