"""The masks of an engine's slots: what they say of an answer that comes back."""

from __future__ import annotations

import numpy as np
import pytest
from constrained_text import END, ByteTokens

from penstock.decoding.grammar.backend import Vocabulary
from penstock.decoding.grammar.llguidance_backend import LLGuidanceBackend
from penstock.decoding.grammar.masks import GrammarMasks
from penstock.decoding.grammar.spec import spec_of_text
from penstock.decoding.grammar.store import GrammarStore

SLOTS = np.array([0])
FORM = spec_of_text("regex", "ab", "regex")


@pytest.fixture
def masks() -> GrammarMasks:
    tokens = ByteTokens()
    vocabulary = Vocabulary(tokens, tokens.vocab_size)
    store = GrammarStore(LLGuidanceBackend(lambda: vocabulary), lambda: vocabulary)
    return GrammarMasks(1, tokens.vocab_size, store)


@pytest.mark.parametrize("behind", [[], [ord("x"), END, ord("y")]])
def test_an_answer_that_goes_on_behind_its_end_does_so_after_a_preemption(
    masks: GrammarMasks, behind: list[int]
) -> None:
    """Red if the end of an answer whose request did not end there (it is no stop id, or min_tokens are not
    there yet) is held against it when it comes back."""
    answer = [ord("a"), ord("b"), END, *behind]
    masks.admit(0, FORM, np.array(answer, np.int32), 0)
    found, broken = masks.of(SLOTS)
    assert not broken and (found == -1).all()


def test_an_answer_that_comes_back_otherwise_than_its_form_is_broken(masks: GrammarMasks) -> None:
    """Red if the wrong tokens of a preempted request go unnoticed, and its answer on without a form."""
    masks.admit(0, FORM, np.array([ord("a"), ord("c")], np.int32), 0)
    assert "token 99" in masks.of(SLOTS)[1][0]
