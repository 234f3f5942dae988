# ruff: noqa: E501  (templates)
"""Chat templates against transformers' renderer, over the styles of the common families.

The templates are our own, written in the manner of each family; SmolLM2's is the one in its file.
"""

from __future__ import annotations

import contextlib
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from penstock.call import ImagePart, Message, ReasoningPart, TextPart, ToolCallPart, ToolResultPart, ToolSpec
from penstock.errors import InvalidRequest
from penstock.text.nonces import without_nonces
from penstock.text.template import CHATML, ChatTemplate
from penstock.text.template_messages import message_dicts
from penstock.text.tokenizer import Tokenizer

LLAMA3_STYLE = """{{- bos_token }}
{%- if not date_string is defined %}{%- set date_string = strftime_now("%Y") %}{%- endif %}
{#- the first message may be the system's #}
{%- if messages[0]['role'] == 'system' %}
    {%- set system_message = messages[0]['content'] | trim %}
    {%- set messages = messages[1:] %}
{%- else %}
    {%- set system_message = "" %}
{%- endif %}
{{- "<|start_header_id|>system<|end_header_id|>\\n\\n" + "Year: " + date_string + "\\n" }}
{%- if tools is not none %}
    {%- for t in tools %}{{- t | tojson(indent=4) }}{{- "\\n\\n" }}{%- endfor %}
{%- endif %}
{{- system_message + "<|eot_id|>" }}
{%- for message in messages %}
    {%- if not (message.role == 'ipython' or message.role == 'tool' or 'tool_calls' in message) %}
        {{- '<|start_header_id|>' + message['role'] + '<|end_header_id|>\\n\\n'+ message['content'] | trim + '<|eot_id|>' }}
    {%- elif 'tool_calls' in message %}
        {%- if not message.tool_calls|length == 1 %}{{- raise_exception("One tool-call at a time!") }}{%- endif %}
        {%- set tool_call = message.tool_calls[0].function %}
        {{- '<|start_header_id|>assistant<|end_header_id|>\\n\\n{"name": "' + tool_call.name + '", "parameters": ' }}
        {{- tool_call.arguments | tojson + "}<|eot_id|>" }}
    {%- elif message.role == "tool" or message.role == "ipython" %}
        {{- "<|start_header_id|>ipython<|end_header_id|>\\n\\n" }}
        {%- if message.content is mapping or message.content is iterable %}{{- message.content | tojson }}
        {%- else %}{{- message.content }}{%- endif %}
        {{- "<|eot_id|>" }}
    {%- endif %}
{%- endfor %}
{%- if add_generation_prompt %}{{- '<|start_header_id|>assistant<|end_header_id|>\\n\\n' }}{%- endif %}
"""

MISTRAL_STYLE = """{{ bos_token }}{% set ns = namespace(index=0, system='') %}
{% for message in messages %}
    {% if message['role'] == 'system' %}{% set ns.system = message['content'] %}{% continue %}{% endif %}
    {% if message['role'] in ('user', 'assistant') and (message['role'] == 'user') != (ns.index % 2 == 0) %}
        {{ raise_exception('After the optional system message, roles must alternate user/assistant') }}
    {% endif %}
    {% set ns.index = ns.index + 1 %}
    {% if message['role'] == 'user' %}
[INST] {{ ns.system ~ '\n\n' if ns.system and loop.last else '' }}{{ message['content'] }} [/INST]
    {% else %}
{{ ' ' ~ message['content'] ~ eos_token }}
    {% endif %}
{% endfor %}"""

GEMMA_STYLE = """{{ bos_token }}
{%- if messages[0]['role'] == 'system' %}
    {%- set prefix = messages[0]['content'] + '\n\n' %}{%- set rest = messages[1:] %}
{%- else %}{%- set prefix = '' %}{%- set rest = messages %}{%- endif %}
{%- for message in rest -%}
    {%- set role = 'model' if message['role'] == 'assistant' else message['role'] -%}
    {{ '<start_of_turn>' + role + '\n' + (prefix if loop.first else '') }}
    {%- if message['content'] is string -%}{{ message['content'] | trim }}
    {%- elif message['content'] is iterable -%}
        {%- for item in message['content'] -%}{{ item['text'] | trim }}{%- endfor -%}
    {%- endif -%}
    {{ '<end_of_turn>\n' }}
{%- endfor -%}
{%- if add_generation_prompt -%}{{ '<start_of_turn>model\n' }}{%- endif -%}"""

