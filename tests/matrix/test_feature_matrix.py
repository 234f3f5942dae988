"""The feature matrix: every pair of features, over several kinds of model, gives the plain tokens.

The plain oracle runs each request alone, at depth 0, step by step, without cache, in one chunk. Each
feature below changes settings, sampling or the surroundings of the same requests; tokens must not change
and every slot and block must come back. The backends are features too: what they compute in float32 must be
what the reference backend does plainly; without one the oracle is the engine's own default.
`python tests/matrix/test_feature_matrix.py` prints the table that docs/feature-matrix.md holds.
"""

from __future__ import annotations

import itertools
from collections.abc import Callable
from functools import cache
from pathlib import Path
from typing import Any, NamedTuple

import msgspec
import pytest
from tiny_models import make_tiny
from token_engine import Answer, TokenEngine, same_logprobs

from penstock.call import ToolSpec
from penstock.decoding.drafting.ngram import NgramDrafter
from penstock.decoding.grammar.backends import unavailable
from penstock.decoding.grammar.spec import GrammarSpec
from penstock.decoding.params import TokenSampling
from penstock.decoding.thinking import ThinkingSpec
from penstock.engine.tools.grammar import forced_calls
from penstock.engine.tools.lark import Specials
from penstock.text.output.choose import FORMATS

MODELS = {
    "full attention": "llama",
    "sliding window": "gemma3",
    "mixture of experts": "qwen3_moe",
    "attention sinks": "gpt_oss",
}
PROMPTS = [
    [7, 8, 9],
    list(range(10, 55)),
    [*list(range(10, 50)), 3, 4, 5],
    list(range(10, 34)),
    [200, 201, 202, 203, 204] * 3,
]
NEW_TOKENS = 12
MAX_CONTEXT = 64
PLAIN: dict[str, Any] = {"async_depth": 0, "window": 1, "prefix_cache": False, "token_budget": 512}
THINKING_BUDGET, THINKING_END = 3, (250, 251)
LOGPROB_TOLERANCE = 1e-4  # float32, other batch shapes
POOL_BYTES = 2**22
# Its last string outlives every answer here: when answers end is for other features to say.
TOOL = ToolSpec(
    "f",
    None,
    {
        "type": "object",
        "properties": {
            "q": {"type": "string", "minLength": 4, "maxLength": 4},
            "r": {"type": "string", "minLength": 400},
        },
        "required": ["q", "r"],
    },
    strict=True,
)


class Setup(msgspec.Struct):
    """What a feature may change. `settings` are the engine's, `rounds` how often the requests run."""

    path: Path = Path()
    settings: dict[str, Any] = {}
    sampling: dict[str, Any] = {}
    fields: dict[str, Any] = {}
    exact: bool = False  # the oracle is the reference backend
    tight: bool = False  # the pool is too small for all requests
    rounds: int = 1
    windows: int = 0  # steps that were part of one
    siblings: int = 1
    neighbours: bool = False


class Oracle(NamedTuple):
    """Which plain answers are wanted."""

    sampling: tuple[tuple[str, Any], ...]
    exact: bool  # those of the reference backend


def _depth(setup: Setup) -> None:
    setup.settings["async_depth"] = 1


def _window(setup: Setup) -> None:
    setup.settings["window"] = 5


def _prefix_cache(setup: Setup) -> None:
    setup.settings["prefix_cache"] = True
    setup.rounds = 2


def _chunks(setup: Setup) -> None:
    setup.settings["token_budget"] = 7


def _preemption(setup: Setup) -> None:
    setup.tight = True


def _siblings(setup: Setup) -> None:
    setup.siblings = 3


def _logprobs(setup: Setup) -> None:
    setup.sampling["logprobs"] = 3


def _prompt_logprobs(setup: Setup) -> None:
    setup.sampling["prompt_logprobs"] = 2


def _sampling(setup: Setup) -> None:
    setup.sampling.update(
        temperature=0.9, top_p=0.95, top_k=40, frequency_penalty=0.4, repetition_penalty=1.2
    )


def _stops(setup: Setup) -> None:
    setup.sampling.update(stop_token_ids=tuple(range(0, 320, 9)), min_tokens=4)


def _tenants(setup: Setup) -> None:
    setup.fields.update(tenants=True)


def _neighbours(setup: Setup) -> None:
    setup.neighbours = True


def _together(setup: Setup) -> None:
    setup.settings["window"] = 8
    setup.fields.update(stream=False)


def _grammar(setup: Setup) -> None:
    # It never ends within the tokens of an answer: when answers end is for other features to say.
    setup.sampling.update(grammar=GrammarSpec("regex", "([a-z][0-9]){400}"))


