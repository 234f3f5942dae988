"""Reasoning sections: opened by the prompt, never opened, never closed, in several pieces."""

from __future__ import annotations

from typing import Any

import pytest
from test_output_families import TOOLS, parse, readable, splits

from penstock.text.output.choose import FORMATS
from penstock.text.output.events import Reasoning, Text

CALL = '<tool_call>\n{"name": "get_time", "arguments": {}}\n</tool_call>'
READ = ("get_time", {})

# (format, end of the prompt, output, expected)
CASES: list[tuple[str, str, str, list[Any]]] = [
    ("hermes", "<|im_start|>assistant\n<think>\n", "Hm.\n</think>\n\nYes.", ["R:Hm.", "T:Yes."]),
    ("hermes", "<|im_start|>assistant\n<think>\n", "<think>Hm.</think>Yes.", ["R:Hm.", "T:Yes."]),
    ("hermes", "<|im_start|>assistant\n<think>\n\n</think>\n\n", "Yes.", ["T:Yes."]),
    ("hermes", "<|im_start|>assistant\n", "<think>\nHm.\n</think>\n\nYes.", ["R:Hm.", "T:Yes."]),
    ("hermes", "say <think> <|im_end|>\n<|im_start|>assistant\n", "Yes.", ["T:Yes."]),
    ("hermes", "", "Hm.\n</think>\n\nYes.", ["T:Hm.Yes."]),
    ("hermes", "", "<think>a</think>Use </think> twice.", ["R:a", "T:Use </think> twice."]),
    ("hermes", "", "<think>Hm, <b> </thin", ["R:Hm, <b> </thin"]),
    ("hermes", "", "<think>\n\n</think>\n\nYes.", ["T:Yes."]),
    ("hermes", "", f"<think>Not yet: {CALL}</think>{CALL}", [f"R:Not yet: {CALL}", READ]),
    ("hermes", "", f"<think>a</think>One.{CALL}<think>b</think>{CALL}", ["R:a", "T:One.", READ, "R:b", READ]),
    ("hermes", "", "a < b <thinks> c", ["T:a < b <thinks> c"]),
    ("deepseek_v3", "<｜Assistant｜><think>\n", "Hm.</think>Yes.", ["R:Hm.", "T:Yes."]),
    ("mistral_v11", "[/INST]", "[THINK]Hm.[/THINK]Yes.", ["R:Hm.", "T:Yes."]),
    ("mistral", "[/INST]", "<think>\nHm.\n</think>\nYes.", ["R:Hm.", "T:Yes."]),
    ("seed_oss", "<seed:bos>assistant\n", "<seed:think>Hm.</seed:think>Yes.", ["R:Hm.", "T:Yes."]),
    ("cohere", "<|CHATBOT_TOKEN|><|START_THINKING|>", "Hm.<|END_THINKING|><|START_RESPONSE|>Yes.", [
     "R:Hm.", "T:Yes."]),
    ("kimi_k3", '<|open|>message role="assistant"<|sep|><|open|>think<|sep|>',
     "Hm.<|close|>think<|sep|><|open|>response<|sep|>Yes.<|close|>response<|sep|><|close|>message<|sep|>",
     ["R:Hm.", "T:Yes."]),
    ("kimi_k3", "<|open|>response<|sep|>", "Yes.<|close|>response<|sep|>", ["T:Yes."]),
    ("gemma4", "<|turn>model\n", "<|channel>thought\nHm.\n<channel|>Yes.", ["R:Hm.", "T:Yes."]),
    ("gemma4", "<|turn>model\n<|channel>thought\n<channel|>", "Yes.", ["T:Yes."]),
    ("gemma4", "<|turn>model\n<|channel>thought\n", "Hm.<channel|>Yes.", ["R:Hm.", "T:Yes."]),
    ("apertus", "<|assistant_start|>", "<|inner_prefix|>Hm.<|inner_suffix|>Yes.", ["R:Hm.", "T:Yes."]),
    ("gpt_oss", "<|start|>assistant", "<|channel|>analysis<|message|>Hm.<|end|>", ["R:Hm."]),
    ("gpt_oss", "<|start|>assistant", "<|channel|>analysis<|message|>Hm.", ["R:Hm."]),
    ("gpt_oss", "<|start|>assistant<|channel|>analysis<|message|>", "Hm.<|end|><|start|>assistant"
     "<|channel|>final"
     "<|message|>Yes.", ["R:Hm.", "T:Yes."]),
    ("gpt_oss", "<|start|>assistant<|channel|>final<|message|>", "Yes. <|", ["T:Yes. <|"]),
    ("gpt_oss", "<|start|>assistant<|channel|>", "final<|message|>Yes.", ["T:Yes."]),
    ("gpt_oss", "<|start|>assistant", " to=functions.get_time<|channel|>commentary json<|message|>{}"
     "<|call|>", [READ]),
    ("gpt_oss", "<|start|>assistant<|channel|>commentary to=functions.get_time <|constrain|>json"
     "<|message|>", "{}",
     [READ]),
    ("gpt_oss", "<|start|>assistant", "Plain words.", ["T:Plain words."]),
    ("gpt_oss", "<|start|>assistant", "<|channel|>analysis<|message|>a<|channel|>final<|message|>b", [
     "R:a", "T:b"]),
]  # fmt: skip


@pytest.mark.parametrize(("name", "prompt", "output", "expected"), CASES)
def test_sections(name: str, prompt: str, output: str, expected: list[Any]) -> None:
    """Red if a section's text comes out as the wrong kind, or a marker stays in it."""
    whole = parse(FORMATS[name], [output], prompt=prompt)
    assert [found for found in readable(whole) if found != "T:"] == expected
    for pieces in splits(output):
        assert parse(FORMATS[name], pieces, prompt=prompt) == whole, pieces


def test_reasoning_flows() -> None:
    """Red if reasoning or text waits for more than a marker could need."""
    parser = FORMATS["hermes"].parser(TOOLS, "<think>\n")
    assert parser.feed("I see") == [Reasoning("I see")]
    assert parser.feed(" a < b") == [Reasoning(" a < b")]
    assert parser.feed(" </thi") == []
    assert parser.feed("s>") == [Reasoning(" </this>")]
    assert parser.feed("</think>\nYes <t") == [Text("Yes")]
    assert parser.feed("d>") == [Text(" <td>")]
    assert parser.close() == []
