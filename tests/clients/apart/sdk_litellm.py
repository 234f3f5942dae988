"""The litellm SDK over its three providers that this server can be: OpenAI-compatible, Anthropic, Ollama."""

from __future__ import annotations

import asyncio
import base64
import json
from typing import Any

import litellm
import pytest
from pydantic import BaseModel

MODEL = "scripted"
PIXEL = "iVBORw0KGgoAAAANSUhEUgAAAAEAAAABCAYAAAAfFcSJAAAADUlEQVR42mNk+M9QDwADhgGAWjR9awAAAABJRU5ErkJggg=="
WEATHER = {
    "type": "function",
    "function": {
        "name": "get_weather",
        "description": "The weather of a city.",
        "parameters": {"type": "object", "properties": {"city": {"type": "string"}}, "required": ["city"]},
    },
}


class Town(BaseModel):
    name: str
    people: int


@pytest.fixture(params=["openai", "anthropic", "ollama_chat"])
def provider(request: pytest.FixtureRequest) -> str:
    return request.param


@pytest.fixture
def ask(provider: str, url: str) -> Any:
    """Keyword arguments of a call with this text."""

    def arguments(text: str, model: str = MODEL, **fields: Any) -> dict[str, Any]:
        base = f"{url}/v1" if provider == "openai" else url
        given = {"model": f"{provider}/{model}", "api_base": base, "api_key": "any", "max_retries": 0}
        return {**given, "messages": [{"role": "user", "content": text}], **fields}

    return arguments


def test_answer_and_usage(ask):
    answer = litellm.completion(**ask("hello there"))
    assert answer.choices[0].message.content == "You said: hello there"
    assert (answer.usage.prompt_tokens, answer.usage.completion_tokens) == (30, 6)
    assert answer.choices[0].finish_reason == "stop"


def test_stream(ask):
    chunks = list(litellm.completion(**ask("hello there"), stream=True))
    pieces = [chunk.choices[0].delta.content or "" for chunk in chunks]
    assert "".join(pieces) == "You said: hello there"
    assert sum(map(bool, pieces)) > 3
    whole = litellm.stream_chunk_builder(chunks)
    assert whole.choices[0].message.content == "You said: hello there"


@pytest.mark.parametrize("streams", [False, True])
def test_tools(ask, streams):
    question = ask("What is the weather?", tools=[WEATHER])
    if streams:
        asked = litellm.stream_chunk_builder(list(litellm.completion(**question, stream=True)))
    else:
        asked = litellm.completion(**question)
    message = asked.choices[0].message
    (call,) = message.tool_calls
    assert (call.function.name, json.loads(call.function.arguments)) == ("get_weather", {"city": "Oslo"})
    turns = [*question["messages"], message, {"role": "tool", "tool_call_id": call.id, "content": "sunny"}]
    assert litellm.completion(**question | {"messages": turns}).choices[0].message.content == "It is sunny."


def test_structured_output(ask):
    answer = litellm.completion(**ask("Name a town."), response_format=Town)
    assert Town.model_validate_json(answer.choices[0].message.content) == Town(name="Oslo", people=700_000)


def test_images_are_refused(ask):
    assert base64.b64decode(PIXEL)
    image = {"type": "image_url", "image_url": {"url": f"data:image/png;base64,{PIXEL}"}}
    content = [{"type": "text", "text": "What is this?"}, image]
    with pytest.raises((litellm.BadRequestError, litellm.APIConnectionError), match="reads text only"):
        litellm.completion(**ask("", messages=[{"role": "user", "content": content}]))


def test_errors_are_typed(ask, provider):
    busy = {"openai": litellm.RateLimitError, "anthropic": litellm.InternalServerError}
    with pytest.raises(busy.get(provider, Exception), match="come back later"):
        litellm.completion(**ask("busy"))
    with pytest.raises(Exception, match="other") as caught:
        litellm.completion(**ask("hello", model="other"))
    assert provider == "ollama_chat" or isinstance(caught.value, litellm.NotFoundError)
    with pytest.raises(Exception, match="broken"):
        list(litellm.completion(**ask("break"), stream=True))


def test_async(ask):
    async def many() -> list[str]:
        answers = await asyncio.gather(*(litellm.acompletion(**ask(f"n{i}")) for i in range(4)))
        return [answer.choices[0].message.content for answer in answers]

    assert asyncio.run(many()) == [f"You said: n{i}" for i in range(4)]


def test_a_client_that_leaves(ask):
    """Whether its call ended too is looked at from outside."""

    async def leave() -> None:
        stream = await litellm.acompletion(**ask("hang"), stream=True)
        async for chunk in stream:
            if chunk.choices[0].delta.content:
                break
        await stream.aclose()

    asyncio.run(leave())
