"""LangChain's own suites for integrations, against this server as OpenAI, Anthropic and Ollama.

What a suite asks of a model's wits (a call with the right argument, a joke in two fields) a script answers;
all else is also asked of SmolLM2.
"""

from __future__ import annotations

import base64
import gc
import json
from collections.abc import Iterator
from pathlib import Path
from typing import Any, ClassVar

import httpx
import pytest

pytest.importorskip("langchain_tests", reason="langchain-tests is part of the test extra")

from langchain_anthropic import ChatAnthropic
from langchain_core.language_models import BaseChatModel
from langchain_ollama import ChatOllama
from langchain_openai import ChatOpenAI
from langchain_tests.integration_tests import ChatModelIntegrationTests

from support.recorded_script import MODEL, RecordedScript
from support.served import served
from support.threaded_server import live_servers

pytestmark = [
    pytest.mark.asyncio(loop_scope="module"),  # the classes share connections between models
    pytest.mark.filterwarnings("ignore::ResourceWarning"),  # and leave them to the garbage collector
    pytest.mark.filterwarnings("ignore:The test .* is marked with:pytest.PytestWarning"),  # some do not wait
]

PIXEL = base64.b64decode(
    "iVBORw0KGgoAAAANSUhEUgAAAAEAAAABCAYAAAAfFcSJAAAADUlEQVR42mNk+M9QDwADhgGAWjR9awAAAABJRU5ErkJggg=="
)

JOKE = {"setup": "Why are cats bad at poker?", "punchline": "They show their claws."}


def call(name: str, **arguments: Any) -> dict[str, Any]:
    return {"tool_calls": [{"name": name, "arguments": arguments}]}


RULES = (
    {"result_of": "get_weather", "text": "It is sunny there."},
    {"user": "magic_function_no_args", **call("magic_function_no_args")},
    {"user": r"magic_function\(3\)", **call("magic_function", input=3)},
    {"user": "Pirate", **call("greeting_generator", answer_style="Pirate")},
    {"user": "What is the weather", **call("get_weather", location="San Francisco, CA")},
    {"user": "What is 3 \\+ 4", **call("my_adder_tool", a=3, b=4)},
    {"user": "named '(?P<name>[^']+)'", **call("unicode_customer", customer_name="{{name}}", description="")},
    # A schema may be a tool, for clients that ask for structured output that way.
    {"user": "joke", "offers": "Joke", **call("Joke", **JOKE)},
    {"user": "joke", "offers": "JokeDict", **call("JokeDict", **JOKE)},
    {"user": "joke", "text": json.dumps(JOKE)},
    {"user": "Hello!", **call("magic_function", input=1)},
    {"user": "haikus", "text": "An old silent pond.\n\nA frog jumps in."},
    {"reasoning": "", "text": "I hear you, and say: {{user}}"},
)


@pytest.fixture(scope="module")
def scripted() -> Iterator[Any]:
    with live_servers() as start:
        yield start(make=lambda: RecordedScript(*RULES, images=True))
        gc.collect()  # else what the classes left open is warned of in another module


@pytest.fixture(scope="module")
def smollm2(smollm2_path: Path, tmp_path_factory: pytest.TempPathFactory) -> Iterator[str]:
    data = tmp_path_factory.mktemp("serve")
    with served(smollm2_path, data, "--served-model-name", MODEL, "--kv-bytes", "256M") as url:
        yield url


class Suite(ChatModelIntegrationTests):
    """What all three have in common. `cut`: how the class calls the most tokens to generate."""

    url: str
    cut: ClassVar[str] = "max_tokens"

    @property
    def has_tool_calling(self) -> bool:
        return True

    @property
    def supports_model_override(self) -> bool:
        return True

    @property
    def model_override_value(self) -> str:
        return MODEL


class OpenAISuite(Suite):
    @property
    def chat_model_class(self) -> type[BaseChatModel]:
        return ChatOpenAI

    @property
    def chat_model_params(self) -> dict[str, Any]:
        return {"model": MODEL, "base_url": f"{self.url}/v1", "api_key": "any", "stream_usage": True}


class AnthropicSuite(Suite):
    @property
    def chat_model_class(self) -> type[BaseChatModel]:
        return ChatAnthropic

    @property
    def chat_model_params(self) -> dict[str, Any]:
        return {"model": MODEL, "base_url": self.url, "api_key": "any"}


class OllamaSuite(Suite):
    cut = "num_predict"

    @property
    def chat_model_class(self) -> type[BaseChatModel]:
        return ChatOllama

    @property
    def chat_model_params(self) -> dict[str, Any]:
        return {"model": MODEL, "base_url": self.url}


class Scripted:
    """A model that can do what a suite knows of."""

    @pytest.fixture(autouse=True)
    def _serve(self, scripted: Any, monkeypatch: pytest.MonkeyPatch) -> None:
        self.url = scripted.url
        image = httpx.Response(200, content=PIXEL, request=httpx.Request("GET", "http://image"))
        monkeypatch.setattr(httpx, "get", lambda *_, **__: image)  # the suite fetches one from the web

    @property
    def supports_json_mode(self) -> bool:
        return not isinstance(self, AnthropicSuite)  # the class has no such mode

    @property
    def supports_image_inputs(self) -> bool:
        return True

    @property
    def supports_image_tool_message(self) -> bool:
        return True

    @property
    def supports_anthropic_inputs(self) -> bool:
        return isinstance(self, AnthropicSuite)


class TestOpenAI(Scripted, OpenAISuite):
    """Red if LangChain's OpenAI chat model can't use this server in one of the suite's ways."""


class TestAnthropic(Scripted, AnthropicSuite):
    """Red if LangChain's Anthropic chat model can't use this server in one of the suite's ways."""


class TestOllama(Scripted, OllamaSuite):
    """Red if LangChain's Ollama chat model can't use this server in one of the suite's ways."""


class Real:
    """SmolLM2: whatever a suite asks of the server and not of the model."""

    @pytest.fixture(autouse=True)
    def _serve(self, smollm2: str) -> None:
        self.url = smollm2

    @property
    def has_tool_calling(self) -> bool:
        return False

    @property
    def has_structured_output(self) -> bool:
        return False

    @property
    def chat_model_params(self) -> dict[str, Any]:
        return {**super().chat_model_params, self.cut: 16, "temperature": 0}


@pytest.mark.slow
class TestOpenAIWithSmolLM2(Real, OpenAISuite):
    """Red if LangChain's OpenAI chat model fails where a real model answers."""


@pytest.mark.slow
class TestAnthropicWithSmolLM2(Real, AnthropicSuite):
    """Red if LangChain's Anthropic chat model fails where a real model answers."""


@pytest.mark.slow
class TestOllamaWithSmolLM2(Real, OllamaSuite):
    """Red if LangChain's Ollama chat model fails where a real model answers."""
