"""DeepSeek R1 and V3, V3.1, and the tags of V3.2 and V4 (also GigaChat 3.5's, which differ in one word).

The bars in the markers are fullwidth (U+FF5C), the low lines are U+2581.
"""

from __future__ import annotations

from penstock.text.output.format import CallSyntax, OutputFormat
from penstock.text.output.named_calls import NamedCalls
from penstock.text.output.reasoning import THINK, ReasoningMarkers
from penstock.text.output.tag_calls import Tag, TagCalls

_CALLS = ("<｜tool▁calls▁begin｜>", "<｜tool▁calls▁end｜>")
_BEGIN, _SEP, _END = "<｜tool▁call▁begin｜>", "<｜tool▁sep｜>", "<｜tool▁call▁end｜>"


def _name(text: str) -> str:
    """The name in `function<｜tool▁sep｜>NAME`."""
    before, _, name = text.rpartition(_SEP)
    return name.strip() if before.strip() in ("", "function") else ""


DEEPSEEK_V3 = OutputFormat(
    "deepseek_v3",
    THINK,
    NamedCalls((_BEGIN,), ("\n", "```", "{"), (_END,), section=_CALLS, name_of=_name, fence=True),
    CallSyntax(
        (f"{_BEGIN}function{_SEP}", "\n```json\n"),
        f"\n```{_END}",
        "json",
        begin=_CALLS[0],
        end=_CALLS[1],
        separator="\n",
    ),
    signs=((_BEGIN, "```json"), (_BEGIN, "tool['type']")),
)

DEEPSEEK_V31 = OutputFormat(
    "deepseek_v31",
    THINK,
    NamedCalls((_BEGIN,), (_SEP,), (_END,), section=_CALLS),
    CallSyntax((_BEGIN, _SEP), _END, "json", begin=_CALLS[0], end=_CALLS[1]),
    signs=((_BEGIN,),),
)


def _tagged(name: str, word: str, section: str, reasoning: ReasoningMarkers) -> OutputFormat:
    """`<｜DSML｜invoke name="f"><｜DSML｜parameter name="k" string="true">v</｜DSML｜parameter>…`"""
    mark = f"｜{word}｜"
    around = (f"<{mark}{section}>", f"</{mark}{section}>")
    calls = TagCalls(
        Tag(f"<{mark}invoke", ">", f"</{mark}invoke>", "name"),
        Tag(f"<{mark}parameter", ">", f"</{mark}parameter>", "name"),
        section=around,
        hint=("string", "true"),
    )
    syntax = CallSyntax(
        (f'<{mark}invoke name="', '">\n'),
        f"</{mark}invoke>\n",
        "xml_parameters",
        begin=around[0] + "\n",
        end=around[1],
        parameter=(f'<{mark}parameter name="', '" string="{hint}">', f"</{mark}parameter>\n"),
        string_hint=("true", "false"),
    )
    return OutputFormat(name, reasoning, calls, syntax, signs=((mark, section),))


DEEPSEEK_V32 = _tagged("deepseek_v32", "DSML", "function_calls", THINK)
DEEPSEEK_V4 = _tagged("deepseek_v4", "DSML", "tool_calls", THINK)
GIGACHAT35 = _tagged("gigachat35", "GCML", "tool_calls", THINK)
