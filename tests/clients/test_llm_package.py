"""The `llm` package, as a library and as its command, over `extra-openai-models.yaml`."""

from __future__ import annotations

import asyncio
import os
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

llm = pytest.importorskip("llm", reason="llm is part of the test extra")

import openai
from pydantic import BaseModel

from support.client_script import MODEL, PIXEL, TOWN
from support.threaded_server import Live

pytestmark = [
    pytest.mark.asyncio(loop_scope="module"),  # the package shares connections between models
    # Neither does it close them, nor what it reads.
    pytest.mark.filterwarnings("ignore::ResourceWarning"),
    pytest.mark.filterwarnings("ignore:The test .* is marked with:pytest.PytestWarning"),
]

MODELS = """\
- model_id: {model}
  model_name: {model}
  api_base: {url}/v1
  supports_tools: true
  supports_schema: true
  vision: true
- model_id: {model}-responses
  model_name: {model}
  api_base: {url}/v1
  supports_tools: true
  supports_schema: true
  responses: true
- model_id: other
  model_name: other
  api_base: {url}/v1
"""


class Town(BaseModel):
    name: str
    people: int


def get_weather(city: str) -> str:
    """The weather of a city."""
    return f"sunny in {city}"


@pytest.fixture(scope="module")
def folder(script: Live, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Path]:
    """What `llm` has its models in."""
    path = tmp_path_factory.mktemp("llm")
    (path / "extra-openai-models.yaml").write_text(MODELS.format(model=MODEL, url=script.url))
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("LLM_USER_PATH", str(path))
        yield path


@pytest.fixture(params=[MODEL, f"{MODEL}-responses"])
def model(request: pytest.FixtureRequest, folder: Path) -> Any:
    return llm.get_model(request.param)


def test_answer_stream_and_usage(model):
    """Red if text does not come piece by piece, or counts are not where the package reads them."""
    response = model.prompt("hello there")
    assert len(list(response)) > 3
    assert response.text() == "You said: hello there"
    assert (response.usage().input, response.usage().output) == (30, 6)
    assert model.prompt("hello", stream=False).text() == "You said: hello"


def test_tools(model):
    """Red if a call is lost on its way, or its result does not come back to the model."""
    chain = model.chain("What is the weather?", tools=[get_weather])
    assert chain.text() == "It is sunny in Oslo."


def test_structured_output(model):
    """Red if the form that a schema asks for is not given."""
    assert Town.model_validate_json(model.prompt("Name a town.", schema=Town).text()) == Town(**TOWN)


def test_images_are_refused(folder):
    """Red if an image is dropped in silence."""
    picture = llm.Attachment(type="image/png", content=PIXEL)
    with pytest.raises(openai.BadRequestError, match="reads text only"):
        llm.get_model(MODEL).prompt("What is this?", attachments=[picture], stream=False).text()


def test_errors_are_typed(folder):
    """Red if an error reaches the caller as another type than the package has for its status."""
    model = llm.get_model(MODEL)
    with pytest.raises(openai.NotFoundError, match="other"):
        llm.get_model("other").prompt("hello").text()
    with pytest.raises(openai.APIError, match="broken"):
        model.prompt("break").text()


async def test_async(folder):
    """Red if the asynchronous half fails where the other does not."""
    model = llm.get_async_model(MODEL)
    answers = await asyncio.gather(*(model.prompt(f"n{i}").text() for i in range(4)))
    assert answers == [f"You said: n{i}" for i in range(4)]


async def test_a_client_that_leaves_ends_its_call(script, folder):
    """Red if the model goes on for a caller who is gone."""
    service = script.service
    begun, cancelled = service.begun, service.cancelled
    asked = asyncio.create_task(_text(llm.get_async_model(MODEL).prompt("hang")))
    await asyncio.to_thread(script.wait, service.seen(begun=begun + 1))
    asked.cancel()
    with pytest.raises(asyncio.CancelledError):
        await asked
    await asyncio.to_thread(script.wait, service.seen(cancelled=cancelled + 1))


async def _text(response: Any) -> str:
    return await response.text()


def test_the_command(folder):
    """Red if the command line of the package can't talk to the server."""
    result = subprocess.run(
        [sys.executable, "-m", "llm", "-m", MODEL, "--no-log", "hello there"],
        env=os.environ | {"LLM_USER_PATH": str(folder)},
        capture_output=True,
        text=True,
        check=True,
    )
    assert result.stdout.strip() == "You said: hello there"
