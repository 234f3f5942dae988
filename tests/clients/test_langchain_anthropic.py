"""`langchain-anthropic` against the server."""

from __future__ import annotations

from typing import Any

import pytest

pytest.importorskip("langchain_anthropic", reason="langchain-anthropic is part of the test extra")

import anthropic
from langchain_anthropic import ChatAnthropic

from support.client_script import MODEL
from support.langchain_cases import LangChainCases

# The package leaves its connections to the garbage collector.
pytestmark = pytest.mark.filterwarnings("ignore::ResourceWarning")


class TestMessages(LangChainCases):
    missing, refused = anthropic.NotFoundError, anthropic.BadRequestError
    busy = anthropic.OverloadedError  # a full queue is 529 in this API
    broken = anthropic.APIStatusError

    def chat(self, **fields: Any) -> ChatAnthropic:
        return ChatAnthropic(**({"model": MODEL, "base_url": self.live.url, "api_key": "any"} | fields))

    def test_thinking(self) -> None:
        """Red if reasoning is not a block of its own, or can't be sent back as it came."""
        model = self.chat(max_tokens=2000, thinking={"type": "enabled", "budget_tokens": 1024})
        first = model.invoke("think")
        assert [(block["type"], block.get("thinking")) for block in first.content] == [
            ("thinking", "let me see"),
            ("text", None),
        ]
        assert model.invoke([("user", "think"), first, ("user", "hello")]).text == "You said: hello"
        assert [part.text for part in self.live.service.calls[-1].messages[1].parts] == ["let me see", "yes"]
