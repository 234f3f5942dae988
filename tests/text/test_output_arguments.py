"""Values cast by schema, and JSON mended where there is one way to do it."""

from __future__ import annotations

import json
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from penstock.text.output.arguments import cast, normalize, repair_json
from penstock.text.output.copy_value import MAX_DEPTH, PYTHON

ROOT = {"$defs": {"Count": {"type": "integer"}, "Loop": {"$ref": "#/$defs/Loop"}}}

CASTS: list[tuple[str, Any, Any]] = [
    ("42", {"type": "string"}, "42"),
    (" two\n", {"type": "string"}, " two\n"),
    ("null", {"type": "string"}, "null"),
    ("42", {"type": "integer"}, 42),
    (" 42\n", {"type": "integer"}, 42),
    ("018956", {"type": "integer"}, 18956),
    ("3.0", {"type": "integer"}, 3),
    ("3.5", {"type": "integer"}, "3.5"),
    ("3.5", {"type": "number"}, 3.5),
    ("1e3", {"type": "number"}, 1000.0),
    ("NaN", {"type": "number"}, "NaN"),
    ("True", {"type": "boolean"}, True),
    ("false", {"type": "boolean"}, False),
    ("yes", {"type": "boolean"}, "yes"),
    ("null", {"type": "null"}, None),
    ('{"a": {"b": [1, "2"]}}', {"type": "object"}, {"a": {"b": [1, "2"]}}),
    ("{'a': True,}", {"type": "object"}, {"a": True}),
    ("[1, 2]", {"type": "array"}, [1, 2]),
    ("[1, 2]", {"type": "object"}, "[1, 2]"),
    ("null", {"type": ["string", "null"]}, None),
    ("x", {"type": ["string", "null"]}, "x"),
    ("7", {"anyOf": [{"type": "integer"}, {"type": "null"}]}, 7),
    ("None", {"anyOf": [{"type": "integer"}, {"type": "null"}]}, None),
    ('{"k": 1}', {"oneOf": [{"type": "object"}, {"type": "string"}]}, {"k": 1}),
    ("word", {"oneOf": [{"type": "object"}, {"type": "string"}]}, "word"),
    ("7", {"allOf": [{"$ref": "#/$defs/Count"}]}, 7),
    ("7", {"$ref": "#/$defs/Count"}, 7),
    ("7", {"$ref": "#/$defs/Loop"}, 7),
    ("7", {"$ref": "#/nowhere"}, 7),
    ("3", {"enum": ["3", "4"]}, "3"),
    ("3", {"enum": [3, 4]}, 3),
    ("on", {"const": "on"}, "on"),
    ("5", {"type": "integer", "nullable": True}, 5),
    ("null", {"type": "integer", "nullable": True}, None),
    ("42", None, 42),
    ("[1]", None, [1]),
    ("plain words", None, "plain words"),
    ("'quoted'", None, "'quoted'"),
    ("", None, ""),
    ("x", True, "x"),
]


@pytest.mark.parametrize(("text", "schema", "expected"), CASTS)
def test_cast(text: str, schema: Any, expected: Any) -> None:
    """Red if a string turns into a number because it looks like one, or a typed value stays text."""
    value = json.loads(cast(text, schema, ROOT)[0])
    assert value == expected and type(value) is type(expected)


def test_a_value_said_to_be_a_string_stays_one_where_it_may() -> None:
    """Red if the model's own hint is not believed."""
    assert cast("42", None, is_string=True) == ('"42"', [])
    assert cast("42", {"type": ["integer", "string"]}, is_string=True) == ('"42"', [])
    assert cast("42", {"type": "integer"}, is_string=True) == ("42", [])


def test_digits_are_kept() -> None:
    """Red if a number passes through a float or through Python's limit of digits."""
    long = "9" * 5000
    assert cast(long, {"type": "integer"})[0] == long
    assert cast("0.10000000000000000000001", {"type": "number"})[0] == "0.10000000000000000000001"
    assert normalize('{"a": 1.50}') == ('{"a": 1.50}', [])


