"""Drafts that count by chance: at the given rates, the same everywhere, and nothing else changed."""

from __future__ import annotations

import asyncio
import logging
import re
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from tiny_models import VOCAB_SIZE, make_tiny
from token_engine import Answer, TokenEngine, same_logprobs

from penstock.config import EngineSettings, SpeculationSettings, build
from penstock.decoding.drafting.acceptance import SyntheticAcceptance
from penstock.decoding.drafting.synthetic import SyntheticDrafter
from penstock.decoding.grammar.spec import GrammarSpec
from penstock.decoding.params import TokenSampling
from penstock.decoding.thinking import ThinkingSpec
from penstock.errors import ConfigError
from penstock.llm import AsyncLLM, SamplingParams
from penstock.simulate.device import StepTime
from penstock.simulate.replay import ReplaySettings, replay
from penstock.simulate.trace import TraceRequest

K = 4
RATES = (0.9, 0.6, 0.6, 0.1)
SPECULATION = {"method": "synthetic", "k": K, "synthetic_acceptance": RATES}
SIZES: dict[str, Any] = {"block_size": 4, "max_context": 256, "kv_bytes": 2**22, "weights": "float32"}
PROMPTS = [list(range(10, 15)), list(range(20, 61)), [200, 201, 202] * 5]
STOPS = tuple(range(3, VOCAB_SIZE, 23))
SAMPLINGS: dict[str, dict[str, Any]] = {
    "greedy": {"temperature": 0.0},
    "sampled": {"temperature": 0.9, "top_p": 0.95},
    "stop tokens": {"stop_token_ids": STOPS, "min_tokens": 9},
    "by the host": {"temperature": 0.7, "repetition_penalty": 1.3, "bad_words": ((71, 72), (90,))},
    "log-probabilities": {"temperature": 0.0, "logprobs": 2},
    "log-probabilities by the host": {"frequency_penalty": 0.3, "logprobs": 2},
}