QWEN_STYLE = """{%- if tools %}
    {{- '<|im_start|>system\\n' }}
    {%- if messages[0].role == 'system' %}{{- messages[0].content + '\\n\\n' }}{%- endif %}
    {{- "# Tools\\n\\n<tools>" }}
    {%- for tool in tools %}{{- "\\n" }}{{- tool | tojson }}{%- endfor %}
    {{- "\\n</tools><|im_end|>\\n" }}
{%- elif messages[0].role == 'system' %}
    {{- '<|im_start|>system\\n' + messages[0].content + '<|im_end|>\\n' }}
{%- endif %}
{%- set ns = namespace(multi_step_tool=true, last_query_index=messages|length - 1) %}
{%- for message in messages[::-1] %}
    {%- set index = (messages|length - 1) - loop.index0 %}
    {%- if ns.multi_step_tool and message.role == "user" %}
        {%- set ns.multi_step_tool = false %}{%- set ns.last_query_index = index %}
    {%- endif %}
{%- endfor %}
{%- for message in messages %}
    {%- if (message.role == "user") or (message.role == "system" and not loop.first) %}
        {{- '<|im_start|>' + message.role + '\\n' + message.content + '<|im_end|>\\n' }}
    {%- elif message.role == "assistant" %}
        {%- set reasoning = message.reasoning_content if message.reasoning_content is string else '' %}
        {{- '<|im_start|>assistant\\n' }}
        {%- if loop.index0 > ns.last_query_index and reasoning %}
            {{- '<think>\\n' + reasoning.strip('\\n') + '\\n</think>\\n\\n' }}
        {%- endif %}
        {% generation %}{{- message.content.lstrip('\\n') }}{% endgeneration %}
        {%- if message.tool_calls %}
            {%- for tool_call in message.tool_calls %}
                {%- if (loop.first and message.content) or (not loop.first) %}{{- '\\n' }}{%- endif %}
                {%- if tool_call.function %}{%- set tool_call = tool_call.function %}{%- endif %}
                {{- '<tool_call>\\n{"name": "' + tool_call.name + '", "arguments": ' }}
                {%- if tool_call.arguments is string %}{{- tool_call.arguments }}
                {%- else %}{{- tool_call.arguments | tojson(separators=(',', ':'), sort_keys=true) }}{%- endif %}
                {{- '}\\n</tool_call>' }}
            {%- endfor %}
        {%- endif %}
        {{- '<|im_end|>\\n' }}
    {%- elif message.role == "tool" %}
        {%- if loop.first or (messages[loop.index0 - 1].role != "tool") %}{{- '<|im_start|>user' }}{%- endif %}
        {{- '\\n<tool_response>\\n' + message.content + '\\n</tool_response>' }}
        {%- if loop.last or (messages[loop.index0 + 1].role != "tool") %}{{- '<|im_end|>\\n' }}{%- endif %}
    {%- endif %}
{%- endfor %}
{%- if add_generation_prompt %}
    {{- '<|im_start|>assistant\\n' }}
    {%- if enable_thinking is defined and enable_thinking is false %}{{- '<think>\\n\\n</think>\\n\\n' }}{%- endif %}
{%- endif %}"""

NONE_STYLE = """{% for message in messages %}{% if message['content'] is none %}CALLS{% for call in message['tool_calls'] %}
{{ call['function']['name'] ~ call['function']['arguments'] | tojson }}{% endfor %}
{% else %}{{ message['role'] + ': ' + message['content'] }}{% endif %}

{% endfor %}"""

STYLES = {
    "chatml": CHATML,
    "llama3": LLAMA3_STYLE,
    "mistral": MISTRAL_STYLE,
    "gemma": GEMMA_STYLE,
    "qwen": QWEN_STYLE,
    "none": NONE_STYLE,
}
TOKENS = {"bos_token": "<s>", "eos_token": "</s>"}

