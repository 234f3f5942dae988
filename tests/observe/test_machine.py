"""Memory and processors as cgroups leave them, on made-up /proc and /sys trees and on this machine."""

from __future__ import annotations

import os
from pathlib import Path

import psutil
import pytest

from penstock.observe import machine

GIB = 2**30
MEMINFO = "MemTotal:       16777216 kB\nMemFree:         1048576 kB\nMemAvailable:    8388608 kB\n"
V2_MOUNT = "30 25 0:26 {root} {mount} rw,nosuid shared:4 - cgroup2 cgroup2 rw,nsdelegate\n"
V1_MOUNT = "32 31 0:29 {root} {mount} rw,relatime - cgroup cgroup rw,{name}\n"


class Tree:
    """A root folder with /proc and /sys as far as they are read."""

    def __init__(self, root: Path) -> None:
        self.root = root
        self.write("proc/meminfo", MEMINFO)

    def write(self, path: str, text: str) -> None:
        file = self.root / path
        file.parent.mkdir(parents=True, exist_ok=True)
        file.write_text(text)

    def v2(self, place: str = "/a/b", *, root: str = "/") -> None:
        self.write("proc/self/cgroup", f"0::{place}\n")
        self.write("proc/self/mountinfo", V2_MOUNT.format(root=root, mount="/sys/fs/cgroup"))

    def v1(self, place: str, *, root: str = "/") -> None:
        self.write(
            "proc/self/cgroup", f"5:cpu,cpuacct:{place}\n4:memory:{place}\n1:name=systemd:/\n0::/elsewhere\n"
        )
        mounts = [("cpu,cpuacct", "/sys/fs/cgroup/cpu,cpuacct"), ("memory", "/sys/fs/cgroup/memory")]
        lines = [V1_MOUNT.format(root=root, mount=mount, name=name) for name, mount in mounts]
        self.write("proc/self/mountinfo", "1 1 8:1 / / rw - ext4 /dev/vda rw\n" + "".join(lines))


@pytest.fixture
def tree(tmp_path: Path) -> Tree:
    return Tree(tmp_path)


def test_without_cgroups_the_kernels_estimate_holds(tree: Tree) -> None:
    """Red if free memory is taken for available memory, or absent cgroup files are an error."""
    assert machine.available_memory(root=tree.root) == 8 * GIB
    assert machine.total_memory(root=tree.root) == 16 * GIB


def test_v2_limit_counts_file_cache_as_free(tree: Tree) -> None:
    """Red if a container's limit is ignored, or pages of the mapped weights count as used up."""
    tree.v2()
    tree.write("sys/fs/cgroup/a/b/memory.max", f"{4 * GIB}\n")
    tree.write("sys/fs/cgroup/a/b/memory.current", f"{3 * GIB}\n")
    tree.write("sys/fs/cgroup/a/b/memory.stat", f"anon {GIB}\nfile {2 * GIB}\ninactive_file {2 * GIB}\n")
    assert machine.available_memory(root=tree.root) == 3 * GIB
    assert machine.total_memory(root=tree.root) == 4 * GIB


def test_limit_of_a_parent_binds(tree: Tree) -> None:
    """Red if only the innermost cgroup is asked: systemd slices and pods limit one level up."""
    tree.v2()
    tree.write("sys/fs/cgroup/a/b/memory.max", "max\n")
    tree.write("sys/fs/cgroup/a/b/memory.current", "1\n")
    tree.write("sys/fs/cgroup/a/memory.max", f"{2 * GIB}\n")
    tree.write("sys/fs/cgroup/a/memory.current", f"{GIB}\n")
    assert machine.available_memory(root=tree.root) == GIB
    assert machine.total_memory(root=tree.root) == 2 * GIB


def test_cgroup_never_raises_an_answer(tree: Tree) -> None:
    """Red if a limit above the machine's memory is believed, or use above the limit turns negative."""
    tree.v2("/a")
    tree.write("sys/fs/cgroup/a/memory.max", f"{64 * GIB}\n")
    tree.write("sys/fs/cgroup/a/memory.current", f"{GIB}\n")
    assert machine.available_memory(root=tree.root) == 8 * GIB
    assert machine.total_memory(root=tree.root) == 16 * GIB
    tree.write("sys/fs/cgroup/a/memory.max", f"{GIB // 2}\n")
    assert machine.available_memory(root=tree.root) == 0


