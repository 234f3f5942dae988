"""Thinking budgets from the call to the answer: spellings, markers of real tokenizers, counts, grammars."""

from __future__ import annotations

import json
import re
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import msgspec
import pytest

from penstock.call import Call, Message, SamplingParams, TextPart, ToolSpec
from penstock.decoding.thinking import ThinkingSpec
from penstock.engine.prepare import Preparer, Prompt
from penstock.errors import InvalidRequest
from penstock.llm import LLM
from penstock.text.tokenizer import Tokenizer
from penstock.thinking import EFFORT_BUDGETS
from support.tiny_models import CHAT_TEMPLATE, make_tiny, write_tokenizer

HISTORY = CHAT_TEMPLATE.partition("{% if add_generation_prompt %}")[0]
TURN = "{% if add_generation_prompt %}<|im_start|>assistant\n"
SHOWN = "{% if false %}<think>{% endif %}"
PLAIN = CHAT_TEMPLATE
BEGINS = HISTORY + SHOWN + TURN + "{% endif %}"  # the model writes the marker itself
OPENED = HISTORY + TURN + "<think>\n{% endif %}"
SWITCHED = (
    HISTORY + TURN + "{% if enable_thinking is defined and enable_thinking is false %}"
    "<think>\n\n</think>\n\n{% endif %}{% endif %}"
)
LEVELS = (
    HISTORY + SHOWN + "{% if reasoning_effort is not defined %}{% set reasoning_effort = 'medium' %}"
    "{% endif %}Reasoning: {{ reasoning_effort }}" + TURN + "{% endif %}"
)
TOLD = (
    HISTORY
    + "{% if thinking_budget is defined %}{{ thinking_budget }} tokens{% endif %}"
    + TURN
    + "<think>{% endif %}"
)


def set_template(folder: Path, template: str, special: bool) -> Path:
    """Into a folder of `write_tokenizer`; special: the markers are tokens 320 and 321, else ordinary text."""
    settings = json.loads((folder / "tokenizer_config.json").read_text())
    (folder / "tokenizer_config.json").write_text(json.dumps(settings | {"chat_template": template}))
    if special:
        tokenizer = json.loads((folder / "tokenizer.json").read_text())
        flags = {"single_word": False, "lstrip": False, "rstrip": False, "normalized": False, "special": True}
        for number, text in enumerate(("<think>", "</think>")):
            tokenizer["added_tokens"].append({"id": 320 + number, "content": text} | flags)
        (folder / "tokenizer.json").write_text(json.dumps(tokenizer))
    return folder


@pytest.fixture
def preparer(tmp_path: Path) -> Callable[..., Preparer]:
    def make(template: str, special: bool = True, **options: Any) -> Preparer:
        write_tokenizer(tmp_path)
        tokenizer = Tokenizer.load(set_template(tmp_path, template, special))
        options = {"max_context": 200_000, "vocab_size": 322, "prefix_cache": True, **options}
        return Preparer(tokenizer, model="tiny", **options)

    return make


def chat(template_args: dict[str, Any] | None = None, **sampling: Any) -> Call:
    return Call(
        kind="chat",
        model="tiny",
        messages=(Message("user", (TextPart("Why? <think>"),)),),
        template_args=template_args or {},
        sampling=SamplingParams(**sampling),
    )


def spec_of(prompt: Prompt) -> ThinkingSpec | None:
    return prompt.submits[0].sampling.thinking


def budget_of(made: Preparer, call: Call) -> int | None:
    spec = spec_of(made.prepare(call, "k")[0])
    return None if spec is None else spec.budget


# ---------------------------------------------------------------- spellings

WAYS: list[tuple[dict[str, Any], dict[str, Any], int | None]] = [
    ({"thinking_budget": 5}, {}, 5),
    ({"thinking_budget": 0}, {}, 0),
    ({"thinking_budget": -1}, {}, None),
    ({}, {"thinking_budget": 7}, 7),
    ({}, {"thinking_budget": -1}, None),
    ({}, {"enable_thinking": True}, None),
    ({}, {"enable_thinking": False}, 0),  # the template ignores it
    ({}, {"thinking": False}, 0),
    *(({}, {"reasoning_effort": level}, budget) for level, budget in EFFORT_BUDGETS.items()),
    ({"thinking_budget": 0}, {"enable_thinking": False, "reasoning_effort": "none"}, 0),
    ({"thinking_budget": 5}, {"enable_thinking": True, "thinking_budget": 5}, 5),
    ({"thinking_budget": 1024}, {"reasoning_effort": "low"}, 1024),
]