WEATHER = {
    "type": "object",
    "properties": {"city": {"type": "string", "description": "größte <b>Stadt</b> & 'Land'"}},
    "required": ["city"],
}
TOOLS = (ToolSpec("weather", "Look it up", WEATHER), ToolSpec("now"))
TOOL_DICTS = [
    {"type": "function", "function": {"name": "weather", "description": "Look it up", "parameters": WEATHER}},
    {"type": "function", "function": {"name": "now", "parameters": {"type": "object", "properties": {}}}},
]


def reference(
    source: str, messages: list[dict[str, Any]], tools: Any = None, prompt: bool = True, **args: Any
) -> str:
    """What transformers renders for `messages` in the OpenAI form."""
    from transformers.utils.chat_template_utils import render_jinja_template

    rendered, _ = render_jinja_template(
        conversations=[messages],
        tools=tools,
        chat_template=source,
        add_generation_prompt=prompt,
        **TOKENS,
        **args,
    )
    return str(rendered[0])


def text(role: Any, content: str) -> Message:
    return Message(role, (TextPart(content),))


CONTENT = st.text(st.sampled_from("ab \n<|>&'\"é😀{}%"), max_size=12)


@pytest.mark.parametrize("style", STYLES)
@given(turns=st.lists(CONTENT, min_size=1, max_size=5), system=st.none() | CONTENT, prompt=st.booleans())
def test_conversations_as_transformers(
    style: str, turns: list[str], system: str | None, prompt: bool
) -> None:
    """Red if white-space control, helper functions or variables differ from apply_chat_template's."""
    turns = turns if len(turns) % 2 else turns[:-1]
    pairs = [("user" if i % 2 == 0 else "assistant", content) for i, content in enumerate(turns)]
    if system is not None:
        pairs.insert(0, ("system", system))
    expected = reference(STYLES[style], [{"role": r, "content": c} for r, c in pairs], prompt=prompt)
    template = ChatTemplate(STYLES[style], **TOKENS)
    assert template.render([text(r, c) for r, c in pairs], (), prompt) == expected


@pytest.mark.parametrize("style", ["llama3", "qwen", "none"])
def test_tool_conversations_as_transformers(style: str) -> None:
    """Red if tools, calls, results or reasoning reach the template in another shape than it was written for."""
    call = ToolCallPart("c1", "weather", '{"city": "Köln <1>", "days": [1, 2]}')
    messages = [
        text("system", "Be brief."),
        text("user", "Weather?"),
        Message("assistant", (ReasoningPart("hm\n"), call)),
        Message("tool", (ToolResultPart("c1", (TextPart("sunny"), TextPart(" & warm"))),)),
    ]
    arguments = {"city": "Köln <1>", "days": [1, 2]}
    function = {"name": "weather", "arguments": arguments}
    dicts = [
        {"role": "system", "content": "Be brief."},
        {"role": "user", "content": "Weather?"},
        {
            "role": "assistant",
            "content": None if style == "none" else "",
            "reasoning_content": "hm\n",
            "tool_calls": [{"id": "c1", "type": "function", "function": function}],
        },
        {"role": "tool", "content": "sunny & warm", "tool_call_id": "c1", "name": "weather"},
    ]
    source = STYLES[style]
    expected = reference(source, dicts, TOOL_DICTS, enable_thinking=False)
    template = ChatTemplate(source, **TOKENS)
    assert template.render(messages, TOOLS, enable_thinking=False) == expected
    assert '{"city":"Köln <1>","days":[1,2]}' in expected.replace(": ", ":").replace(", ", ",")


def test_smollm2s_own_template(smollm: Tokenizer) -> None:
    """Red if the default model's prompt is not the one it was trained on."""
    template = ChatTemplate.for_tokenizer(smollm, "smollm2")
    prompt = template.render([text("user", "What is the capital of France?")])
    assert prompt == (
        "<|im_start|>system\nYou are a helpful AI assistant named SmolLM, trained by Hugging Face<|im_end|>\n"
        "<|im_start|>user\nWhat is the capital of France?<|im_end|>\n<|im_start|>assistant\n"
    )
    assert smollm.chat_template is not None
    assert prompt == reference(
        smollm.chat_template, [{"role": "user", "content": "What is the capital of France?"}]
    )


