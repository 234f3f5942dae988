"""Server-sent events: the parser against the rules of the standard, at every split of the bytes."""

from __future__ import annotations

import re
from itertools import pairwise

import pytest
from hypothesis import given
from hypothesis import strategies as st

from penstock.wire import sse

_LINES = st.sampled_from(
    [
        "data: a",
        "data:b",
        "data:",
        "data",
        "data:  c",
        ": comment",
        "event: x",
        "id: 5",
        "retry: 9",
        "other: y",
        "",
        "",
    ]
)


def reference(stream: bytes) -> list[tuple[str, bytes]]:
    """The standard's algorithm over the whole text at once."""
    text = stream.decode("utf-8").removeprefix("\ufeff")
    lines = re.split("\r\n|\r|\n", text)
    events, name, data = [], "", []
    for line in lines[:-1]:  # what follows the last line end is unfinished
        if not line:
            if data:
                events.append((name, "\n".join(data).encode()))
            name, data = "", []
        elif not line.startswith(":"):
            field, _, value = line.partition(":")
            value = value.removeprefix(" ")
            if field == "data":
                data.append(value)
            elif field == "event":
                name = value
    return events


@given(
    st.lists(
        st.tuples(_LINES | st.text("aé\u2028:\ufeff ", max_size=4), st.sampled_from(["\n", "\r\n", "\r"]))
    ),
    st.booleans(),
    st.lists(st.integers(0, 200)),
)
def test_any_split_gives_the_standards_events(lines, bom, cuts):
    """Red if a line end, a BOM or a character across two reads changes what is parsed."""
    stream = (("\ufeff" if bom else "") + "".join(line + end for line, end in lines)).encode()
    if stream.endswith(b"\r"):
        stream += b"\n"  # a lone CR at the very end may still become CRLF: the whole text decides
    parser = sse.SseParser()
    edges = sorted({min(cut, len(stream)) for cut in cuts} | {0, len(stream)})
    parsed = [event for a, b in pairwise(edges) for event in parser.feed(stream[a:b])]
    assert parsed == reference(stream)


def test_frames_are_read_back():
    """Red if what we write is not what we read."""
    stream = sse.data_frame(b"{}") + sse.KEEP_ALIVE + sse.named_frame(b"ping", b"1") + sse.DONE
    assert sse.SseParser().feed(stream) == [("", b"{}"), ("ping", b"1"), ("", b"[DONE]")]


@pytest.mark.parametrize("endless", [b"x" * 2**20, b"data: " + b"y" * 2**20 + b"\n"])
def test_an_endless_event_is_refused(endless):
    """Red if an upstream that never ends an event can take all memory."""
    parser = sse.SseParser()
    with pytest.raises(ValueError, match="without an end"):
        for _ in range(sse.MAX_EVENT_BYTES // 2**20 + 1):
            parser.feed(endless)
