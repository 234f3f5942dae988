"""`langchain-ollama` against the server."""

from __future__ import annotations

from typing import Any

import pytest

pytest.importorskip("langchain_ollama", reason="langchain-ollama is part of the test extra")

import ollama
from langchain_ollama import ChatOllama

from support.client_script import MODEL
from support.langchain_cases import LangChainCases

# The package leaves its connections to the garbage collector.
pytestmark = pytest.mark.filterwarnings("ignore::ResourceWarning")


class TestChat(LangChainCases):
    busy = missing = refused = broken = ollama.ResponseError

    def chat(self, **fields: Any) -> ChatOllama:
        fields.pop("max_retries", None)  # the class has none
        return ChatOllama(**({"model": MODEL, "base_url": self.live.url} | fields))

    def test_statuses(self) -> None:
        """Red if the one error type of the package does not carry the status."""
        for text, model, status in (("busy", MODEL, 429), ("hello", "other", 404)):
            with pytest.raises(ollama.ResponseError) as caught:
                self.chat(model=model).invoke(text)
            assert caught.value.status_code == status

    def test_reasoning(self) -> None:
        """Red if reasoning that was asked for is not told apart from the answer."""
        answer = self.chat(reasoning=True).invoke("think")
        assert (answer.text, answer.additional_kwargs["reasoning_content"]) == ("yes", "let me see")

    def test_a_model_is_looked_up_at_the_start(self) -> None:
        """Red if the list of models does not have the served one under its name."""
        assert self.chat(validate_model_on_init=True).invoke("x").text
