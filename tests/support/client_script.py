"""What a model must say for the tests of clients, whichever client asks."""

from __future__ import annotations

import base64
import json
from collections.abc import Iterator
from contextlib import contextmanager
from functools import partial
from typing import Any

from support.recorded_script import MODEL, RecordedScript
from support.threaded_server import Live, live_servers

__all__ = ["MODEL", "PIXEL", "TOWN", "live_script"]

TOWN = {"name": "Oslo", "people": 700_000}
RULES: tuple[dict[str, Any], ...] = (
    {"result_of": "get_weather", "text": "It is {{result}}."},
    {"user": "weather", "tool_calls": [{"name": "get_weather", "arguments": {"city": "Oslo"}}]},
    {"user": "^think", "reasoning": "let me see", "text": "yes"},
    # A schema is a tool's for clients that ask for a form that way.
    {"user": "town", "offers": "Town", "tool_calls": [{"name": "Town", "arguments": TOWN}]},
    {
        "user": "town",
        "offers": "json_tool_call",
        "tool_calls": [{"name": "json_tool_call", "arguments": TOWN}],
    },
    {"user": "town", "text": json.dumps(TOWN)},
    {
        "user": "^busy",
        "error": {"kind": "rate_limit_error", "message": "come back later", "retry_after_s": 9},
    },
    {"user": "^break", "text": "begun", "error": {"kind": "service_unavailable_error", "message": "broken"}},
    {"user": "^hang", "text": "begun, and", "hang": True},
    {"text": "You said: {{user}}", "usage": {"prompt_tokens": 30, "cached_tokens": 20}},
)
PIXEL = base64.b64decode(
    "iVBORw0KGgoAAAANSUhEUgAAAAEAAAABCAYAAAAfFcSJAAAADUlEQVR42mNk+M9QDwADhgGAWjR9awAAAABJRU5ErkJggg=="
)


@contextmanager
def live_script() -> Iterator[Live]:
    """A server of these rules; no call is open when it ends."""
    with live_servers() as start:
        yield start(make=partial(RecordedScript, *RULES))
