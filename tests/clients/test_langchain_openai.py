"""`langchain-openai` against the server: chat completions and Responses."""

from __future__ import annotations

from typing import Any

import pytest

pytest.importorskip("langchain_openai", reason="langchain-openai is part of the test extra")

import openai
from langchain_openai import ChatOpenAI

from support.client_script import MODEL
from support.langchain_cases import LangChainCases

# The package leaves its connections to the garbage collector.
pytestmark = pytest.mark.filterwarnings("ignore::ResourceWarning")


class TestChatCompletions(LangChainCases):
    busy, missing, refused = openai.RateLimitError, openai.NotFoundError, openai.BadRequestError
    broken = openai.APIError

    def chat(self, **fields: Any) -> ChatOpenAI:
        settings = {"model": MODEL, "base_url": f"{self.live.url}/v1", "api_key": "any", "stream_usage": True}
        return ChatOpenAI(**(settings | fields))

    def test_cached_tokens(self) -> None:
        """Red if the part of a prompt that was not computed anew is not told."""
        assert self.chat().invoke("x").usage_metadata["input_token_details"]["cache_read"] == 20


class TestResponses(TestChatCompletions):
    broken = ValueError  # of the package, from an error event of this API

    def chat(self, **fields: Any) -> ChatOpenAI:
        return super().chat(**({"use_responses_api": True} | fields))
