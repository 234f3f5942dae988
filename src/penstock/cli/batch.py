"""`penstock batch in.jsonl out.jsonl`: OpenAI batch files on this machine, resumable.

Run the same command again after an interruption, however it came: what stands in the output is not
computed again. See `penstock.cli.batch_file` for the two formats.
"""

from __future__ import annotations

import asyncio
import time
import uuid
from contextlib import aclosing
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer
from msgspec import Struct

from penstock.cli.flags import with_flags
from penstock.config import EngineSettings, build
from penstock.errors import InvalidRequest, PenstockError

if TYPE_CHECKING:
    from types import ModuleType

    from penstock.call import Call
    from penstock.cli.batch_file import BatchLine, ResultLine
    from penstock.gateway.service import ModelService
    from penstock.wire.fold import Fold


class Answered(Struct, frozen=True):
    """Lines of the batch: answered and refused now, and those that an earlier run did."""

    answered: int
    refused: int
    done_before: int
    path: str


STOPPING = (429, 503)  # not the request's fault: the batch ends, and a later run asks again


@with_flags(engine=EngineSettings, skip=("model",))
def batch(
    source: Annotated[Path, typer.Argument(metavar="IN.jsonl", help="requests, one a line")],
    target: Annotated[Path, typer.Argument(metavar="OUT.jsonl", help="results; finished ones are kept")],
    model: Annotated[
        str | None,
        typer.Option(
            "--model", "-m", help="answers every line; default: the model that the first line names"
        ),
    ] = None,
    concurrency: Annotated[
        int, typer.Option("--concurrency", min=1, help="requests in flight at most")
    ] = 256,
    *,
    engine: dict[str, Any],
) -> None:
    """Answer a file of requests."""
    from penstock.cli import output
    from penstock.cli.batch_file import ResultFile, body_model, check_input, read_lines

    wanted = check_input(source)
    name = model or body_model(next(read_lines(source)))
    settings = build(EngineSettings, **(engine if name is None else {**engine, "model": name}))
    with ResultFile(target) as results:
        foreign = results.finished - wanted.keys()
        if foreign:
            raise InvalidRequest(
                f"{target}: holds a result for {min(foreign)!r}, which {source} does not ask for; "
                "choose another output file"
            )
        before = len(results.finished)
        left = len(wanted) - before
        failed = 0
        if left:
            failed = asyncio.run(
                _answer_all(source, results, settings, model is not None, concurrency, len(wanted))
            )
        summary = Answered(left - failed, failed, before, str(target))
        told = f"{summary.answered} answered, {failed} refused, {before} were done before"
        output.result(summary, told if left else f"all {len(wanted)} were done before")


async def _answer_all(
    source: Path, results: Any, settings: EngineSettings, any_model: bool, concurrency: int, total: int
) -> int:
    """Returns how many lines were refused."""
    from penstock.cli import console
    from penstock.cli.batch_file import run_batch
    from penstock.cli.start import ensure_model
    from penstock.engine.inprocess import InProcessTransport
    from penstock.engine.service import EngineService
    from penstock.models.sources import public_name

    ensure_model(settings.model)
    name = public_name(settings.model)
    service = EngineService(settings, InProcessTransport, name)
    failed = 0
    try:
        with console.err().status(f"loading {name}"):
            await service.start()
            await service.wait_ready()
        answers = Answers(service, name, settings.model, any_model)
        with console.count_progress("requests", total, len(results.finished)) as advance:

            def done(result: ResultLine) -> None:
                nonlocal failed
                failed += result.response is None or result.response.status_code != 200
                advance()

            await run_batch(source, results, answers.answer, concurrency=concurrency, on_done=done)
    finally:
        await service.close()
    return failed


class Answers:
    """Answers batch lines with a service, as the HTTP API would.

    any_model: the model was chosen on the command line, so it answers whatever model a line names.
    Otherwise a line must name it by its id or as the first line did (`alias`).
    """

    def __init__(self, service: ModelService, name: str, alias: str, any_model: bool) -> None:
        self._service = service
        self._name = name
        self._alias = alias
        self._any_model = any_model

    async def answer(self, line: BatchLine) -> ResultLine:
        """Raises EngineUnavailable and Overloaded; every other error is the line's result."""
        from penstock.cli.batch_file import URLS, refusal, response
        from penstock.wire.openai_common import error_bytes

        if line.method != "POST" or line.url not in URLS:
            known = " or ".join(URLS)
            return refusal(line, "invalid_url", f"{line.method} {line.url}: a batch line is POST {known}")
        request_id = uuid.uuid4().hex
        try:
            return response(line, 200, request_id, await self._body(line, request_id))
        except PenstockError as error:
            if error.status in STOPPING:
                raise
            body = error_bytes(error.message, error.kind, error.param, error.code)
            return response(line, error.status, request_id, body)

    async def _body(self, line: BatchLine, request_id: str) -> bytes:
        codec = _codec(line.url)
        call: Call = codec.read_request(bytes(line.body))
        if call.stream:
            raise InvalidRequest("stream: a batch answers with whole bodies; leave it out", param="stream")
        encoder = codec.Encoder(call, request_id, int(time.time()), self._name)
        body: bytes = encoder.body(await self._fold(self._addressed(call), request_id))
        return body

    def _addressed(self, call: Call) -> Call:
        import msgspec

        if self._any_model or call.model == self._alias:
            return msgspec.structs.replace(call, model=self._name)
        return call

    async def _fold(self, call: Call, request_id: str) -> Fold:
        from penstock.errors import from_kind
        from penstock.wire.fold import Fold

        fold = Fold()
        async with aclosing(self._service.stream(call, request_id)) as events:  # type: ignore[type-var]
            async for event in events:
                fold.add(event)
        failure = fold.failure
        if failure is not None:
            raise from_kind(failure.kind, failure.message, param=failure.param, code=failure.code)
        return fold


def _codec(url: str) -> ModuleType:
    from penstock.wire import openai_chat, openai_completions

    return openai_chat if url == openai_chat.PATH else openai_completions
