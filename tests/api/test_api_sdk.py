"""The official SDK against the server, over sockets: what clients do all day."""

from __future__ import annotations

import asyncio

import openai
import pytest
from openai.types import Completion
from openai.types.chat import ChatCompletion, ChatCompletionChunk
from pydantic import BaseModel

from support.scripted_service import MODEL, token_of

HELLO = [{"role": "user", "content": "hello there you"}]


def ask(text):
    return {"model": MODEL, "messages": [{"role": "user", "content": text}]}


@pytest.fixture
async def client(serve):
    server = await serve()
    async with openai.AsyncOpenAI(base_url=server.url + "/v1", api_key="any", max_retries=0) as sdk:
        sdk.server = server
        yield sdk


async def test_chat(client):
    """Red if a plain chat answer is not of the SDK's type, or its usage is wrong."""
    raw = await client.chat.completions.with_raw_response.create(model=MODEL, messages=HELLO)
    answer = ChatCompletion.model_validate_json(raw.text, strict=True)
    assert answer.choices[0].message.content == "hello there you"
    assert answer.choices[0].finish_reason == "stop"
    assert (answer.usage.prompt_tokens, answer.usage.completion_tokens, answer.usage.total_tokens) == (
        3,
        3,
        6,
    )
    assert answer.usage.prompt_tokens_details.cached_tokens == 1
    assert answer.id.startswith("chatcmpl-")


async def test_chat_stream(client):
    """Red if a stream's chunks are not of the SDK's type, change id, or usage comes unasked."""
    options = {"include_usage": True}
    stream = await client.chat.completions.create(
        model=MODEL, messages=HELLO, stream=True, stream_options=options
    )
    chunks = [ChatCompletionChunk.model_validate(chunk.model_dump(), strict=True) async for chunk in stream]
    assert "".join(c.choices[0].delta.content or "" for c in chunks if c.choices) == "hello there you"
    assert len({c.id for c in chunks}) == 1
    assert chunks[0].choices[0].delta.role == "assistant"
    assert chunks[-1].choices == []
    assert chunks[-1].usage.completion_tokens == 3
    stream = await client.chat.completions.create(model=MODEL, messages=HELLO, stream=True)
    assert all([chunk.choices and chunk.usage is None async for chunk in stream])


async def test_sdk_stream_helper(client):
    """Red if the SDK's accumulating helper can't add our chunks up."""
    async with client.chat.completions.stream(model=MODEL, messages=HELLO, logprobs=True, n=2) as stream:
        final = await stream.get_final_completion()
    assert [choice.message.content for choice in final.choices] == ["hello there you"] * 2
    assert len(final.choices[1].logprobs.content) == 3


async def test_parameters_reach_the_service(client):
    """Red if a parameter of the SDK is not what the service sees."""
    await client.chat.completions.create(
        model=MODEL,
        messages=HELLO,
        n=4,
        temperature=0.5,
        top_p=0.9,
        seed=7,
        stop=["x", "there"],
        max_completion_tokens=2,
        presence_penalty=0.5,
        logit_bias={"5": 1},
        logprobs=True,
        top_logprobs=3,
        user="u",
        extra_body={"top_k": 5, "cache_salt": "s"},
    )
    call = client.server.service.calls[-1]
    sampling = call.sampling
    assert (sampling.n, sampling.temperature, sampling.top_p, sampling.seed) == (4, 0.5, 0.9, 7)
    assert (sampling.stop, sampling.max_tokens, sampling.presence_penalty) == (("x", "there"), 2, 0.5)
    assert (sampling.logit_bias, sampling.logprobs, sampling.top_k) == ({5: 1.0}, 3, 5)
    assert (call.user, call.cache.salt) == ("u", "s")


async def test_logprobs(client):
    """Red if chat logprobs lose tokens, bytes or alternatives."""
    answer = await client.chat.completions.create(model=MODEL, messages=HELLO, logprobs=True, top_logprobs=2)
    content = answer.choices[0].logprobs.content
    assert [item.token for item in content] == ["hello", " there", " you"]
    assert bytes(content[1].bytes) == b" there"
    assert [top.token for top in content[2].top_logprobs] == [" you", " you~1"]


