"""The bounded memory of what was used last."""

from __future__ import annotations

from penstock.recent import Recent


def test_the_sizes_are_bounded_and_what_is_in_use_stays() -> None:
    """Red if it grows with the number of values, or drops the one that is used."""
    recent = Recent[str, int](30)
    for number in range(10):
        recent.put(str(number), number, 10)
        assert recent.get("0") == 0
    assert [number for number in range(10) if recent.get(str(number)) is not None] == [0, 8, 9]
    recent.forget("0")
    recent.put("9", 90, 20)
    assert [recent.get(name) for name in ("0", "8", "9")] == [None, 8, 90]
    recent.put("large", 1, 31)
    assert recent.get("large") is None
