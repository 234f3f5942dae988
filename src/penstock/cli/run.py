"""`penstock run "prompt"`: one answer, streamed to the terminal."""

from __future__ import annotations

import asyncio
import sys
from typing import Annotated, Any

import typer
from msgspec import Struct

from penstock.call import SamplingParams
from penstock.cli.flags import sampling_params, with_flags
from penstock.config import EngineSettings
from penstock.errors import InvalidRequest


class Answer(Struct, frozen=True):
    """`--output json`; elsewhere the text streams as it is."""

    text: str
    prompt_tokens: int
    completion_tokens: int


@with_flags(sampling=SamplingParams, engine=EngineSettings, skip=("model",))
def run(
    prompt: Annotated[str | None, typer.Argument(help="the question; piped input is put behind it")] = None,
    model: Annotated[str | None, typer.Option("--model", "-m", help="name, GGUF file or folder")] = None,
    system: Annotated[str | None, typer.Option("--system", help="system prompt")] = None,
    raw: Annotated[
        bool, typer.Option("--raw", help="continue the text itself, without chat template")
    ] = False,
    stats: Annotated[bool, typer.Option("--stats", help="tokens and seconds on stderr at the end")] = False,
    *,
    sampling: dict[str, Any],
    engine: dict[str, Any],
) -> None:
    """Answer one prompt and exit."""
    text = read_prompt(prompt)
    if raw and system:
        raise InvalidRequest(
            "--system: has no meaning with --raw, which uses no chat template", param="system"
        )
    params = sampling_params(sampling)
    asyncio.run(_answer(text, model, system, raw, stats, params, engine))


def read_prompt(prompt: str | None) -> str:
    """The argument, piped input, or the one followed by the other."""
    piped = "" if sys.stdin is None or sys.stdin.isatty() else sys.stdin.read()
    text = "\n\n".join(part for part in (prompt or "", piped.rstrip("\n")) if part)
    if not text:
        raise InvalidRequest(
            'prompt: empty; write penstock run "your question" or pipe a text', param="prompt"
        )
    return text


async def _answer(
    text: str,
    model: str | None,
    system: str | None,
    raw: bool,
    stats: bool,
    params: SamplingParams,
    engine: dict[str, Any],
) -> None:
    from penstock.call import Message, TextPart
    from penstock.cli import console, output
    from penstock.cli.start import open_llm, print_stream

    said: list[str] = []
    as_json = output.mode() == "json"
    llm = await open_llm(model, engine)
    try:
        if raw:
            events = llm.generate(text, params)
        else:
            messages = [Message(role="system", parts=(TextPart(system),))] if system else []
            messages.append(Message(role="user", parts=(TextPart(text),)))
            events = llm.chat(messages, params)
        done = await print_stream(events, said, quiet=as_json)
    finally:
        await llm.close()
    if as_json and done is not None:
        output.record(Answer("".join(said), done.usage.prompt_tokens, done.usage.completion_tokens))
    if stats and done is not None:
        usage, timings = done.usage, done.timings
        decode_s = timings.total_s - timings.ttft_s
        rate = (
            (usage.completion_tokens - 1) / decode_s if usage.completion_tokens > 1 and decode_s > 0 else 0.0
        )
        console.note(
            f"{usage.prompt_tokens} prompt tokens ({usage.cached_tokens} cached), "
            f"{usage.completion_tokens} generated; "
            f"first token after {timings.ttft_s:.2f} s, then {rate:.1f} tokens/s"
        )