def _second_grammar(setup: Setup) -> None:
    setup.settings["grammar_backend"] = "xgrammar"
    setup.sampling.update(grammar=GrammarSpec("regex", "([a-z][0-9]){60}"))


def _tools(setup: Setup) -> None:
    # The form with the fewest forced tokens before the first free one.
    form = forced_calls(FORMATS["pythonic"], (TOOL,), "required", True, Specials())
    setup.sampling.update(grammar=form)


def _thinking(setup: Setup) -> None:
    # Every prompt ends inside a section; later ones may begin at many tokens. The end is of two.
    starts = tuple((token,) for token in range(2, 320, 11))
    spec = ThinkingSpec(starts=starts, ends=(THINKING_END,), budget=THINKING_BUDGET, open=True)
    setup.sampling.update(thinking=spec)


def _drafts(**speculation: Any) -> Callable[[Setup], None]:
    def draft(setup: Setup) -> None:
        setup.settings["speculation"] = {"k": 4, "adaptive": False, **speculation}

    return draft


def _draft_model(setup: Setup) -> None:
    # The model itself, coarser: right often, not always.
    _drafts(method="draft", model=str(setup.path), weights="int8")(setup)


@cache
def _network(path: Path, method: str) -> Path:
    """A draft network of the model of `path`, fitted to its answers: right often, not always."""
    from draft_networks import Dflash, Eagle, TargetEnds, fit, randomize, save

    target = TargetEnds(path)
    network = {"dflash": Dflash, "eagle": Eagle}[method](target)
    randomize(network, 1)
    fit(network, [target.answer(prompt, NEW_TOKENS) for prompt in PROMPTS], 50)
    return save(network, path.with_name(f"{path.name}-{method}"))


def _draft_network(method: str) -> Callable[[Setup], None]:
    def draft(setup: Setup) -> None:
        # Without a path only the sampling is asked for.
        model = str(_network(setup.path, method)) if setup.path != Path() else "none"
        _drafts(method=method, model=model, kv_bytes=2**22)(setup)

    return draft


def _backend(name: str, **settings: Any) -> Callable[[Setup], None]:
    def choose(setup: Setup) -> None:
        setup.settings.update(backend=name, **settings)
        setup.exact = True

    return choose


DRAFTERS: dict[str, Callable[[Setup], None]] = {
    "n-gram drafts": _drafts(method="ngram"),
    "suffix drafts": _drafts(method="suffix"),
    "draft model": _draft_model,
    "self-drafting": _drafts(method="self", layers=[0, 2]),
    "DFlash": _draft_network("dflash"),
    "EAGLE": _draft_network("eagle"),
}

BACKENDS: dict[str, Callable[[Setup], None]] = {
    "reference backend": _backend("reference"),
    "native backend, float32": _backend("cpu", weights="float32"),
}
FORMS: dict[str, Callable[[Setup], None]] = {"grammar": _grammar, "tools": _tools}

FEATURES: dict[str, Callable[[Setup], None]] = {
    "async depth 1": _depth,
    "windows of steps": _window,
    "steps applied together": _together,
    "prefix cache": _prefix_cache,
    "chunked prefill": _chunks,
    "preemption": _preemption,
    "n > 1": _siblings,
    "logprobs": _logprobs,
    "prompt logprobs": _prompt_logprobs,
    "seeded sampling, penalties": _sampling,
    "stop ids, min tokens": _stops,
    **FORMS,
    "thinking budget": _thinking,
    **DRAFTERS,
    "tenants, priorities": _tenants,
    "cancelled neighbours": _neighbours,
    **BACKENDS,
}
# Where one test beside many features says it all.
OF_ONE_TEST: dict[str, Callable[[Setup], None]] = {"grammar by xgrammar": _second_grammar}
# Of each of these a request or an engine has one.
ONE_OF = {
    "one drafter at a time": DRAFTERS.keys(),
    "one form of an answer": FORMS.keys(),
    "one backend at a time": BACKENDS.keys(),
}


@pytest.fixture(scope="session")
def models(tmp_path_factory: pytest.TempPathFactory) -> Callable[[str], Path]:
    return cache(lambda arch: make_tiny(arch, tmp_path_factory.mktemp(arch)))


@pytest.fixture(scope="session")
def plain(models: Callable[[str], Path]) -> Callable[[str, Oracle], list[Answer]]:
    """The oracle's answers, computed once."""

    @cache
    def answers(arch: str, oracle: Oracle) -> list[Answer]:
        return plain_answers(models(arch), oracle, POOL_BYTES)

    return answers


