"""`penstock doctor`: what this machine offers, what Penstock makes of it, and what is broken.

Each line starts with a verdict: `ok`, `note` (works, but know this) or `broken` (exit code 1).
"""

from __future__ import annotations

import importlib
import importlib.metadata
import platform
from collections.abc import Callable, Iterator
from typing import TYPE_CHECKING, Annotated, Any, Literal

import typer
from msgspec import Struct

from penstock.cli.flags import with_flags
from penstock.config import EngineSettings, build
from penstock.errors import NotFound, PenstockError

if TYPE_CHECKING:
    from penstock.models.load import ModelInfo

# Feature names as Linux spells them, in the order in which kernels prefer them.
INSTRUCTION_SETS = (
    "amx_int8",
    "amx_bf16",
    "avx512_vnni",
    "avx512_bf16",
    "avx512f",
    "avx_vnni",
    "avx2",
    "fma",
)
ARM_SETS = ("sve", "i8mm", "asimddp", "asimd")
# Import name by package, for what a plain install brings.
PACKAGES = {
    "numpy": "numpy",
    "msgspec": "msgspec",
    "pyzmq": "zmq",
    "tokenizers": "tokenizers",
    "jinja2": "jinja2",
    "starlette": "starlette",
    "uvicorn": "uvicorn",
    "httptools": "httptools",
    "uvloop": "uvloop",
    "typer": "typer",
    "rich": "rich",
    "prometheus-client": "prometheus_client",
    "huggingface_hub": "huggingface_hub",
    "llguidance": "llguidance",
}


class Finding(Struct, frozen=True):
    verdict: Literal["ok", "note", "broken"]
    subject: str
    text: str


@with_flags(engine=EngineSettings, skip=("model",))
def doctor(
    model: Annotated[str | None, typer.Argument(help="name, GGUF file or folder; default: smollm2")] = None,
    *,
    engine: dict[str, Any],
) -> None:
    """Check machine, installation, backend, memory plan and model store."""
    from penstock.cli import output

    settings = build(EngineSettings, **(engine if model is None else {**engine, "model": model}))
    found = list(findings(settings))
    output.rows(found, Finding)
    if any(finding.verdict == "broken" for finding in found):
        raise typer.Exit(output.FAILED)


def findings(settings: EngineSettings) -> Iterator[Finding]:
    """All checks, each isolated: one that fails is a `broken` line, and the next one runs."""
    checks: tuple[tuple[str, Callable[[EngineSettings], Iterator[Finding]]], ...] = (
        ("machine", _machine),
        ("python", _python),
        ("packages", _packages),
        ("kernels", _kernels),
        ("backend", _backend),
        ("grammars", _grammars),
        ("model store", _store),
        ("model", _model),
        ("speculation", _speculation),
        ("sockets", _sockets),
    )
    for subject, check in checks:
        try:
            yield from check(settings)
        except (PenstockError, OSError, ImportError) as error:
            yield Finding("broken", subject, str(error))


def _machine(settings: EngineSettings) -> Iterator[Finding]:
    from penstock.cli.console import size
    from penstock.observe.machine import describe_machine

    machine = describe_machine()
    yield Finding("ok", "processor", f"{machine['cpu']}, {machine['cpus']} to use")
    found = [name for name in (*INSTRUCTION_SETS, *ARM_SETS) if name in machine["cpu_features"]]
    verdict: Literal["ok", "note"] = "ok" if found else "note"
    yield Finding(verdict, "instructions", ", ".join(found) or "none known; portable code will be used")
    yield Finding(
        "ok",
        "memory",
        f"{size(machine['available_memory_bytes'])} available of {size(machine['total_memory_bytes'])} "
        "(cgroup limits included)",
    )


def _python(settings: EngineSettings) -> Iterator[Finding]:
    from penstock import __version__

    yield Finding("ok", "penstock", __version__)
    yield Finding("ok", "python", f"{platform.python_version()} on {platform.platform()}")


def _packages(settings: EngineSettings) -> Iterator[Finding]:
    versions = []
    for package, module in PACKAGES.items():
        try:
            importlib.import_module(module)
            versions.append(f"{package} {importlib.metadata.version(package)}")
        except ImportError as error:
            yield Finding("broken", "packages", f"{package}: {error}; pip install {package}")
    yield Finding("ok", "packages", ", ".join(versions))
    import numpy

    blas = numpy.show_config(mode="dicts")["Build Dependencies"]["blas"]
    yield Finding("ok", "blas", f"{blas.get('name')} {blas.get('version')}")


