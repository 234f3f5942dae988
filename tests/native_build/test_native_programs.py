"""The native test programs (native/tests) built and run: as released, with sanitizers, for aarch64 under
qemu; and what their object files may contain."""

from __future__ import annotations

import re
import shutil
import subprocess
from collections.abc import Iterator
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parents[2]
PROGRAMS = ("check_kernels", "check_step")

pytestmark = [
    pytest.mark.slow,
    pytest.mark.xdist_group("native_build"),
    pytest.mark.skipif(shutil.which("cmake") is None, reason="needs cmake"),
    pytest.mark.skipif(shutil.which("g++") is None, reason="needs g++"),
]


def build(folder: Path, *settings: str, target: str = "all") -> Path:
    """The folder with the built programs; the compiler's words are the failure."""
    generator = ["-G", "Ninja"] if shutil.which("ninja") else []
    configure = ["cmake", *generator, "-S", str(ROOT / "native/tests"), "-B", str(folder)]
    # -O1 and no debug information: most of a build's time is the kernels'.
    fast = ["-DCMAKE_BUILD_TYPE=None", "-DCMAKE_CXX_FLAGS=-O1"]
    for command in (
        [*configure, *fast, *settings],
        ["cmake", "--build", str(folder), "-j2", "--target", target],
    ):
        done = subprocess.run(command, capture_output=True, text=True, check=False)
        assert done.returncode == 0, done.stdout[-4000:] + done.stderr[-4000:]
    return folder


