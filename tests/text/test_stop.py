"""Stop strings against brute force, for every way to cut the text."""

from __future__ import annotations

import pytest
from hypothesis import example, given
from hypothesis import strategies as st

from penstock.text.stop import StopScanner


def brute_force(text: str, stops: list[str], include: bool) -> tuple[str, str | None]:
    """Look after every character: the first at which some stop string ends; the longest of those."""
    for end in range(1, len(text) + 1):
        found = [stop for stop in stops if text[:end].endswith(stop)]
        if found:
            stop = max(found, key=len)
            return text[: end if include else end - len(stop)], stop
    return text, None


def held_back(text: str, stops: list[str]) -> int:
    """The longest end of `text` that is a proper beginning of a stop string."""
    lengths = [n for stop in stops for n in range(1, len(stop)) if text.endswith(stop[:n])]
    return max(lengths, default=0)


ALPHABET = st.sampled_from("ab\né😀")
STOPS = st.lists(st.text(ALPHABET, min_size=1, max_size=6), max_size=5)
CHUNKS = st.lists(st.text(ALPHABET, max_size=5), max_size=25)


@given(chunks=CHUNKS, stops=STOPS, include=st.booleans())
@example(chunks=["xab", "ab", "c"], stops=["ababc", "babx"], include=False)
@example(chunks=["ab", "c"], stops=["abcd", "bc"], include=True)
def test_every_cut_gives_what_brute_force_gives(chunks: list[str], stops: list[str], include: bool) -> None:
    """Red if a stop string across deltas is missed, cut wrongly, or depends on where deltas end."""
    scanner = StopScanner(stops, include)
    out, hit = "", None
    for count, chunk in enumerate(chunks, 1):
        emit, found = scanner.feed(chunk)
        out += emit
        if found is not None:
            assert hit is None
            hit = found
        elif hit is None:
            seen = "".join(chunks[:count])
            assert len(seen) - len(out) == held_back(seen, stops)  # not a character more, not one less
    out += scanner.flush()
    assert (out, hit) == brute_force("".join(chunks), stops, include)


def test_a_stop_string_across_two_chunks_or_inside_a_multi_byte_character() -> None:
    """Red if the stop string's halves are given out because they came in different deltas."""
    scanner = StopScanner(["</é>"], include=False)
    assert scanner.feed("done</") == ("done", None)
    assert scanner.feed("é> more") == ("", "</é>")
    assert scanner.feed("ignored") == ("", None)
    assert scanner.flush() == ""


def test_the_longest_of_those_that_end_together() -> None:
    """Red if the shorter of two stop strings wins and leaves the longer one's beginning in the text."""
    assert StopScanner(["b", "ab"], include=False).feed("xab") == ("x", "ab")


def test_without_stop_strings_nothing_is_held() -> None:
    """Red if a call without stop strings is delayed."""
    assert StopScanner([], include=False).feed("abc") == ("abc", None)
    with pytest.raises(ValueError, match="empty"):
        StopScanner([""], include=False)


def test_many_long_stop_strings() -> None:
    """Red if the largest set that is allowed (64 x 1024) breaks, or its cost grows with the held text."""
    stops = ["a" * 1000 + chr(0x100 + i) * 24 for i in range(64)]
    scanner = StopScanner(stops, include=False)
    out = "".join(scanner.feed("a" * 4)[0] for _ in range(20_000))
    assert len(out) == 80_000 - 1000
    assert scanner.feed(chr(0x107) * 24) == ("", stops[7])