def test_results_beside_text_become_messages_of_their_own() -> None:
    """Red if a user message with tool results (Anthropic's form) loses them, or the order changes."""
    parts = (ToolResultPart("a", (TextPart("1"),)), ToolResultPart("b", (TextPart("2"),)), TextPart("go on"))
    rendered = ChatTemplate("{% for m in messages %}[{{ m.role }}:{{ m.content }}]{% endfor %}").render(
        [Message("user", parts)]
    )
    assert rendered == "[tool:1][tool:2][user:go on]"


@pytest.mark.parametrize(
    ("arguments", "shown"),
    [
        ("", "{}"),
        ("{}", "{}"),
        ('{"a": 1}', '{"a": 1}'),
        ("{bad", '"{bad"'),
        ("[1]", '"[1]"'),
        ("[" * 100_000, '"' + "[" * 100_000 + '"'),
    ],
    ids=["empty", "no fields", "object", "malformed", "array", "nested beyond the parser"],
)
def test_arguments_that_are_no_object_stay_text(arguments: str, shown: str) -> None:
    """Red if one malformed call in the history, or empty arguments, end the conversation (trap)."""
    template = ChatTemplate("{{ messages[0].tool_calls[0].function.arguments | tojson }}")
    assert template.render([Message("assistant", (ToolCallPart("x", "f", arguments),))]) == shown


def test_reasoning_is_seen_under_both_names() -> None:
    """Red if templates in gpt-oss' manner (`thinking`) lose the reasoning of earlier turns."""
    template = ChatTemplate("{{ messages[0].thinking }}/{{ messages[0].reasoning_content }}")
    assert template.render([Message("assistant", (ReasoningPart("hm"), TextPart("x")))]) == "hm/hm"


def test_reasoning_of_another_server_is_left_out() -> None:
    """Red if what this server can't check, or can't read, is put into the prompt as the model's own thought."""
    parts = (ReasoningPart("theirs", "sig"), ReasoningPart("", "encrypted", True), ReasoningPart("ours"))
    (found,) = message_dicts([Message("assistant", (*parts, TextPart("x")))], "")
    assert (found["reasoning_content"], found["content"]) == ("ours", "x")


@given(st.permutations(["a", "b", "c", "unasked"]))
def test_results_stand_in_the_order_of_their_calls(sent: list[str]) -> None:
    """Red if a template that shows no ids lets the model take one tool's result for another's."""
    calls = Message("assistant", tuple(ToolCallPart(name, f"f{name}", "{}") for name in "abc"))
    results = [Message("tool", (ToolResultPart(name, (TextPart(name),)),)) for name in sent]
    again = [Message("tool", (ToolResultPart("z", (TextPart("z"),)),))]
    messages = [text("user", "q"), calls, *results, text("user", "r"), *again]
    found = [m["content"] for m in message_dicts(messages, "") if m["role"] == "tool"]
    assert found == ["a", "b", "c", "unasked", "z"]


def test_a_strict_template_gets_turns_that_alternate() -> None:
    """Red if an agent's later system message, or two messages of a user, break a model of the strict kind."""
    strict = (
        "{% for m in messages %}{% if m.role == 'system' and not loop.first or not loop.first and "
        "m.role == messages[loop.index0 - 1].role %}{{ raise_exception('no ' + m.role) }}{% endif %}"
        "[{{ m.role }}]{{ m.content }}{% endfor %}"
    )
    lax = "{% for m in messages %}[{{ m.role }}]{{ m.content }}{% endfor %}"
    messages = [text("system", "s"), text("user", "a"), text("system", "t"), text("user", "b")]
    assert ChatTemplate(strict).render(messages) == "[system]s[user]a\n\nt\n\nb"
    assert ChatTemplate(lax).render(messages) == "[system]s[user]a[system]t[user]b"
    with pytest.raises(InvalidRequest, match="no assistant"):
        ChatTemplate(strict).render([text("assistant", "a"), text("assistant", "b")])