REPAIRS = [
    ('{"a": 1, "b": [1, 2,],}', {"a": 1, "b": [1, 2]}, ["trailing comma"]),
    ("{'a': 'it\\'s \"x\"'}", {"a": 'it\'s "x"'}, ["single quotes"]),
    ('{"a": [{"b": 1}', {"a": [{"b": 1}]}, ["missing closing bracket"]),
    ('{"a": True, "b": None}', {"a": True, "b": None}, ["Python literal"]),
    ('{"a": "x\ny\tz"}', {"a": "x\ny\tz"}, ["unescaped control character"]),
    ('{"a": "\\d+ \\u00zz"}', {"a": "\\d+ \\u00zz"}, ["unescaped backslash"]),
    ('{"a": "it\\\'s"}', {"a": "it's"}, ["escaped apostrophe"]),
    ('```json\n{"a": 1}\n```', {"a": 1}, ["code fence"]),
    ('```\n{"a": 1,}\n```', {"a": 1}, ["code fence", "trailing comma"]),
    ('{"a": "\\u00e9\\n"}', {"a": "é\n"}, []),
]


@pytest.mark.parametrize(("text", "value", "repairs"), REPAIRS)
def test_repairs_are_named(text: str, value: Any, repairs: list[str]) -> None:
    """Red if a mend is not made, or made without saying so."""
    found = repair_json(text)
    assert found is not None
    assert (json.loads(found[0]), found[1]) == (value, repairs)


@pytest.mark.parametrize(
    "text",
    ['{"a": "x', '{"a": 1', '{"a": tru', '{"a":', '{"a"', "{", '{"a": 1 "b": 2}', '{"a": [1}', "{a: 1}",
     '{"a": NaN}',
     '{"a": 01}', '{"a": 1} x', "", '{,}', '["a" "b"]', "[" * (MAX_DEPTH + 1)],
)  # fmt: skip
def test_what_has_several_meanings_is_not_mended(text: str) -> None:
    """Red if a value that was cut, or is not JSON, is guessed."""
    assert repair_json(text) is None


PYTHONS = [
    ("{'a': (1, 2), \"b\": [None, True, False]}", {"a": [1, 2], "b": [None, True, False]}),
    (r"'\x41\u00e9\U0001f600\'\"\n\d\/'", "Aé😀'\"\n\\d\\/"),
    ("'''two\nlines \"x\" 'y' '''", "two\nlines \"x\" 'y' "),
    ('""', ""),
    ("'a\\\nb'", "ab"),
    ("[1_000, +5, .5, 5., 007, -1e3]", [1000, 5, 0.5, 5.0, 7, -1000.0]),
    ("{1: 'x'}", {"1": "x"}),
    ("{}", {}),
    ("()", []),
]


@pytest.mark.parametrize(("text", "value"), PYTHONS)
def test_python_literals(text: str, value: Any) -> None:
    """Red if a Python literal changes its value on the way to JSON."""
    found = normalize(text, PYTHON)
    assert found is not None and found[1] == []
    assert json.loads(found[0]) == value


VALUES = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats(allow_nan=False, allow_infinity=False) | st.text(),
    lambda inner: st.lists(inner, max_size=4) | st.dictionaries(st.text(), inner, max_size=4),
    max_leaves=20,
)


@given(value=VALUES, indent=st.sampled_from([None, 0, 2]), ascii_only=st.booleans())
def test_json_passes_unchanged(value: Any, indent: int | None, ascii_only: bool) -> None:
    """Red if valid JSON is changed by as much as a space."""
    text = json.dumps(value, indent=indent, ensure_ascii=ascii_only)
    assert normalize(text) == (text, [])


@given(value=VALUES)
def test_python_repr_keeps_its_value(value: Any) -> None:
    """Red if Python's own way of writing a value is misread."""
    found = normalize(repr(value), PYTHON)
    assert found is not None
    assert json.loads(found[0]) == value
