"""Hypothesis strategies for Calls and event streams: everything that the OpenAI formats can say.

What they can't say is left out here, on purpose and by name: tenant, deadline, cache read/store,
reasoning signatures, error flags on tool results, parts in an order other than reasoning, text, calls.
"""

from __future__ import annotations

from hypothesis import strategies as st

from penstock.call import (
    CachePolicy,
    Call,
    Done,
    Event,
    Finish,
    ImagePart,
    Message,
    PromptEcho,
    ReasoningDelta,
    ReasoningPart,
    ResponseFormat,
    SamplingParams,
    TextDelta,
    TextPart,
    TokenLogprob,
    ToolCallDelta,
    ToolCallPart,
    ToolResultPart,
    ToolSpec,
    TopLogprob,
    Usage,
)

# JSON text can't hold lone surrogates; everything else, NUL and line separators included, it can.
text = st.text(st.characters(exclude_categories=["Cs"]), max_size=20)
name = st.text(st.characters(exclude_categories=["Cs"]), min_size=1, max_size=10)
token_id = st.integers(0, 2**31 - 1)
json_object = st.dictionaries(
    text,
    st.recursive(st.none() | st.booleans() | st.integers(-(2**53), 2**53) | text, st.lists, max_leaves=5),
    max_size=3,
)


def number(low: float, high: float, *, exclude_min: bool = False) -> st.SearchStrategy[float]:
    return st.floats(low, high, exclude_min=exclude_min, allow_subnormal=False)


def tuples(items: st.SearchStrategy, max_size: int = 3, min_size: int = 0) -> st.SearchStrategy[tuple]:
    return st.lists(items, min_size=min_size, max_size=max_size).map(tuple)


@st.composite
def sampling_params(draw: st.DrawFn) -> SamplingParams:
    max_tokens = draw(st.none() | st.integers(1, 10_000))
    return SamplingParams(
        n=draw(st.integers(1, 128)),
        max_tokens=max_tokens,
        min_tokens=draw(st.integers(0, max_tokens or 1000)),
        temperature=draw(number(0, 100)),
        top_p=draw(number(0, 1, exclude_min=True)),
        top_k=draw(st.integers(-1, 1000)),
        min_p=draw(number(0, 1)),
        typical_p=draw(number(0, 1, exclude_min=True)),
        repetition_penalty=draw(number(0, 100, exclude_min=True)),
        presence_penalty=draw(number(-2, 2)),
        frequency_penalty=draw(number(-2, 2)),
        logit_bias=draw(st.none() | st.dictionaries(token_id, number(-100, 100), min_size=1, max_size=3)),
        allowed_token_ids=draw(st.none() | tuples(token_id, min_size=1)),
        bad_words=draw(tuples(name)),
        stop=draw(tuples(name)),
        stop_token_ids=draw(tuples(token_id)),
        include_stop_str_in_output=draw(st.booleans()),
        ignore_eos=draw(st.booleans()),
        thinking_budget=draw(st.none() | st.integers(-1, 100_000)),
        seed=draw(st.none() | st.integers(-(2**63), 2**64 - 1)),
        logprobs=draw(st.none() | st.integers(0, 20)),
        prompt_logprobs=draw(st.none() | st.integers(0, 20)),
        skip_special_tokens=draw(st.booleans()),
    )


text_part = st.builds(TextPart, text)
image_part = st.builds(ImagePart, url=text, detail=st.none() | text)


@st.composite
def message(draw: st.DrawFn) -> Message:
    role = draw(st.sampled_from(["system", "developer", "user", "assistant", "tool"]))
    content = draw(tuples(text_part | image_part))
    sender = draw(st.none() | name)
    if role == "tool":
        return Message(role, (ToolResultPart(draw(text), content),), sender)
    if role != "assistant":
        return Message(role, content, sender)
    reasoning = draw(tuples(st.builds(ReasoningPart, text), max_size=1))
    calls = draw(tuples(st.builds(ToolCallPart, text, name, text)))
    return Message(role, (*reasoning, *content, *calls), sender)


tool = st.builds(ToolSpec, name, st.none() | text, st.none() | json_object, st.booleans())
response_format = st.none() | st.one_of(
    st.just(ResponseFormat("text")),
    st.just(ResponseFormat("json_object")),
    st.builds(ResponseFormat, st.just("json_schema"), st.none() | json_object, name, st.booleans()),
)


