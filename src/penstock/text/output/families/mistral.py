"""`[TOOL_CALLS]`: a JSON list (tokenizer v1 to v7), or `name[ARGS]{…}` for each call (v11 and later).

Both are read by both formats: a template shows which one the model was trained on, fine-tunes mix them.
"""

from __future__ import annotations

from penstock.text.output.format import CallSyntax, OutputFormat
from penstock.text.output.json_calls import JsonCalls
from penstock.text.output.named_calls import NamedCalls
from penstock.text.output.reasoning import ReasoningMarkers
from penstock.text.output.scan import Wait
from penstock.text.output.session import Session

_THINK = ReasoningMarkers("[THINK]", "[/THINK]", also=(("<think>", "</think>"),))


def _name(text: str) -> str:
    return text.partition("[CALL_ID]")[0].strip()


class MistralCalls(JsonCalls):
    def __init__(self) -> None:
        super().__init__(("[TOOL_CALLS]",))
        self._named = NamedCalls(self.begins, ("[ARGS]", "{"), (), name_of=_name)

    @property
    def all_markers(self) -> tuple[str, ...]:
        return (*super().all_markers, "[ARGS]", "[CALL_ID]")

    def run(self, session: Session, marker: str) -> Wait[None]:
        yield from session.cursor.space()
        char = yield from session.cursor.peek()
        listed = char == "" or char in "[{"
        yield from (super().run(session, marker) if listed else self._named.run(session, marker))


MISTRAL = OutputFormat(
    "mistral",
    _THINK,
    MistralCalls(),
    CallSyntax(
        ('{"name": "', '", "arguments": '), "}", "json", begin="[TOOL_CALLS][", end="]", separator=", "
    ),
    signs=(("[TOOL_CALLS]",),),
)

MISTRAL_V11 = OutputFormat(
    "mistral_v11",
    _THINK,
    MistralCalls(),
    CallSyntax(("[TOOL_CALLS]", "[ARGS]"), "", "json"),
    signs=(("[TOOL_CALLS]", "[ARGS]"),),
)