def _kernels(settings: EngineSettings) -> Iterator[Finding]:
    """Every set of native kernels: the one that runs, those that could, and what the others miss."""
    try:
        from penstock.kernels.cpu import _native
    except ImportError as error:
        yield Finding(
            "broken",
            "kernels",
            f"the native extension is missing: {error}; install penstock again with a C++ compiler",
        )
        return
    chosen = settings.instruction_set
    for name, present, reason in _native.instruction_sets():
        if present and chosen in ("auto", name):
            yield Finding("ok", "kernels", f"{name}, used ({settings.instruction_set}): {reason}")
            chosen = name
        elif chosen == name:
            yield Finding("broken", "kernels", f"{name} is asked for but cannot be used here: {reason}")
        else:
            yield Finding("ok", "kernels", f"{name}, not used: {reason}")


def _backend(settings: EngineSettings) -> Iterator[Finding]:
    from penstock.kernels.backend import backend_names, open_backend, resolve_backend, unavailable

    chosen = resolve_backend(settings.backend)
    open_backend(chosen)
    why = "asked for" if settings.backend != "auto" else f"auto; known: {', '.join(backend_names())}"
    for name in backend_names():
        if reason := unavailable(name):
            yield Finding("note", "backend", f"{name}: {reason}")
    yield Finding("ok", "backend", f"{chosen} ({why})")
    if chosen == "reference":
        yield Finding(
            "note", "fallbacks", "none: the reference backend has every operation, in float32 numpy"
        )


def _grammars(settings: EngineSettings) -> Iterator[Finding]:
    """The backends of structured answers, in the order in which they are asked."""
    from penstock.decoding.grammar.backends import BACKENDS, unavailable

    chosen = settings.grammar_backend
    for name in BACKENDS:
        reason = unavailable(name)
        if reason is not None:
            yield Finding("broken" if chosen == name else "note", "grammars", f"{name}: {reason}")
        else:
            use = "used" if chosen in ("auto", name) else f"not used: grammar_backend is {chosen}"
            yield Finding("ok", "grammars", f"{name} {importlib.metadata.version(name)}, {use}")


def _store(settings: EngineSettings) -> Iterator[Finding]:
    from penstock.cli.console import size
    from penstock.models import sources
    from penstock.models.store import is_whole, read_record

    models = sources.list_models()
    yield Finding("ok", "model store", f"{sources.store_folder()}: {len(models)} model(s)")
    for model in models:
        key = model.name.replace("hf:", "hf--").replace("/", "--")
        record = read_record(key)
        if record is not None and not is_whole(key, record):
            yield Finding("broken", model.name, f"files are missing or cut; run `penstock pull {model.name}`")
        else:
            yield Finding("ok", model.name, f"{size(model.size_bytes)} from {model.source}: {model.path}")


def _model(settings: EngineSettings) -> Iterator[Finding]:
    from penstock.models.load import inspect_model
    from penstock.models.sources import resolve

    try:
        path = resolve(settings.model)
    except NotFound as error:
        known = "run `penstock pull" in error.message
        yield Finding("note" if known else "broken", "model", error.message)
        return
    info = inspect_model(path)
    yield Finding(
        "ok",
        "model",
        f"{settings.model}: {info.architecture}, {info.parameters / 1e6:,.0f} M parameters stored as "
        f"{info.storage}{f' ({info.quantization})' if info.quantization else ''}, "
        f"{len(info.spec.layers)} layers, context {info.context:,}",
    )
    for note in info.notes:
        yield Finding("note", "model", note)
    yield _plan(settings, info)


def _plan(settings: EngineSettings, info: ModelInfo) -> Finding:
    """The engine's own plan, made without taking any memory."""
    from penstock.cli.start import memory_plan
    from penstock.engine.build import plan_engine

    plan = plan_engine(settings, info)
    text = f"{memory_plan(plan.as_dict())}; longest request {plan.max_context:,} tokens"
    if plan.max_context < min(info.context, settings.max_context or info.context):
        return Finding(
            "note", "memory plan", f"{text} of the declared {info.context:,}; raise kv_bytes for more"
        )
    return Finding("ok", "memory plan", text)


def _speculation(settings: EngineSettings) -> Iterator[Finding]:
    from penstock.engine.build import SYNTHETIC

    speculation = settings.speculation
    if speculation is None:
        yield Finding("ok", "speculation", "off")
    elif speculation.synthetic_acceptance is not None:
        yield Finding("note", "speculation", f"{speculation.method}, {speculation.k} drafts; {SYNTHETIC}")
    else:
        yield Finding("ok", "speculation", f"{speculation.method}, up to {speculation.k} drafts")


def _sockets(settings: EngineSettings) -> Iterator[Finding]:
    from penstock.engine.sockets import SocketDir

    folder = SocketDir()
    try:
        yield Finding("ok", "sockets", f"engines can be reached below {folder.path.parent}")
    finally:
        folder.remove()
