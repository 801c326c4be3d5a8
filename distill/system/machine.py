"""What this process may use of its machine: the limits set for it, not what the host has."""

import atexit
import gc
import os
from collections.abc import Iterator
from math import ceil
from pathlib import Path

ROOT = Path("/")  # a test's own tree stands in for it
# Of versions 2 and 1 of control groups: the limit, what is used, and which of it can be dropped.
MEMORY = (
    ("memory.max", "memory.current", "inactive_file"),
    ("memory.limit_in_bytes", "memory.usage_in_bytes", "total_inactive_file"),
)


def _groups(controller: str) -> Iterator[Path]:
    """The folders of this process's control groups, from its own up to the root of each.

    In a container the path that a process reads here may not exist: what is mounted is its own.
    """
    mounts = ROOT / "sys/fs/cgroup"
    lines = _text(ROOT / "proc/self/cgroup").splitlines()
    for _, controllers, path in (line.split(":", 2) for line in lines):
        if controllers:
            mount = mounts / controller
            if controller not in controllers.split(","):
                continue
        else:
            mount = mounts / "unified" if (mounts / "unified").is_dir() else mounts
        own = mount / path.lstrip("/")
        yield from (f for f in (own, *own.parents) if f.is_relative_to(mount) and f.is_dir())


def _text(path: Path) -> str:
    try:
        return path.read_text(encoding="utf-8")
    except OSError:
        return ""


def _number(text: str) -> int | None:
    """A limit; None where there is none (max, -1, no file)."""
    return int(text) if text.strip().isdigit() else None


def cores() -> int:
    """How many cores this process may keep busy: affinity, quota of its control groups, SLURM's."""
    counts = [len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count()]
    slurm = (os.environ.get(f"SLURM_CPUS_{of}", "") for of in ("PER_TASK", "ON_NODE"))
    counts.append(next((count for text in slurm if (count := _number(text))), None))
    for folder in _groups("cpu"):
        quota, period, *_ = [*_text(folder / "cpu.max").split(), "", ""]
        quota = quota or _text(folder / "cpu.cfs_quota_us")
        period = period or _text(folder / "cpu.cfs_period_us")
        share, length = _number(quota), _number(period)
        counts.append(ceil(share / length) if share and length else None)
    return max(1, min(count for count in counts if count is not None))


def _memory() -> Iterator[tuple[int, int]]:
    """Each limit of this process's memory, in bytes, and what it leaves free."""
    import psutil  # late: light commands need none of it

    machine = psutil.virtual_memory()
    yield machine.total, machine.available
    for folder in _groups("memory"):
        for limit, used, cached in MEMORY:
            most, taken = _number(_text(folder / limit)), _number(_text(folder / used))
            if most is not None and taken is not None:
                stat = dict(line.split() for line in _text(folder / "memory.stat").splitlines())
                yield most, most - taken + int(stat.get(cached, 0))
    try:
        import resource
    except ImportError:  # Windows has no such limit
        return
    most, _ = resource.getrlimit(resource.RLIMIT_AS)
    if most != resource.RLIM_INFINITY:
        yield most, most - psutil.Process().memory_info().vms


def memory() -> int:
    """Bytes of memory that this process may have in all."""
    return min(most for most, _ in _memory())


def free_memory() -> int:
    """Bytes that this process can still take before its machine, or a limit of its own, says no."""
    return max(0, min(left for _, left in _memory()))


def prepare() -> None:
    """Set what torch's threads read when it is loaded, where the user has not.

    They wait without spinning: beside other busy processes, threads that spin at each barrier make
    a step 10 to 70 times slower (bench/LOG.md). And they are as many as this process has cores.
    """
    if "GOMP_SPINCOUNT" not in os.environ:
        os.environ.setdefault("OMP_WAIT_POLICY", "PASSIVE")
    if (count := cores()) < (os.cpu_count() or 1):
        os.environ.setdefault("OMP_NUM_THREADS", str(count))


def abilities() -> set[str]:
    """What the processor can, as Linux names it, such as avx2 or amx_bf16; elsewhere nothing."""
    try:
        lines = (ROOT / "proc/cpuinfo").read_text().splitlines()
    except OSError:
        return set()
    flags = (line.partition(":")[2].split() for line in lines if line.startswith("flags"))
    return set(next(flags, []))


_hurried = False


def hurry() -> None:
    """Collect no garbage while a command starts, whose imports leave none.

    A collector that walks through all that they make takes a tenth of the time.
    """
    global _hurried
    _hurried = gc.isenabled()
    gc.disable()


def settle() -> None:
    """Collect garbage again, but none of what the start has made."""
    global _hurried
    if _hurried:
        gc.freeze()
        gc.enable()
        # What stays frozen to the end, libraries that torchvision loads call leaks, on stderr.
        atexit.register(gc.unfreeze)
    _hurried = False
