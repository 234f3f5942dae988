"""Embedding throughput of MiniLM: Penstock beside the package's own runtime and ONNX Runtime.

    python benchmarks/embeddings.py --peer-python PYTHON [--threads 2] [--repeats 7] [--output FILE.md]

PYTHON has both peers (`pip install sentence-transformers torch==2.13.0 onnxruntime onnx onnxscript`); without
it Penstock is measured alone. The package's runtime is sentence-transformers on PyTorch; ONNX Runtime gets
the same weights, exported here from the same files. Each engine is a process that stays alive; they take
turns set by set, in an order that rotates, and whoever is not asked is stopped. From texts to vectors:
tokenizing counts. All cut at 256 tokens and get all texts of a set at once (the peers' side sorts them and
computes 32 at a time, sentence-transformers' default).

CPU seconds are those of the whole process, all threads: on a machine that others use too they say what wall
time can't. Ratios are the median over repeats of peer's time by ours in the same repeat.
"""

from __future__ import annotations

import argparse
import base64
import json
import os
import platform
import signal
import statistics
import subprocess
import sys
import time
from pathlib import Path
from typing import Any

WORDS = """
    the a of to in and that it is was for on with as by from this which be are at an have not or but his her
    system model market water people city number language river computer question history energy music season
    theory kitchen mountain policy engine letter signal teacher doctor village planet winter metal
""".split()  # noqa: SIM905  (a list of them would be forty lines)
# Set -> (texts, fewest words, most words). Most words are one token; two tokens are put around a text.
SETS = {
    "1 text of 8 words": (1, 8, 8),
    "8 texts of 8 words": (8, 8, 8),
    "64 texts of 8 words": (64, 8, 8),
    "1 text of 256 tokens": (1, 254, 254),
    "8 texts of 256 tokens": (8, 254, 254),
    "64 texts of 256 tokens": (64, 254, 254),
    "64 texts of 4 to 180 words": (64, 4, 180),
}
PEERS = ("sentence-transformers", "onnxruntime")
PACKAGES = {
    "penstock": ("penstock",),
    "sentence-transformers": ("sentence-transformers", "transformers", "torch"),
    "onnxruntime": ("onnxruntime",),
}


def texts_of(name: str, repeat: int) -> list[str]:
    """The same for every engine; others in every repeat."""
    import random

    count, least, most = SETS[name]
    draw = random.Random(f"{name}/{repeat}")
    return [" ".join(draw.choices(WORDS, k=draw.randint(least, most))) for _ in range(count)]


# --------------------------------------------------------------------------- in the engines' processes


def open_penstock(model: str, threads: int) -> Any:
    import numpy as np

    from penstock.engine.embedding.batches import BATCH_TOKENS
    from penstock.kernels.encoder import TextBatch
    from penstock.models.encoder.load import inspect_encoder, load_encoder
    from penstock.text.text_tokenizer import TextTokenizer

    info = inspect_encoder(Path(model))
    encoder = load_encoder(info, "cpu", threads)
    tokenizer = TextTokenizer.load(Path(model))

    def embed(texts: list[str]) -> Any:
        rows = [text.ids for text in tokenizer.texts(texts, info.max_tokens)]
        found, batch = [], []
        for index, row in enumerate(rows):  # batches as the server makes them
            batch.append(row)
            if index + 1 == len(rows) or sum(map(len, batch)) + len(rows[index + 1]) > BATCH_TOKENS:
                offsets = np.concatenate([[0], np.cumsum([len(ids) for ids in batch])]).astype(np.int32)
                found.append(encoder.embed(TextBatch(np.concatenate(batch), offsets)))
                batch = []
        return np.concatenate(found)

    return embed


def open_sentence_transformers(model: str, threads: int) -> Any:
    import torch
    from sentence_transformers import SentenceTransformer

    torch.set_num_threads(threads)
    loaded = SentenceTransformer(model, device="cpu")
    return lambda texts: loaded.encode(texts, show_progress_bar=False)


