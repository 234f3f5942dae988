"""Every family's published format, fed whole and in every split."""

from __future__ import annotations

import json
from collections.abc import Iterable, Sequence
from itertools import groupby
from typing import Any

import pytest

from penstock.call import ToolSpec
from penstock.text.output.choose import FORMATS
from penstock.text.output.events import (
    CallArguments,
    CallEnd,
    CallStart,
    Malformed,
    ParsedEvent,
    Reasoning,
    Text,
)
from penstock.text.output.format import OutputFormat

WEATHER = ToolSpec(
    "get_weather",
    parameters={
        "type": "object",
        "properties": {
            "city": {"type": "string"},
            "days": {"type": "integer"},
            "metric": {"type": "boolean"},
            "ratio": {"type": "number"},
            "where": {"type": "object", "properties": {"zip": {"type": "string"}}},
            "tags": {"type": "array", "items": {"type": "string"}},
            "limit": {"anyOf": [{"type": "integer"}, {"type": "null"}]},
        },
    },
)
TIME = ToolSpec("get_time", parameters={"type": "object", "properties": {"zone": {"type": "string"}}})
TOOLS = (WEATHER, TIME)


def merged(events: Iterable[ParsedEvent]) -> list[ParsedEvent]:
    """Neighbours of one kind joined."""
    found: list[ParsedEvent] = []
    for kind, group in groupby(events, type):
        if kind in (Text, Reasoning):
            found.append(kind("".join(event.text for event in group)))
        elif kind is CallArguments:
            pieces = list(group)
            assert len({piece.call_index for piece in pieces}) == 1
            found.append(CallArguments(pieces[0].call_index, "".join(piece.text for piece in pieces)))
        else:
            found += group
    return found


def parse(
    form: OutputFormat, pieces: Sequence[str], tools: Sequence[ToolSpec] = TOOLS, prompt: str = ""
) -> list[ParsedEvent]:
    parser = form.parser(tools, prompt)
    events: list[ParsedEvent] = []
    for piece in pieces:
        events += parser.feed(piece)
    return merged([*events, *parser.close()])


def splits(text: str) -> Iterable[list[str]]:
    """Whole, in single characters, in threes, and in two at every place."""
    yield [text]
    yield list(text)
    yield [text[at : at + 3] for at in range(0, len(text), 3)]
    for at in range(1, len(text)):
        yield [text[:at], text[at:]]


def readable(events: Sequence[ParsedEvent]) -> list[Any]:
    """Events as the tables write them; checks the order of a call's events and its arguments."""
    found: list[Any] = []
    name, arguments = None, ""
    for event in events:
        if isinstance(event, CallStart):
            assert name is None
            name, arguments = event.name, ""
        elif isinstance(event, CallArguments):
            assert name is not None
            arguments += event.text
        elif isinstance(event, CallEnd):
            decoded = json.loads(arguments)
            assert isinstance(decoded, dict)
            found.append((name, decoded, *([event.repaired] if event.repaired else [])))
            name = None
        elif isinstance(event, Malformed):
            assert (event.call_index is None) == (name is None)
            name = None
            found.append(("malformed", event.text))
        elif isinstance(event, Reasoning):
            found.append(f"R:{event.text}")
        else:
            found.append(f"T:{event.text}")
    assert name is None
    return found


# --------------------------------------------------------------------------- what templates write

W, T = "get_weather", "get_time"
ROME = (W, {"city": "Rome"})
ZONE = (T, {"zone": "CET"})

