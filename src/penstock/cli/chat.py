"""`penstock chat`: a conversation in the terminal.

Commands: /clear forgets the conversation, /exit (or Ctrl-D) ends it, /help lists them. Ctrl-C stops
an answer and keeps what was said so far.
"""

from __future__ import annotations

import asyncio
from typing import TYPE_CHECKING, Annotated, Any

import typer

from penstock.call import SamplingParams
from penstock.cli.flags import sampling_params, with_flags
from penstock.config import EngineSettings
from penstock.errors import InvalidRequest

if TYPE_CHECKING:
    from penstock.call import Message
    from penstock.llm import AsyncLLM

_HELP = "/clear forget the conversation · /exit leave (Ctrl-D) · Ctrl-C stop an answer"


@with_flags(sampling=SamplingParams, engine=EngineSettings, skip=("model",))
def chat(
    model: Annotated[str | None, typer.Argument(help="name, GGUF file or folder")] = None,
    system: Annotated[str | None, typer.Option("--system", help="system prompt")] = None,
    *,
    sampling: dict[str, Any],
    engine: dict[str, Any],
) -> None:
    """Talk to a model in the terminal."""
    from penstock.cli import console, output
    from penstock.cli.start import open_llm

    if not output.for_people():
        raise InvalidRequest(
            'chat asks for input line by line; `penstock run "PROMPT"` answers one prompt, '
            "--output human talks all the same",
            param="--output",
        )
    params = sampling_params(sampling)
    with asyncio.Runner() as runner:
        llm = runner.run(open_llm(model, engine))
        try:
            console.note(_HELP)
            _converse(runner, llm, params, system)
        finally:
            runner.run(llm.close())


def _converse(runner: asyncio.Runner, llm: AsyncLLM, params: SamplingParams, system: str | None) -> None:
    from penstock.cli import console

    start = [_message("system", system)] if system else []
    history = list(start)
    while (line := _read_line()) is not None:
        if line == "/exit":
            return
        if line == "/clear":
            history = list(start)
            console.note("forgotten")
        elif line.startswith("/"):
            console.note(_HELP)
        elif line:
            history.append(_message("user", line))
            answer = _answer(runner, llm, history, params)
            history.append(_message("assistant", answer))


def _answer(runner: asyncio.Runner, llm: AsyncLLM, history: list[Message], params: SamplingParams) -> str:
    """Stream one answer; what came before Ctrl-C, or before an error, counts as said."""
    from penstock.cli import console
    from penstock.cli.start import print_stream
    from penstock.errors import PenstockError

    said: list[str] = []
    try:
        runner.run(print_stream(llm.chat(history, params), said))
    except KeyboardInterrupt:
        console.write("\n")
    except PenstockError as error:
        console.fail(error.message)
    return "".join(said)


def _message(role: str, text: str) -> Message:
    from penstock.call import Message, TextPart

    return Message(role=role, parts=(TextPart(text),))  # type: ignore[arg-type]


def _read_line() -> str | None:
    """One line from the terminal; None at its end (Ctrl-D)."""
    import readline  # noqa: F401  # gives input() its line editing and history

    try:
        return input("> ").strip()
    except EOFError:
        return None
    except KeyboardInterrupt:
        return ""