def open_onnxruntime(model: str, threads: int) -> Any:
    """The graph of the same weights, with the mean of the states computed in numpy."""
    import tempfile

    import numpy as np
    import onnxruntime
    from tokenizers import Tokenizer

    with tempfile.TemporaryDirectory() as folder:
        export_onnx(model, Path(folder) / "model.onnx")
        options = onnxruntime.SessionOptions()
        options.intra_op_num_threads = threads
        session = onnxruntime.InferenceSession(
            str(Path(folder) / "model.onnx"), options, providers=["CPUExecutionProvider"]
        )
    tokenizer = Tokenizer.from_file(str(Path(model) / "tokenizer.json"))
    tokenizer.enable_truncation(256)
    tokenizer.enable_padding()

    def embed(texts: list[str]) -> Any:
        order = sorted(range(len(texts)), key=lambda index: -len(texts[index]))
        vectors = np.empty((len(texts), 384), np.float32)
        for first in range(0, len(order), 32):
            chosen = order[first : first + 32]
            rows = tokenizer.encode_batch([texts[index] for index in chosen])
            ids = np.array([row.ids for row in rows], np.int64)
            mask = np.array([row.attention_mask for row in rows], np.int64)
            fed = {"input_ids": ids, "attention_mask": mask, "token_type_ids": np.zeros_like(ids)}
            (states,) = session.run(None, fed)
            found = (states * mask[:, :, None]).sum(axis=1)
            vectors[chosen] = found / np.linalg.norm(found, axis=1, keepdims=True)
        return vectors

    return embed


