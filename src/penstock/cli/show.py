"""`penstock show`: what a model on this machine is, from its headers; nothing is loaded."""

from __future__ import annotations

from typing import TYPE_CHECKING, Annotated, Literal

import typer
from msgspec import Struct

from penstock.errors import InvalidRequest

if TYPE_CHECKING:
    from pathlib import Path


class Shown(Struct, frozen=True):
    """tools: `template` as the model was taught, `told` by a system message, `no` without a chat template."""

    name: str
    architecture: str
    parameters: int
    storage: str
    quantization: str
    layers: int
    context: int
    size_bytes: int
    chat: bool
    tools: Literal["template", "told", "no"]
    thinking: bool
    path: str


def show(name: Annotated[str, typer.Argument(help="name, GGUF file or folder")]) -> None:
    """Show what a model is."""
    from penstock.cli import output
    from penstock.models.load import inspect_model
    from penstock.models.sources import resolve

    path = resolve(name)
    info = inspect_model(path)
    chat, tools, thinking = _talk(path, name)
    output.record(
        Shown(
            name=name,
            architecture=info.architecture,
            parameters=info.parameters,
            storage=info.storage,
            quantization=info.quantization,
            layers=len(info.spec.layers),
            context=info.context,
            size_bytes=info.file_bytes,
            chat=chat,
            tools=tools,
            thinking=thinking,
            path=str(path),
        )
    )


def _talk(path: Path, name: str) -> tuple[bool, Literal["template", "told", "no"], bool]:
    """(has a chat template, how tools reach it, whether it reasons between markers)."""
    from penstock.text.output.choose import format_for_template
    from penstock.text.template import ChatTemplate
    from penstock.text.tokenizer import Tokenizer
    from penstock.text.tool_prompt import knows_tools

    try:
        template = ChatTemplate.for_tokenizer(Tokenizer.load(path), name)
    except InvalidRequest:  # the one that says that there is none
        return False, "no", False
    marks = format_for_template(template.source).reasoning
    thinking = marks is not None and any(begin in template.source for begin, _ in marks.pairs)
    return True, "template" if knows_tools(template.tool_source) else "told", thinking
