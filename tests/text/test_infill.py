"""Prompts that ask for the text between a beginning and an end."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st
from tiny_models import write_tokenizer

from penstock.call import Call, SamplingParams
from penstock.engine.prepare import Preparer
from penstock.errors import ContextOverflow, InvalidRequest
from penstock.text.infill import infill_markers
from penstock.text.tokenizer import Tokenizer

QWEN = ("<|fim_prefix|>", "<|fim_suffix|>", "<|fim_middle|>")
DEEPSEEK = ("<｜fim▁begin｜>", "<｜fim▁hole｜>", "<｜fim▁end｜>")
CODESTRAL = ("[PREFIX]", "[SUFFIX]")
CODE = "def f(x):\n    return "


def _with_tokens(folder: Path, *tokens: str) -> Path:
    """The tiny vocabulary with these control tokens."""
    write_tokenizer(folder)
    path = folder / "tokenizer.json"
    state = json.loads(path.read_text())
    size = max(each["id"] for each in state["added_tokens"]) + 1
    size = max(size, *(i + 1 for i in state["model"]["vocab"].values()))
    for i, token in enumerate(tokens):
        flags = dict.fromkeys(("single_word", "lstrip", "rstrip", "normalized"), False)
        state["added_tokens"].append({"id": size + i, "content": token, "special": True, **flags})
    path.write_text(json.dumps(state))
    return folder


@pytest.fixture(scope="session")
def qwen(tmp_path_factory: pytest.TempPathFactory) -> Tokenizer:
    folder = tmp_path_factory.mktemp("qwen")
    return Tokenizer.load(_with_tokens(folder, *QWEN, "<|fim_pad|>", "<|file_sep|>"))


def _preparer(tokenizer: Tokenizer, max_context: int = 512) -> Preparer:
    size = tokenizer.vocab_size
    return Preparer(tokenizer, model="tiny", max_context=max_context, vocab_size=size, prefix_cache=True)


def _call(beginning: Any, end: str, **fields: Any) -> Call:
    sampling = SamplingParams(**fields)
    return Call(kind="completion", model="tiny", prompts=(beginning,), suffix=end, sampling=sampling)


@pytest.mark.parametrize(
    ("tokens", "spelled"),
    [
        (QWEN, "<|fim_prefix|>{0}<|fim_suffix|>{1}<|fim_middle|>"),
        (DEEPSEEK, "<｜fim▁begin｜>{0}<｜fim▁hole｜>{1}<｜fim▁end｜>"),
        (CODESTRAL, "[SUFFIX]{1}[PREFIX]{0}"),
    ],
)
def test_the_two_texts_stand_where_the_family_wants_them(
    tmp_path: Path, tokens: tuple[str, ...], spelled: str
) -> None:
    """Red if a family's markers change places: the library's own reading of the text is the oracle."""
    from tokenizers import Tokenizer as Backend

    tokenizer = Tokenizer.load(_with_tokens(tmp_path, *tokens))
    oracle = Backend.from_file(str(tmp_path / "tokenizer.json"))
    want = oracle.encode(spelled.format(CODE, "\n\nprint(f(1))"), add_special_tokens=False).ids
    prompt = _preparer(tokenizer).prepare(_call(CODE, "\n\nprint(f(1))"), "k")[0]
    assert prompt.tokens == want


def test_an_answer_ends_where_the_model_says_that_the_hole_is_filled(qwen: Tokenizer) -> None:
    """Red if a model goes on with the next file; or if `ignore_eos` no longer means what it says."""
    ends = {qwen.token_id(name) for name in (*QWEN, "<|fim_pad|>", "<|file_sep|>")}
    sampling = _preparer(qwen).prepare(_call(CODE, "x"), "k")[0].submits[0].sampling
    assert ends | set(qwen.eos_ids) <= set(sampling.stop_token_ids)
    sampling = _preparer(qwen).prepare(_call(CODE, "x", ignore_eos=True), "k")[0].submits[0].sampling
    assert not sampling.stop_token_ids


@given(
    parts=st.tuples(*[st.text(st.sampled_from("ab \n<|>") | st.characters(codec="utf-8"), max_size=12)] * 2),
    marker=st.sampled_from([*QWEN, "<|im_end|>"]),
)
def test_nothing_in_the_texts_counts_as_a_marker(
    qwen: Tokenizer, parts: tuple[str, str], marker: str
) -> None:
    """Red if a file that speaks of markers moves the hole."""
    beginning, end = parts[0] + marker, marker + parts[1]
    ids = _preparer(qwen).prepare(_call(beginning, end), "k")[0].tokens
    places = [ids.index(qwen.token_id(name)) for name in QWEN]
    assert [sum(i in qwen.special_ids for i in ids), places[0], places[2]] == [3, 0, len(ids) - 1]
    assert qwen.decode(ids[1 : places[1]]) == beginning
    assert qwen.decode(ids[places[1] + 1 : -1]) == end


def test_a_prompt_of_ids_is_the_beginning_as_it_is(qwen: Tokenizer) -> None:
    """Red if ids are refused, or tokenized again."""
    markers = [qwen.token_id(name) for name in QWEN]
    ids = _preparer(qwen).prepare(_call((5, 6, 7), "a"), "k")[0].tokens
    assert ids == [markers[0], 5, 6, 7, markers[1], *qwen.encode("a"), markers[2]]


def test_a_model_without_markers_refuses_by_name(smollm: Tokenizer) -> None:
    """Red if a model that was never taught it answers with something else."""
    with pytest.raises(InvalidRequest, match="does not support insert") as caught:
        _preparer(smollm).prepare(_call(CODE, "x"), "k")
    assert caught.value.param == "suffix"


def test_both_texts_count_against_the_context(qwen: Tokenizer) -> None:
    """Red if an end that is too long is found out by the engine."""
    with pytest.raises(ContextOverflow):
        _preparer(qwen, 16).prepare(_call("a b c", "x y z " * 8), "k")


def test_ids_that_a_file_declares_come_first(gguf_byte_bpe: Callable[..., Path]) -> None:
    """Red if a GGUF file's own fim ids, in either spelling, are not read: their names may be anything."""
    path = gguf_byte_bpe("qwen2", fim_pre_token_id=601, suffix_token_id=602, fim_mid_token_id=603)
    markers = infill_markers(Tokenizer.load(path))
    assert markers is not None
    assert (markers.prefix, markers.suffix, markers.middle) == (601, 602, 603)


def test_only_the_beginning_has_the_automatic_space(gguf_sentencepiece: Callable[..., Path]) -> None:
    """Red if a SentencePiece vocabulary puts a space before the end: Code Llama's own code puts none."""
    path = gguf_sentencepiece(fim_pre=5, fim_suf=6, fim_mid=7)
    tokenizer = Tokenizer.load(path)
    ids = _preparer(tokenizer).prepare(_call("price", "box"), "k")[0].tokens
    at = ids.index(6)
    assert (ids[0], ids[1], ids[-1]) == (tokenizer.bos_id, 5, 7)
    assert b"".join(map(tokenizer.piece, ids[2:at])) == b" price"
    assert b"".join(map(tokenizer.piece, ids[at + 1 : -1])) == b"box"