def export_onnx(model: str, path: Path) -> None:
    import torch
    import transformers

    class States(torch.nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.network = transformers.BertModel.from_pretrained(model, add_pooling_layer=False).eval()

        def forward(self, ids: Any, mask: Any, kinds: Any) -> Any:
            return self.network(ids, attention_mask=mask, token_type_ids=kinds).last_hidden_state

    names = ("input_ids", "attention_mask", "token_type_ids")
    ids = torch.ones(2, 16, dtype=torch.long)
    batch, length = torch.export.Dim("batch"), torch.export.Dim("length")
    torch.onnx.export(
        States(),
        (ids, ids.clone(), ids * 0),  # one tensor twice would be one input
        str(path),
        input_names=list(names),
        dynamic_shapes=({0: batch, 1: length},) * 3,
        dynamo=True,
        verbose=False,
    )


OPEN = {
    "penstock": open_penstock,
    "sentence-transformers": open_sentence_transformers,
    "onnxruntime": open_onnxruntime,
}


def versions(kind: str) -> str:
    from importlib.metadata import version

    return ", ".join(f"{name} {version(name)}" for name in PACKAGES[kind])


def child(kind: str, model: str, threads: int) -> None:
    """Answer lines of texts with seconds, CPU seconds and vectors."""
    answers = os.fdopen(os.dup(1), "w")
    os.dup2(2, 1)
    embed = OPEN[kind](model, threads)
    print(json.dumps({"versions": versions(kind)}), file=answers, flush=True)
    for line in sys.stdin:
        texts = json.loads(line)
        began, used = time.perf_counter(), time.process_time()
        vectors = embed(texts)
        seconds, cpu = time.perf_counter() - began, time.process_time() - used
        data = base64.b64encode(vectors.astype("<f4").tobytes()).decode()
        print(json.dumps({"seconds": seconds, "cpu": cpu, "vectors": data}), file=answers, flush=True)


# --------------------------------------------------------------------------- the measurement


class Engine:
    def __init__(self, kind: str, python: str, model: str, threads: int) -> None:
        environment = {
            name: str(threads) for name in ("OMP_NUM_THREADS", "MKL_NUM_THREADS", "RAYON_NUM_THREADS")
        }
        self.kind = kind
        self._process = subprocess.Popen(
            [python, __file__, "--child", kind, "--model", model, "--threads", str(threads)],
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            stderr=subprocess.DEVNULL,
            text=True,
            env=os.environ | environment,
        )
        self.versions = self._answer()["versions"]
        self._stop()

    def run(self, texts: list[str]) -> dict:
        self._process.send_signal(signal.SIGCONT)
        assert self._process.stdin is not None
        self._process.stdin.write(json.dumps(texts) + "\n")
        self._process.stdin.flush()
        answer = self._answer()
        self._stop()
        return answer

    def end(self) -> None:
        self._process.kill()
        self._process.wait()

    def _stop(self) -> None:
        self._process.send_signal(signal.SIGSTOP)

    def _answer(self) -> dict:
        assert self._process.stdout is not None
        line = self._process.stdout.readline()
        if not line:
            raise SystemExit(f"{self.kind} ended with status {self._process.wait()}")
        return json.loads(line)


def measure(engines: list[Engine], repeats: int) -> tuple[dict, float]:
    """({(engine, set): [(seconds, cpu)]}, largest difference between vectors of the engines)."""
    import numpy as np

    taken: dict[tuple[str, str], list[tuple[float, float]]] = {}
    largest = 0.0
    for repeat in range(-1, repeats):  # the first is to warm up
        for name in SETS:
            texts = texts_of(name, repeat)
            vectors = []
            for turn in range(len(engines)):
                engine = engines[(turn + repeat) % len(engines)]
                answer = engine.run(texts)
                vectors.append(np.frombuffer(base64.b64decode(answer["vectors"]), "<f4"))
                if repeat >= 0:
                    taken.setdefault((engine.kind, name), []).append((answer["seconds"], answer["cpu"]))
            largest = max(largest, *(float(np.abs(v - vectors[0]).max()) for v in vectors))
    return taken, largest


def report(engines: list[Engine], taken: dict, largest: float, threads: int, repeats: int) -> str:
    cores = len(os.sched_getaffinity(0))
    lines = [
        f"# Embeddings, {time.strftime('%Y-%m-%d')}",
        "",
        f"{_processor()}, {cores} cores of which {threads} are used, load average {os.getloadavg()[0]:.1f}; "
        f"all-MiniLM-L6-v2 in float32; medians of {repeats} repeats, in turns; "
        f"{'; '.join(engine.versions for engine in engines)}.",
        f"Largest difference between their vectors: {largest:.1e}.",
        "",
        "| set | "
        + " | ".join(f"{e.kind}, texts/s | CPU ms a text" for e in engines)
        + "".join(f" | {e.kind}'s wall time by ours | CPU" for e in engines[1:])
        + " |",
        "|---|" + "---:|" * (4 * len(engines) - 2),
    ]
    for name, (count, _, _) in SETS.items():
        cells = []
        for engine in engines:
            wall, cpu = (statistics.median(column) for column in zip(*taken[engine.kind, name], strict=True))
            cells.append(f"{count / wall:,.1f} | {cpu / count * 1000:.2f}")
        ours = taken["penstock", name]
        for engine in engines[1:]:
            pairs = list(zip(taken[engine.kind, name], ours, strict=True))
            ratios = [statistics.median(peer[i] / own[i] for peer, own in pairs) for i in (0, 1)]
            cells.append(" | ".join(f"{ratio:.2f}" for ratio in ratios))
        lines.append(f"| {name} | {' | '.join(cells)} |")
    return "\n".join(lines) + "\n"


def _processor() -> str:
    for line in Path("/proc/cpuinfo").read_text().splitlines():
        if line.startswith("model name"):
            return line.partition(":")[2].strip()
    return platform.processor()


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--model", default="minilm")
    parser.add_argument("--peer-python", help="a Python that has the peers")
    parser.add_argument("--threads", type=int, default=len(os.sched_getaffinity(0)))
    parser.add_argument("--repeats", type=int, default=7)
    parser.add_argument("--output", type=Path)
    parser.add_argument("--child", choices=tuple(OPEN), help=argparse.SUPPRESS)
    options = parser.parse_args()
    if options.child:
        child(options.child, options.model, options.threads)
        return
    from penstock.models import sources

    model = str(sources.resolve(options.model))
    engines = [Engine("penstock", sys.executable, model, options.threads)]
    if options.peer_python:
        engines += [Engine(kind, options.peer_python, model, options.threads) for kind in PEERS]
    try:
        taken, largest = measure(engines, options.repeats)
    finally:
        for engine in engines:
            engine.end()
    page = report(engines, taken, largest, options.threads, options.repeats)
    print(page)
    if options.output:
        options.output.write_text(page)


if __name__ == "__main__":
    main()
