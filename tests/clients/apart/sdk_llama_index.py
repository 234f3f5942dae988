"""LlamaIndex's OpenAILike."""

from __future__ import annotations

import asyncio
import base64
from typing import Any

import openai
import pytest
from llama_index.core.llms import ChatMessage, ImageBlock, TextBlock
from llama_index.core.tools import FunctionTool
from llama_index.llms.openai_like import OpenAILike
from pydantic import BaseModel

MODEL = "scripted"
PIXEL = "iVBORw0KGgoAAAANSUhEUgAAAAEAAAABCAYAAAAfFcSJAAAADUlEQVR42mNk+M9QDwADhgGAWjR9awAAAABJRU5ErkJggg=="


class Town(BaseModel):
    """A town and how many live there."""

    name: str
    people: int


def get_weather(city: str) -> str:
    """The weather of a city."""
    return f"sunny in {city}"


@pytest.fixture
def model(url: str) -> Any:
    def make(**fields: Any) -> OpenAILike:
        given = {
            "model": MODEL,
            "api_base": f"{url}/v1",
            "api_key": "any",
            "is_chat_model": True,
            "is_function_calling_model": True,
            "context_window": 100_000,
            "max_retries": 0,
        }
        return OpenAILike(**(given | fields))

    return make


def user(text: str) -> list[ChatMessage]:
    return [ChatMessage(role="user", content=text)]


def test_answer_and_usage(model):
    answer = model().chat(user("hello there"))
    assert answer.message.content == "You said: hello there"
    assert (answer.raw.usage.prompt_tokens, answer.raw.usage.completion_tokens) == (30, 6)
    assert model().complete("hello").text == "You said: hello"


def test_completions_api(model):
    assert model(is_chat_model=False).complete("hello").text == "You said: hello"


def test_stream(model):
    pieces = [part.delta for part in model().stream_chat(user("hello there"))]
    assert "".join(piece or "" for piece in pieces) == "You said: hello there"
    assert sum(map(bool, pieces)) > 3


def test_tools(model):
    tool = FunctionTool.from_defaults(get_weather)
    answer = model().predict_and_call([tool], user_msg="What is the weather?")
    assert str(answer.response) == "sunny in Oslo"
    asked = model().chat_with_tools([tool], user_msg="What is the weather?")
    (call,) = model().get_tool_calls_from_response(asked)
    assert (call.tool_name, call.tool_kwargs) == ("get_weather", {"city": "Oslo"})
    result = ChatMessage(role="tool", content="sunny", additional_kwargs={"tool_call_id": call.tool_id})
    turns = [*user("What is the weather?"), asked.message, result]
    assert model().chat(turns).message.content == "It is sunny."


@pytest.mark.parametrize("forced_call", [False, True])
def test_structured_output(model, forced_call):
    fields = {} if forced_call else {"should_use_structured_outputs": True}
    llm = model(**fields).as_structured_llm(Town)
    assert llm.chat(user("Name a town.")).raw == Town(name="Oslo", people=700_000)


def test_images_are_refused(model):
    blocks = [
        TextBlock(text="What is this?"),
        ImageBlock(image=base64.b64decode(PIXEL), image_mimetype="image/png"),
    ]
    with pytest.raises(openai.BadRequestError, match="reads text only"):
        model().chat([ChatMessage(role="user", blocks=blocks)])


def test_errors_are_typed(model):
    with pytest.raises(openai.RateLimitError, match="come back later"):
        model().chat(user("busy"))
    with pytest.raises(openai.NotFoundError, match="other"):
        model(model="other").chat(user("hello"))
    with pytest.raises(openai.APIError, match="broken"):
        list(model().stream_chat(user("break")))


def test_async(model):
    async def many() -> list[str]:
        llm = model()
        answers = await asyncio.gather(*(llm.achat(user(f"n{i}")) for i in range(4)))
        return [answer.message.content for answer in answers]

    assert asyncio.run(many()) == [f"You said: n{i}" for i in range(4)]


def test_a_client_that_leaves(model):
    """Whether its call ended too is looked at from outside."""

    async def leave() -> None:
        stream = await model().astream_chat(user("hang"))
        await anext(stream)
        await stream.aclose()

    asyncio.run(leave())
