"""The formats of embeddings, rerank and score: what they read, refuse and write."""

from __future__ import annotations

import base64
import json

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from hypothesis.extra.numpy import arrays

from penstock.embedding import EmbedCall, Embeddings, Scores
from penstock.errors import InvalidRequest
from penstock.wire import openai_embeddings, rerank, score

FLOATS = st.floats(width=32, allow_nan=False, allow_infinity=False)


def read(**fields):
    return openai_embeddings.read_request(json.dumps({"model": "m"} | fields).encode())


@pytest.mark.parametrize(
    ("given", "inputs"),
    [
        ("a text", ("a text",)),
        (["a", "b"], ("a", "b")),
        ([1, 2, 3], ((1, 2, 3),)),
        ([[1, 2], [3]], ((1, 2), (3,))),
    ],
)
def test_the_four_forms_of_input(given, inputs):
    """Red if a list of ids is read as several inputs, or several lists as one."""
    assert read(input=given)[0] == EmbedCall(model="m", inputs=inputs)


@pytest.mark.parametrize(
    ("fields", "param"),
    [
        ({}, "input"),
        ({"input": []}, "input"),
        ({"input": ""}, "input"),
        ({"input": ["a", ""]}, "input"),
        ({"input": ["a", 1]}, "input"),
        ({"input": [[1], 2]}, "input"),
        ({"input": [[]]}, "input[0]"),
        ({"input": [-1]}, "input[0]"),
        ({"input": ["x"] * 2049}, "input"),
        ({"input": None}, "input"),
        ({"input": "x", "dimensions": 0}, "dimensions"),
        ({"input": "x", "encoding_format": "int8"}, "encoding_format"),
        ({"input": "x", "truncate_prompt_tokens": 0}, "truncate_prompt_tokens"),
        ({"input": "x", "truncate_prompt_tokens": -2}, "truncate_prompt_tokens"),
        ({"input": "x", "add_special_tokens": False}, "add_special_tokens"),
        ({"messages": [], "input": "x"}, "messages"),
    ],
)
def test_what_can_not_be_embedded_is_refused_by_its_field(fields, param):
    """Red if a bad request is answered, or the refusal does not name the field."""
    with pytest.raises(InvalidRequest) as refused:
        read(**fields)
    assert refused.value.param == param


@given(vectors=arrays(np.float32, st.tuples(st.integers(1, 4), st.integers(1, 20)), elements=FLOATS))
def test_both_encodings_carry_the_same_float32(vectors):
    """Red if a number changes on its way through JSON, or base64 has another byte order or type."""
    answer = Embeddings(vectors, 7, (1,))
    numbers = json.loads(openai_embeddings.write_body(answer, "m", False))
    packed = json.loads(openai_embeddings.write_body(answer, "m", True))
    for index, row in enumerate(vectors):
        assert np.array_equal(np.array(numbers["data"][index]["embedding"], np.float32), row)
        data = base64.b64decode(packed["data"][index]["embedding"])
        assert np.array_equal(np.frombuffer(data, "<f4"), row)
        assert packed["data"][index]["index"] == index
    assert numbers["usage"] == {"prompt_tokens": 7, "total_tokens": 7}
    assert numbers["truncated"] == [1]
    assert "truncated" not in json.loads(openai_embeddings.write_body(Embeddings(vectors, 7), "m", False))


def read_rerank(**fields):
    body = {"model": "m", "query": "q", "documents": ["a", {"text": "b"}, "c"]} | fields
    return rerank.read_request(json.dumps(body).encode())


def test_rerank_results_are_ordered_cut_and_complete():
    """Red if results are not best first, ties lose their order, or top_n and return_documents are ignored."""
    call = read_rerank()
    assert call.score.pairs == (("q", "a"), ("q", "b"), ("q", "c"))
    body = json.loads(rerank.write_body(call, Scores((0.5, 0.9, 0.5), 11), "m", "x"))
    assert [(r["index"], r["relevance_score"], r["document"]) for r in body["results"]] == [
        (1, 0.9, {"text": "b"}),
        (0, 0.5, {"text": "a"}),
        (2, 0.5, {"text": "c"}),
    ]
    assert body["usage"]["total_tokens"] == 11 and body["meta"]["billed_units"] == {"search_units": 1}
    short = read_rerank(top_n=1, return_documents=False)
    assert json.loads(rerank.write_body(short, Scores((0.5, 0.9, 0.5), 11), "m", "x"))["results"] == [
        {"index": 1, "relevance_score": 0.9}
    ]
    assert read_rerank(top_n=99).top_n == 99


@pytest.mark.parametrize(
    ("fields", "param"),
    [
        ({"documents": []}, "documents"),
        ({"documents": [{"title": "x"}]}, "documents[0].text"),
        ({"query": None}, "query"),
        ({"top_n": 0}, "top_n"),
        ({"rank_fields": ["title"]}, "rank_fields"),
        ({"documents": ["x"] * 2049}, "documents"),
    ],
)
def test_rerank_refuses_by_field(fields, param):
    """Red if a document without text counts as an empty one, or a field that changes results is dropped."""
    with pytest.raises(InvalidRequest) as refused:
        read_rerank(**fields)
    assert refused.value.param == param


def test_score_pairs_one_with_all_or_each_with_its_own():
    """Red if pairs are combined otherwise than vLLM's format says."""

    def pairs(first, second):
        body = json.dumps({"model": "m", "text_1": first, "text_2": second})
        return score.read_request(body.encode()).pairs

    assert pairs("a", "b") == (("a", "b"),)
    assert pairs("a", ["b", "c"]) == (("a", "b"), ("a", "c"))
    assert pairs(["a", "b"], ["c", "d"]) == (("a", "c"), ("b", "d"))
    with pytest.raises(InvalidRequest, match="text_1: 2 texts for 3"):
        pairs(["a", "b"], ["c", "d", "e"])
    body = json.loads(score.write_body(Scores((0.25,), 3), "m", "x", 5))
    assert body["data"] == [{"index": 0, "score": 0.25, "object": "score"}] and body["id"] == "score-x"
