"""Whole texts and pairs to ids, against transformers' fast tokenizer on the same file."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from penstock.errors import InvalidRequest, ModelRefused
from penstock.text.text_tokenizer import TextTokenizer
from support.tiny_encoders import WORDS, write_tokenizer

SENTENCES = st.lists(st.sampled_from(WORDS), max_size=12).map(" ".join)
TEXTS = st.one_of(SENTENCES, st.text(max_size=30))


@pytest.fixture(scope="module")
def both(tmp_path_factory) -> tuple[TextTokenizer, Any]:
    transformers = pytest.importorskip("transformers", reason="the oracle is its fast tokenizer")
    folder = tmp_path_factory.mktemp("tokenizer")
    write_tokenizer(folder)
    oracle = transformers.PreTrainedTokenizerFast(
        tokenizer_file=str(folder / "tokenizer.json"), pad_token="[PAD]", padding_side="right"
    )
    return TextTokenizer.load(folder), oracle


@given(texts=st.lists(TEXTS, min_size=1, max_size=4), limit=st.one_of(st.none(), st.integers(2, 9)))
def test_texts_are_cut_as_transformers_cuts_them(both, texts, limit):
    """Red if a cut text loses its [SEP] or keeps a token too many, or the file's own lengths act."""
    ours, oracle = both
    for text, found in zip(texts, ours.texts(texts, limit), strict=True):
        whole = oracle(text)["input_ids"]
        wanted = whole if limit is None else oracle(text, truncation=True, max_length=limit)["input_ids"]
        assert found.ids.tolist() == wanted
        assert found.kinds is None
        assert found.cut == (wanted != whole)


@given(pair=st.tuples(TEXTS, TEXTS), limit=st.one_of(st.none(), st.integers(3, 12)))
def test_pairs_have_types_and_are_cut_longest_first(both, pair, limit):
    """Red if a pair's token types are lost, or the shorter text is cut before the longer one."""
    ours, oracle = both
    options = {} if limit is None else {"truncation": "longest_first", "max_length": limit}
    one = ([pair[0]], [pair[1]])  # in lists: alone an empty second text counts as none
    wanted = {name: rows[0] for name, rows in oracle(*one, return_token_type_ids=True, **options).items()}
    (found,) = ours.pairs([pair], limit)
    types = [0] * len(found.ids) if found.kinds is None else found.kinds.tolist()
    assert (found.ids.tolist(), types) == (wanted["input_ids"], wanted["token_type_ids"])
    assert found.cut == (len(wanted["input_ids"]) < len(oracle(*one)["input_ids"][0]))


def test_documents_are_cut_before_the_pair(both):
    """Red if max_tokens_per_doc cuts the query."""
    ours, _ = both
    (found,) = ours.pairs([("the cat sat", "the dog ran and sat")], None, 2)
    plain = ours.pairs([("the cat sat", "the dog")])[0]
    assert found.ids.tolist() == plain.ids.tolist() and found.cut and not plain.cut


def test_bad_texts_are_refused(both):
    """Red if a lone surrogate reaches the library, which panics over it."""
    ours, _ = both
    with pytest.raises(InvalidRequest, match="lone surrogate"):
        ours.texts(["a\ud800"])
    with pytest.raises(InvalidRequest, match="lone surrogate"):
        ours.pairs([("a", "b\ud800")])


def test_missing_and_damaged_files_are_refused(tmp_path: Path):
    """Red if a folder without a tokenizer fails with something that does not name the file."""
    with pytest.raises(ModelRefused, match=r"no tokenizer\.json"):
        TextTokenizer.load(tmp_path)
    (tmp_path / "tokenizer.json").write_text("{")
    with pytest.raises(ModelRefused, match=r"tokenizer\.json"):
        TextTokenizer.load(tmp_path)
