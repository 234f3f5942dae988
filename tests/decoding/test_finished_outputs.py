"""What is kept of finished outputs, and for how long."""

from __future__ import annotations

import numpy as np
from hypothesis import given
from hypothesis import strategies as st

from penstock.decoding.drafting.contexts import NO_TOKEN
from penstock.decoding.drafting.outputs import FinishedOutputs

DEPTH = 4


def held_texts(outputs: FinishedOutputs, tenant: str) -> list[list[int]]:
    """The tenant's, the oldest first."""
    texts: list[list[int]] = []
    for index in reversed(list(outputs.of(tenant))):
        for token in index.tokens:
            if token == NO_TOKEN:
                texts.append([])
            else:
                texts[-1].append(token)
    return texts


@given(
    kept=st.integers(0, 60),
    additions=st.lists(st.tuples(st.sampled_from("abc"), st.integers(0, 20)), max_size=40),
)
def test_finished_outputs_are_bounded(kept: int, additions: list[tuple[str, int]]) -> None:
    """Red if more tokens are held than allowed, a tenant's are not its latest, or others lose theirs before
    the tenant that added nothing for the longest."""
    outputs = FinishedOutputs(DEPTH, kept)
    added: dict[str, list[list[int]]] = {}
    lengths: dict[str, int] = {}
    for number, (tenant, length) in enumerate(additions):
        outputs.add(tenant, np.full(length, number, np.int32), 0)
        text = [number] * min(length, max(kept // 4 - 1, 0))
        if text:
            added[tenant] = [*added.pop(tenant, []), text]
        held = {name: held_texts(outputs, name) for name in added}
        assert outputs.num_tokens == sum(1 + len(text) for texts in held.values() for text in texts) <= kept
        for name, texts in held.items():
            assert texts == added[name][len(added[name]) - len(texts) :]
        assert not text or held[tenant]
        for place, name in enumerate(added):  # the tenant that added last comes last
            if len(held[name]) < lengths.get(name, 0):
                assert not any(held[earlier] for earlier in list(added)[:place])
        lengths = {name: len(texts) for name, texts in held.items()}


def test_a_long_output_keeps_its_end() -> None:
    """Red if an output that is too long for a part of the store is lost, or its start kept instead."""
    outputs = FinishedOutputs(depth=2, kept_tokens=40)
    outputs.add("a", np.arange(30, dtype=np.int32), 5)
    assert held_texts(outputs, "a") == [list(range(21, 30))]
