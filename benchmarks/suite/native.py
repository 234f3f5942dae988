"""Builds the compiled parts (benchmarks/native) on demand.

A binary lives in the cache directory under a hash of its sources, its flags, the compiler's version and
the CPU: a change of any of them builds anew, everything else reuses it.
"""

from __future__ import annotations

import hashlib
import os
import platform
import shutil
import subprocess
import tempfile
from pathlib import Path

from suite.catalogue import cpu_flags

SOURCES = Path(__file__).resolve().parents[1] / "native"
RECIPES = {
    # name: (sources, the first one is compiled; compilers to try; flags)
    "probe": (("probe.c",), ("cc", "gcc", "clang"), ("-O3", "-march=native", "-std=gnu11", "-pthread")),
    "loadgen": (
        ("loadgen.cpp", "sse_reader.hpp", "json_scan.hpp"),
        ("c++", "g++", "clang++"),
        ("-O2", "-std=c++20"),
    ),
}


class NoCompiler(Exception):
    """No compiler here; the text says what to install."""


def default_cache() -> Path:
    """Where environments, converted models and binaries are kept."""
    return Path(os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache") / "penstock"


def build(name: str, cache: Path | None = None) -> Path:
    """The path of the binary `name`. NoCompiler if there is none; RuntimeError with the compiler's first
    error if it refuses."""
    sources, compilers, flags = RECIPES[name]
    compiler = next((found for one in compilers if (found := shutil.which(one))), None)
    if compiler is None:
        raise NoCompiler(
            f"{name}: none of {', '.join(compilers)} found; install a C and C++ compiler "
            "(Debian, Ubuntu: apt-get install g++)"
        )
    version = subprocess.run([compiler, "--version"], capture_output=True, text=True, check=True).stdout
    parts = [version, *flags, platform.machine(), *sorted(cpu_flags())]
    digest = hashlib.sha256("\0".join(parts).encode())
    for source in sources:
        digest.update((SOURCES / source).read_bytes())
    folder = (cache or default_cache()) / "bench-native"
    target = folder / f"{name}-{digest.hexdigest()[:16]}"
    if not target.exists():
        folder.mkdir(parents=True, exist_ok=True)
        with tempfile.TemporaryDirectory(dir=folder) as scratch:
            made = Path(scratch) / name
            command = [compiler, *flags, str(SOURCES / sources[0]), "-o", str(made)]
            done = subprocess.run(command, capture_output=True, text=True, check=False)
            if done.returncode:
                errors = [line for line in done.stderr.splitlines() if "error" in line]
                raise RuntimeError(f"{' '.join(command)}: {(errors or [done.stderr[-200:]])[0]}")
            made.replace(target)
    return target
