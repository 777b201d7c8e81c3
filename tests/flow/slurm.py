"""A Slurm of one node, made of the packages slurm-wlm and munge, in a folder and with own ports."""

from __future__ import annotations

import contextlib
import os
import shutil
import socket
import subprocess
import time
from collections.abc import Iterator
from pathlib import Path

PROGRAMS = ("munged", "slurmctld", "slurmd", "sbatch", "srun", "scontrol", "squeue")
UP_S = 30.0

CONF = """\
ClusterName=one
SlurmctldHost={host}(127.0.0.1)
SlurmctldPort={ports[0]}
SlurmdPort={ports[1]}
SlurmUser=root
AuthType=auth/munge
AuthInfo=socket={folder}/munge.socket
CredType=cred/munge
StateSaveLocation={folder}/state
SlurmdSpoolDir={folder}/spool
SlurmctldPidFile={folder}/slurmctld.pid
SlurmdPidFile={folder}/slurmd.pid
ProctrackType=proctrack/linuxproc
TaskPlugin=task/none
SwitchType=switch/none
MpiDefault=none
ReturnToService=2
KillWait=5
SelectType=select/cons_tres
SelectTypeParameters=CR_Core
AccountingStorageType=accounting_storage/none
SchedulerParameters=bf_interval=1,sched_interval=1,sched_min_interval=0
NodeName={host} NodeAddr=127.0.0.1 CPUs={cpus} State=UNKNOWN
PartitionName=debug Nodes=ALL Default=YES MaxTime=60 State=UP
"""


def why_not() -> str:
    """Say why no Slurm can be started here; nothing, if one can."""
    missing = [program for program in PROGRAMS if not shutil.which(program)]
    if missing:
        return f"not installed: {', '.join(missing)} (packages slurm-wlm and munge)"
    return "" if os.geteuid() == 0 else "slurmd must be started by root"


@contextlib.contextmanager
def one_node(folder: Path) -> Iterator[dict[str, str]]:
    """Start a Slurm in a folder with a short path; give the environment that its commands need."""
    (folder / "state").mkdir(parents=True)
    (folder / "spool").mkdir()
    key, conf = folder / "munge.key", folder / "slurm.conf"
    key.write_bytes(os.urandom(128))
    key.chmod(0o400)
    host = socket.gethostname().split(".")[0]
    conf.write_text(
        CONF.format(folder=folder, host=host, ports=free_ports(2), cpus=os.cpu_count() or 1)
    )
    env = {**os.environ, "SLURM_CONF": str(conf)}
    munge = ["munged", "--foreground", "--force", f"--key-file={key}"]
    munge += [f"--{what}-file={folder}/munge.{what}" for what in ("pid", "seed", "log")]
    started = []
    try:
        for words in (
            [*munge, f"--socket={folder}/munge.socket"],
            ["slurmctld", "-D", "-i"],
            ["slurmd", "-D", "-N", host],
        ):
            with (folder / f"{words[0]}.out").open("wb") as out:
                started.append(subprocess.Popen(words, env=env, stdout=out, stderr=out))
            time.sleep(1)
        until = time.monotonic() + UP_S
        while not said(env, "sinfo", "--noheader", "--format=%T").startswith("idle"):
            if time.monotonic() > until:
                raise TimeoutError(f"Slurm is not up after {UP_S:.0f} s; see {folder}/*.out")
            time.sleep(0.5)
        yield env
    finally:
        for process in reversed(started):
            process.terminate()
            process.wait(timeout=30)


def said(env: dict[str, str], *words: str) -> str:
    """Give what a command prints."""
    return subprocess.run(words, env=env, capture_output=True, text=True, check=False).stdout


def free_ports(count: int) -> list[int]:
    """Find ports that nobody listens on."""
    with contextlib.ExitStack() as stack:
        sockets = [stack.enter_context(socket.socket()) for _ in range(count)]
        for each in sockets:
            each.bind(("127.0.0.1", 0))
        return [each.getsockname()[1] for each in sockets]


def ended(env: dict[str, str], number: int, within_s: float = 300.0) -> str:
    """Wait until a job has ended for good; give what Slurm says of it."""
    until = time.monotonic() + within_s
    while True:
        job = said(env, "scontrol", "show", "job", str(number))
        coming = ("PENDING", "RUNNING", "COMPLETING", "REQUEUED")
        if "JobState=" in job and not any(f"JobState={state}" in job for state in coming):
            return job
        if "Reason=BeginTime" in job:  # Slurm holds a requeued job for two minutes
            said(env, "scontrol", "update", f"jobid={number}", "StartTime=now")
        if time.monotonic() > until:
            raise TimeoutError(f"job {number} has not ended after {within_s:.0f} s:\n{job}")
        time.sleep(1)
