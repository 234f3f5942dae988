"""What clients put into a prompt that differs between sessions and says nothing to a model.

A nonce at the head of a long system prompt makes every session compute that prompt anew: no prefix is shared
behind the first token that differs. So it is taken out before tokenizing, on our own engine only; an upstream
gets the messages as they came.
"""

from __future__ import annotations

import re
from collections.abc import Sequence

from msgspec.structs import replace

from penstock.call import Message, TextPart

# The line that Claude Code puts first: version, entry point and a hash that changes (`cch=…`).
_BILLING_HEADER = re.compile(r"x-anthropic-billing-header:[^\n]*\n*")


def without_nonces(messages: Sequence[Message]) -> Sequence[Message]:
    """The messages, the first without a client's billing header. A system message of nothing else goes."""
    if not messages or messages[0].role not in ("system", "developer") or not messages[0].parts:
        return messages
    first = messages[0].parts[0]
    header = _BILLING_HEADER.match(first.text) if isinstance(first, TextPart) else None
    if header is None or not isinstance(first, TextPart):
        return messages
    rest = first.text[header.end() :]
    parts = (*((TextPart(rest),) if rest else ()), *messages[0].parts[1:])
    return [*((replace(messages[0], parts=parts),) if parts else ()), *messages[1:]]
