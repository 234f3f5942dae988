"""Forms with files (multipart/form-data, RFC 7578), read as they come: a file is never whole in memory.

The reader takes bytes in whatever pieces they arrive and gives back what they complete: the head of a part,
data of it, its end. What is no form raises InvalidRequest.
"""

from __future__ import annotations

import re

from msgspec import Struct

from penstock.api.errors import UnsupportedMedia
from penstock.errors import InvalidRequest

MAX_HEAD_BYTES = 16 * 1024  # of a part
MAX_PARTS = 64
MAX_BOUNDARY = 70  # characters, by RFC 2046

_BOUNDARY = re.compile(r';\s*boundary=(?:"([^"]+)"|([^\s;]+))', re.IGNORECASE)
_PARAMETER = re.compile(r';\s*([a-z0-9-]+\*?)=(?:"((?:[^"\\]|\\.)*)"|([^\s;]+))', re.IGNORECASE)


class PartHead(Struct, frozen=True):
    """`filename` is None for a plain field."""

    name: str
    filename: str | None


class PartData(Struct, frozen=True):
    data: bytes


class PartEnd(Struct, frozen=True):
    pass


FormEvent = PartHead | PartData | PartEnd


def boundary_of(content_type: str) -> bytes:
    """Raises UnsupportedMedia unless it is a form with files."""
    media = content_type.partition(";")[0].strip().lower()
    if media != "multipart/form-data":
        shown = repr(content_type[:100]) if content_type else "none"
        raise UnsupportedMedia(
            f"content-type: {shown}; send a form, `Content-Type: multipart/form-data; boundary=…`",
            param="content-type",
        )
    found = _BOUNDARY.search(content_type)
    boundary = (found[1] or found[2]) if found else ""
    if not 1 <= len(boundary) <= MAX_BOUNDARY:
        raise InvalidRequest(
            f"content-type: a boundary of {len(boundary)} characters; from 1 to {MAX_BOUNDARY}",
            param="content-type",
        )
    return boundary.encode("latin-1", "replace")


class FormReader:
    """`feed` it the body; `is_complete` says whether the last boundary came."""

    def __init__(self, boundary: bytes) -> None:
        self._delimiter = b"\r\n--" + boundary
        self._buffer = b"\r\n"  # a boundary begins a line, the first one too
        self._in_part = False
        self._parts = 0
        self.is_complete = False

    def feed(self, data: bytes) -> list[FormEvent]:
        self._buffer += data
        events: list[FormEvent] = []
        while not self.is_complete and self._step(events):
            pass
        if self.is_complete:
            self._buffer = b""  # what follows the last boundary means nothing
        return events

    def _step(self, events: list[FormEvent]) -> bool:
        """Take what the buffer completes; False: more bytes are needed."""
        return self._take_data(events) if self._in_part else self._take_head(events)

    def _take_data(self, events: list[FormEvent]) -> bool:
        place = self._buffer.find(self._delimiter)
        if place < 0:  # its beginning may stand at the end
            place = max(0, len(self._buffer) - len(self._delimiter) + 1)
            if place:
                events.append(PartData(self._buffer[:place]))
                self._buffer = self._buffer[place:]
            return False
        if place:
            events.append(PartData(self._buffer[:place]))
        events.append(PartEnd())
        self._buffer = self._buffer[place:]
        self._in_part = False
        return True

    def _take_head(self, events: list[FormEvent]) -> bool:
        """A boundary, and the head of the part behind it."""
        start = self._buffer.find(self._delimiter)
        if start < 0:
            self._check_head(len(self._buffer))  # a preamble that does not end
            return False
        rest = self._buffer[start + len(self._delimiter) :]
        if rest.startswith(b"--"):
            self.is_complete = True
            return False
        end = rest.find(b"\r\n\r\n")
        if end < 0:
            self._check_head(len(rest))
            return False
        self._check_head(end)
        self._parts += 1
        if self._parts > MAX_PARTS:
            raise InvalidRequest(f"body: a form of over {MAX_PARTS} parts")
        events.append(_head(rest[:end]))
        self._buffer = rest[end + 4 :]
        if self._buffer.startswith(self._delimiter[2:]):  # an empty part without a line of its own
            self._buffer = b"\r\n" + self._buffer
        self._in_part = True
        return True

    def _check_head(self, size: int) -> None:
        if size > MAX_HEAD_BYTES:
            raise InvalidRequest(f"body: no part of a form begins in {MAX_HEAD_BYTES} bytes")


def _head(data: bytes) -> PartHead:
    """Of the lines between a boundary and a part's data."""
    line, _, headers = data.partition(b"\r\n")
    if line.strip(b" \t"):
        raise InvalidRequest("body: something follows a boundary on its line")
    for header in headers.decode("utf-8", "replace").split("\r\n"):
        name, _, value = header.partition(":")
        if name.strip().lower() == "content-disposition":
            return _disposition(value)
    raise InvalidRequest("body: a part of the form has no Content-Disposition")


def _disposition(value: str) -> PartHead:
    found = {name.lower(): quoted or plain for name, quoted, plain in _PARAMETER.findall(value)}
    if "name" not in found:
        raise InvalidRequest("body: a part of the form has no name")
    filename = found.get("filename")
    return PartHead(_unquoted(found["name"]), None if filename is None else _unquoted(filename))


def _unquoted(text: str) -> str:
    """Browsers and clients write a quote as %22 or with a backslash."""
    return re.sub(r"\\(.)", r"\1", text).replace("%22", '"')
