"""Functionary 3.1 (`<function=f>{…}</function>`, also Llama 3.1's for own functions) and 3.2 (`>>>f`)."""

from __future__ import annotations

from penstock.text.output.format import CallSyntax, OutputFormat
from penstock.text.output.named_calls import NamedCalls
from penstock.text.output.reasoning import THINK

FUNCTIONARY_V31 = OutputFormat(
    "functionary_v31",
    THINK,
    NamedCalls(("<function=",), (">",), ("</function>",)),
    CallSyntax(("<function=", ">"), "</function>", "json"),
    signs=(("<function=",),),
)

FUNCTIONARY_V32 = OutputFormat(
    "functionary_v32",
    None,
    NamedCalls((">>>",), ("\n",), ()),
    CallSyntax((">>>", "\n"), "", "json"),
    frames=(">>>all\n",),
    signs=((">>>all",),),
)
