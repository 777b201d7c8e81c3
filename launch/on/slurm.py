"""On a Slurm cluster: one batch job that queues itself again when it was preempted."""

from __future__ import annotations

import re
import shlex

from launch.on.job import Command, Job, Rendering, Say, call, flags, is_duration, minutes
from launch.on.worker import AGAIN
from research.core.parts import part, require

NOTICE_S = 120  # before the time limit; a checkpoint must fit into it
WORD = re.compile(r"[\w.,:@/+-]*")
COUNTS = re.compile(r"(^|\s)(-[nN]|--nt|--nodes)")  # options of sbatch that say how many tasks

SCRIPT = """\
#!/bin/bash
{directives}

set -u
folder={folder}
python={python}
restarts=${{SLURM_RESTART_COUNT:-0}}
echo "start $((restarts + 1)) of at most {starts} on $SLURM_JOB_NODELIST"

# The notice before the time limit, or a preemption: the workers save and exit with {again}.
trap 'scancel --signal=TERM "$SLURM_JOB_ID"' TERM

"$python" "$folder/worker.py" prepare || exit

srun --kill-on-bad-exit=1 --open-mode=append --output="$folder/worker-%t.log"{more} \\
  bash -c 'exec "$0" "$1/worker.py" run --exit "$1/exit-$SLURM_PROCID"' \\
  "$python" "$folder" &
step=$!
while kill -0 "$step" 2> /dev/null; do wait "$step"; done  # a signal ends a wait, not the step

"$python" "$folder/worker.py" verdict --workers "$SLURM_NTASKS"
code=$?
if [ "$code" -ne {again} ]; then exit "$code"; fi
if [ "$restarts" -ge {restarts} ]; then
  echo "that was start $((restarts + 1)), and --max-restarts allows no more"
  exit "$code"
fi
scontrol requeue "$SLURM_JOB_ID"
"""


