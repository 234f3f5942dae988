"""The machine as this process may use it: memory and processors, cgroup limits included, CPU features.

Invariants: every answer is read anew (limits change while a process runs); a cgroup never raises an
answer, only lowers it; the whole chain of cgroups up to the mount counts, because a limit on a
parent binds its children.

Source: Linux kernel documentation, cgroup-v1/memory, cgroup-v2, proc(5). `root` in the functions
below is where `/proc` and `/sys` are found; tests give a folder.
"""

from __future__ import annotations

import os
import platform
import subprocess
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from msgspec import Struct

_ROOT = Path("/")


class _Controller(Struct, frozen=True):
    """Where one cgroup hierarchy is mounted and where this process is in it."""

    version: int
    mount: Path
    folder: Path

    def chain(self) -> Iterator[Path]:
        """This process's cgroup, then its parents up to the mount."""
        folder = self.folder
        while True:
            yield folder
            if folder == self.mount:
                return
            folder = folder.parent


def available_memory(*, root: Path = _ROOT) -> int:
    """Bytes that this process may still take without swapping: the kernel's estimate for the machine, or
    what a cgroup limit leaves (its reclaimable file cache counted as free), whichever is less."""
    free = _meminfo(root).get("MemAvailable")
    if free is None:
        free = _system_memory()
    for limit, used in _memory_limits(root):
        free = min(free, max(0, limit - used))
    return free


def total_memory(*, root: Path = _ROOT) -> int:
    """Bytes of the machine's memory, or the least cgroup limit if that is less."""
    total = _meminfo(root).get("MemTotal")
    if total is None:
        total = _system_memory()
    return min([total, *(limit for limit, _ in _memory_limits(root))])


def cpu_count(*, root: Path = _ROOT) -> int:
    """Processors that this process may use at once: its affinity, lowered by the cgroup's time quota
    (rounded down: a thread more than the quota pays for stalls all the others), at least 1."""
    count = len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1
    for quota in _cpu_quotas(root):
        count = min(count, int(quota))
    return max(1, count)


def cpu_features(*, root: Path = _ROOT) -> set[str]:
    """Lower-case feature names as the operating system spells them ("avx512_vnni", "asimd", …).

    Empty where the system does not tell.
    """
    info = _cpuinfo(root)
    flags = info.get("flags") or info.get("features")  # x86, ARM
    if flags is None and platform.system() == "Darwin":
        flags = " ".join(_sysctl(name) for name in ("machdep.cpu.features", "machdep.cpu.leaf7_features"))
    return set((flags or "").lower().split())


def cpu_name(*, root: Path = _ROOT) -> str:
    """The processor's name for people; its architecture where the system does not tell."""
    name = _cpuinfo(root).get("model name")
    if name is None and platform.system() == "Darwin":
        name = _sysctl("machdep.cpu.brand_string")
    return name or platform.processor() or platform.machine()


def describe_machine() -> dict[str, Any]:
    """What benchmarks and `penstock doctor` print: all of the above under names with units."""
    return {
        "cpu": cpu_name(),
        "cpus": cpu_count(),
        "cpu_features": sorted(cpu_features()),
        "total_memory_bytes": total_memory(),
        "available_memory_bytes": available_memory(),
        "system": platform.platform(),
        "python": platform.python_version(),
    }


def _meminfo(root: Path) -> dict[str, int]:
    """Bytes by field of /proc/meminfo; {} where there is none."""
    fields = {}
    for line in _read(root / "proc/meminfo").splitlines():
        name, _, value = line.partition(":")
        words = value.split()
        if words and words[0].isdigit():
            fields[name] = int(words[0]) * 1024  # always kB
    return fields


def _system_memory() -> int:
    """For systems without /proc: the free share is unknown there, the whole is the upper bound."""
    return os.sysconf("SC_PHYS_PAGES") * os.sysconf("SC_PAGE_SIZE")


def _cpuinfo(root: Path) -> dict[str, str]:
    """The first value of every field of /proc/cpuinfo, names in lower case."""
    fields: dict[str, str] = {}
    for line in _read(root / "proc/cpuinfo").splitlines():
        name, colon, value = line.partition(":")
        if colon:
            fields.setdefault(name.strip().lower(), value.strip())
    return fields


def _sysctl(name: str) -> str:
    return subprocess.run(["sysctl", "-n", name], capture_output=True, text=True, check=False).stdout.strip()


def _memory_limits(root: Path) -> Iterator[tuple[int, int]]:
    """(limit, unreclaimable use) in bytes of every cgroup that limits this process's memory."""
    for controller in _controllers(root, "memory"):
        names = (
            ("memory.max", "memory.current", "inactive_file")
            if controller.version == 2
            else ("memory.limit_in_bytes", "memory.usage_in_bytes", "total_inactive_file")
        )
        for folder in controller.chain():
            limit, used = _number(folder / names[0]), _number(folder / names[1])
            if limit is not None and used is not None:
                yield limit, max(0, used - _stat(folder / "memory.stat", names[2]))


def _cpu_quotas(root: Path) -> Iterator[float]:
    """Processors' worth of time of every cgroup that limits it."""
    for controller in _controllers(root, "cpu"):
        for folder in controller.chain():
            if controller.version == 2:
                words = _read(folder / "cpu.max").split()
            else:
                words = [_read(folder / f"cpu.cfs_{name}_us").strip() for name in ("quota", "period")]
            if (
                len(words) == 2 and words[0].isdigit() and words[1].isdigit() and int(words[1]) > 0
            ):  # else "max", -1
                yield int(words[0]) / int(words[1])


def _controllers(root: Path, name: str) -> Iterator[_Controller]:
    """The hierarchies (v1 and v2 can be mixed) that may control `name` for this process."""
    places: dict[str, str] = {}  # v1 controller name, or "" for v2: path of this process in it
    for line in _read(root / "proc/self/cgroup").splitlines():
        _, controllers, path = line.split(":", 2)
        for controller in controllers.split(","):
            places[controller] = path
    for line in _read(root / "proc/self/mountinfo").splitlines():
        front, _, back = line.partition(" - ")
        kind, _, options = [*back.split(" ", 2), "", ""][:3]
        version = {"cgroup": 1, "cgroup2": 2}.get(kind)
        if version is None or (version == 1 and name not in options.split(",")):
            continue
        place = places.get(name if version == 1 else "")
        if place is None:
            continue
        mounted, mount_point = front.split(" ")[3:5]
        mount = root / mount_point.lstrip("/")
        # in a container the mount shows a part of the host's tree, which the path may lie outside of
        inner = os.path.relpath(place, mounted)
        folder = mount if inner.startswith("..") else mount / inner
        yield _Controller(version, mount, folder if folder.is_dir() else mount)


def _read(path: Path) -> str:
    """The file's text, "" if it can't be read: an absent controller sets no limit."""
    try:
        return path.read_text()
    except OSError:
        return ""


def _number(path: Path) -> int | None:
    """The number in the file; None for "max", an absent file, or v1's way to say unlimited."""
    text = _read(path).strip()
    if not text.isdigit():
        return None
    value = int(text)
    return None if value >= 1 << 60 else value  # v1 writes LONG_MAX rounded to pages


def _stat(path: Path, field: str) -> int:
    for line in _read(path).splitlines():
        name, _, value = line.partition(" ")
        if name == field:
            return int(value)
    return 0
