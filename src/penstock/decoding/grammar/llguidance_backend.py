"""llguidance: exact, compiles in a millisecond, masks of tens of microseconds.

Source: github.com/guidance-ai/llguidance.
"""

from __future__ import annotations

import json
import threading
from collections.abc import Callable, Sequence
from typing import Any

import numpy as np

from penstock.decoding.grammar.backend import GrammarBroken, TokenBytes, Vocabulary, refusal
from penstock.decoding.grammar.spec import WHITESPACE, GrammarSpec
from penstock.errors import InvalidRequest

FORMATS = frozenset(
    [
        "date-time",
        "time",
        "date",
        "duration",
        "email",
        "idn-email",
        "hostname",
        "idn-hostname",
        "ipv4",
        "ipv6",
        "uri",
        "uri-reference",
        "iri",
        "iri-reference",
        "uuid",
        "uri-template",
        "json-pointer",
        "relative-json-pointer",
        "regex",
    ]
)


class _Tokenizer:
    """As llguidance wants it described."""

    def __init__(self, tokens: TokenBytes, size: int) -> None:
        """size: of the model's head. llguidance counts the tokens that it is given, and takes masks of that
        width only: those beyond the vocabulary are empty, so no grammar allows them."""
        self._tokens = tokens
        self.eos_token_id = tokens.eos_ids[0] if tokens.eos_ids else 0
        self.bos_token_id = tokens.bos_id
        self.tokens = [tokens.piece(token) for token in range(tokens.vocab_size)]
        self.tokens += [b""] * (size - tokens.vocab_size)
        self.special_token_ids = sorted(tokens.special_ids)

    def __call__(self, text: str) -> list[int]:
        if not isinstance(text, str):
            raise TypeError("text only")
        return self._tokens.encode_continuation(text)


class LLGuidanceMatcher:
    def __init__(self, matcher: Any) -> None:
        self._matcher = matcher

    def fill(self, mask: np.ndarray) -> None:
        self._matcher.unsafe_compute_mask_ptr(mask.ctypes.data, mask.nbytes)
        if self._matcher.is_error():
            raise GrammarBroken(f"the grammar can't be followed further: {self._matcher.get_error()}")

    def consume(self, token: int) -> bool:
        return self._matcher.try_consume_tokens([token]) == 1

    def rollback(self, tokens: int) -> None:
        if tokens and not self._matcher.rollback(tokens):
            raise GrammarBroken(f"the grammar can't be rolled back: {self._matcher.get_error()}")

    def forced(self) -> list[int]:
        return list(self._matcher.compute_ff_tokens())

    def accepts(self, tokens: Sequence[int]) -> int:
        return int(self._matcher.validate_tokens(list(tokens)))

    @property
    def is_complete(self) -> bool:
        return bool(self._matcher.is_accepting())


class _Compiled:
    backend = "llguidance"

    def __init__(self, prototype: Any) -> None:
        self._prototype = prototype

    def matcher(self) -> LLGuidanceMatcher:
        return LLGuidanceMatcher(self._prototype.deep_copy())


class LLGuidanceBackend:
    name = "llguidance"
    fallbacks = 0

    def __init__(self, vocabulary: Callable[[], Vocabulary]) -> None:
        """`vocabulary` is asked for on first use: it may have to be loaded."""
        self._vocabulary = vocabulary
        self._lock = threading.Lock()
        self._tokenizer: Any = None

    def compile(self, spec: GrammarSpec) -> _Compiled:
        from llguidance import LLMatcher

        tokenizer = self._ready_tokenizer()
        try:
            source = _grammar(spec)
        except ValueError as error:
            raise refusal(spec, str(error)) from None
        failed, messages = LLMatcher.validate_grammar_with_warnings(source, tokenizer)
        if failed:
            raise refusal(spec, messages[0])
        prototype = LLMatcher(tokenizer, source, log_level=0)
        if prototype.is_error():
            raise refusal(spec, prototype.get_error())
        return _Compiled(prototype)

    def _ready_tokenizer(self) -> Any:
        """Made on first use: a hundred thousand tokens take a quarter of a second."""
        from llguidance import LLTokenizer, TokenizerWrapper

        with self._lock:
            if self._tokenizer is None:
                vocabulary = self._vocabulary()
                tokens = vocabulary.tokenizer
                self._tokenizer = LLTokenizer(
                    TokenizerWrapper(_Tokenizer(tokens, vocabulary.size)),
                    n_vocab=vocabulary.size,
                    eos_token=list(tokens.eos_ids) or None,
                )
        return self._tokenizer


def _grammar(spec: GrammarSpec) -> str:
    """The spec in llguidance's own notation."""
    from llguidance import LLMatcher, StructTag
    from llguidance.gbnf_to_lark import gbnf_to_lark

    match spec.kind:
        case "json_schema":
            return LLMatcher.grammar_from_json_schema(
                json.dumps(_without_unknown_formats(json.loads(spec.source))),
                overrides={"whitespace_pattern": WHITESPACE},
            )
        case "json_object":
            return LLMatcher.grammar_from_json_schema(
                {"type": "object"}, overrides={"whitespace_pattern": WHITESPACE}
            )
        case "regex":
            return LLMatcher.grammar_from_regex(spec.source)
        case "choice":
            choices = [json.dumps(choice, ensure_ascii=False) for choice in json.loads(spec.source)]
            return LLMatcher.grammar_from_lark("start: " + "\n     | ".join(choices))
        case "grammar":
            source = gbnf_to_lark(spec.source) if "::=" in spec.source else spec.source
            return LLMatcher.grammar_from_lark(source)
        case "structural_tag":
            return StructTag.to_grammar(_struct_tags(spec.source))


def _without_unknown_formats(schema: Any) -> Any:
    """`schema` without formats that JSON Schema does not define: they say nothing about validity."""
    if isinstance(schema, list):
        return [_without_unknown_formats(item) for item in schema]
    if not isinstance(schema, dict):
        return schema
    return {
        keyword: value
        if keyword in ("enum", "const", "default", "examples")
        else _without_unknown_formats(value)
        for keyword, value in schema.items()
        if not (keyword == "format" and isinstance(value, str) and value not in FORMATS)
    }


def _struct_tags(source: str) -> list[Any]:
    """xgrammar's and vLLM's form: {"structures": [{begin, schema, end}], "triggers": […]}."""
    from llguidance import StructTag

    described = json.loads(source)
    structures, triggers = described.get("structures"), described.get("triggers")
    if not structures or not triggers:
        raise InvalidRequest(
            "structural_tag: needs `structures` and `triggers`, neither empty", param="structural_tag"
        )
    tags = []
    for structure in structures:
        begin = structure.get("begin", "")
        trigger = next((trigger for trigger in triggers if begin.startswith(trigger)), None)
        if trigger is None:
            raise InvalidRequest(
                f"structural_tag: no trigger is the beginning of {begin!r}", param="structural_tag"
            )
        tags.append(
            StructTag(
                trigger=trigger,
                begin=begin,
                grammar=structure.get("schema", {}),
                end=structure.get("end", ""),
            )
        )
    return tags
