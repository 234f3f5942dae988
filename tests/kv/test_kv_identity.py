"""Block identity against hashlib written out by hand, across processes, and for injectivity."""

from __future__ import annotations

import hashlib
import os
import subprocess
import sys
from pathlib import Path

import msgspec
import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from penstock.kv import identity

SRC = Path(__file__).resolve().parents[2] / "src"


def test_known_answer_written_out_by_hand() -> None:
    """Red if the encoding changes: every stored tier, event and router would miss from then on."""
    fields = {"format": 1, "block_size": 16, "layers": (0, 1)}
    assert identity.canonical(fields) == (b"ms10:block_sizei16;s6:formati1;s6:layersli0;i1;ee")
    assert identity.canonical([None, True, False, -7, 10000.0, "é", b"\x00"]) == (
        b"lntfi-7;d\x40\xc3\x88\x00\x00\x00\x00\x00s2:\xc3\xa9b1:\x00e"
    )

    namespace = hashlib.sha256(b"ms10:block_sizei16;s6:formati1;s6:layersli0;i1;ee").digest()
    assert identity.namespace_digest(fields) == namespace

    root = hashlib.sha256(namespace + b"tenant-7").digest()
    assert identity.root(namespace, "tenant-7") == root
    first = hashlib.sha256(root + b"\x01\x00\x00\x00\x02\x01\x00\x00").digest()
    assert identity.child(root, identity.token_bytes([1, 258])) == first
    second = hashlib.sha256(first + b"\xff\xff\xff\x7f\x00\x00\x00\x00").digest()
    assert identity.child(first, identity.token_bytes(np.array([2**31 - 1, 0], np.int64))) == second

    adapter = hashlib.sha256(b"adapter").digest()
    assert identity.root(namespace, "a", adapter) == hashlib.sha256(namespace + b"a\xff" + adapter).digest()
    with_image = hashlib.sha256(root + b"\x05\x00\x00\x00" + b"\x03\x00\x00\x00img").digest()
    assert identity.child(root, identity.token_bytes([5]), b"img") == with_image


def test_identity_does_not_depend_on_the_process() -> None:
    """Red if Python's `hash`, set order or anything seeded per process enters an identity."""
    script = (
        "from penstock.kv import identity as i;"
        "n = i.namespace_digest({'model': 'm', 'windows': [None, 512], 'quant': {'b': 2, 'a': 1}});"
        "r = i.root(n, 'salt');"
        "print(i.child(i.child(r, i.token_bytes(range(16))), i.token_bytes(range(16, 32))).hex())"
    )
    digests = set()
    for seed in ("0", "1", "4242"):
        env = {**os.environ, "PYTHONHASHSEED": seed, "PYTHONPATH": str(SRC)}
        run = subprocess.run(
            [sys.executable, "-c", script], env=env, capture_output=True, text=True, check=True
        )
        digests.add(run.stdout)
    assert len(digests) == 1
    assert len(digests.pop().strip()) == 64


VALUES = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats(allow_nan=False) | st.text() | st.binary(),
    lambda inner: st.lists(inner) | st.dictionaries(st.text(), inner),
    max_leaves=8,
)


def typed(value: object) -> object:
    """Equality of which is equality of values and types (1 != 1.0 != True, 0.0 != -0.0)."""
    if isinstance(value, list):
        return ("list", tuple(typed(item) for item in value))
    if isinstance(value, dict):
        return ("dict", frozenset((key, typed(item)) for key, item in value.items()))
    return (type(value).__name__, repr(value))


@given(VALUES, VALUES)
def test_canonical_is_injective(a: object, b: object) -> None:
    """Red if two different model descriptions can share a namespace, hence blocks."""
    assert (identity.canonical(a) == identity.canonical(b)) == (typed(a) == typed(b))


@given(st.dictionaries(st.text(), st.integers()))
def test_canonical_ignores_the_order_of_a_mapping(fields: dict[str, int]) -> None:
    """Red if two processes that build the same fields in another order disagree."""
    assert identity.canonical(fields) == identity.canonical(dict(reversed(fields.items())))


@given(st.text(), st.binary(min_size=32, max_size=32), st.text(), st.binary(min_size=32, max_size=32))
def test_salt_and_adapter_never_blend(salt: str, adapter: bytes, other: str, other_adapter: bytes) -> None:
    """Red if a salt can be chosen so that it equals another salt followed by an adapter."""
    namespace = bytes(32)
    roots = {
        (s, a): identity.root(namespace, s, a) for s in (salt, other) for a in (b"", adapter, other_adapter)
    }
    assert len(set(roots.values())) == len(roots)


def test_struct_encodes_as_its_fields() -> None:
    """Red if group specs can't be put into a namespace as they are."""

    class Spec(msgspec.Struct):
        window: int | None
        layers: tuple[int, ...]

    assert identity.canonical(Spec(8, (1,))) == identity.canonical({"layers": [1], "window": 8})


@pytest.mark.parametrize("value", [{1: 2}, {"a": {1, 2}}, [object()], np.float32(1.0)])
def test_what_has_no_canonical_form_is_refused(value: object) -> None:
    """Red if a set or an unknown object enters a digest in whatever order it prints."""
    with pytest.raises(TypeError, match="canonical"):
        identity.canonical(value)
