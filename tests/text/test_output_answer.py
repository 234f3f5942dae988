"""Text deltas of a choice to reasoning, text and tool calls."""

from __future__ import annotations

import json
from itertools import pairwise

from hypothesis import given
from hypothesis import strategies as st

from penstock.call import (
    Event,
    Finish,
    Message,
    ReasoningDelta,
    TextDelta,
    TextPart,
    TokenLogprob,
    ToolCallDelta,
    ToolCallPart,
    ToolResultPart,
    ToolSpec,
)
from penstock.text.output.answer import AnswerParser
from penstock.text.output.choose import format_by_name
from penstock.text.tool_prompt import with_tool_prompt
from penstock.wire.fold import Fold

TOOLS = (ToolSpec("weather", "of a city", {"type": "object", "properties": {"city": {"type": "string"}}}),)
CALL = '<tool_call>\n{"name": "weather", "arguments": {"city": "Rome"}}\n</tool_call>'
OUTPUT = f"<think>Which tool?</think>I will look.\n{CALL}\n{CALL}"


def _logprob(token: int) -> TokenLogprob:
    return TokenLogprob(str(token), -1.0, b"x", token)


def _events(text: str, cuts: list[int], finish: Finish, logprobs: bool = False) -> list[Event]:
    parser = AnswerParser(format_by_name("hermes"), TOOLS, "")
    edges = sorted({0, *(min(cut, len(text)) for cut in cuts), len(text)})
    found: list[Event] = []
    for token, (first, last) in enumerate(pairwise(edges)):
        entries = (_logprob(token),) if logprobs else None
        found += parser.convert([TextDelta(0, text[first:last], (token,), entries)])
    return found + parser.convert([finish])


def _sum(events: list[Event]) -> tuple[str, str, list[tuple[str, str]], str, list[int]]:
    fold = Fold()
    for event in events:
        fold.add(event)
    choice = fold.choices()[0]
    assert choice.finish is not None
    calls = [(event.name or "", event.arguments) for event in events if isinstance(event, ToolCallDelta)]
    ids = [i for event in events if isinstance(event, TextDelta | ReasoningDelta) for i in event.token_ids]
    reasoning = "".join(event.text for event in events if isinstance(event, ReasoningDelta))
    return choice.text, reasoning, calls, choice.finish.reason, ids


@given(st.lists(st.integers(1, len(OUTPUT)), max_size=40))
def test_every_split_adds_up_to_the_same_answer(cuts: list[int]) -> None:
    """Red if what a client gets depends on how many tokens a step brought, or a token's id is lost."""
    text, reasoning, calls, reason, ids = _sum(_events(OUTPUT, cuts, Finish(0, "stop")))
    assert text.strip() == "I will look."
    assert reasoning == "Which tool?"
    assert [(name, json.loads(arguments)) for name, arguments in calls] == [("weather", {"city": "Rome"})] * 2
    assert reason == "tool_calls"
    assert ids == list(range(len(ids)))


def test_reasoning_comes_before_the_text_that_follows_it() -> None:
    """Red if events of one delta are given in another order than they were written."""
    kinds = [
        type(event)
        for event in _events("<think>a</think>b", [], Finish(0, "stop"))
        if getattr(event, "text", "")
    ]
    assert kinds == [ReasoningDelta, TextDelta]


def test_each_call_has_an_id_and_a_number_of_its_own() -> None:
    """Red if parallel calls can't be told apart."""
    calls = [
        event for event in _events(OUTPUT, [7, 70], Finish(0, "stop")) if isinstance(event, ToolCallDelta)
    ]
    assert [call.call_index for call in calls] == [0, 1]
    assert len({call.id for call in calls}) == 2
    assert all(call.id and call.id.startswith("call_") for call in calls)


def test_a_call_that_is_none_stays_text() -> None:
    """Red if a client is handed a call whose arguments never become JSON."""
    text, _, calls, reason, _ = _sum(_events('<tool_call>\n{"name": weather', [5, 18], Finish(0, "stop")))
    assert calls == []
    assert "weather" in text
    assert reason == "stop"


def test_a_limit_or_a_stop_string_stays_the_reason() -> None:
    """Red if an answer that was cut off looks as if its calls were all that it wanted."""
    assert _sum(_events(CALL, [], Finish(0, "length")))[3] == "length"
    assert _sum(_events(CALL, [], Finish(0, "stop", "END")))[3] == "stop"


def test_logprobs_survive_calls_and_reasoning() -> None:
    """Red if tokens that become no text lose their log-probabilities."""
    events = _events(OUTPUT, list(range(0, len(OUTPUT), 9)), Finish(0, "stop"), logprobs=True)
    entries = [e.token_id for event in events if isinstance(event, TextDelta) for e in event.logprobs or ()]
    assert entries == list(range(len(entries)))
    assert len(entries) == len(range(0, len(OUTPUT), 9))


def test_a_template_without_tools_is_told_of_them_in_words() -> None:
    """Red if a model whose template knows no tools never hears of them, or of the calls it made."""
    history = [
        Message("system", (TextPart("Be brief."),)),
        Message("user", (TextPart("Rome?"),)),
        Message("assistant", (ToolCallPart("1", "weather", '{"city": "Rome"}'),)),
        Message("tool", (ToolResultPart("1", (TextPart("sunny"),)),)),
    ]
    told = with_tool_prompt(history, TOOLS)
    assert [message.role for message in told] == ["system", "user", "assistant", "user"]
    assert told[0].text.startswith("Be brief.")
    assert '"weather"' in told[0].text and "<tool_call>" in told[0].text
    parser = AnswerParser(format_by_name("builtin"), TOOLS, "")
    events = parser.convert([TextDelta(0, told[2].text, (1,)), Finish(0, "stop")])
    assert [event.name for event in events if isinstance(event, ToolCallDelta)] == ["weather"]
    assert told[3].text == "<tool_response>\nsunny\n</tool_response>"
