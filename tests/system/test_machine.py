"""What a process may use: limits of control groups, affinity, SLURM, its own; and its threads."""

import os
import resource
import subprocess
import sys
from pathlib import Path

import psutil
import pytest

from distill.system import machine

GIGABYTE = 2**30


@pytest.fixture
def root(home: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """An empty tree in place of the machine's, for a process with the affinity of eight cores."""
    monkeypatch.setattr(machine, "ROOT", home)
    monkeypatch.setattr(os, "sched_getaffinity", lambda _: set(range(8)), raising=False)
    monkeypatch.delenv("SLURM_CPUS_PER_TASK", raising=False)
    return home


def tree(root: Path, files: dict[str, str]) -> None:
    for name, text in files.items():
        path = root / name
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text(text)


V1 = {
    "proc/self/cgroup": "4:memory:/slurm/job\n2:cpu,cpuacct:/slurm/job\n0::/\n",
    "sys/fs/cgroup/cpu/slurm/cpu.cfs_quota_us": "250000\n",
    "sys/fs/cgroup/cpu/slurm/cpu.cfs_period_us": "100000\n",
    "sys/fs/cgroup/cpu/slurm/job/cpu.cfs_quota_us": "-1\n",
    "sys/fs/cgroup/cpu/slurm/job/cpu.cfs_period_us": "100000\n",
    "sys/fs/cgroup/memory/memory.limit_in_bytes": "9223372036854771712\n",
    "sys/fs/cgroup/memory/memory.usage_in_bytes": "5000000000\n",
    "sys/fs/cgroup/memory/slurm/job/memory.limit_in_bytes": "1000000\n",
    "sys/fs/cgroup/memory/slurm/job/memory.usage_in_bytes": "700000\n",
    "sys/fs/cgroup/memory/slurm/job/memory.stat": "inactive_file 1\ntotal_inactive_file 90000\n",
    "sys/fs/cgroup/unified/cgroup.procs": "",
}
V2 = {
    "proc/self/cgroup": "0::/slurm/job\n",
    "sys/fs/cgroup/cpu.max": "max 100000\n",
    "sys/fs/cgroup/slurm/cpu.max": "150000 100000\n",
    "sys/fs/cgroup/slurm/memory.max": "1000000\n",
    "sys/fs/cgroup/slurm/memory.current": "700000\n",
    "sys/fs/cgroup/slurm/memory.stat": "anon 5\ninactive_file 90000\n",
    "sys/fs/cgroup/slurm/job/memory.max": "max\n",
    "sys/fs/cgroup/slurm/job/memory.current": "600000\n",
}
CONTAINER = {  # of which only its own part is mounted, at a path that it is not told of
    "proc/self/cgroup": "0::/docker/abc\n",
    "sys/fs/cgroup/cpu.max": "50000 100000\n",
    "sys/fs/cgroup/memory.max": "1000000\n",
    "sys/fs/cgroup/memory.current": "610000\n",
}


@pytest.mark.parametrize(
    ("files", "cores", "free"), [(V1, 3, 390_000), (V2, 2, 390_000), (CONTAINER, 1, 390_000)]
)
def test_limits_of_control_groups(root: Path, files: dict[str, str], cores: int, free: int) -> None:
    tree(root, files)
    assert machine.cores() == cores
    assert machine.free_memory() == free
    assert machine.memory() == 1_000_000


def test_without_limits_it_is_the_machine(root: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    assert not (root / "proc").exists()
    assert machine.cores() == 8
    assert machine.memory() == psutil.virtual_memory().total
    monkeypatch.setenv("SLURM_CPUS_PER_TASK", "5")
    assert machine.cores() == 5


def test_a_limit_of_the_address_space() -> None:
    before = resource.getrlimit(resource.RLIMIT_AS)
    resource.setrlimit(resource.RLIMIT_AS, (2**40, before[1]))
    try:
        assert machine.memory() <= 2**40
        assert machine.free_memory() <= 2**40 - psutil.Process().memory_info().vms + GIGABYTE
    finally:
        resource.setrlimit(resource.RLIMIT_AS, before)


@pytest.mark.parametrize("theirs", [{"OMP_WAIT_POLICY": "ACTIVE"}, {"GOMP_SPINCOUNT": "9"}])
def test_what_the_user_set_for_threads_stays(
    theirs: dict[str, str], monkeypatch: pytest.MonkeyPatch
) -> None:
    for name in ("OMP_WAIT_POLICY", "GOMP_SPINCOUNT"):
        monkeypatch.delenv(name, raising=False)
    for name, value in theirs.items():
        monkeypatch.setenv(name, value)
    machine.prepare()
    assert os.environ.get("OMP_WAIT_POLICY") in (None, "ACTIVE")


@pytest.mark.slow
def test_threads_wait_without_spinning_and_are_as_many_as_the_cores_to_use() -> None:
    [first, *_] = sorted(os.sched_getaffinity(0))
    code = (
        f"import os; os.sched_setaffinity(0, [{first}]); import distill, torch;"
        "print(os.environ['OMP_WAIT_POLICY'], os.environ['OMP_NUM_THREADS'],"
        "torch.get_num_threads())"
    )
    environment = {k: v for k, v in os.environ.items() if not k.startswith("OMP_")}
    done = subprocess.run(
        [sys.executable, "-c", code], capture_output=True, text=True, check=True, env=environment
    )
    assert done.stdout.split() == ["PASSIVE", "1", "1"]