@st.composite
def call(draw: st.DrawFn, kind: str) -> Call:
    sampling = draw(sampling_params())
    common = {
        "kind": kind,
        "model": draw(text),
        "stream": draw(st.booleans()),
        "stream_usage": draw(st.booleans()),
        "cache": CachePolicy(salt=draw(text), key=draw(st.none() | text)),
        "priority": draw(st.integers(-2, 2)),
        "user": draw(st.none() | text),
        "metadata": draw(st.dictionaries(text, text, max_size=2)),
        "extra": draw(st.dictionaries(name.map(lambda key: f"x_{key}"), json_object, max_size=2)),
    }
    if kind == "completion":
        prompts = draw(tuples(text, min_size=1) | tuples(tuples(token_id, min_size=1), min_size=1))
        echo = draw(st.booleans())
        if echo and sampling.logprobs is not None:  # the format reports both sides alike
            import msgspec

            sampling = msgspec.structs.replace(sampling, prompt_logprobs=sampling.logprobs)
        suffix = "" if echo else draw(text)
        return Call(prompts=prompts, echo=echo, suffix=suffix, sampling=sampling, **common)
    tools = draw(tuples(tool))
    choices = [None, "none", "auto"] + (["required", f"tool:{tools[0].name}"] if tools else [])
    return Call(
        messages=draw(tuples(message(), min_size=1)),
        sampling=sampling,
        tools=tools,
        tool_choice=draw(st.sampled_from(choices)),
        parallel_tool_calls=draw(st.none() | st.booleans()),
        response_format=draw(response_format),
        template_args=draw(st.dictionaries(name, json_object, max_size=2)),
        **common,
    )


# --------------------------------------------------------------------------- events

logprob = st.floats(-9999, 0, allow_subnormal=False)


@st.composite
def token_logprob(draw: st.DrawFn, *, bytes_are_text: bool) -> TokenLogprob:
    """`bytes_are_text`: completions carry no bytes, so there they must follow from the token."""
    token = draw(text)
    data = token.encode() if bytes_are_text else draw(st.binary(max_size=4))
    tops = []
    for _ in range(draw(st.integers(0, 2))):
        top = draw(text)
        tops.append(
            TopLogprob(
                top, draw(logprob), top.encode() if bytes_are_text else draw(st.binary(max_size=4)), -1
            )
        )
    return TokenLogprob(token, draw(logprob), data, -1, tuple(tops))


@st.composite
def stream(draw: st.DrawFn, kind: str) -> list[Event]:
    """Events of up to three choices, interleaved; each choice ends in a Finish, the stream in Done."""
    lanes: list[list[Event]] = []
    for index in range(draw(st.integers(1, 3))):
        lane: list[Event] = []
        wants_logprobs = draw(st.booleans())
        if kind == "completion" and draw(st.booleans()):
            lane.append(PromptEcho(index, draw(text), tuple(draw(st.lists(token_id, max_size=3)))))
        if kind == "chat":
            lane += [ReasoningDelta(index, t) for t in draw(st.lists(text, max_size=2))]
        for piece in draw(st.lists(text, max_size=4)):
            items = (
                draw(tuples(token_logprob(bytes_are_text=kind == "completion"))) if wants_logprobs else None
            )
            lane.append(TextDelta(index, piece, tuple(draw(st.lists(token_id, max_size=2))), items))
        if kind == "chat":
            for number_ in range(draw(st.integers(0, 2))):
                lane.append(ToolCallDelta(index, number_, draw(name), draw(name), ""))
                lane += [ToolCallDelta(index, number_, arguments=t) for t in draw(st.lists(text, max_size=2))]
        reason = draw(st.sampled_from(["stop", "length", "tool_calls", "content_filter"]))
        lane.append(Finish(index, reason, draw(st.none() | text | token_id)))
        lanes.append(lane)
    events: list[Event] = []
    while lanes:
        lane = draw(st.sampled_from(lanes))
        events.append(lane.pop(0))
        lanes = [rest for rest in lanes if rest]
    prompt = draw(st.integers(0, 1000))
    usage = Usage(prompt, draw(st.integers(0, 1000)), draw(st.integers(0, prompt)), draw(st.integers(0, 10)))
    return [*events, Done(usage)]