@pytest.fixture(scope="module")
def llama(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return make_tiny("llama", tmp_path_factory.mktemp("llama"))


def _within(right: int, trials: int, chance: float) -> bool:
    """Four standard deviations of a binomial count."""
    return abs(right - trials * chance) <= 4 * (trials * chance * (1 - chance)) ** 0.5


def _engine(model: Path, **settings: Any) -> TokenEngine:
    return TokenEngine(model, **{"speculation": SPECULATION, **SIZES, **settings})


def _together(engine: TokenEngine, count: int = 60, **fields: Any) -> list[Answer]:
    for i, prompt in enumerate(PROMPTS):
        engine.submit(f"{i}", prompt, TokenSampling(max_tokens=count, seed=i, **fields))
    engine.run()
    return [engine.answers[f"{i}"] for i in range(len(PROMPTS))]


def _tokens(answers: list[Answer]) -> list[tuple[list[int], str | None]]:
    return [(answer.tokens, answer.finish) for answer in answers]


@pytest.mark.parametrize(
    ("rates", "expected"),
    [(RATES, RATES), (0.7, (0.7, 0.49, 0.343, 0.2401)), (1.0, (1,) * K), (0.0, (0,) * K)],
)
def test_so_many_drafts_count_as_the_rates_say(rates: Any, expected: tuple[float, ...]) -> None:
    """Red if a rate is taken for the chance of one draft where it is that of all up to it, or the reverse."""
    acceptance = SyntheticAcceptance(rates, K)
    trials = 4000
    counts = np.array([acceptance.accepted(seed, 3 * seed, K) for seed in range(trials)])
    for place, chance in enumerate(expected):
        assert _within(int((counts > place).sum()), trials, chance)


def test_what_counts_does_not_follow_from_what_is_drawn() -> None:
    """Red if acceptance uses the noise that tokens are drawn with: rejections would bring other tokens."""
    from penstock.decoding import philox

    acceptance = SyntheticAcceptance(0.5, 1)
    positions = np.arange(4000)
    counted = np.array([acceptance.accepted(7, int(position), 1) for position in positions])
    noise = philox.uniform(np.full(4000, 7, np.uint64), positions)
    assert abs(np.corrcoef(counted, noise)[0, 1]) < 4 / 4000**0.5


def test_an_engine_accepts_at_the_given_rates_and_counts_it(llama: Path) -> None:
    """Red if counters, or the drafts that are verified, are not what the rates say."""
    with _engine(llama) as engine:
        for seed in range(24):
            sampling = TokenSampling(max_tokens=200, seed=seed, temperature=0.8)
            engine.submit(f"{seed}", PROMPTS[seed % 3], sampling)
        engine.run()
        progress = engine.core.progress()
    assert progress.draft_tokens >= 0.97 * K * progress.draft_steps  # all, but at the end of an answer
    for place, rate in enumerate(RATES):
        assert _within(progress.accepted_tokens[place], progress.draft_steps, rate)
    assert progress.generated_tokens == 24 * 200
    # The first token of each is not a step's with drafts, and an answer's last one may be.
    assert abs(progress.draft_steps + sum(progress.accepted_tokens) - 24 * 199) <= 24


def test_a_real_drafters_drafts_count_at_the_rate_too(llama: Path) -> None:
    """Red if only arbitrary drafts are accepted by chance."""
    speculation = {"method": "self", "k": 2, "layers": 1, "synthetic_acceptance": 1.0}
    with _engine(llama, speculation=speculation) as engine:
        _together(engine, temperature=0.0)
        progress = engine.core.progress()
    assert progress.draft_steps > 50
    assert sum(progress.accepted_tokens) == progress.draft_tokens


@pytest.mark.parametrize("fields", [SAMPLINGS["greedy"], {"repetition_penalty": 1.3}], ids=["native", "host"])
def test_a_right_draft_that_is_not_to_count_does_not(llama: Path, fields: dict[str, Any]) -> None:
    """Red if a draft that is by chance what the model says counts nevertheless. These are, all of them."""
    fields = {**fields, "temperature": 0.0}
    with TokenEngine(llama, **SIZES) as plain:
        expected = _together(plain, **fields)
    draft = {"method": "draft", "model": str(llama), "weights": "float32", "kv_bytes": 2**22, "k": 3}
    with _engine(llama, speculation={**draft, "synthetic_acceptance": 0.0}) as engine:
        assert _tokens(_together(engine, **fields)) == _tokens(expected)
        progress = engine.core.progress()
    assert (progress.draft_steps, sum(progress.accepted_tokens)) == (3 * 58, 0)


@pytest.mark.parametrize("fields", SAMPLINGS.values(), ids=SAMPLINGS)
def test_native_and_reference_accept_the_same(llama: Path, fields: dict[str, Any]) -> None:
    """Red if C++ and Python disagree about chance, or about what happens at a draft that does not count."""
    answers = []
    for backend in ("cpu", "reference"):
        with _engine(llama, backend=backend) as engine:
            answers.append(_together(engine, **fields))
    assert _tokens(answers[0]) == _tokens(answers[1])
    for ours, theirs in zip(*answers, strict=True):
        if ours.logprobs:
            same_logprobs(ours.logprobs, theirs.logprobs, 1e-4)


@pytest.mark.parametrize("fields", [SAMPLINGS["sampled"], SAMPLINGS["by the host"]], ids=["native", "host"])
def test_a_request_gets_the_same_tokens_alone_and_in_a_batch(llama: Path, fields: dict[str, Any]) -> None:
    """Red if what counts depends on the batch, the depth, windows or the cache; or if a preempted request
    loses tokens by it."""
    with _engine(llama, async_depth=0, prefix_cache=False) as engine:
        alone = [
            engine.alone(prompt, TokenSampling(max_tokens=60, seed=i, **fields))
            for i, prompt in enumerate(PROMPTS)
        ]
        layout = engine.core.kv.layout
    with _engine(llama, window=8) as engine:
        assert _tokens(_together(engine, **fields)) == _tokens(alone)
    small = (layout.blocks_for(96, 512) + 6) * layout.block_bytes
    with _engine(llama, kv_bytes=small, max_context=110) as engine:
        # Where no room is left for drafts there are none, and tokens are drawn in their place.
        assert all(len(answer.tokens) == 60 for answer in _together(engine, **fields))
        assert engine.core.scheduler.preemptions > 0


def test_tokens_that_are_no_drafts_are_the_models(llama: Path) -> None:
    """Red if a token is drawn from another place than behind the drafts that count, or its context is wrong.
    The oracle: a plain engine, asked for one token after what came before."""
    with _engine(llama, prefix_cache=False) as engine:
        answers = _together(engine, temperature=0.0)
    acceptance, drawn, drafted = SyntheticAcceptance(RATES, K), 0, 0
    with TokenEngine(llama, **SIZES) as plain:
        for seed, (prompt, answer) in enumerate(zip(PROMPTS, answers, strict=True)):
            at = 0
            while at < len(answer.tokens):
                known = [*prompt, *answer.tokens[:at]]
                room = min(K, len(answer.tokens) - at - 1) if at else 0
                count = acceptance.accepted(seed, len(known), room)
                drafter = SyntheticDrafter(VOCAB_SIZE)
                drafter.admit(0, np.array(known), "")
                assert answer.tokens[at : at + count] == drafter.propose(0, K).tokens[:count]
                context = [*known, *answer.tokens[at : at + count]]
                one = plain.alone(context, TokenSampling(max_tokens=1, seed=0, temperature=0.0))
                assert answer.tokens[at + count] == one.tokens[0]
                drawn, drafted, at = drawn + 1, drafted + count, at + count + 1
    assert drawn > 50 and drafted > 50


def test_answers_end_and_read_as_they_must(smollm2_path: Path) -> None:
    """Red if a draft that counts leads past a stop token, a limit, a grammar or a thinking budget."""
    sizes = {"max_context": 256, "kv_bytes": 2**25}
    with TokenEngine(
        smollm2_path, speculation={**SPECULATION, "synthetic_acceptance": 1.0}, **sizes
    ) as engine:
        drafter = SyntheticDrafter(engine.core.scheduler.drafts._drafter._vocab_size)  # type: ignore[union-attr]
        drafter.admit(0, np.arange(6), "")
        third = drafter.propose(0, 3).tokens[2]
        stopped = engine.alone(range(5), TokenSampling(max_tokens=50, seed=0, stop_token_ids=(third,)))
        assert (stopped.finish, stopped.tokens[-1], len(stopped.tokens)) == ("stop", third, 4)
        limited = engine.alone(range(5), TokenSampling(max_tokens=13, seed=0))
        assert (limited.finish, len(limited.tokens)) == ("length", 13)
        grammar = GrammarSpec("regex", "(name: [a-z]{1,2}; value: [0-9]; ){3}[a-z]{90}")
        bound = engine.alone(range(5), TokenSampling(max_tokens=60, seed=0, grammar=grammar))
        spec = ThinkingSpec(starts=((7,),), ends=((9, 11),), budget=6, open=True)
        thought = engine.alone(range(5), TokenSampling(max_tokens=40, seed=0, thinking=spec))
    from penstock.text.tokenizer import Tokenizer

    text = Tokenizer.load(smollm2_path).decode(bound.tokens, False)
    assert re.fullmatch(r"(name: [a-z]{1,2}; value: [0-9]; ){3}[a-z]*", text)
    assert thought.tokens[6:8] == [9, 11]


def test_what_synthetic_answers_leave_in_the_cache_is_right(llama: Path) -> None:
    """Red if the KV of a draft that does not count is published, or that of one that does is another's."""
    with _engine(llama) as engine:
        answers = _together(engine, temperature=0.0)
        longer = [[*prompt, *answer.tokens] for prompt, answer in zip(PROMPTS, answers, strict=True)]
        warm = [engine.alone(tokens, TokenSampling(max_tokens=30, seed=5)) for tokens in longer]
        assert all(
            answer.cached_tokens >= len(tokens) - 8 for answer, tokens in zip(warm, longer, strict=True)
        )
    with _engine(llama, prefix_cache=False) as engine:
        cold = [engine.alone(tokens, TokenSampling(max_tokens=30, seed=5)) for tokens in longer]
    assert _tokens(warm) == _tokens(cold)


@pytest.mark.parametrize("depth", [0, 1])
def test_a_replay_in_virtual_time_accepts_at_the_given_rates(depth: int) -> None:
    """Red if the simulated device accepts otherwise than a real one, or gains nothing from it."""
    trace = [TraceRequest(arrival_s=0.02 * i, input_len=30 + i, output_len=80) for i in range(40)]
    settings = ReplaySettings(num_blocks=4000, max_running=16, token_budget=512, async_depth=depth)
    plain = replay(trace, settings, StepTime(fixed_s=0.02))
    speculation = SpeculationSettings(method="synthetic", k=K, synthetic_acceptance=RATES)
    settings = ReplaySettings(
        num_blocks=4000, max_running=16, token_budget=512, async_depth=depth, speculation=speculation
    )
    report = replay(trace, settings, StepTime(fixed_s=0.02))
    assert (report.failed, report.generated_tokens) == (0, plain.generated_tokens)
    for place, rate in enumerate(RATES):
        assert _within(report.accepted_tokens[place], report.draft_steps, rate)
    # A step of a request brings a token and the drafts that count.
    assert plain.itl_p50_s == pytest.approx(0.02) and report.virtual_s < plain.virtual_s / 1.5


def test_a_simulated_device_without_it_verifies_drafts() -> None:
    """Red if drafts are never verified in virtual time. Tokens repeat there after 1000: n-grams are right."""
    trace = [TraceRequest(arrival_s=0.0, input_len=10, output_len=2500)]
    speculation = SpeculationSettings(method="ngram", k=8, adaptive=False)
    report = replay(trace, ReplaySettings(num_blocks=400, speculation=speculation), StepTime(fixed_s=0.02))
    assert sum(report.accepted_tokens) == report.draft_tokens > 1000
    model = SpeculationSettings(method="self")
    with pytest.raises(ConfigError, match="runs a model"):
        replay(trace, ReplaySettings(num_blocks=400, speculation=model), StepTime())


@pytest.mark.parametrize(
    ("fields", "named"),
    [
        ({"method": "synthetic"}, "synthetic_acceptance: method synthetic"),
        ({"method": "ngram", "synthetic_acceptance": 1.5}, "synthetic_acceptance"),
        ({"method": "ngram", "k": 3, "synthetic_acceptance": [0.5, 0.4]}, "2 rates for k = 3"),
        ({"method": "ngram", "k": 2, "synthetic_acceptance": [0.5, 0.6]}, "0.6 in place 2 is above 0.5"),
        ({"method": "ngram", "adaptive": True, "synthetic_acceptance": 0.5}, "adaptive: true"),
    ],
)
def test_settings_that_mean_nothing_are_refused(fields: dict[str, Any], named: str) -> None:
    """Red if an engine for load tests starts with another acceptance than was meant."""
    with pytest.raises(ConfigError, match=re.escape(named)):
        build(EngineSettings, speculation=fields)


def test_it_is_never_silent(llama: Path, caplog: pytest.LogCaptureFixture) -> None:
    """Red if somebody can take an answer of a load test for the model's."""
    from penstock.cli.doctor import findings

    async def answer(**settings: Any) -> Any:
        params = SamplingParams(max_tokens=20, ignore_eos=True, seed=1)
        async with AsyncLLM(str(llama), max_context=96, kv_bytes=2**22, **settings) as llm:
            return [event async for event in llm.generate([5, 6, 7], params)][-1].usage.speculation

    with caplog.at_level(logging.WARNING, "penstock.engine"):
        assert asyncio.run(answer(speculation=SPECULATION)).synthetic
    assert caplog.text.count("acceptance is synthetic") == 1
    caplog.clear()
    usage = asyncio.run(answer(speculation={"method": "self", "layers": 1, "adaptive": False}))
    assert usage is not None and not usage.synthetic
    assert "synthetic" not in caplog.text
    notes = {
        finding.subject: finding
        for finding in findings(build(EngineSettings, model=str(llama), speculation=SPECULATION))
    }
    assert notes["speculation"].verdict == "note" and "not the model's" in notes["speculation"].text