# (format, where the form is published, output, expected)
CASES: list[tuple[str, str, str, list[Any]]] = [
    (
        "hermes",
        "Qwen/Qwen3-8B chat template",
        '<think>\nHm.\n</think>\n\nLet me see.\n<tool_call>\n{"name": "get_weather", "arguments": '
        '{"city": "Rome"}}\n'
        '</tool_call>\n<tool_call>\n{"name": "get_time", "arguments": {"zone": "CET"}}\n</tool_call>',
        ["R:Hm.", "T:Let me see.", ROME, ZONE],
    ),
    (
        "hermes",
        "NousResearch/Hermes-2-Pro model card: arguments may come first",
        '<tool_call>\n{"arguments": {"city": "Rome"}, "name": "get_weather"}\n</tool_call>',
        [ROME],
    ),
    (
        "exaone",
        "LGAI-EXAONE/EXAONE-4.0 template: no line breaks",
        '<tool_call>{"name": "get_weather", "arguments": {"city": "Rome"}}</tool_call>',
        [ROME],
    ),
    (
        "ernie",
        "baidu/ERNIE-4.5-21B-A3B-Thinking template: answers between <response>",
        'I think.\n</think>\n\n<response>\nFine.\n</response>\n\n<tool_call>\n{"name": "get_weather", '
        '"arguments": '
        '{"city": "Rome"}}\n</tool_call>\n',
        ["T:I think.Fine.", ROME],
    ),
    (
        "longcat",
        "meituan-longcat/LongCat-Flash-Chat template",
        "<longcat_think>\nHm\n</longcat_think>\n<longcat_tool_call>\n"
        '{"name": "get_weather", "arguments": {"city": "Rome"}}\n</longcat_tool_call>',
        ["R:Hm", ROME],
    ),
    (
        "qwen3_coder",
        "Qwen/Qwen3-Coder-30B-A3B-Instruct template",
        "Sure.\n<tool_call>\n<function=get_weather>\n<parameter=city>\nRome\n</parameter>\n"
        "<parameter=days>\n3\n"
        "</parameter>\n</function>\n</tool_call>\n<tool_call>\n<function=get_time>\n</function>\n"
        "</tool_call>",
        ["T:Sure.", (W, {"city": "Rome", "days": 3}), (T, {})],
    ),
    (
        "qwen3_coder",
        "the same without <tool_call>, which the model forgets (QwenLM/Qwen3-Coder issues)",
        "<function=get_weather>\n<parameter=city>\n  two\n  lines\n</parameter>\n</function>",
        [(W, {"city": "  two\n  lines"})],
    ),
    (
        "seed_oss",
        "ByteDance-Seed/Seed-OSS-36B-Instruct model card",
        "<seed:think>Format is <seed:tool_call>.</seed:think>\n<seed:tool_call>\n<function=get_weather>\n"
        "<parameter=city>Rome</parameter>\n</function>\n</seed:tool_call>",
        ["R:Format is <seed:tool_call>.", ROME],
    ),
    (
        "llama3",
        "meta-llama/Llama-3.1-8B-Instruct template and prompt format page",
        '{"name": "get_weather", "parameters": {"city": "Rome"}}; {"name": "get_time", "parameters": '
        '{"zone": "CET"}}',
        [ROME, ZONE],
    ),
    (
        "llama3",
        "the same behind <|python_tag|>",
        '<|python_tag|>{"type": "function", "name": "get_weather", "parameters": {"city": "Rome"}}',
        [ROME],
    ),
    (
        "pythonic",
        "meta-llama/Llama-3.2 prompt format page",
        "[get_weather(city='Rome', days=2, metric=True, limit=None), get_time(zone=\"CET\")]",
        [(W, {"city": "Rome", "days": 2, "metric": True, "limit": None}), ZONE],
    ),
    (
        "llama4",
        "meta-llama/Llama-4 prompt format page",
        "<|python_start|>[get_weather(city=\"Rome\", where={'zip': '00100'}, tags=['a', 'b'])]<|python_end|>",
        [(W, {"city": "Rome", "where": {"zip": "00100"}, "tags": ["a", "b"]})],
    ),
    (
        "olmo3",
        "allenai/Olmo-3-7B-Instruct template: one call on each line",
        '<function_calls>get_weather(city="Rome")\nget_time(zone="CET")</function_calls>',
        [ROME, ZONE],
    ),
    (
        "lfm2",
        "LiquidAI/LFM2-1.2B model card",
        '<|tool_call_start|>[get_weather(city="Rome")]<|tool_call_end|>Checking Rome.',
        [ROME, "T:Checking Rome."],
    ),
    (
        "mistral",
        "mistralai/Mistral-7B-Instruct-v0.3 template",
        '[TOOL_CALLS] [{"name": "get_weather", "arguments": {"city": "Rome"}, "id": "abcdefghi"}, '
        '{"name": "get_time", "arguments": {"zone": "CET"}, "id": "123456789"}]',
        [ROME, ZONE],
    ),
    (
        "mistral_v11",
        "mistralai/Magistral-Small-2509 and mistral-common tokenizer v11, v13",
        '[THINK]Hm.[/THINK]Yes.[TOOL_CALLS]get_weather[ARGS]{"city": "Rome"}'
        "[TOOL_CALLS]get_time[CALL_ID]123456789"
        '[ARGS]{"zone": "CET"}',
        ["R:Hm.", "T:Yes.", ROME, ZONE],
    ),
    (
        "mistral_v11",
        "mistralai/Mistral-Small-3.2 writes the arguments directly behind the name",
        '[TOOL_CALLS]get_weather{"city": "Rome"}',
        [ROME],
    ),
    (
        "deepseek_v3",
        "deepseek-ai/DeepSeek-R1 template",
        "<｜tool▁calls▁begin｜><｜tool▁call▁begin｜>function<｜tool▁sep｜>get_weather\n```json\n"
        '{"city": "Rome"}\n```<｜tool▁call▁end｜>\n<｜tool▁call▁begin｜>function<｜tool▁sep｜>get_time\n'
        "```json\n"
        '{"zone": "CET"}\n```<｜tool▁call▁end｜><｜tool▁calls▁end｜>',
        [ROME, ZONE],
    ),
    (
        "deepseek_v31",
        "deepseek-ai/DeepSeek-V3.1 template",
        'Ok.<｜tool▁calls▁begin｜><｜tool▁call▁begin｜>get_weather<｜tool▁sep｜>{"city": "Rome"}<'
        "｜tool▁call▁end｜>"
        '<｜tool▁call▁begin｜>get_time<｜tool▁sep｜>{"zone": "CET"}<｜tool▁call▁end｜><｜tool▁calls▁end｜>',
        ["T:Ok.", ROME, ZONE],
    ),
    (
        "deepseek_v32",
        "deepseek-ai/DeepSeek-V3.2 encoding/README",
        'Ok.\n\n<｜DSML｜function_calls>\n<｜DSML｜invoke name="get_weather">\n<｜DSML｜parameter '
        'name="city" '
        'string="true">Rome</｜DSML｜parameter>\n<｜DSML｜parameter name="days" string="false">3</｜DSML'
        "｜parameter>\n"
        '</｜DSML｜invoke>\n<｜DSML｜invoke name="get_time">\n</｜DSML｜invoke>\n</｜DSML｜function_calls>',
        ["T:Ok.", (W, {"city": "Rome", "days": 3}), (T, {})],
    ),
    (
        "deepseek_v4",
        "xgrammar 0.2.8 structural tag deepseek_v4",
        '<｜DSML｜tool_calls>\n<｜DSML｜invoke name="other">\n<｜DSML｜parameter name="n" '
        'string="false">[1, 2]'
        '</｜DSML｜parameter>\n<｜DSML｜parameter name="s" string="true">12</｜DSML｜parameter>\n</'
        "｜DSML｜invoke>\n"
        "</｜DSML｜tool_calls>",
        [("other", {"n": [1, 2], "s": "12"})],
    ),
    (
        "gigachat35",
        "ai-sage/GigaChat3.5 template",
        '<｜GCML｜tool_calls><｜GCML｜invoke name="get_weather"><｜GCML｜parameter name="city" '
        'string="true">Rome'
        "</｜GCML｜parameter></｜GCML｜invoke></｜GCML｜tool_calls>",
        [ROME],
    ),
    (
        "gigachat3",
        "ai-sage/GigaChat3-10B-A1.8B template",
        'Ok<|message_sep|>\n\nfunction call<|role_sep|>\n{"name": "get_weather", "arguments": {"city": '
        '"Rome"}}',
        ["T:Ok", ROME],
    ),
    (
        "kimi_k2",
        "moonshotai/Kimi-K2-Instruct docs/tool_call_guidance",
        "<think>Hm</think>Ok<|tool_calls_section_begin|><|tool_call_begin|>functions.get_weather:0"
        '<|tool_call_argument_begin|>{"city": "Rome"}<|tool_call_end|><|tool_call_begin|>functions.get_time:1'
        '<|tool_call_argument_begin|>{"zone": "CET"}<|tool_call_end|><|tool_calls_section_end|>',
        ["R:Hm", "T:Ok", ROME, ZONE],
    ),
    (
        "kimi_k2",
        "the section begins inside of the reasoning (vLLM kimi_k2 reasoning parser)",
        "<think>Hm<|tool_calls_section_begin|><|tool_call_begin|>get_time:0<|tool_call_argument_begin|>{}"
        "<|tool_call_end|><|tool_calls_section_end|>",
        ["R:Hm", (T, {})],
    ),
    (
        "kimi_k3",
        "moonshotai/Kimi-K3 template",
        "<|open|>think<|sep|>Hm<|close|>think<|sep|><|open|>response<|sep|>Ok<|close|>response<|sep|>"
        '<|open|>tools<|sep|><|open|>call tool="get_weather" index="1"<|sep|><|open|>argument key="city" '
        'type="string"<|sep|>Rome<|close|>argument<|sep|><|open|>argument key="days" type="number"<|sep|>3'
        '<|close|>argument<|sep|><|close|>call<|sep|><|open|>call tool="get_time" index="2"<|sep|>'
        '<|open|>json type="object"<|sep|>{"zone": "CET"}<|close|>json<|sep|><|close|>call<|sep|>'
        "<|close|>tools<|sep|><|close|>message<|sep|>",
        ["R:Hm", "T:Ok", (W, {"city": "Rome", "days": 3}), ZONE],
    ),
    (
        "glm",
        "zai-org/GLM-4.5 template",
        "<think>Hm</think>\n<tool_call>get_weather\n<arg_key>city</arg_key>\n<arg_value>Rome</arg_value>\n"
        "<arg_key>days</arg_key>\n<arg_value>3</arg_value>\n</tool_call>\n<tool_call>get_time\n</tool_call>",
        ["R:Hm", (W, {"city": "Rome", "days": 3}), (T, {})],
    ),
    (
        "glm",
        "zai-org/GLM-4.7 template: no line breaks",
        "<tool_call>get_weather<arg_key>city</arg_key><arg_value>Rome</arg_value></tool_call>"
        "<tool_call>get_time</tool_call>",
        [ROME, (T, {})],
    ),
    (
        "minimax_m2",
        "MiniMaxAI/MiniMax-M2 tool calling guide",
        '<think>\nHm\n</think>\n\n<minimax:tool_call>\n<invoke name="get_weather">\n<parameter '
        'name="city">Rome'
        '</parameter>\n<parameter name="tags">["a"]</parameter>\n</invoke>\n<invoke name="get_time">\n'
        "</invoke>\n"
        "</minimax:tool_call>",
        ["R:Hm", (W, {"city": "Rome", "tags": ["a"]}), (T, {})],
    ),
    (
        "minimax_m3",
        "MiniMaxAI/MiniMax-M3 (vLLM tests/tool_parsers/test_minimax_m3)",
        "<mm:think>Hm</mm:think>Ok.\n]<]minimax[>[<tool_call>\n"
        ']<]minimax[>[<invoke name="get_weather">]<]minimax[>[<city>Rome]<]minimax[>[</city>'
        "]<]minimax[>[<where>]<]minimax[>[<zip>00100]<]minimax[>[</zip>]<]minimax[>[</where>"
        "]<]minimax[>[<tags>]<]minimax[>[<item>1]<]minimax[>[</item>]<]minimax[>[<item>b]<]minimax[>[</item>"
        "]<]minimax[>[</tags>]<]minimax[>[</invoke>\n]<]minimax[>[</tool_call>",
        ["R:Hm", "T:Ok.", (W, {"city": "Rome", "where": {"zip": "00100"}, "tags": ["1", "b"]})],
    ),
    (
        "gpt_oss",
        "openai/harmony docs/format.md",
        "<|channel|>analysis<|message|>Hm.<|end|><|start|>assistant<|channel|>commentary<|message|>I "
        "look.<|end|>"
        "<|start|>assistant<|channel|>commentary to=functions.get_weather <|constrain|>json<|message|>"
        '{"city": "Rome"}<|call|>',
        ["R:Hm.", "T:I look.", ROME],
    ),
    (
        "gpt_oss",
        "the same with the recipient in the role part",
        "<|channel|>analysis<|message|>Hm.<|end|><|start|>assistant to=functions.get_weather<|channel|>"
        "commentary "
        'json<|message|>{"city": "Rome"}<|call|><|start|>assistant<|channel|>final<|message|>Done.<|return|>',
        ["R:Hm.", ROME, "T:Done."],
    ),
    (
        "gemma4",
        "google/gemma-4 template",
        '<|channel>thought\nHm\n<channel|>Ok<|tool_call>call:get_weather{city:<|"|>Rome, {IT}<|"|>,days:3,'
        'metric:true,where:{zip:<|"|>00100<|"|>},tags:[<|"|>a<|"|>]}<tool_call|>'
        "<|tool_call>call:get_time{}<tool_call|>",
        [
            "R:Hm",
            "T:Ok",
            (W, {"city": "Rome, {IT}", "days": 3, "metric": True, "where": {"zip": "00100"}, "tags": ["a"]}),
            (T, {}),
        ],
    ),
    (
        "function_gemma",
        "google/functiongemma-270m-it model card",
        "<start_function_call>call:get_weather{city:<escape>Rome<escape>,days:<escape>3<escape>}"
        "<end_function_call>",
        [(W, {"city": "Rome", "days": 3})],
    ),
    (
        "cohere",
        "CohereLabs/c4ai-command-a-03-2025 template",
        '<|START_THINKING|>Hm<|END_THINKING|><|START_ACTION|>[\n    {"tool_call_id": "0", "tool_name": '
        '"get_weather", '
        '"parameters": {"city": "Rome"}},\n    {"tool_call_id": "1", "tool_name": "get_time", "parameters": '
        '{"zone": "CET"}}\n]<|END_ACTION|>',
        ["R:Hm", ROME, ZONE],
    ),
    (
        "cohere",
        "the same: an answer",
        "<|START_THINKING|>Hm<|END_THINKING|><|START_RESPONSE|>Sunny.<|END_RESPONSE|>",
        ["R:Hm", "T:Sunny."],
    ),
    (
        "cohere_tags",
        "cohere_melody filter for the cmd5 template",
        '<|START_THINKING|>Hm<|END_THINKING|><cofl:tool_calls><cofl:tool_call id="0" name="get_weather">'
        '<cofl:tool_param name="city" string="true">Rome</cofl:tool_param><cofl:tool_param name="days" '
        'string="false">3</cofl:tool_param></cofl:tool_call></cofl:tool_calls>',
        ["R:Hm", (W, {"city": "Rome", "days": 3})],
    ),
    (
        "command_r",
        "CohereLabs/c4ai-command-r-v01 tool_use template",
        'Action: ```json\n[\n    {\n        "tool_name": "get_weather",\n        "parameters": {\n      '
        '      "city": '
        '"Rome"\n        }\n    }\n]```',
        [ROME],
    ),
    (
        "granite",
        "ibm-granite/granite-3.1-8b-instruct model card",
        '<|tool_call|>[{"name": "get_weather", "arguments": {"city": "Rome"}}]',
        [ROME],
    ),
    (
        "granite",
        "ibm-granite/granite-3.2-8b-instruct model card: reasoning in words",
        "Here is my thought process:\n\nHm.\n\nHere is my response:\n\nRome.",
        ["R:Hm.", "T:Rome."],
    ),
    (
        "granite_20b",
        "ibm-granite/granite-20b-functioncalling model card",
        '<function_call> {"name": "get_weather", "arguments": {"city": "Rome"}} <function_call> '
        '{"name": "get_time", '
        '"arguments": {"zone": "CET"}}',
        [ROME, ZONE],
    ),
    (
        "phi4_mini",
        "microsoft/Phi-4-mini-instruct as in vLLM's and llama.cpp's templates",
        'functools[{"name": "get_weather", "arguments": {"city": "Rome"}}]',
        [ROME],
    ),
    (
        "phi4_mini",
        "microsoft/Phi-4-mini-instruct model card",
        '<|tool_call|>[{"name": "get_weather", "arguments": {"city": "Rome"}}]<|/tool_call|>',
        [ROME],
    ),
    (
        "xlam",
        "Salesforce/Llama-xLAM-2-8b-fc-r model card",
        '[{"name": "get_weather", "arguments": {"city": "Rome"}}, {"name": "get_time", "arguments": '
        '{"zone": "CET"}}]',
        [ROME, ZONE],
    ),
    (
        "xlam",
        "the same in a code block behind text",
        'I look.\n```json\n[{"name": "get_weather", "arguments": {"city": "Rome"}}]\n```',
        ["T:I look.", ROME],
    ),
    (
        "internlm2",
        "internlm/internlm2_5-7b-chat agent docs",
        'Ok.<|action_start|><|plugin|>\n{"name": "get_weather", "parameters": {"city": "Rome"}}'
        "<|action_end|>",
        ["T:Ok.", ROME],
    ),
    (
        "jamba",
        "ai21labs/AI21-Jamba-1.5-Mini template",
        '<tool_calls>[\n    {"name": "get_weather", "arguments": {"city": "Rome"}}\n]</tool_calls>',
        [ROME],
    ),
    (
        "hunyuan",
        "tencent/Hunyuan-A13B-Instruct model card",
        '<think>\nHm\n</think>\n<answer>\nOk\n<tool_calls>[{"name": "get_weather", "arguments": '
        '{"city": "Rome"}}]'
        "</tool_calls>\n</answer>",
        ["R:Hm", "T:Ok", ROME],
    ),
    (
        "nemotron_nano",
        "nvidia/NVIDIA-Nemotron-Nano-9B-v2 template",
        '<think>\nHm\n</think>\n\n<TOOLCALL>[{"name": "get_weather", "arguments": {"city": "Rome"}}]'
        "</TOOLCALL>",
        ["R:Hm", ROME],
    ),
    (
        "apertus",
        "swiss-ai/Apertus-8B-Instruct-2509 template",
        '<|inner_prefix|>Hm<|inner_suffix|><|tools_prefix|>[{"get_weather": {"city": "Rome"}}, '
        '{"get_time": {}}]'
        "<|tools_suffix|>",
        ["R:Hm", ROME, (T, {})],
    ),
    (
        "step3",
        "stepfun-ai/step3 (vLLM tests/tool_parsers/test_step3)",
        "Ok\n<｜tool_calls_begin｜><｜tool_call_begin｜>function<｜tool_sep｜>"
        '<steptml:invoke name="get_weather"><steptml:parameter name="city">Rome '
        "</steptml:parameter></steptml:invoke><｜tool_call_end｜><｜tool_sep｜><｜tool_call_begin｜>"
        '<steptml:invoke name="get_time"></steptml:invoke><｜tool_call_end｜><｜tool_calls_end｜>',
        ["T:Ok", (W, {"city": "Rome "}), (T, {})],
    ),
    (
        "functionary_v31",
        "meetkai/functionary-medium-v3.1 and Llama 3.1's own functions",
        '<function=get_weather>{"city": "Rome"}</function>\n<function=get_time>{}</function>',
        [ROME, (T, {})],
    ),
    (
        "functionary_v32",
        "meetkai/functionary-small-v3.2 template",
        '>>>all\nI look.\n>>>get_weather\n{"city": "Rome"}',
        ["T:I look.", ROME],
    ),
    (
        "builtin",
        "this package: the Hermes form",
        '<tool_call>\n{"name": "get_weather", "arguments": {"city": "Rome"}}\n</tool_call>',
        [ROME],
    ),
    ("plain", "reads nothing", "<think>a</think><tool_call>\n{}", ["T:<think>a</think><tool_call>\n{}"]),
]


@pytest.mark.parametrize(
    ("name", "source", "output", "expected"), CASES, ids=[f"{c[0]}-{c[1][:30]}" for c in CASES]
)
def test_the_published_form_in_every_split(name: str, source: str, output: str, expected: list[Any]) -> None:
    """Red if a family's own form is misread, or read differently when it comes in other pieces."""
    whole = parse(FORMATS[name], [output])
    assert readable(whole) == expected, source
    for pieces in splits(output):
        assert parse(FORMATS[name], pieces) == whole, pieces


def test_every_family_has_a_case() -> None:
    """Red if a format is added without its published form in the table."""
    assert {case[0] for case in CASES} == set(FORMATS)
