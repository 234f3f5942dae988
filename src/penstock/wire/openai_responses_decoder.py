"""The upstream side of the Responses format: SSE bytes → Events."""

from __future__ import annotations

import json
from typing import Any

import msgspec

from penstock.call import (
    Done,
    Event,
    Failure,
    Finish,
    FinishReason,
    ReasoningDelta,
    TextDelta,
    TokenLogprob,
    ToolCallDelta,
    TopLogprob,
)
from penstock.wire.openai_responses_body import Logprob, ResponseUsage, usage_event
from penstock.wire.openai_responses_tools import INPUT, flat_name
from penstock.wire.upstream_events import UpstreamEvents

_HEAD, _TAIL = f'{{"{INPUT}":"', '"}'  # around a custom tool's input
_TERMINAL = ("response.completed", "response.incomplete")
_TEXT = ("response.output_text.delta", "response.refusal.delta")
_REASONING = ("response.reasoning_text.delta", "response.reasoning_summary_text.delta")
_ARGUMENTS = ("response.function_call_arguments.delta", "response.custom_tool_call_input.delta")
# What reading an event of another shape raises.
_BROKEN = (msgspec.MsgspecError, UnicodeDecodeError, RecursionError, LookupError, TypeError, AttributeError)


class Decoder(UpstreamEvents):
    """See UpstreamEvents; the end is one of the terminal events."""

    def __init__(self) -> None:
        super().__init__()
        self._calls: dict[int, int] = {}  # output index -> call index
        self._custom: set[int] = set()  # output indices of custom tools' calls

    def _frame(self, payload: bytes) -> list[Event]:
        if payload == b"[DONE]":
            return self.close()
        try:
            return self._event(msgspec.json.decode(payload, type=dict[str, Any]))
        except _BROKEN as error:
            return [self._fail(f"the upstream sent an event that is not of this format: {error!r}")]

    def _event(self, event: dict[str, Any]) -> list[Event]:
        kind = event.get("type")
        if kind in _TEXT:
            return [TextDelta(0, event["delta"], (), _logprobs(event.get("logprobs")))]
        if kind in _REASONING:
            return [ReasoningDelta(0, event["delta"])]
        if kind == "response.output_item.added":
            return self._item(event["output_index"], event["item"])
        if kind in _ARGUMENTS:
            return self._arguments(event["output_index"], event["delta"])
        if kind == "response.output_item.done" and event["output_index"] in self._custom:
            return [ToolCallDelta(0, self._calls[event["output_index"]], arguments=_TAIL)]
        if kind in _TERMINAL:
            return self._done(event["response"])
        if kind in ("response.failed", "error"):
            self._over = True
            return [_failure(event)]
        return []

    def _item(self, index: int, item: dict[str, Any]) -> list[Event]:
        if item["type"] not in ("function_call", "custom_tool_call"):
            return []
        number = self._calls[index] = len(self._calls)
        name = flat_name(item.get("namespace"), item["name"])
        given = item.get("arguments") or ""
        if item["type"] == "custom_tool_call":
            self._custom.add(index)
            given = _HEAD + _escaped(item.get("input") or "")
        return [ToolCallDelta(0, number, item["call_id"], name, given)]

    def _arguments(self, index: int, delta: str) -> list[Event]:
        text = _escaped(delta) if index in self._custom else delta
        return [ToolCallDelta(0, self._calls[index], arguments=text)]

    def _done(self, response: dict[str, Any]) -> list[Event]:
        self._over = True
        details = response.get("incomplete_details") or {}
        reason: FinishReason = "tool_calls" if self._calls else "stop"
        if response.get("status") == "incomplete":
            reason = "content_filter" if details.get("reason") == "content_filter" else "length"
        usage = msgspec.convert(response.get("usage"), ResponseUsage | None)
        return [Finish(0, reason), Done(usage_event(usage))]


def _escaped(text: str) -> str:
    return json.dumps(text, ensure_ascii=False)[1:-1]


def _failure(event: dict[str, Any]) -> Failure:
    """An error that an upstream sent inside its stream. The stream has no status: 502 would be ours."""
    detail = (event.get("response") or {}).get("error") or event.get("error") or event
    code = detail.get("code")
    kind = "rate_limit_error" if code == "rate_limit_exceeded" else "service_unavailable_error"
    code = None if code is None else str(code)
    return Failure(kind, str(detail.get("message")), 503, detail.get("param"), code)


def _logprobs(given: Any) -> tuple[TokenLogprob, ...] | None:
    """token_id is -1: the format does not carry it."""
    if not given:
        return None
    return tuple(
        TokenLogprob(
            item.token,
            item.logprob,
            bytes(item.bytes),
            -1,
            tuple(TopLogprob(top.token, top.logprob, bytes(top.bytes), -1) for top in item.top_logprobs),
        )
        for item in msgspec.convert(given, list[Logprob])
    )
