"""Exchange: what is known about one HTTP request while it is answered; stands in `scope["penstock"]`."""

from __future__ import annotations

import re
import time
import uuid
from typing import Any

from penstock.call import Usage
from penstock.gateway.identify import Identity
from penstock.wire.dialect import Dialect
from penstock.wire.openai_dialect import OPENAI

_SANE_ID = re.compile(rb"[A-Za-z0-9._:/+=@-]{1,128}")


class Exchange:
    """`id` is for people (header, logs) and may come from the client; `call_id` is ours and unique."""

    __slots__ = (
        "body_done",
        "call_id",
        "dialect",
        "finish_reason",
        "id",
        "identity",
        "model",
        "route",
        "started",
        "status",
        "usage",
    )

    def __init__(self, inbound_id: bytes | None = None, dialect: Dialect = OPENAI) -> None:
        self.dialect = dialect
        self.call_id = uuid.uuid4().hex
        sane = inbound_id is not None and _SANE_ID.fullmatch(inbound_id)
        self.id = inbound_id.decode("ascii") if inbound_id is not None and sane else self.call_id
        self.started = time.perf_counter()
        self.route = "other"  # the route's template, for metrics
        self.status = 0  # 0: nothing sent yet
        self.identity = Identity()
        self.model = ""
        self.usage: Usage | None = None
        self.finish_reason = ""
        self.body_done = False  # the whole request body has been received

    def elapsed_s(self) -> float:
        return time.perf_counter() - self.started


def exchange_of(scope: Any) -> Exchange:
    exchange: Exchange = scope["penstock"]
    return exchange


def header(scope: Any, name: bytes) -> bytes | None:
    """The first value of a header; names are lower case in ASGI."""
    for key, value in scope["headers"]:
        if key == name:
            return bytes(value)
    return None
