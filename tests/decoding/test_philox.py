"""Philox4x32-10 against the known answers that Random123 publishes (kat_vectors)."""

from __future__ import annotations

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from penstock.decoding import philox

# counter, key, expected words: the three lines "philox4x32 10" of Random123's tests/kat_vectors
KNOWN_ANSWERS = [
    ("00000000 00000000 00000000 00000000", "00000000 00000000", "6627e8d5 e169c58d bc57ac4c 9b00dbd8"),
    ("ffffffff ffffffff ffffffff ffffffff", "ffffffff ffffffff", "408f276d 41c83b0e a20bc7c6 6d5451fd"),
    ("243f6a88 85a308d3 13198a2e 03707344", "a4093822 299f31d0", "d16cfe09 94fdcceb 5001e420 24126ea1"),
]

U64 = st.integers(0, 2**64 - 1)
U32 = st.integers(0, 2**32 - 1)


def words(text: str) -> np.ndarray:
    return np.array([int(word, 16) for word in text.split()], dtype=np.uint32)


@pytest.mark.parametrize(("counter", "key", "expected"), KNOWN_ANSWERS)
def test_known_answers_of_random123(counter, key, expected):
    """Red if a round, a constant or the word order changes: every seeded request would answer differently."""
    assert philox.philox4x32(words(counter)[None], words(key)[None])[0].tolist() == words(expected).tolist()


def test_uniform_is_the_top_53_bits_of_the_first_two_words():
    """Red if seed, position or stream move in the counter, or the bits are put together differently."""
    # Counter and key all zero, so the words are those of the first known answer.
    expected = ((0x6627E8D5 << 32 | 0xE169C58D) >> 11) / 2**53
    assert philox.uniform(np.uint64(0), 0).tolist() == [expected]
    assert philox.uniform(np.array([0, 0], np.uint64), np.array([0, 1], np.int32))[0] == expected


@given(st.lists(st.tuples(U64, U32), min_size=1, max_size=20), st.integers(0, 5))
def test_rows_are_independent_of_the_batch(pairs, stream):
    """Red if a row's number depends on the rows beside it."""
    seeds = np.array([seed for seed, _ in pairs], np.uint64)
    positions = np.array([position for _, position in pairs], np.uint32)
    together = philox.uniform(seeds, positions, stream)
    alone = [philox.uniform(np.uint64(seed), position, stream)[0] for seed, position in pairs]
    assert together.tolist() == alone
    assert ((together >= 0) & (together < 1)).all()


def test_seed_halves_position_and_stream_all_matter():
    """Red if half of the seed, the position or the stream is ignored (then requests share their noise)."""
    seeds = np.array([1, 1 << 32, 1 << 63], np.uint64)
    draws = [philox.uniform(seeds, np.full(3, position), stream) for position in (0, 1) for stream in (0, 1)]
    assert len(set(np.concatenate(draws).tolist())) == 12


def test_numbers_are_uniform_along_positions_and_along_seeds():
    """Red if consecutive positions or seeds (what users choose: 0, 1, 2) give correlated noise."""
    n, bins = 65536, 64
    many, same = np.arange(n, dtype=np.uint64), np.full(n, 7, np.uint64)
    for draws in (philox.uniform(same, many), philox.uniform(many, same)):
        for sample in (draws, (draws[1:] - draws[:-1]) % 1.0):
            counts = np.bincount((sample * bins).astype(int), minlength=bins)
            expected = len(sample) / bins
            chi_square = ((counts - expected) ** 2 / expected).sum()
            assert chi_square < bins - 1 + 5 * np.sqrt(2 * (bins - 1))
