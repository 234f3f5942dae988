# ruff: noqa: E501  (templates)
"""Prompts made from the turn before against prompts made anew: the same text, the same tokens."""

from __future__ import annotations

from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from test_chat_template import STYLES, TOKENS

from penstock.call import Message, ReasoningPart, TextPart, ToolCallPart, ToolResultPart, ToolSpec
from penstock.text.boundaries import BoundaryEncoder, common_length
from penstock.text.nonces import without_nonces
from penstock.text.template import ChatTemplate
from penstock.text.tokenizer import Tokenizer
from penstock.text.tool_prompt import knows_tools, with_tool_prompt
from penstock.text.transcript import Transcriber, Transcript

# Loops that look ahead and behind, in namespaces, with the clock; and ways to use messages that can't be followed.
AWKWARD = {
    "looks ahead": (
        "{% for m in messages %}{% if loop.nextitem is defined and loop.nextitem.role == m.role %}+{% endif %}"
        "<|im_start|>{{ m.role }} {{ loop.previtem.role if not loop.first else '' }}{{ m.content }}{% endfor %}"
    ),
    "counts": (
        "{% set ns = namespace(n=0, last='') %}{% for m in messages[1:] %}{% set ns.n = ns.n + m.content|length %}"
        "<|im_end|>{{ loop.index }}/{{ ns.n }}{{ ns.last }}{{ loop.cycle('a', 'b') }}{{ m.content }}"
        "{% set ns.last = m.role %}{% endfor %}{{ ns.n }}"
    ),
    "knows the length": "{% for m in messages %}<|im_start|>{{ loop.revindex }}{{ m.content }}{% endfor %}",
    "asks the end": (
        "{% if messages[-1].role == 'user' %}!{% endif %}{% for m in messages %}<|im_end|>{{ m.content }}{% endfor %}"
    ),
    "two loops": (
        "{% for m in messages %}<|im_start|>{{ m.role }}{% endfor %}"
        "{% for m in messages %}<|im_end|>{{ m.content }}{% endfor %}"
    ),
    "filtered": (
        "{% for m in messages if m.role == 'user' %}<|im_start|>{{ loop.index0 }}{{ m.content }}{% endfor %}"
        "{% for m in messages|batch(2) %}<|im_start|>{{ m|length }}{% endfor %}"
    ),
    "keeps an iterator": (
        "{% set odd = messages|map(attribute='role') %}"
        "{% for m in messages %}<|im_start|>{{ odd|first }}{{ m.content }}{% endfor %}"
    ),
    "macro": (
        "{% macro all(items) %}{% for m in items %}<|im_start|>{{ m.content }}{% endfor %}{% endmacro %}"
        "{{ all(messages) }}{% set text %}{% for m in messages %}{{ m.role }}{% endfor %}{% endset %}{{ text }}"
    ),
    "changes": "{% for m in messages %}{% if loop.changed(m.role) %}<|im_start|>{% endif %}{{ m.content }}{% endfor %}",
    "writes them out": "{{ messages | tojson }}{% for m in messages %}<|im_end|>{{ m.content }}{% endfor %}",
    "breaks off": (
        "{% for m in messages %}{% if m.content == 'stop' %}{% break %}{% endif %}<|im_start|>{{ m.content }}{% endfor %}"
    ),
    "dates": (
        "{% for m in messages %}<|im_start|>{{ strftime_now('%Y') }}{{ m.content }}{% else %}none{% endfor %}"
        "{{ 'x' if add_generation_prompt }}"
    ),
}
TEMPLATES = STYLES | AWKWARD
GOES_ON = [
    "chatml",
    "llama3",
    "mistral",
    "gemma",
    "none",
    "looks ahead",
    "counts",
]  # the others are rendered whole

PIECES = ["a", " ", "\n", "é", "😀", "<|im_start|>", "<|im_end|>", "<|im", "|>", "<|im_end|", "stop", "日本"]
CONTENT = st.lists(st.sampled_from(PIECES), max_size=5).map("".join)
NAMES = st.sampled_from(["a", "b", "c"])
ARGUMENTS = st.sampled_from(["{}", '{"x": "<|im_end|>"}', "{bad"])
TOOLS = (ToolSpec("weather", "Look it <|im_end|> up", {"type": "object", "properties": {}}),)


