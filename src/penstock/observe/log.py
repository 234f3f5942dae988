"""Logging: one line per event on stderr, `key=value` after the message, through the standard library.

Loggers are named `penstock.<part>`. Data goes to stdout, logs never do. Levels: a request is info
(`penstock.access`), something the operator must see is a warning, a defect is an error with traceback.
"""

from __future__ import annotations

import json
import logging
import sys
from typing import Any, TextIO

access_log = logging.getLogger("penstock.access")


def setup(level: str = "info", stream: TextIO | None = None) -> None:
    """Send penstock's log to `stream` (stderr). Calling it again replaces the earlier handler."""
    logger = logging.getLogger("penstock")
    handler = logging.StreamHandler(stream or sys.stderr)
    formatter = logging.Formatter("%(asctime)s.%(msecs)03d %(levelname).1s %(name)s %(message)s", "%H:%M:%S")
    handler.setFormatter(formatter)
    logger.handlers[:] = [handler]
    logger.setLevel(level.upper())
    logger.propagate = False


def fields(**values: Any) -> str:
    """`a=1 path="/x y"`: None is left out; text is quoted where it holds a space, a quote or a control."""
    return " ".join(f"{key}={_shown(value)}" for key, value in values.items() if value is not None)


def _shown(value: Any) -> str:
    if isinstance(value, float):
        return f"{value:.1f}"
    text = str(value)
    plain = text and text.isprintable() and not any(c in text for c in ' "=\\')
    # JSON's quoting leaves no raw control character: a client's path can't forge a line.
    return text if plain else json.dumps(text)
