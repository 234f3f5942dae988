"""Forms with files, in any pieces, against the standard library's reader of the same format."""

from __future__ import annotations

import email
import email.policy
import re

import pytest
from hypothesis import given
from hypothesis import strategies as st

from penstock.api.multipart import (
    MAX_HEAD_BYTES,
    MAX_PARTS,
    FormReader,
    PartData,
    PartHead,
    boundary_of,
)
from penstock.errors import InvalidRequest, PenstockError

BOUNDARY = "b0un-dary"
NAME = st.text(
    st.characters(min_codepoint=32, max_codepoint=126, exclude_characters='"\\%;'), min_size=1, max_size=9
)
DATA = st.one_of(
    st.binary(max_size=60),
    st.lists(
        st.sampled_from([b"\r\n", b"--", b"\r\n--b0un", b"--b0un-dary", b"\r", b"\n", b"x"]), max_size=8
    ).map(b"".join),
).filter(lambda data: b"\r\n--" + BOUNDARY.encode() not in b"\r\n" + data)


def _form(parts: list[tuple[str, str | None, bytes]]) -> bytes:
    out = b""
    for name, filename, data in parts:
        head = f'--{BOUNDARY}\r\nContent-Disposition: form-data; name="{name}"'
        head += "" if filename is None else f'; filename="{filename}"\r\nContent-Type: application/x'
        out += head.encode() + b"\r\n\r\n" + data + b"\r\n"
    return out + f"--{BOUNDARY}--\r\n".encode()


def _read(pieces: list[bytes]) -> tuple[list[tuple[str, str | None, bytes]], bool]:
    form = FormReader(BOUNDARY.encode())
    parts: list[tuple[str, str | None, bytes]] = []
    for piece in pieces:
        for event in form.feed(piece):
            if isinstance(event, PartHead):
                parts.append((event.name, event.filename, b""))
            elif isinstance(event, PartData):
                name, filename, data = parts[-1]
                parts[-1] = (name, filename, data + event.data)
    return parts, form.is_complete


@given(parts=st.lists(st.tuples(NAME, st.none() | NAME, DATA), max_size=5), data=st.data())
def test_any_pieces_give_the_same_parts(parts, data):
    """Red if a part is torn where two pieces meet, or what looks like a boundary ends one."""
    whole = _form(parts)
    pieces, rest = [], whole
    while rest:
        size = data.draw(st.integers(1, len(rest)))
        pieces.append(rest[:size])
        rest = rest[size:]
    assert _read(pieces) == (parts, True)
    head = f"Content-Type: multipart/form-data; boundary={BOUNDARY}\r\n\r\n".encode()
    if parts and not re.search(rb"(\r|[^\r]\n)--", whole):  # it takes other ends of lines, too
        message = email.message_from_bytes(head + whole, policy=email.policy.HTTP)
        assert len(message.get_payload()) == len(parts)


@given(st.binary(max_size=300), st.integers(0, 300))
def test_any_bytes_are_a_form_or_an_error(data, place):
    """Red if some input makes the reader break, or a form without its last boundary counts as one."""
    whole = _form([("purpose", None, b"batch"), ("file", "a", data)])[:place] + data
    try:
        _, complete = _read([whole])
    except PenstockError:
        return
    assert complete == (f"\r\n--{BOUNDARY}--".encode() in b"\r\n" + whole)


def test_what_is_too_much_is_refused():
    """Red if a form can fill the memory without a file."""
    with pytest.raises(InvalidRequest, match="no part"):
        _read([b"x" * (MAX_HEAD_BYTES + 100)])
    with pytest.raises(InvalidRequest, match=str(MAX_PARTS)):
        _read([_form([(f"f{i}", None, b"") for i in range(MAX_PARTS + 1)])])


@pytest.mark.parametrize(
    "kind", ["", "application/json", "multipart/form-data", f"multipart/form-data; boundary={'x' * 71}"]
)
def test_a_body_that_is_no_form_is_refused(kind):
    """Red if a body is read as a form that was not said to be one."""
    with pytest.raises(PenstockError):
        boundary_of(kind)
    assert boundary_of('Multipart/Form-Data; charset=x; boundary="a b"') == b"a b"
