"""Why a prompt does not begin with an earlier one: token, field, and when there is nothing to tell."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
from msgspec.structs import replace
from test_chat_template import STYLES, TOKENS

from penstock.call import Message, PrefixMiss, ReasoningPart, TextPart, ToolCallPart, ToolSpec
from penstock.text.prefix_miss import explain
from penstock.text.template import ChatTemplate
from penstock.text.tokenizer import Tokenizer
from penstock.text.transcript import Transcriber
from support.tiny_models import write_tokenizer

TOOLS = tuple(ToolSpec(name, f"Does {name}", {"type": "object"}) for name in ("one", "two", "three"))


@pytest.fixture(scope="module")
def tokenizer(tmp_path_factory: pytest.TempPathFactory) -> Tokenizer:
    folder: Path = tmp_path_factory.mktemp("tokenizer")
    write_tokenizer(folder)
    return Tokenizer.load(folder)


def text(role: Any, content: str) -> Message:
    return Message(role, (TextPart(content),))


TALK = (
    text("system", "Be brief. cch=1;"),
    text("user", "Hi"),
    text("assistant", "Hello"),
    text("user", "Why?"),
)


def miss(
    tokenizer: Tokenizer,
    style: str,
    before: tuple[Message, ...],
    after: tuple[Message, ...],
    tools: tuple[ToolSpec, ...] = TOOLS,
    later_tools: tuple[ToolSpec, ...] | None = None,
    args: tuple[dict[str, Any], dict[str, Any]] = ({}, {}),
) -> PrefixMiss | None:
    transcriber = Transcriber(tokenizer, ChatTemplate(STYLES[style], **TOKENS))
    first = transcriber.transcribe(before, tools, args[0])
    second = transcriber.transcribe(after, tools if later_tools is None else later_tools, args[1])
    found = explain(transcriber, first, second)
    if found is not None:
        old, new = first.encoded.ids.tolist(), second.encoded.ids.tolist()
        assert old[: found.token] == new[: found.token]
        assert old[found.token : found.token + 1] != new[found.token : found.token + 1]
        assert found.lost_tokens == len(old) - found.token
    return found


@pytest.mark.parametrize("style", ["chatml", "llama3", "qwen", "gemma"])
def test_a_turn_that_goes_on_misses_nothing(tokenizer: Tokenizer, style: str) -> None:
    """Red if the end of an earlier prompt, where its answer begins, is told of as a miss."""
    assert miss(tokenizer, style, TALK[:2], TALK, ()) is None or style == "qwen"
    assert miss(tokenizer, style, TALK[:2], TALK[:2]) is None


@pytest.mark.parametrize(
    ("index", "message", "field"),
    [
        (0, text("system", "Be brief. cch=2;"), "messages[0].content"),
        (1, text("user", "Ho"), "messages[1].content"),
        (2, text("user", "Hello"), "messages[2].role"),
        (2, Message("assistant", (TextPart("Hello"), ToolCallPart("c", "one", "{}"))), "messages[2].content"),
    ],
)
def test_the_message_is_named(tokenizer: Tokenizer, index: int, message: Message, field: str) -> None:
    """Red if a changed message (a nonce in the system prompt) is not named, or another change behind it
    is."""
    after = (*TALK[:index], message, *TALK[index + 1 : 3], text("user", "Other!"))
    found = miss(tokenizer, "qwen", TALK, after)
    assert found is not None and found.field == field
    if index == 0:
        assert "cch=1" in found.before and "cch=2" in found.after


@pytest.mark.parametrize("field", ["name", "description", "parameters"])
def test_the_tools_field_is_named(tokenizer: Tokenizer, field: str) -> None:
    """Red if a tool that changed between turns is not named with its field."""
    value: Any = {"name": "zwei", "description": "Does 2", "parameters": {"type": "object", "x": 1}}[field]
    tools = (TOOLS[0], replace(TOOLS[1], **{field: value}), TOOLS[2])
    found = miss(tokenizer, "qwen", TALK[:2], TALK, TOOLS, tools)
    assert found is not None and found.field == f"tools[1].{field}"
    fewer = miss(tokenizer, "qwen", TALK[:2], TALK, TOOLS, TOOLS[:2])
    assert fewer is not None and fewer.field == "tools[2]"


def test_tools_for_a_template_that_knows_none(tokenizer: Tokenizer) -> None:
    """Red if the field is looked for in the messages because a template shows tools in the system message."""
    tools = (*TOOLS[:2], replace(TOOLS[2], description="Does 3"))
    found = miss(tokenizer, "chatml", TALK[:2], TALK, TOOLS, tools)
    assert found is not None and found.field == "tools[2].description"


def test_a_template_that_rewrites_the_past_is_told_by_what_made_it(tokenizer: Tokenizer) -> None:
    """Red if reasoning that a template drops once the user speaks again is blamed on an unchanged message."""
    thought = Message("assistant", (ReasoningPart("hm"), TextPart("Hello"), ToolCallPart("c", "one", "{}")))
    before = (*TALK[:2], thought, text("tool", "done"))
    found = miss(tokenizer, "qwen", before, (*before, text("assistant", "ok"), text("user", "And?")))
    assert found is not None and found.field == "messages[4]"
    assert "think" in found.before and "think" not in found.after


def test_a_template_argument_is_named(tokenizer: Tokenizer) -> None:
    """Red if a switch of the template that changed between turns is not named."""
    args = ({"date_string": "1999"}, {"date_string": "2000"})
    found = miss(tokenizer, "llama3", TALK[:2], TALK, (), (), args)
    assert found is not None and found.field == "template_args.date_string"