def text(role: Any, content: str) -> Message:
    return Message(role, (TextPart(content),))


@st.composite
def turns(draw) -> list[Message]:
    """What one turn adds: a question, or results of calls in any order, with the answer to it."""
    kind = draw(st.sampled_from(["question", "results", "answer", "system"]))
    if kind == "system":
        return [text("system", draw(CONTENT))]
    if kind == "results":
        ids = draw(st.lists(NAMES, min_size=1, max_size=3))
        return [Message("tool", (ToolResultPart(name, (TextPart(draw(CONTENT)),)),)) for name in ids]
    if kind == "answer":
        calls = tuple(
            ToolCallPart(name, "weather", draw(ARGUMENTS)) for name in draw(st.lists(NAMES, max_size=3))
        )
        thoughts = (ReasoningPart(draw(CONTENT)),) if draw(st.booleans()) else ()
        return [Message("assistant", (*thoughts, TextPart(draw(CONTENT)), *calls))]
    return [text("user", draw(CONTENT))]


def whole(
    template: ChatTemplate, tokenizer: Tokenizer, messages: list[Message], tools: tuple[ToolSpec, ...]
) -> tuple[str, list[int]]:
    plain = without_nonces(messages)
    if tools and not knows_tools(template.tool_source):
        plain, tools = with_tool_prompt(plain, tools), ()
    rendered = template.render(plain, tools)
    return rendered, tokenizer.encode(rendered)


@pytest.fixture(scope="module")
def tokenizers(tmp_path_factory: pytest.TempPathFactory) -> list[Tokenizer]:
    """Byte-level with ChatML's tokens; the same with overlapping ones and some that take white space; and one
    that puts a mark before every text, as SentencePiece does."""
    from tokenizers import AddedToken, normalizers, pre_tokenizers
    from tokenizers import Tokenizer as Backend

    from support.tiny_models import write_tokenizer

    made = []
    for kind in ("plain", "overlapping", "marked"):
        folder = tmp_path_factory.mktemp(kind)
        write_tokenizer(folder)
        backend = Backend.from_file(str(folder / "tokenizer.json"))
        if kind == "overlapping":
            backend.add_special_tokens(
                [
                    AddedToken("<|im_end|>\n<|im", special=True, normalized=False),
                    AddedToken("|><|im_start|>", special=True, normalized=False),
                    AddedToken("é", special=True, normalized=False, lstrip=True, rstrip=True),
                    AddedToken("stop", special=True, normalized=False, single_word=True),
                ]
            )
        if kind == "marked":
            backend.pre_tokenizer = pre_tokenizers.Sequence(
                [pre_tokenizers.Metaspace(prepend_scheme="first"), backend.pre_tokenizer]
            )
            backend.normalizer = normalizers.Prepend("_")
        (folder / "tokenizer.json").write_text(backend.to_str())
        made.append(Tokenizer.load(folder))
    return made


@settings(deadline=None, max_examples=60)
@pytest.mark.parametrize("style", TEMPLATES)
@given(
    script=st.lists(turns(), min_size=2, max_size=7),
    tools=st.sampled_from([(), TOOLS]),
    kind=st.integers(0, 2),
    header=st.booleans(),
)
def test_each_turns_prompt_is_that_of_the_whole_conversation(
    style: str,
    tokenizers: list[Tokenizer],
    script: list[list[Message]],
    tools: tuple[ToolSpec, ...],
    kind: int,
    header: bool,
) -> None:
    """Red if a prompt made from the turn before differs in any token from one made anew."""
    tokenizer, template = tokenizers[kind], ChatTemplate(TEMPLATES[style], **TOKENS)
    transcriber = Transcriber(tokenizer, template)
    nonce = "x-anthropic-billing-header: cch=1;\n" if header else ""
    messages = [text("system", f"{nonce}Be brief."), text("user", "Hi")]
    before: Transcript | None = None
    for more in ([], *script):
        messages = [*messages, *more]
        try:
            expected = whole(template, tokenizer, messages, tools)
        except Exception as error:  # noqa: BLE001
            with pytest.raises(type(error)):
                transcriber.transcribe(tuple(messages), tools, {}, before)
            continue
        before = transcriber.transcribe(tuple(messages), tools, {}, before)
        assert before.encoded.text == expected[0]
        assert before.encoded.ids.tolist() == expected[1]


