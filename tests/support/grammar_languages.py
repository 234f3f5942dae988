"""Expressions, grammars and schemas that hypothesis makes, and readings of them without a backend."""

from __future__ import annotations

import itertools
import json
from typing import Any

import jsonschema_rs
from hypothesis import strategies as st

LETTERS = "ab"
MOST = 5  # letters of the texts that are tried
TEXTS = ["".join(text) for length in range(MOST + 1) for text in itertools.product(LETTERS, repeat=length)]

# ------------------------------------------------------------------------------ regular expressions

_ATOMS = st.sampled_from(["a", "b", "[ab]", "[^a]", ".", "é", r"\d", "(?:)", "ab"])
_QUANTIFIERS = st.sampled_from(["*", "+", "?", "{2}", "{0,2}", "{2,}"])


def _larger_expressions(inner: st.SearchStrategy[str]) -> st.SearchStrategy[str]:
    parts = st.lists(inner, min_size=2, max_size=3)
    return st.one_of(
        parts.map("".join),
        parts.map(lambda options: f"({'|'.join(options)})"),
        st.tuples(inner, _QUANTIFIERS).map(lambda pair: f"({pair[0]}){pair[1]}"),
    )


EXPRESSIONS = st.recursive(_ATOMS, _larger_expressions, max_leaves=8)
EXPRESSION_TEXTS = [*TEXTS[:31], "é", "aé", "éb", "1", "a1", "12", "\n", "a\nb", "abab1"]

# ------------------------------------------------------------------------------ context-free grammars

RULES = ("root", "x", "y")
Body = tuple[
    Any, ...
]  # ("text", t) | ("rule", name) | ("all", parts) | ("any", options) | (quantifier, part)
Grammar = dict[str, Body]


def _larger_bodies(inner: st.SearchStrategy[Body]) -> st.SearchStrategy[Body]:
    parts = st.lists(inner, min_size=2, max_size=3)
    return st.one_of(
        st.tuples(st.sampled_from(["all", "any"]), parts),
        st.tuples(st.sampled_from("*+?"), inner),
    )


_PARTS = st.one_of(
    st.tuples(st.just("text"), st.sampled_from(["a", "b", "ab", ""])),
    st.tuples(st.just("rule"), st.sampled_from(RULES)),
)
GRAMMARS: st.SearchStrategy[Grammar] = st.fixed_dictionaries(
    {name: st.recursive(_PARTS, _larger_bodies, max_leaves=5) for name in RULES}
)


def written(grammar: Grammar, notation: str) -> str:
    """As GBNF or in Lark's notation."""
    names = {name: "start" if name == "root" and notation == "lark" else name for name in RULES}
    sign = ":" if notation == "lark" else " ::="
    return "\n".join(f"{names[name]}{sign} {_shown(grammar[name], names)}" for name in RULES)


def _shown(body: Body, names: dict[str, str]) -> str:
    match body:
        case ("text", text):
            return f'"{text}"'
        case ("rule", name):
            return names[name]
        case ("all" | "any" as kind, parts):
            sign = " " if kind == "all" else " | "
            return f"({sign.join(_shown(part, names) for part in parts)})"
    return f"({_shown(body[1], names)}){body[0]}"


def language(grammar: Grammar) -> set[str]:
    """Its texts of at most MOST letters: what the rules say of each other, until nothing is new."""
    known: dict[str, set[str]] = {name: set() for name in RULES}
    while (found := {name: _texts(grammar[name], known) for name in RULES}) != known:
        known = found
    return known["root"]


def _texts(body: Body, known: dict[str, set[str]]) -> set[str]:
    match body:
        case ("text", text):
            return {text}
        case ("rule", name):
            return known[name]
        case ("any", options):
            return set().union(*(_texts(option, known) for option in options))
        case ("all", parts):
            found = {""}
            for part in parts:
                found = _joined(found, _texts(part, known))
            return found
    one = _texts(body[1], known)
    if body[0] == "?":
        return one | {""}
    found = {""} if body[0] == "*" else one
    while (more := found | _joined(found, one)) != found:
        found = more
    return found


def _joined(first: set[str], second: set[str]) -> set[str]:
    return {one + other for one in first for other in second if len(one + other) <= MOST}


# ------------------------------------------------------------------------------ JSON schemas

