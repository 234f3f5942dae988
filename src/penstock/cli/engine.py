"""`penstock engine`: one model behind a socket, for gateways that come and go."""

from __future__ import annotations

from typing import TYPE_CHECKING, Annotated, Any

import typer

from penstock.cli.flags import with_flags
from penstock.cli.serve import Serving
from penstock.config import EngineSettings, build

if TYPE_CHECKING:
    from penstock.engine.messages import Ready


@with_flags(engine=EngineSettings, skip=("model",))
def engine(
    model: Annotated[str | None, typer.Argument(help="name, GGUF file or folder; default: smollm2")] = None,
    address: Annotated[
        str, typer.Option("--address", help="ipc:///path/of/a/socket, in a folder that only you can write to")
    ] = ...,  # type: ignore[assignment]
    *,
    engine: dict[str, Any],
) -> None:
    """Run an engine alone; connect with `penstock serve --engine ADDRESS`."""
    from penstock.cli import output
    from penstock.cli.start import Clock, Phases, ensure_model, memory_plan, setup_logging
    from penstock.engine.process import run_engine

    settings = build(EngineSettings, **(engine if model is None else {**engine, "model": model}))
    setup_logging("info")
    ensure_model(settings.model)
    clock, phases = Clock(), Phases()

    def ready(message: Ready) -> None:
        phases.close()
        output.result(
            Serving(message.model_id, address, message.backend, message.max_context, round(clock.total_s, 2)),
            f"{message.model_id} on {message.backend} · {memory_plan(message.plan)} · {address} · "
            f"ready in {clock.total_s:.1f} s",
        )

    try:
        code = run_engine(
            settings,
            address,
            on_loading=lambda m: phases.show(f"loading: {m.phase} {m.share:.0%}"),
            on_ready=ready,
        )
    finally:
        phases.close()
    raise typer.Exit(code)
