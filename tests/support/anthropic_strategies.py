"""Hypothesis strategies for Calls and event streams: everything that the Anthropic format can say.

What it can't say is left out, on purpose and by name: several choices, most sampling fields, names of
speakers, details of images, reasoning without a signature, tenant, priority, deadline, cache salt and key.
"""

from __future__ import annotations

import json
from itertools import pairwise

from hypothesis import strategies as st

from penstock.call import (
    CachePolicy,
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
    ToolCallDelta,
    ToolCallPart,
    ToolResultPart,
    ToolSpec,
    Usage,
)
from support.wire_strategies import json_object, name, number, text, token_id, tuples

text_part = st.builds(TextPart, text)
image_part = st.builds(ImagePart, url=text.map(lambda path: f"https://images.example/{path}")) | st.builds(
    ImagePart, data=st.binary(max_size=9), media_type=st.sampled_from(["image/png", "image/webp"])
)
shown = text_part | image_part
arguments = json_object.map(lambda value: json.dumps(value, ensure_ascii=False, separators=(",", ":")))
foreign = name.map(lambda signature: f"theirs-{signature}")
reasoning_part = st.builds(ReasoningPart, text, foreign) | st.builds(
    ReasoningPart, st.just(""), foreign, st.just(True)
)
tool = st.builds(ToolSpec, name, st.none() | text, json_object, st.booleans())


@st.composite
def message(draw: st.DrawFn) -> Message:
    role = draw(st.sampled_from(["user", "assistant", "tool", "system"]))
    if role == "tool":
        return Message("tool", (ToolResultPart(draw(text), draw(tuples(shown)), draw(st.booleans())),))
    if role == "user":
        return Message("user", draw(tuples(shown, min_size=1)))
    if role == "system":
        return Message("system", draw(tuples(text_part, min_size=1)))
    call = st.builds(ToolCallPart, text, name, arguments)
    return Message("assistant", draw(tuples(text_part | call | reasoning_part)))


@st.composite
def call(draw: st.DrawFn) -> Call:
    tools = draw(tuples(tool))
    choices = [None, "none", "auto", *(["required"] if tools else []), *(f"tool:{t.name}" for t in tools)]
    choice = draw(st.sampled_from(choices))
    parallel = None if choice == "none" else draw(st.none() | st.booleans())
    if choice is None and parallel is not None:
        choice = "auto"  # where that is said stands what kind of choice it is
    schema = draw(st.none() | json_object)
    effort = draw(st.none() | st.sampled_from(["low", "medium", "high", "xhigh"]))
    budget, args = draw(
        st.sampled_from([(0, {"enable_thinking": False}), (None, {"enable_thinking": True}), (None, {})])
        | st.integers(1, 100_000).map(lambda tokens: (tokens, {"enable_thinking": True}))
    )
    if budget is None and effort is not None:
        args = args | {"reasoning_effort": effort}
    messages = draw(tuples(message(), min_size=1))
    return Call(
        kind="chat",
        model=draw(text),
        messages=messages,
        sampling=SamplingParams(
            max_tokens=draw(st.integers(1, 100_000)),
            temperature=draw(number(0, 1)),
            top_p=draw(number(0, 1, exclude_min=True)),
            top_k=draw(st.integers(0, 1000)),
            stop=draw(tuples(name)),
            thinking_budget=budget,
        ),
        tools=tools,
        tool_choice=choice,
        parallel_tool_calls=parallel,
        continue_final=messages[-1].role == "assistant",
        fit_context=True,
        response_format=None if schema is None else ResponseFormat("json_schema", schema, None, True),
        stream=draw(st.booleans()),
        template_args=args,
        cache=CachePolicy(ttl_s=draw(st.sampled_from([None, 300, 3600]))),
        user=draw(st.none() | text),
        extra=draw(st.dictionaries(name.map(lambda key: f"x_{key}"), json_object, max_size=2)),
    )


@st.composite
def stream(draw: st.DrawFn) -> list[Event]:
    """Events of one choice: sections of text, reasoning and tool calls in any order, in any pieces."""
    events: list[Event] = []
    calls = 0
    for kind in draw(
        st.lists(st.sampled_from(["text", "reasoning", "signed", "redacted", "call"]), max_size=6)
    ):
        if kind == "text":
            events += [TextDelta(0, piece, (1,)) for piece in draw(st.lists(text, max_size=3))]
        elif kind == "reasoning":
            events += [ReasoningDelta(0, piece, (1,)) for piece in draw(st.lists(text, max_size=3))]
        elif kind == "signed":
            events += [ReasoningDelta(0, piece) for piece in draw(st.lists(text, max_size=2))]
            events.append(ReasoningDelta(0, "", signature=draw(foreign)))
        elif kind == "redacted":
            events.append(ReasoningDelta(0, "", signature=draw(foreign), redacted=True))
        else:
            events.append(ToolCallDelta(0, calls, draw(name), draw(name)))
            written = draw(arguments | st.just(""))
            cuts = sorted({0, len(written), *draw(st.lists(st.integers(0, len(written)), max_size=3))})
            events += [ToolCallDelta(0, calls, arguments=written[a:b]) for a, b in pairwise(cuts)]
            calls += 1
    reason = draw(st.sampled_from(["stop", "length", "tool_calls", "content_filter"]))
    events.append(Finish(0, reason, draw(st.none() | text | token_id) if reason == "stop" else None))
    prompt = draw(st.integers(0, 1000))
    usage = Usage(prompt, draw(st.integers(0, 1000)), draw(st.integers(0, prompt)), draw(st.integers(0, 10)))
    return [*events, Done(usage)]
