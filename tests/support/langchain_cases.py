"""What every LangChain chat model must get from this server; a test file per package says how to make it."""

from __future__ import annotations

import asyncio
import base64
from typing import Any

import pytest
from langchain_core.messages import ToolMessage
from pydantic import BaseModel

from support.client_script import MODEL, PIXEL, TOWN
from support.threaded_server import Live

one_loop = pytest.mark.asyncio(loop_scope="module")  # the packages share connections between models


class Town(BaseModel):
    """A town and how many live there."""

    name: str
    people: int


def get_weather(city: str) -> str:
    """The weather of a city."""
    return f"sunny in {city}"


class LangChainCases:
    """`chat(**fields)` makes the model. Errors of its package: `busy` for 429, `missing` 404, `refused` 400,
    `broken` for one inside a stream."""

    busy: type[Exception]
    missing: type[Exception]
    refused: type[Exception]
    broken: type[Exception]

    def chat(self, **fields: Any) -> Any:
        raise NotImplementedError

    @pytest.fixture(autouse=True)
    def _server(self, script: Live) -> None:
        self.live = script

    def test_answer_and_usage(self) -> None:
        """Red if text, finish reason or counts are not where the class reads them."""
        answer = self.chat().invoke("hello there")
        assert answer.text == "You said: hello there"
        usage = answer.usage_metadata
        assert (usage["input_tokens"], usage["output_tokens"], usage["total_tokens"]) == (30, 6, 36)
        assert answer.response_metadata["model_name"] == MODEL

    def test_stream(self) -> None:
        """Red if a stream comes in one piece, or adds up to another answer than a whole one."""
        chunks = list(self.chat().stream("hello there"))
        assert sum(bool(chunk.text) for chunk in chunks) > 3
        total = chunks[0]
        for chunk in chunks[1:]:
            total += chunk
        assert total.text == "You said: hello there"
        assert total.usage_metadata["output_tokens"] == 6

    @pytest.mark.parametrize("streams", [False, True])
    def test_tools(self, streams: bool) -> None:
        """Red if a call is lost on its way, or its result does not come back to the model."""
        model = self.chat().bind_tools([get_weather])
        turns: list[Any] = [("user", "What is the weather?")]
        if streams:
            asked = None
            for chunk in model.stream(turns):
                asked = chunk if asked is None else asked + chunk
        else:
            asked = model.invoke(turns)
        (call,) = asked.tool_calls
        assert (call["name"], call["args"]) == ("get_weather", {"city": "Oslo"})
        turns += [asked, ToolMessage(get_weather(**call["args"]), tool_call_id=call["id"])]
        assert model.invoke(turns).text == "It is sunny in Oslo."

    def test_structured_output(self) -> None:
        """Red if the form that a class asks for by default is not given."""
        answer = self.chat().with_structured_output(Town).invoke("Name a town.")
        assert answer == Town(**TOWN)

    def test_images_are_refused(self) -> None:
        """Red if an image is dropped in silence, or the refusal does not say which field it is about."""
        image = {"type": "image", "base64": base64.b64encode(PIXEL).decode(), "mime_type": "image/png"}
        content = [{"type": "text", "text": "What is this?"}, image]
        with pytest.raises(self.refused, match="reads text only") as caught:
            self.chat().invoke([("user", content)])
        assert "messages" in str(caught.value)

    def test_errors_are_the_packages_own(self) -> None:
        """Red if an error reaches the class as another type than its own for that status."""
        with pytest.raises(self.busy, match="come back later"):
            self.chat(max_retries=0).invoke("busy")
        with pytest.raises(self.missing, match="other"):
            self.chat(model="other").invoke("hello")
        with pytest.raises(self.broken, match="broken"):
            list(self.chat(max_retries=0).stream("break"))

    @one_loop
    async def test_async(self) -> None:
        """Red if the asynchronous half fails where the other does not."""
        model = self.chat()
        answers = await asyncio.gather(*(model.ainvoke(f"n{i}") for i in range(4)))
        assert [answer.text for answer in answers] == [f"You said: n{i}" for i in range(4)]
        assert "".join([chunk.text async for chunk in model.astream("hello")]) == "You said: hello"

    @one_loop
    async def test_a_client_that_leaves_ends_its_call(self) -> None:
        """Red if the model goes on for a caller who is gone, with a stream or without."""
        service, model = self.live.service, self.chat()
        begun, cancelled = service.begun, service.cancelled
        stream = model.astream("hang")
        assert (await anext(stream)) is not None
        await stream.aclose()
        asked = asyncio.create_task(model.ainvoke("hang"))
        await asyncio.to_thread(self.live.wait, service.seen(begun=begun + 2))
        asked.cancel()
        with pytest.raises(asyncio.CancelledError):
            await asked
        await asyncio.to_thread(self.live.wait, service.seen(cancelled=cancelled + 2))
