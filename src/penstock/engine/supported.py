"""What the local engine can't do yet of what the formats can say: a 400 that names the field.

The codecs read all of it, since an upstream may be able to; this is the one list of what is refused
before a call reaches the engine, whichever way it came: HTTP, batch file or Python. A capability
leaves the list with the change that brings it.
"""

from __future__ import annotations

from penstock.call import Call, ImagePart, ToolResultPart
from penstock.errors import InvalidRequest


def check_supported(call: Call, known: int = 0, *, images: bool = False) -> None:
    """Raises InvalidRequest for the first thing in `call` that the engine can't honour. The first `known`
    of its messages were checked before. images: whether it reads these."""
    if call.continue_final:
        raise _unsupported(
            "messages",  # in the words that clients of Anthropic's API know
            "This model does not support assistant message prefill. The conversation must end with a user "
            "message.",
        )
    for i, message in enumerate(() if images else call.messages[known:], start=known):
        for part in message.parts:
            inner = part.content if isinstance(part, ToolResultPart) else ()
            if isinstance(part, ImagePart) or any(isinstance(item, ImagePart) for item in inner):
                raise _unsupported(f"messages[{i}].content", "this model reads text only; leave images out")


def _unsupported(param: str, reason: str) -> InvalidRequest:
    return InvalidRequest(f"{param}: {reason}", param=param, code="unsupported_parameter")