async def test_finish_reasons_and_stop(client):
    """Red if length or a stop string ends a choice under another reason."""
    short = await client.chat.completions.create(model=MODEL, messages=HELLO, max_tokens=1)
    assert short.choices[0].finish_reason == "length"
    stopped = await client.chat.completions.create(model=MODEL, messages=HELLO, stop="you")
    assert (stopped.choices[0].finish_reason, stopped.choices[0].message.content) == ("stop", "hello there")
    assert stopped.choices[0].stop_reason == "you"


async def test_tool_call_and_reasoning(client):
    """Red if a tool call with empty arguments or reasoning does not arrive in both modes."""
    ask = [{"role": "user", "content": "/tool"}]
    message = (await client.chat.completions.create(model=MODEL, messages=ask)).choices[0].message
    assert (message.content, message.tool_calls[0].function.arguments) == (None, "{}")
    async with client.chat.completions.stream(model=MODEL, messages=ask) as stream:
        final = await stream.get_final_completion()
    assert final.choices[0].message.tool_calls[0].function.name == "now"
    think = [{"role": "user", "content": "/think"}]
    message = (await client.chat.completions.create(model=MODEL, messages=think)).choices[0].message
    assert (message.content, message.reasoning_content) == ("yes", "let me see")


async def test_completion_of_several_prompts(client):
    """Red if choices of prompts × n are not numbered prompt first, or echo or logprobs are off."""
    raw = await client.completions.with_raw_response.create(
        model=MODEL, prompt=["a b", "c"], n=2, echo=True, logprobs=1, max_tokens=1
    )
    answer = raw.parse()
    assert isinstance(answer, Completion)
    assert [(c.index, c.text) for c in answer.choices] == [(0, "a ba"), (1, "a ba"), (2, "cc"), (3, "cc")]
    assert answer.choices[0].logprobs.tokens == ["a", " b", "a"]
    assert answer.choices[0].logprobs.token_logprobs == [None, -0.25, -0.25]
    assert answer.choices[0].logprobs.text_offset == [0, 1, 3]


async def test_completion_stream_of_token_ids(client):
    """Red if a prompt of token ids, or return_token_ids, does not work in a stream."""
    stream = await client.completions.create(
        model=MODEL, prompt=[5, 6], stream=True, extra_body={"return_token_ids": True}
    )
    chunks = [chunk async for chunk in stream]
    assert "".join(c.choices[0].text for c in chunks) == " 5 6"
    ids = [i for c in chunks for i in getattr(c.choices[0], "token_ids", None) or ()]
    assert ids == [token_of(" 5"), token_of(" 6")]


async def test_models(client):
    """Red if models can't be listed or got, an id with a slash included."""
    assert [model.id async for model in client.models.list()] == [MODEL, "org/name"]
    assert (await client.models.retrieve("org/name")).id == "org/name"
    with pytest.raises(openai.NotFoundError, match="nope"):
        await client.models.retrieve("nope")


async def test_sync_sdk(serve):
    """Red if the synchronous SDK (another HTTP client inside) can't talk to the server."""
    server = await serve()

    def talk() -> tuple[str, str]:
        with openai.OpenAI(base_url=server.url + "/v1", api_key="any", max_retries=0) as sdk:
            whole = sdk.chat.completions.create(model=MODEL, messages=HELLO).choices[0].message.content
            stream = sdk.completions.create(model=MODEL, prompt="one two", stream=True)
            return whole, "".join(chunk.choices[0].text for chunk in stream)

    assert await asyncio.to_thread(talk) == ("hello there you", "one two")


ERRORS = [
    ("rate_limit_error", openai.RateLimitError, 429),
    ("service_unavailable_error", openai.InternalServerError, 503),
    ("timeout_error", openai.InternalServerError, 504),
    ("invalid_request_error", openai.BadRequestError, 400),
]


@pytest.mark.parametrize("kind,error,status", ERRORS, ids=[kind for kind, _, _ in ERRORS])
@pytest.mark.parametrize("stream", [False, True])
async def test_early_errors_keep_their_status(client, kind, error, status, stream):
    """Red if an error before the first token is a 200, or lacks Retry-After where one is due."""
    ask = [{"role": "user", "content": f"/fail {kind}"}]
    with pytest.raises(error) as caught:
        await client.chat.completions.create(model=MODEL, messages=ask, stream=stream)
    assert caught.value.status_code == status
    assert caught.value.body["type"] == kind
    assert caught.value.response.headers.get("retry-after") == ("3" if status in (429, 503) else None)


