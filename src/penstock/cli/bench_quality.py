"""`penstock bench quality`: what quantization and a backend's arithmetic cost in quality."""

from __future__ import annotations

import datetime
from pathlib import Path
from typing import Annotated, Any

import typer


def quality(
    model: Annotated[str, typer.Option("--model", "-m", help="name, GGUF file or folder")] = "smollm2",
    backend: Annotated[str, typer.Option("--backend", help="kernel backend to test")] = "auto",
    weights: Annotated[
        str, typer.Option("--weights", help="form of the weights: file, float32, bf16, int8, int4")
    ] = "file",
    kv_dtype: Annotated[
        str, typer.Option("--kv-dtype", help="form of the KV: auto, float32, bf16, int8")
    ] = "auto",
    against: Annotated[
        str | None,
        typer.Option("--against", help="compare with this model's float32 weights; default: MODEL's own"),
    ] = None,
    count: Annotated[int, typer.Option("--passages", min=1, help="passages of text")] = 200,
    report: Annotated[
        Path | None, typer.Option("--report", "-o", help="write the report here as JSON")
    ] = None,
) -> None:
    """Compare a model as served with its float32 weights: KL divergence, agreement, perplexity."""
    from penstock.bench import quality as bench
    from penstock.bench.report import Measure, measures
    from penstock.cli import console, output
    from penstock.cli.start import ensure_model
    from penstock.config import EngineSettings, build
    from penstock.engine.shape import KV_BYTES
    from penstock.kernels.backend import BackendOptions, open_backend
    from penstock.models.load import inspect_model, load_model
    from penstock.models.sources import resolve

    settings = build(EngineSettings, model=model, backend=backend, weights=weights, kv_dtype=kv_dtype)
    opened = open_backend(settings.backend, BackendOptions(weights=settings.weights, kv=settings.kv_dtype))
    for name in (model, against):
        if name is not None:
            ensure_model(name)
    path = resolve(model)
    reference_path = path if against is None else resolve(against)
    text, sequences = bench.read_passages(reference_path, count)
    reference = load_model(inspect_model(reference_path), "reference", context=bench.PASSAGE_TOKENS)
    tested = load_model(inspect_model(path), opened, context=bench.PASSAGE_TOKENS)
    with console.count_progress("passages", count) as advance:
        found = bench.compare(reference, tested, sequences, advance, kv_itemsize=KV_BYTES[opened.kv_form])
    sentences = [f"{text.passages} passages, {text.tokens} tokens, {text.source}"]
    sentences += [f"{name:24}{value}" for name, value in bench.lines(found)]
    output.rows(measures(found), Measure, human=lambda: sentences)
    if report is not None:
        described = {
            "kind": "quality",
            "model": model,
            "backend": opened.numerics,
            "kv": opened.kv_form,
            "against": against,
        }
        _save(report, found, {**described, "text": text})


def _save(path: Path, found: Any, workload: dict[str, Any]) -> None:
    from penstock.bench import report
    from penstock.observe.machine import describe_machine

    today = datetime.datetime.now(tz=datetime.UTC).date().isoformat()
    report.save(path, report.as_json(found, workload, describe_machine(), today))
