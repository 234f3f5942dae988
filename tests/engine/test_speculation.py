"""Drafts change what a step costs, never what is drawn. And acceptance, which equality does not show."""

from __future__ import annotations

import shutil
from collections.abc import Callable
from functools import cache
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from tiny_models import VOCAB_SIZE, make_tiny
from token_engine import Answer, TokenEngine, same_logprobs

from penstock.decoding.drafting.drafter import Proposal
from penstock.decoding.grammar.spec import GrammarSpec
from penstock.decoding.params import TokenSampling
from penstock.errors import ConfigError

K = 5
NEW_TOKENS = 24
SIZES: dict[str, Any] = {"block_size": 4, "max_context": 96, "kv_bytes": 2**22, "weights": "float32"}
RANDOM = np.random.default_rng(7)
PROMPTS = [RANDOM.integers(5, 250, count).tolist() for count in (3, 17, 40)] + [[200, 201, 202, 203] * 6]
SAMPLINGS: dict[str, dict[str, Any]] = {
    "greedy": {"temperature": 0.0},
    "sampled": {"temperature": 0.9, "top_p": 0.95},
    "every processor": {
        "temperature": 0.8,
        "top_k": 50,
        "min_p": 0.01,
        "typical_p": 0.95,
        "repetition_penalty": 1.2,
        "frequency_penalty": 0.3,
        "presence_penalty": 0.2,
        "logit_bias": ((70, 3.0), (80, -4.0)),
        "bad_words": ((71, 72), (90,)),
        "stop_token_ids": tuple(range(0, VOCAB_SIZE, 9)),
        "min_tokens": 6,
    },
    # Much of it is forced: such tokens are not drawn, whether a draft has them or not.
    "grammar": {
        "temperature": 0.8,
        "grammar": GrammarSpec("regex", "(name: [a-z]{1,2}; value: [0-9]; ){3}[a-z]{90}"),
    },
    "log-probabilities": {
        "temperature": 0.8,
        "logprobs": 2,
        "stop_token_ids": tuple(range(0, VOCAB_SIZE, 9)),
        "min_tokens": 6,
    },
}


class KnowsTheAnswers:
    """A drafter of known answers; `is_wrong(call, place)` says which of its tokens are not those."""

    name = "answers"

    def __init__(self, known: list[tuple[list[int], list[int]]], is_wrong: Any) -> None:
        self._known, self._is_wrong = known, is_wrong
        self._tokens: dict[int, list[int]] = {}
        self._calls = 0

    def admit(self, slot: int, tokens: np.ndarray, tenant: str, prompt_len: int | None = None) -> None:
        self._tokens[slot] = tokens.tolist()

    def extend(self, slot: int, tokens: Any) -> None:
        self._tokens[slot].extend(tokens)

    def release(self, slot: int, finished: bool = False) -> None:
        self._tokens.pop(slot, None)

    def propose(self, slot: int, most: int) -> Proposal:
        tokens = self._tokens[slot]
        prompt, answer = next(
            (prompt, answer)
            for prompt, answer in self._known
            if [*prompt, *answer][: len(tokens)] == tokens and len(tokens) >= len(prompt)
        )
        self._calls += 1
        drafts = answer[len(tokens) - len(prompt) :][:most]
        drafts = [
            (token + 1) % VOCAB_SIZE if self._is_wrong(self._calls, i) else token
            for i, token in enumerate(drafts)
        ]
        return Proposal(drafts, [1.0] * len(drafts), 1)


