"""Codec of `POST /v1/responses/compact`: a conversation made shorter, to go on from.

The model itself writes down what matters; the answer holds that as one `compaction` item, which stands for
all items before it when it is sent back.
"""

from __future__ import annotations

from typing import Literal

from msgspec import Struct

from penstock.call import Call, Event
from penstock.errors import InvalidRequest
from penstock.wire import openai_responses, sse
from penstock.wire.fold import Fold
from penstock.wire.openai_common import encode
from penstock.wire.openai_responses_body import ResponseUsage, usage_body
from penstock.wire.openai_responses_items import Json, seal

PATH = "/v1/responses/compact"

_TASK = (
    "Write down everything from this conversation that is needed to continue it without its text: what was "
    "asked for, what was decided, what was done with which result, names, paths and numbers exactly, and "
    "what is left to do. Write nothing else."
)
_HEAD = "What happened in this conversation so far, in short:\n\n"


class CompactionItem(Struct, tag_field="type", tag="compaction"):
    id: str
    encrypted_content: str


class CompactedResponse(Struct):
    id: str
    created_at: int
    output: list[CompactionItem]
    usage: ResponseUsage
    object: Literal["response.compaction"] = "response.compaction"


def read_request(body: bytes) -> Call:
    """A Call that asks the model for the short form. Raises InvalidRequest naming the field."""
    task: Json = {"type": "message", "role": "user", "content": _TASK}
    call = openai_responses.read_request(body, store=False, more=(task,))
    if call.stream:
        raise InvalidRequest("stream: a compaction is not streamed; leave it out", param="stream")
    return call


class Encoder:
    """As `openai_responses.Encoder`, for an answer in one piece."""

    media_type = sse.MEDIA_TYPE
    keep_alive = sse.KEEP_ALIVE

    def __init__(self, call: Call, request_id: str, created: int, model: str) -> None:
        self.id = f"resp_{request_id}"
        self._key = request_id
        self._created = created

    def feed(self, event: Event) -> bytes:
        raise NotImplementedError("compactions are not streamed")

    def close(self) -> bytes:
        raise NotImplementedError("compactions are not streamed")

    def body(self, fold: Fold) -> bytes:
        """Raises InvalidRequest if the model's limit cut the short form: it would lose what stands last."""
        (choice,) = fold.choices()
        if choice.finish is None or choice.finish.reason != "stop":
            raise InvalidRequest(
                "max_output_tokens: the short form was cut; allow more tokens", param="max_output_tokens"
            )
        item = CompactionItem(f"cmp_{self._key}", seal(_HEAD + choice.text))
        return encode(CompactedResponse(self.id, self._created, [item], usage_body(fold.usage)))
