"""What the suffix drafter's texts are sorted by."""

from __future__ import annotations

import numpy as np
from hypothesis import given
from hypothesis import strategies as st

from penstock.decoding.drafting.contexts import ContextIndex

DEPTH = 4
TEXT = st.lists(st.integers(0, 2), max_size=9)


@given(parts=st.lists(TEXT, max_size=5), single=TEXT)
def test_tokens_are_indexed_alike_at_once_and_one_by_one(parts: list[list[int]], single: list[int]) -> None:
    """Red if a text added in parts is found by other contexts than one added token by token."""
    at_once, one_by_one = ContextIndex(DEPTH), ContextIndex(DEPTH)
    for part in parts:
        at_once.extend(np.array(part, np.int32))
    for token in [token for part in parts for token in part]:
        one_by_one.append(token)
    for index in (at_once, one_by_one):
        for token in single:
            index.append(token)
    assert at_once.tokens == one_by_one.tokens
    assert at_once.context == one_by_one.context
    assert at_once.longest(at_once.context) == one_by_one.longest(at_once.context)
