"""A SLURM of this machine's own, for tests: `python tests/sweeps/slurm_here.py up|down`, as root.

It needs Debian's packages slurm-wlm and munge. All daemons listen on the loopback alone, and no
accounting is kept. The nodes are pretended ones, each a slurmd of its own, of one core. A job of
the partition `urgent` preempts those of `main`, which are requeued.
"""

import os
import shutil
import socket
import subprocess
import sys
import tempfile
import time
from pathlib import Path

import psutil

FOLDER = Path(os.environ.get("SLURM_HERE", Path(tempfile.gettempdir()) / "slurm-here"))
PROGRAMS = ("slurmctld", "slurmd", "munged", "mungekey")
WAIT = 60  # seconds, at most, until all nodes are idle


def missing() -> str:
    """Why no SLURM can be started here; empty, if one can."""
    if os.geteuid() != 0:
        return "only root can start one"
    path = os.pathsep.join([os.environ.get("PATH", ""), "/usr/sbin", "/sbin"])
    lacking = [name for name in PROGRAMS if shutil.which(name, path=path) is None]
    return f"no {', '.join(lacking)}: apt-get install slurm-wlm munge" if lacking else ""


def answers() -> bool:
    """Whether a SLURM answers, whoever started it."""
    if shutil.which("sinfo") is None:
        return False
    try:
        done = subprocess.run(["sinfo", "-h"], check=False, capture_output=True, timeout=20)
    except subprocess.TimeoutExpired:
        return False
    return done.returncode == 0


def works() -> bool:
    """Whether a SLURM that answers also runs something."""
    try:
        done = subprocess.run(["srun", "true"], check=False, capture_output=True, timeout=60)
    except subprocess.TimeoutExpired:
        return False
    return done.returncode == 0


def named(process: psutil.Process) -> str:
    """The element of an array that a process of this machine is of; empty for others."""
    own = process.environ()
    number = own.get("SLURM_ARRAY_TASK_ID")
    job = own.get("SLURM_ARRAY_JOB_ID") or own.get("SLURM_JOB_ID", "")
    return job if number is None else f"{job}_{number}"


def configuration(nodes: int, grace: int) -> str:
    """What slurm.conf says."""
    host, names = socket.gethostname().partition(".")[0], f"n[1-{nodes}]"
    facts = {
        "ClusterName": "here",
        "SlurmctldHost": f"{host}(127.0.0.1)",
        "CommunicationParameters": "NoCtldInAddrAny,NoInAddrAny",
        "SlurmUser": "root",
        "ProctrackType": "proctrack/pgid",
        "TaskPlugin": "task/none",
        "JobAcctGatherType": "jobacct_gather/none",
        "AccountingStorageType": "accounting_storage/none",
        "SelectType": "select/cons_tres",
        "SelectTypeParameters": "CR_Core",
        "SchedulerParameters": "sched_interval=1,bf_interval=1,batch_sched_delay=0",
        "ReturnToService": "2",
        "MpiDefault": "none",
        "SwitchType": "switch/none",
        "StateSaveLocation": FOLDER / "state",
        "SlurmdSpoolDir": FOLDER / "spool" / "%n",
        "SlurmctldPidFile": FOLDER / "slurmctld.pid",
        "SlurmdPidFile": FOLDER / "slurmd-%n.pid",
        "SlurmctldLogFile": FOLDER / "slurmctld.log",
        "SlurmdLogFile": FOLDER / "slurmd-%n.log",
        "SlurmdParameters": "config_overrides",
        "KillWait": "5",
        "MaxArraySize": "20001",
        "MaxJobCount": "50000",
        "PreemptType": "preempt/partition_prio",
        "PreemptMode": "REQUEUE",
    }
    ports = f"Port=[17001-{17000 + nodes}]"
    more = f"NodeHostname={host} NodeAddr=127.0.0.1 {ports} CPUs=1 RealMemory=4000"
    return "".join(f"{key}={value}\n" for key, value in facts.items()) + (
        f"NodeName={names} {more}\n"
        f"PartitionName=main Nodes={names} Default=YES PriorityTier=1 GraceTime={grace}\n"
        f"PartitionName=urgent Nodes={names} PriorityTier=10 PreemptMode=OFF\n"
    )


def up(nodes: int = 2, grace: int = 10) -> None:
    """Start one of so many pretended nodes.

    Raises:
        RuntimeError: its nodes do not become idle.
    """
    for folder in ("state", "spool"):
        (FOLDER / folder).mkdir(parents=True, exist_ok=True)
    Path("/etc/slurm").mkdir(exist_ok=True)
    Path("/etc/slurm/slurm.conf").write_text(configuration(nodes, grace), encoding="utf-8")
    _munge()
    _do("slurmctld", "-i")
    for number in range(1, nodes + 1):
        (FOLDER / "spool" / f"n{number}").mkdir(exist_ok=True)
        _do("slurmd", "-N", f"n{number}")
    for _ in range(2 * WAIT):
        text = subprocess.run(
            ["sinfo", "-h", "-p", "main", "-o", "%t"], check=False, capture_output=True, text=True
        ).stdout
        if set(text.split()) == {"idle"}:
            return
        time.sleep(0.5)
    raise RuntimeError(f"the nodes are not idle after {WAIT} s; see {FOLDER}")


def _munge() -> None:
    """The daemon by which users prove who they are, and its key."""
    for folder, mode in (("run", 0o755), ("log", 0o700), ("lib", 0o700)):
        place = Path("/run/munge" if folder == "run" else f"/var/{folder}/munge")
        place.mkdir(mode=mode, parents=True, exist_ok=True)
        shutil.chown(place, "munge", "munge")
    key = Path("/etc/munge/munge.key")
    if not key.exists() or not key.stat().st_size:
        _do("mungekey", "--create", "--force", "--keyfile", str(key))
    shutil.chown(key, "munge", "munge")
    if subprocess.run(["munge", "-n"], check=False, capture_output=True).returncode:
        _do("runuser", "-u", "munge", "--", "munged")


def _do(*command: str) -> None:
    path = os.pathsep.join([os.environ.get("PATH", ""), "/usr/sbin", "/sbin"])
    program = shutil.which(command[0], path=path) or command[0]
    done = subprocess.run([program, *command[1:]], check=False, stdin=subprocess.DEVNULL)
    if done.returncode:
        raise RuntimeError(f"{' '.join(command)} failed with {done.returncode}; see {FOLDER}")


def down() -> None:
    """End exactly the daemons that `up` started, but for munge, and what they ran."""
    subprocess.run(["scancel", "--me"], check=False, capture_output=True)
    for path in [*FOLDER.glob("slurmd-*.pid"), FOLDER / "slurmctld.pid"]:
        if path.exists():
            number = int(path.read_text() or 0)
            subprocess.run(["kill", str(number)], check=False, capture_output=True)
            for _ in range(40):
                if not Path(f"/proc/{number}").exists():
                    break
                time.sleep(0.25)
    shutil.rmtree(FOLDER, ignore_errors=True)


if __name__ == "__main__":
    if sys.argv[1:] == ["down"]:
        down()
    elif why := missing():
        sys.exit(why)
    else:
        up(int(os.environ.get("SLURM_NODES", "2")))