@pytest.mark.parametrize("template", [OPENED, BEGINS])
@pytest.mark.parametrize(("sampling", "args", "budget"), WAYS)
def test_each_spelling_is_one_budget(preparer, template, sampling, args, budget):
    """Red if a way to say how much may be thought is dropped or means another number."""
    assert budget_of(preparer(template), chat(args, **sampling)) == budget


@pytest.mark.parametrize(
    ("sampling", "args", "names"),
    [
        ({"thinking_budget": 5}, {"thinking_budget": 6}, ["thinking_budget (5)", "thinking_budget (6)"]),
        ({"thinking_budget": 5}, {"enable_thinking": False}, ["thinking_budget (5)", "enable_thinking"]),
        ({"thinking_budget": 0}, {"enable_thinking": True}, ["thinking_budget (0)", "enable_thinking"]),
        ({"thinking_budget": 5}, {"reasoning_effort": "low"}, ["thinking_budget (5)", "'low', 1024 tokens"]),
        ({}, {"reasoning_effort": "none", "enable_thinking": True}, ["reasoning_effort", "enable_thinking"]),
        ({}, {"thinking": True, "enable_thinking": False}, ["kwargs.thinking", "kwargs.enable_thinking"]),
    ],
)
def test_spellings_that_disagree_are_refused_with_both_names(preparer, sampling, args, names):
    """Red if one of two contradicting wishes is dropped in silence."""
    with pytest.raises(InvalidRequest) as caught:
        preparer(OPENED).prepare(chat(args, **sampling), "k")
    assert caught.value.status == 400
    assert all(name in caught.value.message for name in names), caught.value.message


@pytest.mark.parametrize(
    "args",
    [{"thinking_budget": "5"}, {"thinking_budget": True}, {"thinking_budget": -2}, {"enable_thinking": "no"},
     {"reasoning_effort": "huge"}, {"reasoning_effort": 3}],
)  # fmt: skip
def test_what_is_no_budget_is_refused(preparer, args):
    """Red if a malformed template argument is ignored, or breaks the render."""
    with pytest.raises(InvalidRequest, match=next(iter(args))):
        preparer(OPENED).prepare(chat(args), "k")
    with pytest.raises(InvalidRequest, match="thinking_budget: -2"):
        SamplingParams(thinking_budget=-2).validate()


def test_what_a_template_does_itself_is_left_to_it(preparer):
    """Red if a switch or level that the template honours becomes a budget too."""
    switched = preparer(SWITCHED)
    prompt = switched.prepare(chat({"enable_thinking": False}), "k")[0]
    assert switched.tokenizer.decode(prompt.tokens, skip_special=False).endswith("</think>\n\n")
    assert spec_of(prompt) is None
    assert budget_of(switched, chat({"reasoning_effort": "none"})) == 0  # said as a number: it holds
    levels = preparer(LEVELS)
    prompt = levels.prepare(chat({"reasoning_effort": "high"}, thinking_budget=9), "k")[0]
    assert "Reasoning: high" in levels.tokenizer.decode(prompt.tokens)
    assert spec_of(prompt).budget == 9  # type: ignore[union-attr]
    assert budget_of(levels, chat({"reasoning_effort": "high"})) is None
    assert budget_of(levels, chat({"reasoning_effort": "none"})) == 0
    told = preparer(TOLD)
    prompt = told.prepare(chat(thinking_budget=64), "k")[0]
    assert "64 tokens" in told.tokenizer.decode(prompt.tokens)