def run(*command: str | Path) -> dict[tuple[str, str], str]:
    """(instruction set, check) -> digest; the program's own verdict is asserted."""
    done = subprocess.run([str(part) for part in command], capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stdout[-2000:] + done.stderr[-6000:]
    rows = [line.split() for line in done.stdout.splitlines()]
    return {(name, check): digest for name, check, digest, _ in rows}


@pytest.fixture(scope="module")
def released(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """As the extension is compiled."""
    return build(tmp_path_factory.mktemp("released"))


@pytest.fixture(scope="module")
def digests(released: Path) -> dict[tuple[str, str], str]:
    return {key: value for program in PROGRAMS for key, value in run(released / program).items()}


def same_where_fused(digests: dict[tuple[str, str], str], unfused: set[str]) -> None:
    """One digest per check over the sets that round a multiply-add once."""
    checks = {check for _, check in digests}
    for check in checks:
        found = {
            name: digest
            for (name, other), digest in digests.items()
            if other == check and name not in unfused
        }
        assert len(set(found.values())) <= 1, (check, found)


def test_every_set_computes_what_plain_loops_do(digests: dict[tuple[str, str], str]) -> None:
    """Red if a kernel or a whole step is wrong on any set that runs here, or sets with fused multiply-add
    differ in a bit, or a step's bits depend on threads or on how a prompt is cut."""
    assert ("portable", "q4_1") in digests and ("portable", "step") in digests
    same_where_fused(digests, {"portable"})


def test_tiles_make_the_bits_of_dot_products(released: Path) -> None:
    """Red if a product by AMX's tiles, emulated or real, differs in a bit from the AVX-512 kernels', or its
    self-test would not see that."""
    found = run(released / "check_tiles")
    if not found:
        pytest.skip("needs AVX-512 with VNNI")
    assert ("amx_emulated", "q4") in found and ("amx_emulated", "q4_group") in found


def test_avx_vnni_by_its_other_encoding(tmp_path: Path, digests: dict[tuple[str, str], str]) -> None:
    """Red if the AVX-VNNI kernels are wrong: AVX-512 has the same 256-bit operation in another encoding."""
    if ("avx512", "q4_1") not in digests:
        pytest.skip("needs AVX-512 with VNNI")
    flags = ("-DCMAKE_CXX_FLAGS=-O1 -mavx512vl -mavx512vnni", "-DPENSTOCK_KERNEL_OPTIMIZATION=-O1")
    folder = build(tmp_path, *flags, "-DPENSTOCK_ONLY=portable;avx2", target="check_kernels")
    there = {
        ("by AVX-512", check): digest
        for (name, check), digest in run(folder / "check_kernels").items()
        if name == "avx2"
    }
    assert there
    same_where_fused({**digests, **there}, {"portable"})


def test_addresses(tmp_path: Path) -> None:
    """Red if a kernel or the executor touches a byte beyond its rows, weights, pages or scratch, indexes out
    of bounds or shifts too far. Not all of "undefined": GCC's headers of vectors add what may wrap."""
    settings = ("-DPENSTOCK_SANITIZE=address,bounds,shift", "-DPENSTOCK_KERNEL_OPTIMIZATION=-O1")
    folder = build(tmp_path, *settings, "-DPENSTOCK_ONLY=portable;avx2;avx512;amx_emulated;dotprod")
    for program in PROGRAMS:
        assert run(folder / program)
    run(folder / "check_tiles")


def test_undefined_behaviour(tmp_path: Path) -> None:
    """Red if sources that all sets share overflow, shift too far, misalign or index out of bounds."""
    settings = ("-DPENSTOCK_SANITIZE=undefined", "-DPENSTOCK_KERNEL_OPTIMIZATION=-O1")
    folder = build(tmp_path, *settings, "-DPENSTOCK_ONLY=portable")
    for program in PROGRAMS:
        assert run(folder / program)


def test_threads(tmp_path: Path) -> None:
    """Red if threads of a step race: a barrier is missing, or a counter is used before it is zeroed."""
    settings = ("-DPENSTOCK_SANITIZE=thread", "-DPENSTOCK_KERNEL_OPTIMIZATION=-O1")
    folder = build(tmp_path, *settings, "-DPENSTOCK_ONLY=portable", target="check_step")
    assert run(folder / "check_step")


@pytest.mark.skipif(shutil.which("aarch64-linux-gnu-g++") is None, reason="needs g++-aarch64-linux-gnu")
@pytest.mark.skipif(shutil.which("qemu-aarch64") is None, reason="needs qemu-user")
def test_aarch64(tmp_path: Path, digests: dict[tuple[str, str], str]) -> None:
    """Red if the kernels do not build for aarch64, are wrong there, or differ in a bit from this machine."""
    cross = ("-DCMAKE_SYSTEM_NAME=Linux", "-DCMAKE_SYSTEM_PROCESSOR=aarch64")
    compiler = ("-DCMAKE_CXX_COMPILER=aarch64-linux-gnu-g++", "-DCMAKE_EXE_LINKER_FLAGS=-static")
    folder = build(tmp_path, *cross, *compiler, "-DPENSTOCK_KERNEL_OPTIMIZATION=-O2")
    for program in PROGRAMS:
        there = {
            (f"aarch64 {name}", check): digest
            for (name, check), digest in run("qemu-aarch64", folder / program).items()
        }
        assert {name for name, _ in there} == {"aarch64 dotprod", "aarch64 portable"}
        same_where_fused({**digests, **there}, {"portable"})
        old = run("qemu-aarch64", "-cpu", "cortex-a53", folder / program)
        assert {name for name, _ in old} == {"portable"}


# ---------------------------------------------------------------- object files


def objects(folder: Path) -> Iterator[tuple[str, Path]]:
    for path in sorted(folder.rglob("isa/*.o")):
        yield path.name.split(".")[0], path


@pytest.mark.skipif(shutil.which("nm") is None, reason="needs binutils")
def test_sets_share_no_code(released: Path) -> None:
    """Red if an inline function outside a set's namespace is compiled with its instructions: the linker could
    take that copy for every machine."""
    names = [name for name, _ in objects(released)]
    assert "portable" in names
    for name, path in objects(released):
        symbols = subprocess.run(
            ["nm", "-C", "--defined-only", path], capture_output=True, text=True, check=True
        ).stdout
        for line in symbols.splitlines():
            kind, symbol = line.split(maxsplit=2)[1:]
            if kind in "TWi":  # code; constants may be shared
                own = f"penstock::{name}::" in symbol or symbol == f"penstock::{name}_kernels()"
                assert own, f"{path.name}: {kind} {symbol}"


def inner_loops(path: Path) -> Iterator[tuple[str, list[tuple[str, str]]]]:
    """(function, instructions) of each loop that contains no other."""
    text = subprocess.run(
        ["objdump", "-d", "-C", "--no-show-raw-insn", path], capture_output=True, text=True, check=True
    )
    for block in re.split(r"\n(?=[0-9a-f]+ <)", text.stdout):
        head = re.match(r"[0-9a-f]+ <(.*)>:", block)
        found = re.findall(r"^\s*([0-9a-f]+):\s+(?:\{vex\}\s+)?(\S+)[ \t]*(.*)$", block, re.MULTILINE)
        if head is None or not found:
            continue
        place = {address: i for i, (address, _, _) in enumerate(found)}
        jumps = [
            (place.get(arguments.split(" ")[0]), i)
            for i, (_, op, arguments) in enumerate(found)
            if op[0] == "j"
        ]
        loops = [(start, end) for start, end in jumps if start is not None and start <= end]
        for start, end in loops:
            if not any((a, b) != (start, end) and start <= a and b <= end for a, b in loops):
                yield head[1], [(op, arguments) for _, op, arguments in found[start : end + 1]]


@pytest.mark.skipif(shutil.which("objdump") is None, reason="needs binutils")
def test_integer_products_stay_in_registers(released: Path) -> None:
    """Red if a tile of Q4 or Q8 weights has outgrown the registers: then every product loads and stores.
    Sums that wait while a group is made may be in memory. With 16 registers some of the group's own are
    too: four rows with that were measured faster than three or two without."""
    seen = set()
    for name, path in objects(released):
        if not name.startswith(("avx", "amx")):
            continue
        for function, body in inner_loops(path):
            if not re.search(r"tile_q[48]<|::product\(|::linear", function):
                continue
            dots = sum(op in ("vpdpbusd", "vpmaddubsw") for op, _ in body)
            traffic = sum(
                "mm" in arguments and re.search(r"\(%r[sb]p", arguments) is not None for _, arguments in body
            )
            if dots >= 8:
                seen.add(name)
                most = dots * (0.3 if name.startswith(("avx512", "amx")) else 1.1)
                assert traffic <= most, (name, function, dots, traffic)
    assert seen


@pytest.mark.skipif(shutil.which("objdump") is None, reason="needs binutils")
def test_folds_of_tiles_stay_in_registers(released: Path) -> None:
    """Red if the floats of a tile's 16 rows have outgrown the registers: the fold is what takes the time."""
    paths = [path for name, path in objects(released) if name == "amx"]
    if not paths:
        pytest.skip("the compiler does not know AMX")
    seen = 0
    for function, body in inner_loops(paths[0]):
        if "fold_steps" not in function or sum(op.startswith("vfmadd") for op, _ in body) < 16:
            continue
        seen += 1
        kept = [a for op, a in body if op.startswith("vmov") and re.search(r"zmm\d+,.*\(%r[sb]p", a)]
        assert not kept, (function, kept)
    assert seen >= 4
