"""Hypothesis strategies for Calls and answers: everything that Ollama's format can say, and nothing else.

Left out by name: several choices, tool_choice, names of speakers, strict tools, salts, token ids of text,
arguments that are no object (tested on their own).
"""

from __future__ import annotations

import json

from hypothesis import strategies as st

from penstock.call import (
    Call,
    Done,
    Event,
    Finish,
    ImagePart,
    Message,
    ReasoningDelta,
    ReasoningPart,
    ResponseFormat,
    SamplingParams,
    TextDelta,
    TextPart,
    Timings,
    ToolCallDelta,
    ToolCallPart,
    ToolResultPart,
    ToolSpec,
    Usage,
)
from support.wire_strategies import json_object, name, number, text, token_logprob, tuples

some_text = text.filter(bool)
arguments = json_object.map(lambda value: json.dumps(value, ensure_ascii=False, separators=(",", ":")))
image = st.builds(ImagePart, data=st.binary(min_size=1, max_size=8))


@st.composite
def sampling_params(draw: st.DrawFn) -> SamplingParams:
    return SamplingParams(
        max_tokens=draw(st.none() | st.integers(1, 10_000)),
        temperature=draw(number(0, 100)),
        top_p=draw(number(0, 1, exclude_min=True)),
        top_k=draw(st.integers(-1, 1000)),
        min_p=draw(number(0, 1)),
        typical_p=draw(number(0, 1, exclude_min=True)),
        repetition_penalty=draw(number(0, 100, exclude_min=True)),
        presence_penalty=draw(number(-2, 2)),
        frequency_penalty=draw(number(-2, 2)),
        stop=draw(tuples(name)),
        seed=draw(st.none() | st.integers(-(2**63), 2**64 - 1)),
        logprobs=draw(st.none() | st.integers(0, 20)),
    )


def content(*extra: st.SearchStrategy) -> st.SearchStrategy[tuple]:
    """Text, then images: the order that messages of this format have."""
    return st.builds(
        lambda said, images: (*said, *images), tuples(st.builds(TextPart, some_text), 1), tuples(image, 2)
    )


@st.composite
def message(draw: st.DrawFn) -> Message:
    role = draw(st.sampled_from(["system", "developer", "user", "assistant", "tool"]))
    if role == "tool":
        return Message(role, (ToolResultPart(draw(some_text), draw(content())),), draw(st.none() | name))
    if role != "assistant":
        return Message(role, draw(content()))
    reasoning = draw(tuples(st.builds(ReasoningPart, text), 1))
    calls = draw(tuples(st.builds(ToolCallPart, some_text, name, arguments)))
    return Message(role, (*reasoning, *draw(content()), *calls))


think = st.sampled_from(
    [{}, {"enable_thinking": True}, {"enable_thinking": False}]
    + [{"reasoning_effort": level} for level in ("low", "medium", "high", "xhigh")]
)
answer_format = st.none() | st.one_of(
    st.just(ResponseFormat("json_object")), st.builds(ResponseFormat, st.just("json_schema"), json_object)
)


@st.composite
def common_fields(draw: st.DrawFn) -> dict:
    extra = draw(st.dictionaries(name.map(lambda key: f"x_{key}"), json_object, max_size=2))
    if draw(st.booleans()):
        extra["keep_alive"] = draw(st.sampled_from(["5m", "1h30m", "-1", 0, -1, 2.5]))
    if draw(st.booleans()):
        extra["options"] = {"num_ctx": draw(st.integers(0, 100_000)), "num_gpu": 1}
    return {
        "model": draw(text),
        "stream": draw(st.booleans()),
        "response_format": draw(answer_format),
        "sampling": draw(sampling_params()),
        "extra": extra,
    }


@st.composite
def chat_call(draw: st.DrawFn) -> Call:
    tools = tuples(st.builds(ToolSpec, name, st.none() | text, st.none() | json_object))
    return Call(
        kind="chat",
        messages=draw(tuples(message())),
        tools=draw(tools),
        template_args=draw(think),
        **draw(common_fields()),
    )


@st.composite
def generate_call(draw: st.DrawFn) -> Call:
    common = draw(common_fields())
    if draw(st.booleans()):
        return Call(kind="completion", prompts=draw(tuples(some_text, 1)), **common)
    turn = draw(content())
    system = draw(tuples(st.builds(lambda said: Message("system", (TextPart(said),)), some_text), 1))
    messages = (*system, Message("user", turn)) if turn else ()
    return Call(kind="chat", messages=messages, template_args=draw(think), **common)


@st.composite
def answer(draw: st.DrawFn, calls: bool) -> list[Event]:
    """Reasoning, text, calls (if `calls`), Finish, Done."""
    events: list[Event] = [ReasoningDelta(0, piece) for piece in draw(st.lists(text, max_size=3))]
    wants_logprobs = draw(st.booleans())
    for piece in draw(st.lists(text, max_size=4)):
        items = draw(tuples(token_logprob(bytes_are_text=False))) if wants_logprobs else None
        events.append(TextDelta(0, piece, (), items))
    num_calls = draw(st.integers(0, 2)) if calls else 0
    for index in range(num_calls):
        events.append(ToolCallDelta(0, index, draw(some_text), draw(name), ""))
        written = draw(arguments)
        cut = draw(st.integers(0, len(written)))
        events += [ToolCallDelta(0, index, arguments=part) for part in (written[:cut], written[cut:])]
    reasons = ["tool_calls", "length"] if num_calls else ["stop", "length"]
    events.append(Finish(0, draw(st.sampled_from(reasons))))
    seconds = [n / 1e9 for n in sorted(draw(st.lists(st.integers(0, 10**12), min_size=3, max_size=3)))]
    usage = Usage(draw(st.integers(0, 1000)), draw(st.integers(0, 1000)))
    return [*events, Done(usage, Timings(*seconds))]