def test_a_model_that_does_not_think_takes_any_budget(preparer):
    """Red if a client that always sends a budget is refused, or slowed down, by a plain model."""
    made = preparer(PLAIN, special=False)
    for args, sampling in (
        ({}, {"thinking_budget": 3}),
        ({"reasoning_effort": "low"}, {}),
        ({"enable_thinking": False}, {}),
    ):
        assert spec_of(made.prepare(chat(args, **sampling), "k")[0]) is None
    call = Call(kind="completion", model="tiny", prompts=("x",), sampling=SamplingParams(thinking_budget=3))
    assert spec_of(made.prepare(call, "k")[0]) is None


def test_a_budget_that_can_not_bite_costs_nothing(preparer):
    """Red if rows are drawn by the host for a budget above max_tokens."""
    made = preparer(BEGINS)
    assert budget_of(made, chat(thinking_budget=50, max_tokens=50)) is None
    assert budget_of(made, chat(thinking_budget=49, max_tokens=50)) == 49


# ---------------------------------------------------------------- markers and prompts


@pytest.mark.parametrize("special", [True, False])
def test_what_the_prompt_has_thought_counts(preparer, special):
    """Red if a prompt that ends inside a section starts counting anew, or a closed section counts as open."""
    made = preparer(OPENED, special)
    encode = made.tokenizer.encode
    spec = spec_of(made.prepare(chat(thinking_budget=5), "k")[0])
    assert spec is not None and spec.open and spec.used == len(encode("\n"))
    for text, is_open, used in (
        ("a<think>one two", True, len(encode("one two"))),
        ("<think>x</think>y", False, 0),
        ("<think>x</think>y<think>zz", True, 2),
        ("plain", False, 0),
    ):
        call = Call(
            kind="completion", model="tiny", prompts=(text,), sampling=SamplingParams(thinking_budget=5)
        )
        spec = spec_of(made.prepare(call, "k")[0])
        assert spec is not None and (spec.open, spec.used) == (is_open, used), text
    spec = spec_of(preparer(BEGINS, special).prepare(chat(thinking_budget=5), "k")[0])
    assert spec is not None and not spec.open  # "<think>" in the user's text opens nothing


def test_markers_of_ordinary_tokens_have_their_spellings(preparer):
    """Red if a marker that shares a token with its neighbours goes unseen."""
    made = preparer(BEGINS, special=False)
    spec = spec_of(made.prepare(chat(thinking_budget=5), "k")[0])
    assert spec is not None
    assert spec.ends[0] == tuple(made.tokenizer.encode("</think>"))
    assert len(spec.ends[0]) > 1
    assert all("".join(map(made.tokenizer.token_text, ids)) == "</think>" for ids in spec.ends)
    special = spec_of(preparer(BEGINS).prepare(chat(thinking_budget=5), "k")[0])
    assert special is not None and (special.starts, special.ends) == (((320,),), ((321,),))


def test_a_closing_sentence_is_part_of_the_spec(preparer):
    """Red if the setting is dropped on its way to the sampler."""
    made = preparer(BEGINS, thinking_stop_sentence="So then.")
    spec = spec_of(made.prepare(chat(thinking_budget=50), "k")[0])
    assert spec is not None and spec.closing == tuple(made.tokenizer.encode("So then."))


def test_a_grammar_waits_for_reasoning_only_where_there_may_be_some(preparer):
    """Red if a structured answer loses its reasoning, or a plain model's is not bound from the start."""
    grammar = {"regex": "[a-z]+"}
    for template, thinks in ((OPENED, True), (BEGINS, True), (PLAIN, False)):
        prompt = preparer(template).prepare(chat(**grammar), "k")[0]
        assert prompt.submits[0].sampling.grammar is not None
        assert (spec_of(prompt) is not None) == thinks
    switched = preparer(SWITCHED)
    assert spec_of(switched.prepare(chat({"enable_thinking": False}, **grammar), "k")[0]) is None
    assert spec_of(switched.prepare(chat({"enable_thinking": True}, **grammar), "k")[0]) is not None
    raw = Call(kind="completion", model="tiny", prompts=("a", "<think>b"), sampling=SamplingParams(**grammar))
    assert [spec_of(prompt) is not None for prompt in switched.prepare(raw, "k")] == [False, True]