@pytest.mark.parametrize(
    "parts,expected",
    [
        (("x-anthropic-billing-header: cc_version=2; cch=1;", "You"), ("You",)),
        (("x-anthropic-billing-header: cch=1;\nYou are",), ("You are",)),
        (("You", "x-anthropic-billing-header: cch=1;"), ("You", "x-anthropic-billing-header: cch=1;")),
        (("x-anthropic-billing-header: cch=1;",), None),
    ],
)
def test_a_billing_header_is_no_part_of_the_prompt(
    parts: tuple[str, ...], expected: tuple[str, ...] | None
) -> None:
    """Red if a nonce at the head of a system prompt stays in, or anything else goes with it."""
    system, user = Message("system", tuple(map(TextPart, parts))), text("user", parts[0])
    found = list(without_nonces([system, user]))
    kept = [] if expected is None else [Message("system", tuple(map(TextPart, expected)))]
    assert found == [*kept, user]


def test_developer_is_system_unless_the_template_knows_it() -> None:
    """Red if the OpenAI SDK's newer role is refused by templates older than it."""
    assert ChatTemplate("{{ messages[0].role }}").render([text("developer", "x")]) == "system"
    knows = "{{ messages[0].role }}{# developer #}"
    assert ChatTemplate(knows).render([text("developer", "x")]) == "developer"


def test_templates_own_errors_and_others_are_the_requests_fault() -> None:
    """Red if a template's message is lost or comes as an internal error."""
    with pytest.raises(InvalidRequest, match="roles must alternate"):
        ChatTemplate(MISTRAL_STYLE, **TOKENS).render([text("assistant", "x")])
    with pytest.raises(InvalidRequest, match="TypeError"):
        ChatTemplate("{{ messages[0].content + 1 }}").render([text("user", "x")])
    with pytest.raises(InvalidRequest, match="line 2"):
        ChatTemplate("a\n{% if %}")
    with pytest.raises(InvalidRequest, match="no images"):
        ChatTemplate(CHATML).render([Message("user", (ImagePart(url="x"),))])
    with pytest.raises(InvalidRequest, match="at least one"):
        ChatTemplate(CHATML).render([])
    with pytest.raises(InvalidRequest, match=r"template_args\._x"):
        ChatTemplate(CHATML).render([text("user", "x")], _x=1)
    for name in ("messages", "tools", "add_generation_prompt"):
        with pytest.raises(InvalidRequest, match=rf"template_args\.{name}"):
            ChatTemplate(CHATML).render([text("user", "x")], **{name: 1})


def test_models_without_template(llama_like: Tokenizer, byte_like: Tokenizer) -> None:
    """Red if a model without a template is served with a guessed one."""
    assert byte_like.chat_template is None
    prompt = ChatTemplate.for_tokenizer(byte_like, "tiny").render([text("user", "hi")])
    assert prompt == "<|im_start|>user\nhi<|im_end|>\n<|im_start|>assistant\n"
    with pytest.raises(InvalidRequest, match="tiny-base has no chat template"):
        ChatTemplate.for_tokenizer(llama_like, "tiny-base")


DOUBLING = "{%% set ns = namespace(v=%s) %%}{%% for i in range(60) %%}{%% set ns.v = %s %%}{%% endfor %%}%s"