_NAMES = ["a", "ab", "name"]
_SCALARS: st.SearchStrategy[Any] = st.one_of(
    st.none(), st.booleans(), st.integers(-3, 13), st.sampled_from(["", "a", "ab", 'a"b', "é\n", "name"])
)
VALUES: st.SearchStrategy[Any] = st.recursive(
    _SCALARS,
    lambda inner: st.one_of(
        st.lists(inner, max_size=3),
        st.dictionaries(st.sampled_from([*_NAMES, "b"]), inner, max_size=3),
    ),
    max_leaves=5,
)
_COUNTS = st.integers(0, 3)
_LIMITS = st.integers(-2, 12)
_PLAIN: st.SearchStrategy[Any] = st.one_of(
    st.just({"type": "boolean"}),
    st.just({"type": ["null", "integer"]}),
    st.fixed_dictionaries(
        {"type": st.sampled_from(["integer", "number"])}, optional={"minimum": _LIMITS, "maximum": _LIMITS}
    ),
    st.fixed_dictionaries(
        {"type": st.just("string")},
        optional={
            "minLength": _COUNTS,
            "maxLength": _COUNTS,
            "pattern": st.sampled_from(["^a", "b$", "^[ab]*$", "m"]),
        },
    ),
    st.fixed_dictionaries({"enum": st.lists(_SCALARS, min_size=1, max_size=4)}),
    st.fixed_dictionaries({"const": VALUES}),
)


def _larger_schemas(inner: st.SearchStrategy[Any]) -> st.SearchStrategy[Any]:
    return st.one_of(
        st.fixed_dictionaries(
            {"type": st.just("array"), "items": inner}, optional={"minItems": _COUNTS, "maxItems": _COUNTS}
        ),
        st.fixed_dictionaries(
            {"type": st.just("object"), "properties": st.dictionaries(st.sampled_from(_NAMES), inner)},
            optional={
                "required": st.lists(st.sampled_from(_NAMES), unique=True, max_size=2),
                "additionalProperties": st.one_of(st.just(False), inner),
            },
        ),
        st.fixed_dictionaries({"anyOf": st.lists(inner, min_size=1, max_size=3)}),
    )


SCHEMAS = st.recursive(_PLAIN, _larger_schemas, max_leaves=5)


def instances(schema: Any) -> st.SearchStrategy[Any]:
    """Values that are often valid under `schema`, and often nearly."""
    kinds: list[st.SearchStrategy[Any]] = [VALUES]
    if "enum" in schema:
        kinds.append(st.sampled_from(schema["enum"]))
    if "const" in schema:
        kinds.append(st.just(schema["const"]))
    if "anyOf" in schema:
        kinds += map(instances, schema["anyOf"])
    if "items" in schema:
        kinds.append(st.lists(instances(schema["items"]), max_size=4))
    if "properties" in schema:
        members = {name: instances(inner) for name, inner in schema["properties"].items()}
        others = st.dictionaries(st.sampled_from([*_NAMES, "b"]), VALUES, max_size=1)
        known = st.fixed_dictionaries({}, optional=members)
        kinds += [
            st.fixed_dictionaries(members),
            known,
            st.tuples(known, others).map(lambda two: {**two[0], **two[1]}),
        ]
    kinds += {
        "integer": [st.integers(-3, 13)],
        "number": [st.integers(-30, 130).map(lambda tenths: tenths / 10)],
        "string": [st.text('abm\u00e9\n"\\', max_size=4)],
    }.get(schema.get("type") if isinstance(schema.get("type"), str) else "", [])
    return st.one_of(kinds)


def as_answer(schema: Any, value: Any) -> str:
    """A value that is valid, or nearly, as an answer spells it: its members in the schema's order."""
    return json.dumps(_ordered(schema, value), ensure_ascii=False)


def _ordered(schema: Any, value: Any) -> Any:
    if "anyOf" in schema:
        fitting = [option for option in schema["anyOf"] if jsonschema_rs.is_valid(option, value)]
        return _ordered(fitting[0], value) if fitting else value
    if isinstance(value, list):
        return [_ordered(schema.get("items", {}), item) for item in value]
    if not isinstance(value, dict):
        return value
    if "const" in schema:
        return schema["const"] if schema["const"] == value else value
    members = schema.get("properties", {})
    others = schema.get("additionalProperties") or {}
    names = [*(name for name in members if name in value), *(name for name in value if name not in members)]
    return {name: _ordered(members.get(name, others), value[name]) for name in names}