@pytest.mark.parametrize("style", TEMPLATES)
def test_what_a_turn_renders_does_not_grow(style: str, tokenizers: list[Tokenizer]) -> None:
    """Red if a template of the usual kind is rendered whole at every turn (or a trace claims what it can't)."""
    transcriber = Transcriber(tokenizers[0], ChatTemplate(TEMPLATES[style], **TOKENS))
    messages: tuple[Message, ...] = (text("user", "q" * 20),)
    before, rendered = None, []
    for _ in range(20):
        before = transcriber.transcribe(messages, (), {}, before)
        rendered.append(before.rendered)
        messages += (text("assistant", "a" * 20), text("user", "q" * 20))
    if style in GOES_ON:
        assert max(rendered[2:]) < 250
    elif style not in ("breaks off", "two loops"):  # of those a part is rendered
        assert rendered[-1] == len(before.encoded.text)


def test_an_edited_past_and_other_arguments_are_made_anew(tokenizers: list[Tokenizer]) -> None:
    """Red if a prompt goes on from one with another past, other tools, or other template arguments."""
    template = ChatTemplate(
        "{{ mood }}{% if tools %}{{ tools[0].function.name }}{% endif %}" + STYLES["chatml"]
    )
    transcriber = Transcriber(tokenizers[0], template)
    first = transcriber.transcribe((text("user", "one"), text("user", "two")), (), {"mood": "a"})
    for messages, tools, args in (
        ((text("user", "ONE"), text("user", "two"), text("user", "three")), (), {"mood": "a"}),
        ((text("user", "one"),), (), {"mood": "a"}),
        ((text("user", "one"), text("user", "two"), text("user", "three")), TOOLS, {"mood": "a"}),
        ((text("user", "one"), text("user", "two"), text("user", "three")), (), {"mood": "b"}),
    ):
        found = transcriber.transcribe(messages, tools, args, first)
        assert found.encoded.text == template.render(messages, tools, **args)


def test_a_new_year_is_written_into_old_prompts_too(
    tokenizers: list[Tokenizer], monkeypatch: pytest.MonkeyPatch
) -> None:
    """Red if a prompt goes on from text whose date is another than a new render's."""
    from penstock.text import template_trace

    source = "{% for m in messages %}<|im_start|>{{ strftime_now('%Y') }}{{ m.content }}{% endfor %}"
    transcriber = Transcriber(tokenizers[0], ChatTemplate(source))
    first = transcriber.transcribe((text("user", "one"),), (), {})
    old = [mark for mark in first.marks if mark.clock]
    assert old and isinstance(old[-1], template_trace.Mark)
    stale = [
        template_trace.Mark(m.index, m.needs, m.length, m.namespaces, dict.fromkeys(m.clock, "1970"))
        for m in first.marks
    ]
    changed = type(first)(
        **{name: getattr(first, name) for name in first.__struct_fields__} | {"marks": tuple(stale)}
    )
    found = transcriber.transcribe((text("user", "one"), text("user", "two")), (), {}, changed)
    assert found.rendered == len(found.encoded.text)


@settings(deadline=None, max_examples=300)
@given(old=CONTENT, new=CONTENT, kind=st.integers(0, 2), head=st.lists(st.sampled_from(PIECES), max_size=8))
def test_tokens_of_a_text_that_begins_like_another(
    tokenizers: list[Tokenizer], old: str, new: str, kind: int, head: list[str]
) -> None:
    """Red if a text is cut where special tokens overlap, take white space, or go on behind the common part."""
    tokenizer = tokenizers[kind]
    encoder = BoundaryEncoder(tokenizer)
    a, b = "".join(head) + old, "".join(head) + new
    before = encoder.encode(a)
    assert before.ids.tolist() == tokenizer.encode(a)
    found = encoder.encode(b, before, common_length(a, b))
    assert found.ids.tolist() == tokenizer.encode(b)
    again = encoder.encode(a, found, common_length(a, b))
    assert again.ids.tolist() == tokenizer.encode(a)


@given(st.text("ab", max_size=30), st.text("ab", max_size=30))
def test_common_length(a: str, b: str) -> None:
    """Red if texts are said to share more, or less, than they do."""
    expected = next((i for i, (x, y) in enumerate(zip(a, b, strict=False)) if x != y), min(len(a), len(b)))
    assert common_length(a, b) == expected