@pytest.mark.parametrize(
    "source",
    [
        "{% for i in range(90000) %}{% for j in range(90000) %}{% endfor %}{% endfor %}",
        "{% for i in range(10**12) %}{% endfor %}",
        "{% macro f() %}{{ f() }}{% endmacro %}{{ f() }}",
        "{% macro f(n) %}{% if n %}{{ f(n - 1) }}{{ f(n - 1) }}{% endif %}{% endmacro %}{{ f(60) }}",
        "{% for i in range(90000) %}{{ 'x' * 1000 }}{% endfor %}",
        "{{ 'x' * 10**12 }}",
        "{{ [1] * 10**12 }}",
        "{{ 10 ** (10 ** 10) }}",
        "{{ 'x'.ljust(10**12) }}",
        "{{ 'x' | center(10**12) }}",
        "{{ '%1000000000000d' | format(1) }}",
        "{{ '%1000000000000d' % 1 }}",
        "{{ '{:>1000000000000}'.format(1) }}",
        "{{ '{:>{}}'.format(1, 10**12) }}",
        "{{ ('x' * 1000000) | replace('x', 'y' * 1000000) }}",
        "{{ ('x' * 1000000).replace('x', 'y' * 1000000) }}",
        "{{ ('x\n' * 1000000) | indent(100000) }}",
        "{% for i in range(90000) %}{% set x = (messages * 1000) | tojson %}{% endfor %}",
        DOUBLING % ("'x'", "ns.v ~ ns.v", ""),
        DOUBLING % ("'x'", "ns.v + ns.v", ""),
        DOUBLING % ("[1]", "ns.v + ns.v", ""),
        DOUBLING % ("3", "ns.v * ns.v", ""),
        DOUBLING % ("[1]", "[ns.v, ns.v]", "{{ ns.v }}"),
        DOUBLING % ("[1]", "[ns.v, ns.v]", "{{ ns.v | tojson }}"),
        DOUBLING % ("[1]", "[ns.v, ns.v]", "{{ 'a' ~ ns.v }}"),
    ],
)
def test_templates_that_never_end_or_explode(source: str) -> None:
    """Red if a model's template can hang the server or take its memory."""
    with pytest.raises(InvalidRequest):
        ChatTemplate(source).render([text("user", "x")])


@pytest.mark.parametrize(
    "source",
    [
        "{{ messages.append(1) }}",
        "{{ messages[0].update({'a': 1}) }}",
        "{{ ''.__class__.__mro__ }}",
        "{{ raise_exception.__globals__['os'] }}",
        "{{ (messages | attr('__class__')).__name__ }}",
    ],
)
def test_the_sandbox_holds(source: str) -> None:
    """Red if a template reaches Python's internals or changes what it was given."""
    with contextlib.suppress(InvalidRequest):
        assert ChatTemplate(source).render([text("user", "x")]) == ""


def test_long_conversations_stay_within_the_limits() -> None:
    """Red if a limit is set so low that a conversation which fits a context is refused."""
    turns = [text("user" if i % 2 == 0 else "assistant", "word " * 100) for i in range(4001)]
    for source in (QWEN_STYLE, LLAMA3_STYLE, MISTRAL_STYLE, GEMMA_STYLE, CHATML):
        assert len(ChatTemplate(source, **TOKENS).render(turns, TOOLS * 20)) > 2_000_000
    assert len(ChatTemplate(QWEN_STYLE).render([text("user", "x" * 3_900_000)])) > 3_900_000


def test_loops_keep_jinjas_meaning() -> None:
    """Red if counting loop passes changes loop variables, dict order, recursion, filters or `else`."""
    source = (
        "{% for x in [3, 1, 2] | sort %}{{ loop.index }}/{{ loop.length }}:{{ x }}"
        "{{ ',' if not loop.last }}{{ loop.nextitem }}{% endfor %}"
        "{% for k, v in {'b': 1, 'a': 2}.items() %}{{ k }}{{ v }}{% endfor %}"
        "{% for x in (1, 2, 3) | select('odd') %}{{ x }}{{ loop.length }}{% endfor %}"
        "{% for x in [1, [2, [3]]] recursive %}{% if x is iterable %}({{ loop(x) }}){% else %}{{ x }}{% endif %}{% endfor %}"
        "{% for x in range(9) if x % 2 %}{{ x }}{% if x == 5 %}{% break %}{% endif %}{% endfor %}"
        "{% for x in nothing %}never{% else %}empty{% endfor %}"
        "{{ 'a' ~ 1 ~ none ~ nothing ~ [1, 'é'] }}"
    )
    assert ChatTemplate(source).render([text("user", "x")]) == reference(
        source, [{"role": "user", "content": "x"}]
    )
