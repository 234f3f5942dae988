"""The `penstock` command: one file per verb, registered here.

Verbs import what they run with inside their functions: `penstock --help` answers in a quarter of a
second. An expected failure is one line, `error: …`, on stderr and exit code 2 (mend the command
line) or 1; a traceback is a bug of Penstock.
"""

from __future__ import annotations

import sys
from typing import Annotated

import typer

from penstock import __version__
from penstock.cli import batch, bench, chat, doctor, engine, models, pull, quantize, run, serve, tune
from penstock.errors import PenstockError

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
app.command("pull")(pull.pull)
app.command("quantize")(quantize.quantize)
app.add_typer(models.app, name="models")
app.add_typer(bench.app, name="bench")
app.add_typer(tune.app, name="tune")
app.command("doctor")(doctor.doctor)
app.command("engine")(engine.engine)


def _version(wanted: bool) -> None:
    if wanted:
        typer.echo(f"penstock {__version__}")
        raise typer.Exit


@app.callback()
def root(
    version: Annotated[
        bool, typer.Option("--version", callback=_version, is_eager=True, help="Print the version.")
    ] = False,
) -> None:
    """Serve, run and measure language models on this machine."""


def main() -> None:
    """Entry point. Always exits through SystemExit."""
    from penstock.cli import console

    try:
        app()
    except PenstockError as error:
        console.fail(error.message)
        sys.exit(console.exit_code(error))
    except BrokenPipeError:
        # The reader left (`penstock run … | head`): nothing more to say, and nobody to say it to.
        sys.stderr.close()
        sys.exit(141)
    except KeyboardInterrupt:
        sys.exit(130)
    except OSError as error:
        console.fail(str(error))
        sys.exit(1)


if __name__ == "__main__":
    main()