@pytest.mark.parametrize("root", ["/", "/docker/123"])
def test_v1_in_and_out_of_a_container(tree: Tree, root: str) -> None:
    """Red if cgroup v1 is not read, or a container's mount (a part of the host's tree) is walked wrongly."""
    tree.v1("/docker/123", root=root)
    inner = "" if root != "/" else "docker/123/"
    memory = f"sys/fs/cgroup/memory/{inner}"
    tree.write(f"{memory}memory.limit_in_bytes", f"{2 * GIB}\n")
    tree.write(f"{memory}memory.usage_in_bytes", f"{GIB}\n")
    tree.write(f"{memory}memory.stat", f"cache 1\ninactive_file 5\ntotal_inactive_file {GIB // 2}\n")
    assert machine.available_memory(root=tree.root) == 3 * GIB // 2
    tree.write(f"sys/fs/cgroup/cpu,cpuacct/{inner}cpu.cfs_quota_us", "100000\n")
    tree.write(f"sys/fs/cgroup/cpu,cpuacct/{inner}cpu.cfs_period_us", "100000\n")
    assert machine.cpu_count(root=tree.root) == 1


def test_v1_unlimited(tree: Tree) -> None:
    """Red if v1's huge number or -1 for "no limit" is taken for a limit."""
    tree.v1("/")
    tree.write("sys/fs/cgroup/memory/memory.limit_in_bytes", "9223372036854771712\n")
    tree.write("sys/fs/cgroup/memory/memory.usage_in_bytes", f"{GIB}\n")
    tree.write("sys/fs/cgroup/cpu,cpuacct/cpu.cfs_quota_us", "-1\n")
    tree.write("sys/fs/cgroup/cpu,cpuacct/cpu.cfs_period_us", "100000\n")
    assert machine.available_memory(root=tree.root) == 8 * GIB
    assert machine.cpu_count(root=tree.root) == len(os.sched_getaffinity(0))


@pytest.mark.parametrize(("quota", "cpus"), [("50000 100000", 1), ("190000 100000", 1), ("max 100000", None)])
def test_cpu_quota_rounds_down_to_at_least_one(tree: Tree, quota: str, cpus: int | None) -> None:
    """Red if threads are started that the quota then stalls, or none at all."""
    tree.v2("/a")
    tree.write("sys/fs/cgroup/a/cpu.max", f"{quota}\n")
    assert machine.cpu_count(root=tree.root) == (cpus or len(os.sched_getaffinity(0)))


def test_affinity_limits_the_count() -> None:
    """Red if `taskset` or a pinned container is ignored."""
    allowed = os.sched_getaffinity(0)
    try:
        os.sched_setaffinity(0, {min(allowed)})
        assert machine.cpu_count() == 1
    finally:
        os.sched_setaffinity(0, allowed)


def test_features_of_x86_and_arm(tree: Tree) -> None:
    """Red if kernels are chosen from a list that is empty on one of the architectures."""
    tree.write(
        "proc/cpuinfo", "processor\t: 0\nmodel name\t: Some CPU @ 2GHz\nflags\t\t: fpu AVX2 avx512_vnni\n\n"
    )
    assert machine.cpu_features(root=tree.root) == {"fpu", "avx2", "avx512_vnni"}
    assert machine.cpu_name(root=tree.root) == "Some CPU @ 2GHz"
    tree.write("proc/cpuinfo", "processor\t: 0\nFeatures\t: fp asimd i8mm\nCPU part\t: 0xd0c\n")
    assert machine.cpu_features(root=tree.root) == {"fp", "asimd", "i8mm"}
    assert machine.cpu_name(root=tree.root)


def test_this_machine_agrees_with_psutil() -> None:
    """Red if units are wrong by a factor or the real /proc is not understood."""
    memory = psutil.virtual_memory()
    assert 0 < machine.available_memory() <= machine.total_memory() <= memory.total
    assert machine.available_memory() < memory.available * 1.2
    assert 1 <= machine.cpu_count() <= (psutil.cpu_count() or 1)
    described = machine.describe_machine()
    assert described["cpus"] == machine.cpu_count()
    assert described["cpu"] == machine.cpu_name() != ""
