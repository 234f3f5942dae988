"""The `penstock` command: one file per verb, registered here.

Verbs import what they run with inside their functions: `penstock --help` answers in a quarter of a
second. Every verb takes `--output` (`penstock.cli.output`) and ends with one of the exit codes there: an
expected failure is one line on stderr; a traceback is a bug of Penstock.
"""

from __future__ import annotations

import functools
import inspect
import sys
from collections.abc import Callable, Sequence
from typing import Annotated, Any

import typer

from penstock import __version__
from penstock.cli import (
    batch,
    batches,
    bench,
    chat,
    console,
    doctor,
    engine,
    models,
    output,
    ps,
    pull,
    quantize,
    run,
    serve,
    settings,
    show,
    stop,
    tune,
)
from penstock.cli.launch import command as launch
from penstock.errors import PenstockError

# Typer brings its own click, or has one beside it.
UsageError: type[Exception] = typer.BadParameter.__bases__[0]

app = typer.Typer(
    name="penstock",
    help="Serve, run and measure language models on this machine.",
    no_args_is_help=True,
    add_completion=False,
    pretty_exceptions_enable=False,
    context_settings={"help_option_names": ["-h", "--help"]},
)

app.command("serve")(serve.serve)
app.command("run")(run.run)
app.command("chat")(chat.chat)
app.command("batch")(batch.batch)
app.command("launch")(launch.launch)
app.command("pull")(pull.pull)
app.command("list")(models.list_)
app.command("show")(show.show)
app.command("cp")(models.cp)
app.command("rm")(models.rm)
app.command("ps")(ps.ps)
app.command("stop")(stop.stop)
app.command("quantize")(quantize.quantize)
app.add_typer(batches.app, name="batches")
app.add_typer(models.app, name="models")
app.add_typer(bench.app, name="bench")
app.add_typer(tune.app, name="tune")
app.command("settings")(settings.settings)
app.command("doctor")(doctor.doctor)
app.command("engine")(engine.engine)

Output = Annotated[
    output.Mode | None,
    typer.Option(
        "--output",
        callback=lambda mode: output.choose(mode) if mode else None,
        is_eager=True,
        help="tables, tab-separated rows or JSON; default: agent where one's environment shows, or human",
        show_default=False,
    ),
]


def _with_output(command: Callable[..., Any]) -> Callable[..., Any]:
    """The command with the option `--output`, which has done its work when the command runs."""
    own = inspect.signature(command, eval_str=True)
    option = inspect.Parameter("output_mode", inspect.Parameter.KEYWORD_ONLY, default=None, annotation=Output)

    @functools.wraps(command)
    def run(*, output_mode: str | None = None, **values: Any) -> Any:
        return command(**values)

    parameters = [p.replace(kind=inspect.Parameter.KEYWORD_ONLY) for p in own.parameters.values()]
    del run.__wrapped__  # Typer would follow it to the signature without the option
    run.__signature__ = own.replace(parameters=[*parameters, option])  # type: ignore[attr-defined]
    run.__annotations__ = {p.name: p.annotation for p in (*parameters, option)}
    return run


def _give_output(group: typer.Typer) -> None:
    for command in group.registered_commands:
        if command.callback is not None:
            command.callback = _with_output(command.callback)
    for inner in group.registered_groups:
        if inner.typer_instance is not None:
            _give_output(inner.typer_instance)


_give_output(app)


def _version(wanted: bool) -> None:
    if wanted:
        typer.echo(f"penstock {__version__}")
        raise typer.Exit


@app.callback()
def root(
    version: Annotated[
        bool, typer.Option("--version", callback=_version, is_eager=True, help="Print the version.")
    ] = False,
    output_mode: Output = None,
) -> None:
    """Serve, run and measure language models on this machine."""


def main() -> None:
    """Entry point. Always exits through SystemExit."""
    output.choose(_asked(sys.argv[1:]))
    console.set_plain(not output.for_people())
    if not (output.for_people() and sys.stdout.isatty() and sys.stderr.isatty()):
        app.rich_markup_mode = None  # help and usage errors as plain text
    try:
        sys.exit(app(standalone_mode=output.for_people()))
    except PenstockError as error:
        sys.exit(output.fail(error))
    except UsageError as error:  # of the modes for machines; people were told by Typer
        sys.exit(output.fail(error.format_message(), output.MEND))  # type: ignore[attr-defined]
    except BrokenPipeError:
        # The reader left (`penstock run … | head`): nothing more to say, and nobody to say it to.
        sys.stderr.close()
        sys.exit(141)
    except (KeyboardInterrupt, typer.Abort):
        sys.exit(130)
    except OSError as error:
        sys.exit(output.fail(str(error), output.FAILED))


def _asked(arguments: Sequence[str]) -> output.Mode | None:
    """The mode that a command line asks for, read before it is parsed: its errors are told in that mode."""
    for at, argument in enumerate(arguments):
        if argument == "--":
            break
        flag, _, value = argument.partition("=")
        if flag == "--output":
            value = value or next(iter(arguments[at + 1 :]), "")
            return next((mode for mode in output.MODES if mode == value), None)
    return None


if __name__ == "__main__":
    main()