def plain_answers(path: Path, oracle: Oracle, kv_bytes: int) -> list[Answer]:
    settings = {**PLAIN, "kv_bytes": kv_bytes, "backend": "reference" if oracle.exact else "auto"}
    with TokenEngine(path, block_size=4, max_context=MAX_CONTEXT, **settings) as engine:
        return [
            engine.alone(prompt, _sampling_of(i, dict(oracle.sampling))) for i, prompt in enumerate(PROMPTS)
        ]


@cache
def _tight_bytes(path: Path, exact: bool) -> int:
    """Of a pool that holds the longest request and little more."""
    weights = "float32" if exact else "file"  # which decides the precision of the KV
    with TokenEngine(
        path, block_size=4, kv_bytes=POOL_BYTES, max_context=MAX_CONTEXT, weights=weights
    ) as engine:
        layout = engine.core.kv.layout
        return (layout.blocks_for(MAX_CONTEXT, 512) + 6) * layout.block_bytes


def _sampling_of(i: int, changes: dict[str, Any]) -> TokenSampling:
    return TokenSampling(**{"max_tokens": NEW_TOKENS, "seed": 1000 + i, "temperature": 0.0, **changes})


def _setup(path: Path, names: tuple[str, ...]) -> Setup:
    setup = Setup(path)
    for name in names:
        (FEATURES | OF_ONE_TEST)[name](setup)
    return setup


def run_features(path: Path, names: tuple[str, ...]) -> tuple[Setup, list[list[Answer]], TokenEngine]:
    """Run the prompts with the named features on. Answers per round."""
    setup = _setup(path, names)
    settings = {**PLAIN, "kv_bytes": POOL_BYTES, **setup.settings}
    if setup.tight:
        settings["kv_bytes"] = _tight_bytes(path, setup.exact)
    rounds = []
    with TokenEngine(path, block_size=4, max_context=MAX_CONTEXT, max_running=8, **settings) as engine:
        if "n-gram drafts" in names:
            # A random model seldom repeats two tokens.
            engine.core.scheduler.drafts._drafter = NgramDrafter(shortest=1)
        engine.core._step_log = lambda plan, result: _count_window(setup, plan.window)
        for number in range(setup.rounds):
            ids = _submit_all(engine, setup, number)
            engine.run()
            rounds.append([engine.answers[request_id] for request_id in ids])
    return setup, rounds, engine


def _count_window(setup: Setup, window: int) -> None:
    setup.windows += window > 1


def _submit_all(engine: TokenEngine, setup: Setup, number: int) -> list[str]:
    ids: list[str] = []
    for i, prompt in enumerate(PROMPTS):
        fields: dict[str, Any] = {"stream": setup.fields.get("stream", True)}
        if setup.fields.get("tenants"):
            fields |= {"tenant": "ab"[i % 2], "priority": i % 3 - 1}
        leader = f"{number}-{i}-0"
        for sibling in range(setup.siblings):
            request_id = f"{number}-{i}-{sibling}"
            family = {} if setup.siblings == 1 else {"cache_salt": f"\x00private:{leader}"}
            if sibling:
                family["leader"] = leader
            engine.submit(request_id, prompt, _sampling_of(i, setup.sampling), **family, **fields)
            ids.append(request_id)
        if setup.neighbours:
            engine.submit(f"{number}-{i}-gone", prompt, _sampling_of(i, setup.sampling))
            engine.core.step()
            engine.core.abort("test", f"{number}-{i}-gone")
    return ids


def check_features(path: Path, names: tuple[str, ...], want: list[Answer]) -> None:
    setup, rounds, engine = run_features(path, names)
    expected = [answer for answer in want for _ in range(setup.siblings)]
    for answers in rounds:
        for got, plain_answer in zip(answers, expected, strict=True):
            assert got.error is None
            assert got.tokens == plain_answer.tokens
            assert got.finish == plain_answer.finish
            if "logprobs" in setup.sampling:
                same_logprobs(got.logprobs, plain_answer.logprobs, LOGPROB_TOLERANCE)
            if "prompt_logprobs" in setup.sampling:
                same_logprobs(got.prompt_logprobs, plain_answer.prompt_logprobs, LOGPROB_TOLERANCE)
    # What two features do may leave a third one nothing to do; pairs show that each happens beside each.
    if len(names) != 3:
        _check_that_it_happened(names, setup, rounds, engine)