async def test_late_error_in_a_stream(client):
    """Red if an engine that dies mid-stream leaves the SDK hanging or thinking that all is well."""
    ask = [{"role": "user", "content": "/fail-after service_unavailable_error"}]
    stream = await client.chat.completions.create(model=MODEL, messages=ask, stream=True)
    seen = []
    with pytest.raises(openai.APIError, match="scripted service_unavailable_error"):
        async for chunk in stream:
            seen.append(chunk.choices[0].delta.content)
    assert seen == ["", "start"]
    with pytest.raises(openai.InternalServerError) as caught:
        await client.chat.completions.create(model=MODEL, messages=ask)
    assert caught.value.status_code == 503


@pytest.mark.parametrize("command", ["/raise-after", "/cut"])
async def test_defects_show_no_details(client, command):
    """Red if a defect of the service leaks its text, hangs, or ends a stream as if it were whole."""
    ask = [{"role": "user", "content": command}]
    stream = await client.chat.completions.create(model=MODEL, messages=ask, stream=True)
    with pytest.raises(openai.APIError, match="internal error") as caught:
        async for _ in stream:
            pass
    assert "secret" not in str(caught.value)
    with pytest.raises(openai.InternalServerError) as caught:
        await client.chat.completions.create(model=MODEL, messages=ask)
    assert caught.value.status_code == 500
    assert "secret" not in str(caught.value)


async def test_unknown_model_is_404(client):
    """Red if a model that is not served is anything but a 404 that names it."""
    for stream in (False, True):
        with pytest.raises(openai.NotFoundError, match="gpt-4") as caught:
            await client.chat.completions.create(model="gpt-4", messages=HELLO, stream=stream)
        assert caught.value.code == "model_not_found"


async def test_long_prompt_is_400(client):
    """Red if a prompt over the context hangs or is cut instead of being refused with both numbers."""
    with pytest.raises(openai.BadRequestError, match=r"601.*512"):
        await client.completions.create(model=MODEL, prompt="w " * 600)


async def test_a_json_answer_is_parsed(client):
    """Red if the SDK's own way to structured output gets another form than it asked for."""

    class Town(BaseModel):
        name: str

    answer = await client.chat.completions.parse(**ask('{"name":"Oslo"}'), response_format=Town)
    assert answer.choices[0].message.parsed == Town(name="Oslo")


async def test_an_image_is_refused_clearly(client):
    """Red if an image is dropped in silence, or the refusal does not name its field."""
    image = {"type": "image_url", "image_url": {"url": "data:image/png;base64,AA=="}}
    with pytest.raises(openai.BadRequestError, match="reads text only") as caught:
        await client.chat.completions.create(model=MODEL, messages=[{"role": "user", "content": [image]}])
    assert caught.value.param == "messages[0].content"


async def test_a_tool_s_result_goes_back(client):
    """Red if the SDK's own message of a call can't be sent back with the result."""
    tools = [{"type": "function", "function": {"name": "now"}}]
    turn = (await client.chat.completions.create(**ask("/tool"), tools=tools)).choices[0].message
    result = {"role": "tool", "tool_call_id": turn.tool_calls[0].id, "content": "noon"}
    question = {"role": "user", "content": "hello"}
    await client.chat.completions.create(
        model=MODEL, messages=[question, turn, result, question], tools=tools
    )
    call = client.server.service.calls[-1]
    assert [message.role for message in call.messages] == ["user", "assistant", "tool", "user"]


async def test_a_client_that_leaves_cancels_its_call(client):
    """Red if the model goes on for a caller who is gone, with a stream or without."""
    service = client.server.service
    stream = await client.chat.completions.create(**ask("/hang-after 3"), stream=True)
    await anext(aiter(stream))
    await stream.close()
    await service.seen(cancelled=1)
    asked = asyncio.create_task(client.chat.completions.create(**ask("/hang")))
    await service.seen(started=2)
    asked.cancel()
    await service.seen(cancelled=2)
