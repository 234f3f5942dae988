"""Calls written from every family's declared syntax: hard values, text around them, cut anywhere."""

from __future__ import annotations

import json
from collections.abc import Sequence
from typing import Any

import pytest
from test_output_families import parse, readable, splits

from penstock.text.output.choose import FORMATS
from penstock.text.output.events import Reasoning, Text
from penstock.text.output.format import CallSyntax, OutputFormat

ROME = ("get_weather", {"city": "Rome"})


def literal(value: Any, syntax: CallSyntax) -> str:
    """A value inside of the arguments in the style of `syntax`."""
    if syntax.arguments == "pythonic":
        return repr(value)
    if syntax.arguments == "xml_parameters":
        return value if isinstance(value, str) else json.dumps(value, ensure_ascii=False)
    if isinstance(value, str):
        return syntax.string_quote + value + syntax.string_quote
    if isinstance(value, dict):
        return "{" + ",".join(f"{key}:{literal(one, syntax)}" for key, one in value.items()) + "}"
    if isinstance(value, list):
        return "[" + ",".join(literal(one, syntax) for one in value) + "]"
    return json.dumps(value)


def element(name: str, value: Any, prefix: str) -> str:
    """A member in the style of elements."""
    if isinstance(value, dict) and value:
        inner = "".join(element(key, one, prefix) for key, one in value.items())
    elif isinstance(value, list) and value:
        inner = "".join(element("item", one, prefix) for one in value)
    else:
        inner = value if isinstance(value, str) else json.dumps(value)
    return f"{prefix}<{name}>{inner}{prefix}</{name}>"


def written(syntax: CallSyntax, calls: Sequence[tuple[str, dict[str, Any]]]) -> str:
    """Calls as a model that follows `syntax` writes them."""
    found = []
    for name, arguments in calls:
        if syntax.parameter is None:
            body = json.dumps(arguments, ensure_ascii=False)
        elif syntax.arguments == "elements":
            body = "".join(element(key, value, syntax.parameter[0]) for key, value in arguments.items())
        else:
            before, between, after = syntax.parameter
            hints = [syntax.string_hint[not isinstance(value, str)] for value in arguments.values()]
            members = [
                before + key + between.replace("{hint}", hint) + literal(value, syntax) + after
                for (key, value), hint in zip(arguments.items(), hints, strict=True)
            ]
            body = syntax.between_parameters.join(members)
        found.append(syntax.call_begin[0] + name + syntax.call_begin[1] + body + syntax.call_end)
    return syntax.begin + syntax.separator.join(found) + syntax.end


HARD = {
    "city": 'Zürich 🏔 "quoted" it\'s {a: [b]} } ] , : \\ \n\ttab',
    "days": -12,
    "metric": False,
    "ratio": 2.5e-3,
    "where": {"zip": "00100", "deep": {"list": [1, [2, {"x": None}]], "empty": {}}},
    "tags": ["a]", "}b", ""],
    "limit": None,
}
SYNTAXES = [form for form in FORMATS.values() if form.syntax is not None]


@pytest.mark.parametrize("form", SYNTAXES, ids=lambda form: form.name)
def test_calls_written_from_the_syntax_are_read_back(form: OutputFormat) -> None:
    """Red if declared syntax and parser disagree, or quotes, brackets or lines in strings are misread."""
    assert form.syntax is not None
    calls = [("get_weather", HARD), ("get_time", {}), ("get_time", {"zone": "12"})]
    text = written(form.syntax, calls)
    whole = parse(form, [text])
    assert readable(whole) == calls
    for pieces in splits(text):
        assert parse(form, pieces) == whole, pieces


@pytest.mark.parametrize("form", SYNTAXES, ids=lambda form: form.name)
def test_text_around_calls(form: OutputFormat) -> None:
    """Red if text before, between or behind calls is lost, or white space around calls becomes text."""
    assert form.syntax is not None
    call = written(form.syntax, [("get_weather", {"city": "Rome"})])
    lines = form.name in ("llama3", "pythonic", "xlam", "functionary_v32", "gpt_oss")
    text = f"One {{x}} < [1].\n{call}" + ("" if lines else f"\nTwo.\n\n{call}\nThree.")
    whole = parse(form, [text])
    behind = [] if lines else ["T:\nTwo.", ROME, "T:\nThree."]
    assert readable(whole) == ["T:One {x} < [1].", ROME, *behind]
    for pieces in splits(text):
        assert parse(form, pieces) == whole, pieces


@pytest.mark.parametrize("form", FORMATS.values(), ids=lambda form: form.name)
def test_without_tools_everything_is_text(form: OutputFormat) -> None:
    """Red if a call is read although the request has no tools, or reasoning is not."""
    call = written(form.syntax, [("get_weather", {"city": "Rome"})]) if form.syntax else "{}"
    think = form.reasoning
    text = f"{think.begin}Hm{think.end}{call}" if think and form.name != "gpt_oss" else call
    events = parse(form, [text], tools=())
    assert not [event for event in events if not isinstance(event, Text | Reasoning)]
    said = "".join(event.text for event in events if isinstance(event, Text))
    if form.name == "gpt_oss":
        assert said == '{"city": "Rome"}'
    else:
        assert said == call if not form.frames else call.startswith(said[:5])
        assert [event for event in events if isinstance(event, Reasoning)] == (
            [Reasoning("Hm")] if think else []
        )


def is_part(found: Any, given: Any) -> bool:
    """Whether `found` has only whole values of `given`, in their place."""
    if isinstance(found, dict):
        return isinstance(given, dict) and all(
            key in given and is_part(found[key], given[key]) for key in found
        )
    if isinstance(found, list):
        return isinstance(given, list) and all(map(is_part, found, given)) and len(found) <= len(given)
    return type(found) is type(given) and found == given


@pytest.mark.parametrize("form", SYNTAXES, ids=lambda form: form.name)
def test_output_cut_anywhere(form: OutputFormat) -> None:
    """Red if a cut call raises, ends with a value that was not finished, or loses its text."""
    assert form.syntax is not None
    calls = [("get_weather", HARD), ("get_time", {"zone": "CET"})]
    text = written(form.syntax, calls)
    for end in range(len(text)):
        cut = text[:end]
        whole = parse(form, [cut])
        read = readable(whole)
        for found in read:
            if isinstance(found, tuple) and found[0] != "malformed":
                assert is_part(found[1], dict(calls)[found[0]]) and (
                    found[1] == dict(calls)[found[0]] or found[2:]
                )
        for index, found in enumerate(read):
            if found[0] == "malformed":
                assert str(read[index + 1]).startswith("T:") and found[1].strip() in read[index + 1]
        assert parse(form, list(cut)) == whole