def _check_that_it_happened(
    names: tuple[str, ...], setup: Setup, rounds: list[list[Answer]], engine: TokenEngine
) -> None:
    """A feature that was never exercised proves nothing."""
    full_attention = len(engine.core.kv.layout.groups) == 1  # windows hold too little to run out
    if "preemption" in names and full_attention and "stop ids, min tokens" not in names:
        assert engine.core.scheduler.preemptions > 0
    # Someone always waits where all can't run at once, and penalties are the host's work.
    by_host = {"preemption", "seeded sampling, penalties", "thinking budget", *FORMS, *DRAFTERS}
    by_host.add("reference backend")  # no window device
    if "thinking budget" in names:
        longest = THINKING_BUDGET + len(THINKING_END)
        for answer in itertools.chain(*rounds):
            assert (
                len(answer.tokens) < longest or tuple(answer.tokens[THINKING_BUDGET:longest]) == THINKING_END
            )
    if "windows of steps" in names and not by_host & set(names):
        assert setup.windows >= 4
    if "prefix cache" in names and not {"preemption", "prompt logprobs", "n > 1"} & set(names):
        assert sum(answer.cached_tokens for answer in rounds[1]) > 60
    if "n > 1" in names and not {"preemption", "prompt logprobs", "tenants, priorities"} & set(names):
        assert sum(answer.cached_tokens for answer in rounds[0]) > 60

    if names[0] in DRAFTERS or names[-1] in DRAFTERS:
        assert engine.core.progress().draft_steps > 0


def _groups(size: int) -> list[tuple[str, ...]]:
    """All groups of so many features that go together."""
    groups = itertools.combinations(FEATURES, size)
    return [names for names in groups if all(len(one & set(names)) < 2 for one in ONE_OF.values())]


# What is left out where all features are on at once: of each kind one is enough.
OTHERS = (DRAFTERS.keys() - {"suffix drafts"}) | (FORMS.keys() - {"grammar"}) | BACKENDS.keys()
PAIRS = [*_groups(1), *_groups(2)]


def _oracle(names: tuple[str, ...]) -> Oracle:
    setup = _setup(Path(), names)
    return Oracle(tuple(sorted(setup.sampling.items())), setup.exact)


@pytest.mark.parametrize("model", MODELS)
@pytest.mark.parametrize("names", PAIRS, ids=" + ".join)
def test_features_together_give_the_plain_tokens(model, names, models, plain):
    """Red if two features disturb each other's tokens, log-probabilities or resources."""
    arch = MODELS[model]
    check_features(models(arch), names, plain(arch, _oracle(names)))


@pytest.mark.skipif(unavailable("xgrammar") is not None, reason=f"xgrammar is {unavailable('xgrammar')}")
@pytest.mark.parametrize("others", [(), ("suffix drafts", "thinking budget", "prefix cache", "preemption")])
def test_the_second_grammar_backend_gives_the_tokens_of_the_first(others, models, plain):
    """Red if what may come next, or what is forced, depends on who reads the grammar."""
    names = ("grammar by xgrammar", *others)
    check_features(models("llama"), names, plain("llama", _oracle(names)))


@pytest.mark.nightly
@pytest.mark.parametrize("model", MODELS)
@pytest.mark.parametrize("names", _groups(3), ids=" + ".join)
def test_three_features_together_give_the_plain_tokens(model, names, models, plain):
    """Red if it takes three features to disturb each other."""
    arch = MODELS[model]
    check_features(models(arch), names, plain(arch, _oracle(names)))


@pytest.mark.slow
@pytest.mark.parametrize(
    "names",
    [
        tuple(name for name in FEATURES if name not in OTHERS),
        ("tools", "thinking budget", "async depth 1", "prefix cache", "preemption", "n-gram drafts"),
        ("async depth 1", "prefix cache", "chunked prefill", "preemption"),
    ],
)
def test_the_real_model_agrees_with_all_features_on(names, smollm2_path):
    """Red if what holds for tiny models does not hold for a real one."""
    check_features(smollm2_path, names, plain_answers(smollm2_path, _oracle(names), 2**24))


def table() -> str:
    """The compatibility table, in Markdown."""
    names = list(FEATURES)
    rows = ["| | " + " | ".join(names) + " |", "|---" * (len(names) + 1) + "|"]
    for name in names:
        rows.append(f"| **{name}** | " + " | ".join(_pair(name, other) for other in names) + " |")
    return "\n".join(rows)


def _pair(name: str, other: str) -> str:
    if name == other:
        return "—"
    return next((why for why, one in ONE_OF.items() if {name, other} <= one), "yes")


def test_the_documented_table_is_the_tested_one():
    """Red if a feature joins the matrix without joining the page."""
    page = Path(__file__).resolve().parents[2] / "docs" / "feature-matrix.md"
    assert table() in page.read_text()


if __name__ == "__main__":
    print(table())
