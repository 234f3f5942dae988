"""Server-sent events (WHATWG HTML, section "Server-sent events"): frames out, parser in.

Invariant: the parser's output does not depend on how the bytes were split; nothing is decoded
before a whole line is there, so half a character never is.
"""

from __future__ import annotations

DONE = b"data: [DONE]\n\n"
MEDIA_TYPE = b"text/event-stream; charset=utf-8"
KEEP_ALIVE = b": keep-alive\n\n"

MAX_EVENT_BYTES = 64 * 2**20


def data_frame(payload: bytes) -> bytes:
    """One event without a name. `payload` must be one line (JSON as msgspec writes it is)."""
    return b"data: " + payload + b"\n\n"


def named_frame(name: bytes, payload: bytes) -> bytes:
    """One event with an `event:` line, as the Anthropic and Responses formats use."""
    return b"event: " + name + b"\ndata: " + payload + b"\n\n"


class SseParser:
    """Incremental parser: `feed(bytes)` returns the (name, data) pairs completed by them.

    `name` is "" for events without an `event:` line. Comments, ids and retry hints are dropped.
    Raises ValueError when one event grows beyond `MAX_EVENT_BYTES`.
    """

    def __init__(self) -> None:
        self._tail = bytearray()  # bytes of the unfinished line
        self._after_cr = False  # a "\n" that comes next belongs to the "\r" before it
        self._first = True
        self._name = ""
        self._data: list[bytes] = []
        self._size = 0

    def feed(self, chunk: bytes) -> list[tuple[str, bytes]]:
        if not chunk:
            return []
        if self._after_cr and chunk.startswith(b"\n"):
            chunk = chunk[1:]
        self._after_cr = chunk.endswith(b"\r")
        if b"\r" in chunk:
            chunk = chunk.replace(b"\r\n", b"\n").replace(b"\r", b"\n")
        *lines, tail = chunk.split(b"\n")
        events: list[tuple[str, bytes]] = []
        for line in lines:
            if self._tail:
                self._tail += line
                line = bytes(self._tail)
                self._tail.clear()
            if (event := self._line(line)) is not None:
                events.append(event)
        self._tail += tail
        if self._size + len(self._tail) > MAX_EVENT_BYTES:
            raise ValueError(f"an event of over {MAX_EVENT_BYTES} bytes without an end")
        return events

    def _line(self, line: bytes) -> tuple[str, bytes] | None:
        if self._first:
            self._first = False
            line = line.removeprefix(b"\xef\xbb\xbf")
        if not line:
            return self._dispatch()
        field, _, value = line.partition(b":")
        value = value.removeprefix(b" ")
        if field == b"data":
            self._data.append(value)
            self._size += len(value)
        elif field == b"event":
            self._name = value.decode("utf-8", "replace")
        return None

    def _dispatch(self) -> tuple[str, bytes] | None:
        event = (self._name, b"\n".join(self._data)) if self._data else None
        self._name, self._data, self._size = "", [], 0
        return event
