"""A real one-node SLURM for the tests: no systemd, no cgroups, no accounting, GPUs that are null devices.

Needs root, and Debian's slurmctld, slurmd, slurm-client and munge.
"""

from __future__ import annotations

import contextlib
import fcntl
import os
import shutil
import socket
import subprocess
import tempfile
import time
from collections.abc import Iterator
from pathlib import Path

__all__ = ["cluster", "missing"]

PROGRAMS = ("slurmctld", "slurmd", "munged", "sbatch", "squeue", "scancel", "scontrol")
N_GPUS = 2
# cred_expire: a requeued job waits that long before it may start again; the default is two minutes
CONFIGURATION = """\
ClusterName=onenode
SlurmctldHost={host}
SlurmUser=root
SlurmdUser=root
AuthType=auth/munge
AuthInfo=cred_expire=10
CryptoType=crypto/munge
MpiDefault=none
ProctrackType=proctrack/linuxproc
TaskPlugin=task/none
SelectType=select/cons_tres
SelectTypeParameters=CR_CPU_Memory
SchedulerType=sched/backfill
SchedulerParameters=batch_sched_delay=0,sched_min_interval=0,bf_interval=5
GresTypes=gpu
AccountingStorageType=accounting_storage/none
JobAcctGatherType=jobacct_gather/none
MinJobAge=3600
KillWait=5
InactiveLimit=0
ReturnToService=2
StateSaveLocation={folder}/state
SlurmdSpoolDir={folder}/spool
SlurmctldPidFile={folder}/slurmctld.pid
SlurmdPidFile={folder}/slurmd.pid
SlurmctldLogFile={folder}/slurmctld.log
SlurmdLogFile={folder}/slurmd.log
NodeName={host} CPUs={cpus} RealMemory={memory} Gres=gpu:{gpus} State=UNKNOWN
PartitionName=gpu Nodes={host} Default=YES DefMemPerCPU=500 MaxTime=1-00:00:00 State=UP
"""


def missing() -> str | None:
    """Why no cluster can be started here, or None."""
    absent = [program for program in PROGRAMS if shutil.which(program) is None]
    if absent:
        return f"not installed: {', '.join(absent)}"
    return None if os.geteuid() == 0 else "needs root"


@contextlib.contextmanager
def cluster(folder: Path) -> Iterator[None]:
    """Start the cluster with its files in `folder`; stop all of it at the end. One at a time on a machine."""
    with open(Path(tempfile.gettempdir()) / "rdcurve-slurm.lock", "w") as lock:
        fcntl.flock(lock, fcntl.LOCK_EX)
        with _cluster(folder):
            yield


@contextlib.contextmanager
def _cluster(folder: Path) -> Iterator[None]:
    host = socket.gethostname().split(".")[0]
    for name in ("state", "spool", "gpu"):
        (folder / name).mkdir(parents=True)
    for index in range(N_GPUS):
        # a character device makes SLURM set CUDA_VISIBLE_DEVICES; a plain file is only counted
        subprocess.run(["mknod", str(folder / f"gpu/gpu{index}"), "c", "1", "3"], check=True)
    if subprocess.run(["getent", "hosts", host], capture_output=True).returncode:
        with open("/etc/hosts", "a") as hosts:
            hosts.write(f"127.0.0.1 {host}\n")
    memory = int(os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES") / 2**20 * 0.9)
    (folder / "slurm.conf").write_text(
        CONFIGURATION.format(host=host, folder=folder, cpus=os.cpu_count(), memory=memory, gpus=N_GPUS)
    )
    (folder / "gres.conf").write_text(f"NodeName={host} Name=gpu File={folder}/gpu/gpu[0-{N_GPUS - 1}]\n")
    links = []
    for name in ("slurm.conf", "gres.conf"):  # jobs do not inherit SLURM_CONF
        link = Path("/etc/slurm") / name
        link.parent.mkdir(exist_ok=True)
        link.unlink(missing_ok=True)
        link.symlink_to(folder / name)
        links.append(link)
    started_munge = _start_munge()
    try:
        for daemon in ("slurmctld", "slurmd"):
            subprocess.run([daemon, "-f", folder / "slurm.conf"], check=True)
        _wait(lambda: "idle" in _output("sinfo", "--noheader", "--format=%T"), 30, "the node did not become idle")
        yield
    finally:
        subprocess.run(["scancel", "--state=PENDING,RUNNING", "--user=root"], capture_output=True)
        time.sleep(1)
        pidfiles = [folder / "slurmd.pid", folder / "slurmctld.pid"]
        for pidfile in pidfiles + ([Path("/run/munge/munged.pid")] if started_munge else []):
            with contextlib.suppress(OSError, ValueError):
                os.kill(int(pidfile.read_text()), 15)
        for link in links:
            link.unlink(missing_ok=True)


def _start_munge() -> bool:
    if subprocess.run(["munge", "--no-input"], capture_output=True).returncode == 0:
        return False
    key = Path("/etc/munge/munge.key")
    if not key.exists() or key.stat().st_size == 0:
        key.write_bytes(os.urandom(128))
        key.chmod(0o400)
        shutil.chown(key, "munge")
    for name, mode in (("/run/munge", "755"), ("/var/log/munge", "700"), ("/var/lib/munge", "700")):
        subprocess.run(["install", "-d", "-o", "munge", "-g", "munge", "-m", mode, name], check=True)
    subprocess.run(["runuser", "-u", "munge", "--", "/usr/sbin/munged"], check=True)
    _wait(
        lambda: subprocess.run(["munge", "--no-input"], capture_output=True).returncode == 0,
        10,
        "munge does not answer",
    )
    return True


def _output(*command: str) -> str:
    return subprocess.run(command, capture_output=True, text=True).stdout


def _wait(ready, seconds: float, complaint: str) -> None:
    deadline = time.monotonic() + seconds
    while not ready():
        if time.monotonic() > deadline:
            raise RuntimeError(complaint)
        time.sleep(0.2)
