"""The format is found by what a template says; snippets hold what tells the families apart."""

from __future__ import annotations

import pytest

from penstock.errors import InvalidRequest
from penstock.text.output.choose import FORMATS, format_by_name, format_for_template

# (format, template it stands for, what is in that template)
SNIPPETS = [
    ("hermes", "Qwen/Qwen2.5-7B-Instruct", "'<tool_call>\\n{\"name\": \"' ... '\\n</tool_call>'"),
    ("hermes", "ibm-granite/granite-4.0-micro", "<|start_of_role|> <tool_call> </tool_call>"),
    ("exaone", "LGAI-EXAONE/EXAONE-4.0-32B", "[|assistant|] <tool_call>{'name' <think>"),
    ("ernie", "baidu/ERNIE-4.5-21B-A3B-Thinking", "<tool_call> <response> <think>"),
    ("qwen3_coder", "Qwen/Qwen3-Coder-30B-A3B-Instruct", "'<tool_call>\\n<function=' '<parameter='"),
    ("qwen3_coder", "stepfun-ai/Step-3.5-Flash", "'<tool_call>\\n<function=' <think>"),
    ("seed_oss", "ByteDance-Seed/Seed-OSS-36B-Instruct", "<seed:tool_call> <function= <seed:think>"),
    (
        "llama3",
        "meta-llama/Llama-3.1-8B-Instruct",
        '<|start_header_id|> <|python_tag|> {"name": f, "parameters": {}}',
    ),
    ("llama3", "meta-llama/Llama-3.2-3B-Instruct", "<|start_header_id|>ipython '\"parameters\": '"),
    (
        "llama4",
        "meta-llama/Llama-4-Scout-17B-16E-Instruct",
        "<|header_start|> <|python_start|> <|python_end|>",
    ),
    ("olmo3", "allenai/Olmo-3-7B-Instruct", "<function_calls> <functions>"),
    ("lfm2", "LiquidAI/LFM2-1.2B", "<|tool_list_start|> <|tool_call_start|>"),
    ("mistral", "mistralai/Mistral-7B-Instruct-v0.3", "[AVAILABLE_TOOLS] [TOOL_CALLS] ["),
    ("mistral_v11", "mistralai/Magistral-Small-2509", "[TOOL_CALLS] [ARGS] [THINK]"),
    (
        "deepseek_v3",
        "deepseek-ai/DeepSeek-R1",
        "<｜tool▁calls▁begin｜><｜tool▁call▁begin｜>' + tool['type'] + '```json",
    ),
    (
        "deepseek_v31",
        "deepseek-ai/DeepSeek-V3.1",
        "<｜tool▁calls▁begin｜><｜tool▁call▁begin｜>'+ name + '<｜tool▁sep｜>",
    ),
    ("deepseek_v32", "deepseek-ai/DeepSeek-V3.2", "'<｜DSML｜function_calls>' '<｜DSML｜invoke name='"),
    ("deepseek_v4", "deepseek-ai/DeepSeek-V4", "'<｜DSML｜tool_calls>' '<｜DSML｜invoke name='"),
    ("gigachat35", "ai-sage/GigaChat3.5", "<｜GCML｜tool_calls>"),
    ("gigachat3", "ai-sage/GigaChat3-10B-A1.8B", "role_sep=\"<|role_sep|>\\n\" 'function call'"),
    ("kimi_k2", "moonshotai/Kimi-K2-Instruct", "<|tool_calls_section_begin|><|tool_call_begin|>"),
    ("kimi_k3", "moonshotai/Kimi-K3", "{{- '<|open|>' + tag -}} {{- '<|close|>' + tag + '<|sep|>' -}}"),
    ("glm", "zai-org/GLM-4.5", "'<tool_call>' <arg_key> <arg_value> <think>"),
    ("minimax_m2", "MiniMaxAI/MiniMax-M2", "set toolcall_begin_token = '<minimax:tool_call>' <invoke name="),
    ("minimax_m3", "MiniMaxAI/MiniMax-M3", "set ns_token = ']<]minimax[>[' '<tool_call>' <mm:think>"),
    ("gpt_oss", "openai/gpt-oss-20b", "<|start|>assistant<|channel|>commentary to= <|message|>"),
    ("gemma4", "google/gemma-4-31B-it", "<|tool_call>call: <|channel>thought"),
    (
        "function_gemma",
        "google/functiongemma-270m-it",
        "<start_function_declaration> <start_function_call>call:",
    ),
    ("cohere", "CohereLabs/c4ai-command-a-03-2025", "<|START_ACTION|> <|START_THINKING|> tool_name"),
    ("cohere_tags", "Cohere cmd5", "<cofl:tool_calls> <|START_THINKING|>"),
    ("command_r", "CohereLabs/c4ai-command-r-v01 tool_use", "'Action:```json' directly-answer"),
    ("granite", "ibm-granite/granite-3.1-8b-instruct", "<|start_of_role|> <|tool_call|>"),
    ("granite_20b", "ibm-granite/granite-20b-functioncalling", "<function_call>"),
    ("phi4_mini", "microsoft/Phi-4-mini-instruct", "'<|tool|>' + message['tools'] + '<|/tool|>'"),
    ("xlam", "Salesforce/Llama-xLAM-2-8b-fc-r", "<|start_header_id|> You are xLAM"),
    ("internlm2", "internlm/internlm2_5-7b-chat", "<|plugin|> <|action_start|>"),
    ("jamba", "ai21labs/AI21-Jamba-1.5-Mini", "<tool_calls> <tool_definitions>"),
    ("hunyuan", "tencent/Hunyuan-A13B-Instruct", "<tool_calls> <answer> <think>"),
    ("nemotron_nano", "nvidia/NVIDIA-Nemotron-Nano-9B-v2", "<TOOLCALL>[ <AVAILABLE_TOOLS>"),
    ("apertus", "swiss-ai/Apertus-8B-Instruct-2509", "<|tools_prefix|> <|inner_prefix|>"),
    ("step3", "stepfun-ai/step3", "<｜tool_calls_begin｜> <steptml:invoke name="),
    ("longcat", "meituan-longcat/LongCat-Flash-Chat", "<longcat_tool_call> <longcat_think>"),
    ("functionary_v31", "meetkai/functionary-medium-v3.1", "<function=' + name + '>' </function>"),
    ("functionary_v32", "meetkai/functionary-small-v3.2", ">>>all"),
    ("builtin", "HuggingFaceTB/SmolLM2-135M-Instruct", "{{'<|im_start|>' + message['role']}}"),
]