@pytest.fixture(scope="module")
def llama(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return make_tiny("llama", tmp_path_factory.mktemp("llama"))


def _sampling(seed: int, fields: dict[str, Any]) -> TokenSampling:
    return TokenSampling(max_tokens=NEW_TOKENS, seed=seed, **fields)


def _plain(model: Path, fields: dict[str, Any], backend: str = "cpu") -> list[Answer]:
    settings = {"async_depth": 0, "window": 1, "prefix_cache": False, "backend": backend}
    with TokenEngine(model, **settings, **SIZES) as engine:
        return [engine.alone(prompt, _sampling(i, fields)) for i, prompt in enumerate(PROMPTS)]


def _engine(model: Path, speculation: dict[str, Any], **settings: Any) -> TokenEngine:
    return TokenEngine(model, speculation={"k": K, "adaptive": False, **speculation}, **{**SIZES, **settings})


def _all_at_once(engine: TokenEngine, fields: dict[str, Any], name: str = "") -> list[Answer]:
    for i, prompt in enumerate(PROMPTS):
        engine.submit(f"{name}{i}", prompt, _sampling(i, fields))
    engine.run()
    return [engine.answers[f"{name}{i}"] for i in range(len(PROMPTS))]


def _same(answers: list[Answer], expected: list[Answer]) -> None:
    for answer, other in zip(answers, expected, strict=True):
        assert (answer.tokens, answer.finish) == (other.tokens, other.finish)
        if other.logprobs:
            same_logprobs(answer.logprobs, other.logprobs, 1e-4)


def _acceptance(engine: TokenEngine) -> tuple[int, list[int]]:
    drafts = engine.core.scheduler.drafts
    assert drafts is not None
    return drafts.stats.drafted, drafts.stats.accepted


@pytest.mark.parametrize("backend", ["cpu", "reference"])
@pytest.mark.parametrize("fields", SAMPLINGS.values(), ids=SAMPLINGS)
def test_tokens_are_the_same_whatever_length_is_accepted(
    llama: Path, fields: dict[str, Any], backend: str
) -> None:
    """Red if a rejected draft leaves a trace (KV, penalties, noise), or an accepted one is not counted."""
    plain = _plain(llama, fields, backend)
    known = [(prompt, answer.tokens) for prompt, answer in zip(PROMPTS, plain, strict=True)]
    lengths = set()
    for right in range(K + 1):
        with _engine(llama, {"method": "ngram"}, backend=backend) as engine:
            # After `right` right drafts one is wrong.
            drafter = KnowsTheAnswers(known, lambda call, place, right=right: place == right)
            engine.core.scheduler.drafts._drafter = drafter  # type: ignore[union-attr]
            _same(_all_at_once(engine, fields), plain)
            accepted = _acceptance(engine)[1]
            assert all(accepted[:right]) and not any(accepted[right:])
            lengths.add(sum(map(bool, accepted)))
            if "grammar" in fields:
                assert engine.core.progress().forced_tokens > 0
    assert lengths == set(range(K + 1))


def test_drafts_follow_tokens_that_a_grammar_forced(smollm2_path: Path) -> None:
    """Red if a request with forced tokens still to compute gets no drafts, or if a draft changes how a forced
    text is spelled."""
    form = GrammarSpec("regex", "([a-z]{2} and then the quick brown foxes ){6}")
    fields = {"temperature": 20.0, "grammar": form}
    prompts = PROMPTS[:3]
    sizes = {"max_context": 96, "kv_bytes": 2**24}
    with TokenEngine(smollm2_path, async_depth=0, window=1, prefix_cache=False, **sizes) as engine:
        plain = [engine.alone(prompt, _sampling(i, fields)) for i, prompt in enumerate(prompts)]
        assert engine.core.progress().forced_tokens > 20
    known = [(prompt, answer.tokens) for prompt, answer in zip(prompts, plain, strict=True)]
    for right in (1, 2, 4, K):
        with TokenEngine(
            smollm2_path, speculation={"method": "ngram", "k": K, "adaptive": False}, **sizes
        ) as engine:
            drafter = KnowsTheAnswers(known, lambda call, place, right=right: place == right)
            engine.core.scheduler.drafts._drafter = drafter  # type: ignore[union-attr]
            for i, prompt in enumerate(prompts):
                engine.submit(f"{i}", prompt, _sampling(i, fields))
            engine.run()
            _same([engine.answers[f"{i}"] for i in range(len(prompts))], plain)
            assert sum(_acceptance(engine)[1]) > 0


@pytest.mark.parametrize("arch", ["llama", "gemma3", "qwen3_moe", "gpt_oss"])
def test_a_draft_model_that_is_the_target_is_always_right(arch: str, tmp_path: Path) -> None:
    """Red if the drafter's KV or positions differ from the target's: equality of tokens would not show it.

    Twice: the second time the target takes its prompts from the prefix cache, which the drafter does not
    have; a pool that preempts is a third.
    """
    model = make_tiny(arch, tmp_path)
    plain = _plain(model, {"temperature": 0.0})
    speculation = {"method": "draft", "model": str(model), "weights": "float32", "kv_bytes": 2**22}
    with _engine(model, speculation) as engine:
        rates = []
        for turn in ("first", "second"):
            before = sum(_acceptance(engine)[1]), _acceptance(engine)[0]
            _same(_all_at_once(engine, {"temperature": 0.0}, turn), plain)
            drafted, accepted = _acceptance(engine)
            rates.append((sum(accepted) - before[0]) / (drafted - before[1]))
        assert rates == [1.0, 1.0]
        assert engine.core.progress().cached_tokens > 0


def test_drafting_survives_preemption_with_every_draft_right(llama: Path) -> None:
    """Red if a request that comes back finds an older state of its drafter."""
    plain = _plain(llama, {"temperature": 0.0})
    speculation = {"method": "draft", "model": str(llama), "weights": "float32", "kv_bytes": 2**22}
    with _engine(llama, speculation) as probe:
        layout = probe.core.kv.layout
    kv_bytes = (layout.blocks_for(96, 512) + 8) * layout.block_bytes
    with _engine(llama, speculation, kv_bytes=kv_bytes) as engine:
        _same(_all_at_once(engine, {"temperature": 0.0}), plain)
        assert engine.core.scheduler.preemptions > 0
        drafted, accepted = _acceptance(engine)
        assert sum(accepted) == drafted


def test_a_noisy_copy_of_the_target_reaches_every_accepted_length(llama: Path, tmp_path: Path) -> None:
    """Red if some accepted length can't occur, or loses tokens when it does."""
    from safetensors.numpy import load_file, save_file

    noisy = tmp_path / "noisy"
    shutil.copytree(llama, noisy)
    weights = load_file(noisy / "model.safetensors")
    noise = np.random.default_rng(3)
    for name, values in weights.items():
        if values.ndim > 1:
            weights[name] = values + noise.normal(0, 0.04 * values.std(), values.shape).astype(values.dtype)
    save_file(weights, noisy / "model.safetensors", metadata={"format": "pt"})
    plain = _plain(llama, {"temperature": 0.0})
    speculation = {"method": "draft", "model": str(noisy), "weights": "float32"}
    with _engine(llama, speculation) as engine:
        lengths: set[int] = set()
        drafts = engine.core.scheduler.drafts
        assert drafts is not None
        verified = drafts.verified

        def watch(plan: Any, live: Any, accepted: Any, device_s: float) -> None:
            full = plan.draft_counts == K
            lengths.update(accepted[full & live].tolist())
            verified(plan, live, accepted, device_s)

        drafts.verified = watch  # type: ignore[method-assign]
        _same(_all_at_once(engine, {"temperature": 0.0}), plain)
        assert lengths == set(range(K + 1))


class KeptLayers:
    """transformers' greedy drafts of some of a model's layers, after what all of them keep of the context."""

    def __init__(self, model: Path, kept: tuple[int, ...]) -> None:
        import torch
        from transformers import AutoModelForCausalLM

        self._whole, self._cut = (
            AutoModelForCausalLM.from_pretrained(model, dtype=torch.float32) for _ in range(2)
        )
        self._kept = kept
        self._cut.model.layers = torch.nn.ModuleList(self._cut.model.layers[i] for i in kept)
        self._cut.config.num_hidden_layers = len(kept)
        for place, layer in enumerate(self._cut.model.layers):
            layer.self_attn.layer_idx = place

    def drafts(self, tokens: list[int], count: int) -> list[int]:
        import torch
        from transformers import DynamicCache

        found: list[int] = []
        with torch.no_grad():
            known = self._whole(torch.tensor([tokens[:-1]]), use_cache=True).past_key_values
            cache = DynamicCache()
            for place, layer in enumerate(self._kept):
                cache.update(known.layers[layer].keys, known.layers[layer].values, place)
            for _ in range(count):
                token = found[-1] if found else tokens[-1]
                logits = self._cut(torch.tensor([[token]]), past_key_values=cache, use_cache=True).logits
                found.append(int(logits[0, -1].argmax()))
        return found


@pytest.mark.parametrize("layers", [1, 2, [0, 2], [1, 2], [2]])
def test_self_drafts_are_those_of_the_layers_kept_on_the_targets_keys_and_values(
    llama: Path, layers: int | list[int]
) -> None:
    """Red if layers, the exit, the shared KV or the lookahead differ. The oracle: transformers without the
    layers left out, on the KV of the whole model."""
    oracle = KeptLayers(llama, tuple(range(layers)) if isinstance(layers, int) else tuple(layers))
    plain = _plain(llama, {"temperature": 0.0})
    with _engine(llama, {"method": "self", "layers": layers}) as engine:
        drafter = engine.core.scheduler.drafts._drafter  # type: ignore[union-attr]
        seen = []
        propose_all = drafter.propose_all

        def watch(slots: list[int], most: list[int]) -> list[Proposal]:
            proposals = propose_all(slots, most)
            tokens = [list(drafter._requests[slot].tokens) for slot in slots]
            seen.extend(zip(tokens, [proposal.tokens for proposal in proposals], strict=True))
            return proposals

        drafter.propose_all = watch
        _same(_all_at_once(engine, {"temperature": 0.0}), plain)
    checked = 0
    for tokens, drafts in seen[:: max(1, len(seen) // 20)]:
        if drafts:
            assert drafts == oracle.drafts(tokens, len(drafts))
            checked += 1
    assert checked > 5


@pytest.fixture(scope="module")
def models(tmp_path_factory: pytest.TempPathFactory) -> Callable[[str], Path]:
    return cache(lambda arch: make_tiny(arch, tmp_path_factory.mktemp(arch)))


@pytest.mark.parametrize("fields", SAMPLINGS.values(), ids=SAMPLINGS)
@pytest.mark.parametrize("arch", ["gemma3", "qwen3_moe"])
def test_drafts_of_any_layers_leave_the_tokens_alone(
    models: Callable[[str], Path], arch: str, fields: dict[str, Any]
) -> None:
    """Red if the target reads what a layer behind one left out wrote for a draft, in a window's blocks too,
    or if it gets into the cache. The second time prompts come from there."""
    model = models(arch)
    plain = _plain(model, fields)
    layers = [0, 3, 5] if arch == "gemma3" else [0, 2]
    for adaptive in (False, True):
        with _engine(model, {"method": "self", "layers": layers, "adaptive": adaptive}) as engine:
            for turn in ("first", "second"):
                _same(_all_at_once(engine, fields, turn), plain)
            assert engine.core.progress().cached_tokens > 0
            assert _acceptance(engine)[0] > 0


@pytest.mark.parametrize(
    ("layers", "named"),
    [
        ([], "one layer or more"),
        ([1, 0], "ascending"),
        ([1, 1], "each once"),
        ([0, 7], "0 to 2"),
        (3, "3 of"),
    ],
)
def test_layers_that_a_model_cannot_draft_with_are_refused(llama: Path, layers: Any, named: str) -> None:
    with pytest.raises(ConfigError, match=named):
        _engine(llama, {"method": "self", "layers": layers})


def test_a_drafter_without_room_sits_out_and_says_so(llama: Path, caplog: pytest.LogCaptureFixture) -> None:
    """Red if a draft pool that is too small fails a request, blocks others, or nobody hears of it."""
    plain = _plain(llama, {"temperature": 0.0})
    speculation = {"method": "draft", "model": str(llama), "weights": "float32", "kv_bytes": 1}
    with _engine(llama, speculation) as engine:
        _same(_all_at_once(engine, {"temperature": 0.0}), plain)
        assert _acceptance(engine)[0] < 40
    assert caplog.text.count("no KV blocks left to draft") == 1


def test_adaptive_lengths_give_the_same_tokens(llama: Path) -> None:
    """Red if switching drafts off and on again, between windows and single steps, changes a token."""
    plain = _plain(llama, {"temperature": 0.0})
    known = [(prompt, answer.tokens) for prompt, answer in zip(PROMPTS, plain, strict=True)]
    for wrong in (lambda call, place: True, lambda call, place: call % 7 > 2, lambda call, place: False):
        with _engine(llama, {"method": "ngram", "adaptive": True}, window=8) as engine:
            engine.core.scheduler.drafts._drafter = KnowsTheAnswers(known, wrong)  # type: ignore[union-attr]
            for i, prompt in enumerate(PROMPTS):
                engine.submit(f"{i}", prompt, _sampling(i, {"temperature": 0.0}), stream=i % 2 == 0)
            engine.run()
            _same([engine.answers[f"{i}"] for i in range(len(PROMPTS))], plain)
