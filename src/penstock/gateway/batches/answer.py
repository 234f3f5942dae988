"""A line's answer: its body becomes a Call by the codec of its endpoint, as the HTTP route would make it, and
the answer becomes the body that the route would send. So every wire format is a batch format.
"""

from __future__ import annotations

import time
from collections.abc import AsyncIterator, Mapping
from contextlib import aclosing
from types import ModuleType
from typing import Any

import msgspec
from msgspec import Struct

from penstock.call import BATCH_PRIORITY, Call, Event, Usage
from penstock.errors import InvalidRequest, from_kind
from penstock.gateway.service import ModelService
from penstock.gateway.sessions import Sessions
from penstock.wire.fold import Fold


class Answer(Struct, frozen=True):
    """body: JSON."""

    body: bytes
    usage: Usage


class Answerer:
    """codecs: modules of `penstock.wire` by the path of their route."""

    def __init__(self, service: ModelService, sessions: Sessions, codecs: Mapping[str, ModuleType]) -> None:
        self.service = service
        self.codecs = codecs
        self._sessions = sessions

    async def __call__(
        self, endpoint: str, request: bytes, *, request_id: str, tenant: str, deadline_s: float
    ) -> Answer:
        """deadline_s: seconds that it may take. Raises PenstockError, also for an answer that broke off."""
        codec = self.codecs[endpoint]
        call: Call = codec.read_request(request)
        if call.stream:
            raise InvalidRequest("stream: a batch answers with whole bodies; leave it out", param="stream")
        call = msgspec.structs.replace(call, tenant=tenant, priority=BATCH_PRIORITY, deadline_s=deadline_s)
        encoder = codec.Encoder(call, request_id, int(time.time()), call.model)
        fold = Fold()
        async with aclosing(self._events(call, request_id, encoder)) as events:  # type: ignore[type-var]
            async for event in events:
                fold.add(event)
        failure = fold.failure
        if failure is not None:
            error = from_kind(failure.kind, failure.message, param=failure.param, code=failure.code)
            error.status = failure.status
            raise error
        return Answer(encoder.body(fold), fold.usage)

    def _events(self, call: Call, request_id: str, encoder: Any) -> AsyncIterator[Event]:
        if call.session is None:
            return self.service.stream(call, request_id)
        return self._sessions.stream(call, request_id, encoder.body)