@pytest.mark.parametrize(("name", "model", "source"), SNIPPETS, ids=[f"{s[0]}-{s[1]}" for s in SNIPPETS])
def test_templates_choose_their_format(name: str, model: str, source: str) -> None:
    """Red if a family's template is taken for another family's."""
    assert format_for_template("{%- for message in messages %}" + source).name == name, model


def test_every_format_is_chosen_by_some_template() -> None:
    """Red if a format can't be reached because another one's signs come before its own."""
    assert {snippet[0] for snippet in SNIPPETS} == set(FORMATS) - {"pythonic", "plain"}


def test_no_template_and_names() -> None:
    """Red if a model without template loses its tools, or an unknown name is not told what there is."""
    assert format_for_template(None).name == "builtin"
    assert format_by_name("glm") is FORMATS["glm"]
    with pytest.raises(InvalidRequest, match=r"'glm5'.*glm, gpt_oss"):
        format_by_name("glm5")


def test_special_markers_hold_what_begins_and_ends() -> None:
    """Red if a marker that is a special token would be left out of the text before it is parsed."""
    assert set(FORMATS["hermes"].special_markers) == {"<think>", "</think>", "<tool_call>", "</tool_call>"}
    assert {
        "<|channel|>",
        "<|message|>",
        "<|call|>",
        "<|constrain|>",
        "<|start|>",
        "<|end|>",
        "<|return|>",
    } <= set(FORMATS["gpt_oss"].special_markers)
    assert '<|"|>' in FORMATS["gemma4"].special_markers
    assert {"[ARGS]", "[CALL_ID]", "[TOOL_CALLS]", "[THINK]"} <= set(FORMATS["mistral_v11"].special_markers)
    assert {"<|open|>response<|sep|>", "<|open|>call"} <= set(FORMATS["kimi_k3"].special_markers)
    assert FORMATS["plain"].special_markers == ()