@part
class Slurm:
    """A batch job, submitted from where the cluster's files are.

    One task a device, as `jax.distributed` expects of Slurm; without devices one a node, or as many
    as are asked for.

    Attributes:
      nodes: machines.
      devices_per_node: GPUs of each; 0: none.
      tasks_per_node: processes of a node without devices; 0: one.
      accelerator: the kind of GPU as the cluster names it, such as h100; empty: any.
      time_limit: of one start, such as 12h; empty: the partition's.
      cpus: of a task; 0: the partition's default.
      memory: of a node, such as 200G; empty: the partition's default.
      sbatch: further options of sbatch, such as --constraint=nvlink.
    """

    nodes: int = 1
    devices_per_node: int = 0
    tasks_per_node: int = 0
    accelerator: str = ""
    partition: str = ""
    account: str = ""
    time_limit: str = ""
    cpus: int = 0
    memory: str = ""
    sbatch: tuple[str, ...] = ()

    def __post_init__(self) -> None:
        words = {"accelerator": self.accelerator, "partition": self.partition}
        words |= {"account": self.account}
        require(
            self,
            (self.nodes > 0, f"--nodes {self.nodes} must be at least 1"),
            (self.devices_per_node >= 0, f"--devices-per-node {self.devices_per_node} is negative"),
            (self.tasks_per_node >= 0, f"--tasks-per-node {self.tasks_per_node} is negative"),
            (
                not (self.tasks_per_node and self.devices_per_node),
                f"--tasks-per-node {self.tasks_per_node} is for nodes without devices: with "
                f"--devices-per-node {self.devices_per_node} each device has a task; leave it out",
            ),
            (self.cpus >= 0, f"--cpus {self.cpus} is negative"),
            (
                not self.accelerator or self.devices_per_node > 0,
                f"--accelerator {self.accelerator} needs --devices-per-node, how many of them",
            ),
            (
                is_duration(self.time_limit),
                f"--time-limit {self.time_limit!r}: expected a duration such as 90m, 12h or 1d12h",
            ),
            (
                re.fullmatch(r"(\d+[KMGT]?)?", self.memory) is not None,
                f"--memory {self.memory!r}: expected a size such as 200G",
            ),
            *(
                (WORD.fullmatch(word) is not None, f"--{name} {word!r} is no name that Slurm has")
                for name, word in words.items()
            ),
            *(
                (
                    option.startswith("-") and "\n" not in option,
                    f"--sbatch {option!r}: expected an option, as in --sbatch=--exclusive",
                )
                for option in self.sbatch
            ),
            *(
                (
                    COUNTS.search(option) is None,
                    f"--sbatch={option} would change how many processes run, which each of them is "
                    "told; give --nodes, --devices-per-node or --tasks-per-node",
                )
                for option in self.sbatch
            ),
        )

    @property
    def installs(self) -> bool:
        """The environment here is used: the cluster shares its files."""
        return False

    @property
    def jax_extra(self) -> str:
        """None: the environment here is used."""
        return ""

    @property
    def tools(self) -> tuple[str, ...]:
        """What submits."""
        return ("sbatch",)

    @property
    def tasks(self) -> int:
        """How many processes run in all."""
        return self.nodes * self.of_node

    @property
    def of_node(self) -> int:
        """How many processes run on a node."""
        return self.devices_per_node or self.tasks_per_node or 1

    @property
    def stays(self) -> bool:
        """Slurm keeps the job."""
        return False

    def render(self, job: Job) -> Rendering:
        """One batch script: verify on the first node, a step of all tasks, and what to do then."""
        script = SCRIPT.format(
            directives="\n".join(f"#SBATCH {option}" for option in self.directives(job)),
            folder=shlex.quote(job.home),
            python=shlex.quote(str(job.interpreter)),
            more="".join(f" {option}" for option in self.of_step()),
            restarts=job.max_restarts,
            starts=job.max_restarts + 1,
            again=AGAIN,
        )
        spec = job.spec(*(["--distributed"] if self.tasks > 1 else []))
        submit = ("sbatch", "--parsable", f"{job.home}/job.sbatch")
        name = f"--name={job.name}"
        return Rendering(
            files={"launch.json": spec, "job.sbatch": script},
            commands=(Command(why="submit", words=submit),),
            later=(
                Command(why="see where it is", words=("squeue", name)),
                Command(why="follow", words=("tail", "-F", f"{job.home}/worker-0.log")),
                Command(why="stop it for good", words=("scancel", name)),
            ),
        )

    def of_step(self) -> tuple[str, ...]:
        """List what srun does not take over from sbatch; every task sees all GPUs of its node."""
        return flags(
            gpu_bind="none" if self.devices_per_node else "", cpus_per_task=self.cpus or None
        )

    def directives(self, job: Job) -> list[str]:
        """List the options of sbatch."""
        options = {
            "job-name": job.name,
            "output": f"{job.home}/job.log",
            "open-mode": "append",
            "nodes": self.nodes,
            "ntasks-per-node": self.of_node,
            "gpus-per-node": ":".join(filter(None, (self.accelerator, str(self.devices_per_node)))),
            "cpus-per-task": self.cpus,
            "mem": self.memory,
            "time": minutes(self.time_limit),
            "partition": self.partition,
            "account": self.account,
            "signal": f"B:TERM@{NOTICE_S}",
            "dependency": "singleton",  # the same launch twice: the second waits
        }
        if not self.devices_per_node:
            del options["gpus-per-node"]
        given = [f"--{name}={value}" for name, value in options.items() if value]
        return [*given, "--requeue", *self.sbatch]

    def start(self, job: Job, say: Say) -> int:
        """Submit it."""
        rendering = self.render(job)
        number = call(rendering.commands[0], say)
        say(f"submitted: job {number}, {job.home}")
        for command in rendering.later:
            say(str(command))
        return 0