def test_harmony_answers_get_their_header_before_a_grammar(preparer):
    """Red if a message format's answer begins without the header that its model writes."""
    # Its markers are ordinary text to this tokenizer.
    harmony = HISTORY + "{% if false %}<|channel|>analysis<|message|>{% endif %}<|start|>assistant"
    made = preparer(harmony, special=False)
    spec = spec_of(made.prepare(chat(regex="[a-z]+"), "k")[0])
    assert spec is not None
    assert made.tokenizer.decode(spec.lead_in) == "<|start|>assistant<|channel|>final<|message|>"
    call = msgspec.structs.replace(chat(), tools=(ToolSpec("f"),), tool_choice="required")
    spec = spec_of(made.prepare(call, "k")[0])
    assert spec is not None and made.tokenizer.decode(spec.lead_in) == "<|start|>assistant"


# ---------------------------------------------------------------- answers


@pytest.fixture(scope="module", params=["special", "text"])
def llm(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> Iterator[LLM]:
    folder = make_tiny("llama", tmp_path_factory.mktemp("thinks"), vocab_size=322)
    set_template(folder, OPENED.replace("<think>\n", "<think>"), request.param == "special")
    with LLM(str(folder), kv_bytes=2**22, max_context=256) as made:
        yield made


QUESTION = [{"role": "user", "content": "Why?"}]


@pytest.mark.parametrize("budget", range(13))
def test_answers_keep_the_budget_and_usage_counts_it(llm: LLM, budget: int) -> None:
    """Red if an answer thinks too long, the marker reaches the text, or usage counts otherwise."""
    params = SamplingParams(
        max_tokens=30, thinking_budget=budget, temperature=0.8, seed=1, n=2, ignore_eos=True
    )
    (result,) = llm.chat(QUESTION, params)
    end = Tokenizer.load(Path(llm.settings.model)).encode("</think>")
    for choice in result.choices:
        assert list(choice.token_ids[budget : budget + len(end)]) == end
        # A random model may write a marker in its answer; what it writes in its reasoning ends that.
        assert choice.token_ids.count(end[0]) > 1 or "think>" not in choice.text
        assert "think>" not in choice.reasoning
    assert result.usage.reasoning_tokens == 2 * budget
    assert bool(result.reasoning) == (budget > 0)


def test_without_a_budget_reasoning_is_counted_all_the_same(llm: LLM) -> None:
    """Red if usage shows reasoning only where it is bounded."""
    (result,) = llm.chat(QUESTION, SamplingParams(max_tokens=9, temperature=0, ignore_eos=True))
    assert result.usage.reasoning_tokens == 9
    (result,) = llm.generate(["a<think>bc"], SamplingParams(max_tokens=9, thinking_budget=6, temperature=0))
    used = len(Tokenizer.load(Path(llm.settings.model)).encode("bc"))
    assert result.usage.reasoning_tokens == 6 - used


@pytest.mark.parametrize("budget", [0, 1, 4])
@pytest.mark.parametrize("temperature", [0.0, 1.2])
def test_structured_answers_come_behind_the_reasoning(llm: LLM, budget: int, temperature: float) -> None:
    """Red if a form bends the reasoning, or the text behind it has none."""
    params = SamplingParams(
        max_tokens=60, thinking_budget=budget, temperature=temperature, seed=2, regex="(yes|no), [0-9]{2}"
    )
    (result,) = llm.chat(QUESTION, params)
    assert re.fullmatch(params.regex or "", result.text)
    assert result.finish_reason == "stop"
    assert result.usage.reasoning_tokens == budget


def test_stop_strings_in_the_reasoning_end_the_answer(llm: LLM) -> None:
    """Red if a stop string is not looked for in reasoning, or its tokens are not counted as such."""
    free = SamplingParams(max_tokens=12, temperature=0, thinking_budget=100, ignore_eos=True)
    (result,) = llm.chat(QUESTION, free)
    stop = next(char for char in result.reasoning if char.isascii() and char.isprintable())
    (ended,) = llm.chat(QUESTION, msgspec.structs.replace(free, stop=(stop,)))
    assert ended.finish_reason == "stop"
    assert result.reasoning.startswith(ended.reasoning)
    assert ended.usage.reasoning_tokens == len(ended.token_ids)
