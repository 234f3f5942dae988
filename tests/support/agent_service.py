"""A ModelService that acts as an agent's model would: it calls the tools that it is offered.

While tools are declared and the last message is the user's, the first tool (or the one that the choice
names) is called with `arguments`; behind a tool's result the answer is text that repeats it. Without tools
it is a ScriptedService that also reads images, as models with eyes do.
"""

from __future__ import annotations

from collections.abc import AsyncIterator

from penstock.call import Call, Done, Event, Finish, TextDelta, ToolCallDelta, ToolResultPart, Usage
from support.scripted_service import ScriptedService

ARGUMENTS = '{"location":"San Francisco, CA"}'


class AgentService(ScriptedService):
    def __init__(self, arguments: str = ARGUMENTS) -> None:
        super().__init__()
        self.arguments = arguments

    def check(self, call: Call) -> None:
        """Images are welcome."""

    async def _answer(self, call: Call) -> AsyncIterator[Event]:
        last = call.messages[-1]
        if last.role == "tool":
            results = [part for part in last.parts if isinstance(part, ToolResultPart)]
            yield TextDelta(0, "It said: " + "".join(p.text for r in results for p in r.content), (1,))
            yield Finish(0, "stop")
            yield Done(Usage(9, 3))
        elif call.tools and call.tool_choice != "none":
            choice = call.tool_choice or ""
            name = choice.removeprefix("tool:") if choice.startswith("tool:") else call.tools[0].name
            half = len(self.arguments) // 2
            yield ToolCallDelta(0, 0, f"call_{len(self.calls)}", name, "")
            yield ToolCallDelta(0, 0, arguments=self.arguments[:half])
            yield ToolCallDelta(0, 0, arguments=self.arguments[half:])
            yield Finish(0, "tool_calls")
            yield Done(Usage(9, 5))
        else:
            async for event in super()._answer(call):
                yield event
