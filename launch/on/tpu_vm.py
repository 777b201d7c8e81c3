"""On Cloud TPU VMs: slices that are asked for, made anew when they are taken away, and deleted."""

from __future__ import annotations

import re
import shlex
import subprocess
import time
from pathlib import Path

from launch.on.gke import bucket_checks
from launch.on.job import Command, Job, LaunchError, Rendering, Say, call, flags, is_duration
from launch.on.supervise import supervise
from research.core.parts import part, require

TPUS = ("gcloud", "compute", "tpus")
MOUNT = "maktab/bucket"  # below the home folder of a worker
FUSE = "--implicit-dirs --metadata-cache-ttl-secs=0"  # one hears of another by files there
POLL_S = 30.0
THERE = ("ACTIVE", "READY")
COMING = ("CREATING", "ACCEPTED", "WAITING_FOR_RESOURCES", "PROVISIONING", "STARTING")
COMING += ("RESTARTING", "REIMAGING", "REPAIRING", "SUSPENDING", "STOPPING", "DELETING")
TAKEN = ("SUSPENDED", "PREEMPTED", "STOPPED", "TERMINATED")

# Source: cloud.google.com/storage/docs/cloud-storage-fuse/install
GCSFUSE = (
    "key=/usr/share/keyrings/cloud.google.asc; site=https://packages.cloud.google.com/apt; "
    "curl -fsS $site/doc/apt-key.gpg | sudo tee $key > /dev/null; "
    'echo "deb [signed-by=$key] $site gcsfuse-$(lsb_release -cs) main" '
    "| sudo tee /etc/apt/sources.list.d/gcsfuse.list > /dev/null; "
    "sudo apt-get -q update && sudo apt-get -q install -y gcsfuse"
)


@part
class TpuVm:
    """One or more TPU slices.

    Attributes:
      accelerator: kind and size as the service names them, such as v5litepod-16.
      runtime_version: the image of the VMs, such as v2-alpha-tpuv5-lite.
      slices: how many, joined by the data-centre network.
      spot: cheaper, and taken away at any time; they are then asked for again.
      now: the slice is there at once or it is an error; else it waits in the service's queue.
      wait: how long to stay in the queue, such as 6h; empty: as long as it takes.
      bucket: holds the snapshot and the runs, mounted with Cloud Storage FUSE.
      service_account: of the VMs, one that may use the bucket; empty: the project's default.
      keep: do not delete the slices in the end.
    """

    accelerator: str = ""
    runtime_version: str = ""
    zone: str = ""
    project: str = ""
    bucket: str = ""
    slices: int = 1
    spot: bool = False
    now: bool = False
    wait: str = ""
    service_account: str = ""
    keep: bool = False

    def __post_init__(self) -> None:
        needed = {
            "accelerator": "such as v5litepod-16",
            "runtime_version": "such as v2-alpha-tpuv5-lite",
            "zone": "such as us-west4-a",
        }
        require(
            self,
            *(
                (bool(getattr(self, name)), f"--{name.replace('_', '-')} is missing, {example}")
                for name, example in needed.items()
            ),
            (
                re.fullmatch(r"(v\d+[a-z]*-\d+)?", self.accelerator) is not None,
                f"--accelerator {self.accelerator!r}: expected a kind and a size, such as "
                "v5litepod-16 or v4-32",
            ),
            *bucket_checks(self.bucket),
            (self.slices > 0, f"--slices {self.slices} must be at least 1"),
            (
                self.slices == 1 or not self.now,
                f"--slices {self.slices} are made together by the queue only; leave out --now",
            ),
            (not (self.wait and self.now), f"--wait {self.wait} is for the queue; --now does not"),
            (
                is_duration(self.wait),
                f"--wait {self.wait!r}: expected a duration such as 90m or 6h",
            ),
        )

    @property
    def installs(self) -> bool:
        """Workers make their environment."""
        return True

    @property
    def jax_extra(self) -> str:
        """What jax needs on a TPU."""
        return "tpu"

    @property
    def tools(self) -> tuple[str, ...]:
        """What does all of it."""
        return ("gcloud",)

    def where(self) -> tuple[str, ...]:
        """Say where the slices are."""
        return flags(project=self.project, zone=self.zone)

    def nodes(self, job: Job) -> tuple[str, ...]:
        """Name the slices."""
        if self.slices == 1:
            return (job.name,)
        return tuple(f"{job.name}-{index}" for index in range(self.slices))

    @property
    def resource(self) -> str:
        """What is asked for: a queued resource, or the node itself."""
        return "tpu-vm" if self.now else "queued-resources"

    def create(self, job: Job) -> Command:
        """Ask for the slices."""
        named, version = flags(node_id=job.name), {"runtime_version": self.runtime_version}
        if self.now:
            named, version = (), {"version": self.runtime_version}
        elif self.slices > 1:
            named = flags(node_count=self.slices, node_prefix=job.name)
        options = flags(
            accelerator_type=self.accelerator,
            **version,
            spot=self.spot,
            service_account=self.service_account,
            valid_until_duration=self.wait,
        )
        words = (*TPUS, self.resource, "create", job.name, *self.where(), *named, *options)
        return Command(why="ask for it, unless it is there", words=words)

    def state(self, job: Job) -> Command:
        """Ask how the request is doing."""
        field = "state" if self.now else "state.state"
        words = (
            *TPUS,
            self.resource,
            "describe",
            job.name,
            *self.where(),
            f"--format=value({field})",
        )
        return Command(why=f"see whether it is there, every {POLL_S:.0f} s", words=words)

    def size(self, node: str) -> Command:
        """Ask for the state of a slice and for the number of its workers."""
        wanted = "--format=value(state,networkEndpoints.len())"
        words = (*TPUS, "tpu-vm", "describe", node, *self.where(), wanted)
        return Command(why=f"count the workers of {node}", words=words)

    def delete(self, job: Job) -> Command:
        """Give the slices back."""
        force = flags(force=not self.now, quiet=True)
        words = (*TPUS, self.resource, "delete", job.name, *self.where(), *force)
        return Command(why="give it back; until then it costs", words=words)

    def ssh(self, node: str, worker: str, script: str, why: str) -> Command:
        """Run a script on workers of a slice."""
        options = flags(worker=worker, quiet=True, command=script)
        return Command(why=why, words=(*TPUS, "tpu-vm", "ssh", node, *self.where(), *options))

    def prepare(self, job: Job, node: str) -> Command:
        """Mount the bucket, verify and install, on all workers of a slice at once."""
        script = (
            f"set -e; mkdir -p {MOUNT}; command -v gcsfuse > /dev/null || {{ {GCSFUSE}; }}; "
            f"mountpoint -q {MOUNT} || gcsfuse {FUSE} {self.bucket} {MOUNT}; "
            f"exec python3 {MOUNT}/{job.home}/worker.py prepare --alone "
            f"--scratch maktab/{job.name} --runs {MOUNT}/runs"
        )
        return self.ssh(node, "all", script, f"mount, verify and install on {node}")

    def run(self, job: Job, node: str, index: int, worker: int) -> Command:
        """Run worker `index` of all, which is `worker` of its slice."""
        script = (
            f"exec python3 {MOUNT}/{job.home}/worker.py run --alone --scratch maktab/{job.name}"
        )
        why = f"worker {index}; output: worker-{index}.log"
        return self.ssh(node, str(worker), script, why)

    def upload(self, job: Job) -> Command:
        """Put the launch folder into the bucket."""
        files = (f"{job.home}/{name}" for name in ("launch.json", *job.copied()))
        words = ("gcloud", "storage", "cp", *files, f"gs://{self.bucket}/{job.home}/")
        return Command(why="upload what workers verify", words=words)

    @property
    def stays(self) -> bool:
        """The launch is the job's keeper."""
        return True

    def render(self, job: Job) -> Rendering:
        """Spell out one start; a start that was preempted begins again after the upload."""
        nodes = self.nodes(job)
        why = (
            f"at once on every worker that was counted, here the first of {nodes[0]}; all again "
            "after 75, a signal or a lost connection; output: worker-N.log"
        )
        return Rendering(
            files={"launch.json": job.spec("--distributed")},
            commands=(
                self.upload(job),
                self.state(job),
                self.create(job),
                *(self.size(node) for node in nodes),
                *(self.prepare(job, node) for node in nodes),
                Command(why=why, words=self.run(job, nodes[0], 0, 0).words),
                *(() if self.keep else (self.delete(job),)),
            ),
            later=(
                Command(why="follow", words=("tail", "-F", f"{job.home}/worker-0.log")),
                self.delete(job),
            ),
        )

    def start(self, job: Job, say: Say, poll_s: float = POLL_S, backoff_s: float = 5.0) -> int:
        """Run it until it ends for good, then give the slices back.

        Only Ctrl-C leaves them as they are: the same command goes on with them.
        """
        call(self.upload(job), say)
        say(f"output: {job.home}/worker-*.log")
        try:
            code = supervise(
                lambda: self.begin(job, say, poll_s),
                Path(job.home),
                max_restarts=job.max_restarts,
                say=say,
                backoff_s=backoff_s,
                lost=lambda: self.counted(job) is None,
            )
        except LaunchError:
            self.give_back(job, say)
            raise
        except KeyboardInterrupt:
            say(f"still there; the same command goes on, and this ends it:\n{self.delete(job)}")
            raise
        self.give_back(job, say)
        return code

    def give_back(self, job: Job, say: Say) -> None:
        """Delete the slices, unless they are to be kept."""
        if self.keep:
            say(f"kept:\n{self.delete(job)}")
        elif self.ask(self.state(job)) is not None:
            call(self.delete(job), say)

    def begin(self, job: Job, say: Say, poll_s: float) -> list[tuple[str, ...]]:
        """See to it that the slices are there and prepared; give a command a worker."""
        while True:
            counts = self.await_slices(job, say, poll_s)
            try:
                for node in counts:
                    call(self.prepare(job, node), say)
                break
            except LaunchError:
                if self.counted(job) is not None:  # they are there, and refuse
                    raise
        workers = [(node, worker) for node, count in counts.items() for worker in range(count)]
        return [
            self.run(job, node, index, worker).words for index, (node, worker) in enumerate(workers)
        ]

    def await_slices(self, job: Job, say: Say, poll_s: float) -> dict[str, int]:
        """Wait for the slices, asking for them again when they were taken; count their workers.

        Raises:
          LaunchError: the service will not give them.
        """
        said = ""
        while True:
            state = self.ask(self.state(job))
            counts = self.counted(job) if state in THERE else None
            if counts is not None:
                return counts
            if state is None:
                call(self.create(job), say)
            elif state in TAKEN:
                say(f"{job.name} is {state}: asking for it again")
                call(self.delete(job), say)
            elif state not in (*COMING, *THERE):
                raise LaunchError(
                    f"{job.name} is {state}, so it will not come; see why with:\n"
                    f"{shlex.join(self.state(job).words[:-1])}"
                )
            elif state != said:
                say(f"{job.name}: {state}")
            said = state or ""
            time.sleep(poll_s)

    def counted(self, job: Job) -> dict[str, int] | None:
        """Count the workers of every slice; None if one of these is not ready."""
        counts = {}
        for node in self.nodes(job):
            state, _, count = (self.ask(self.size(node)) or "").partition("\t")
            if state != "READY":
                return None
            counts[node] = int(count)
        return counts

    def ask(self, command: Command) -> str | None:
        """Run a command that only looks; None if what it looks at is not there.

        Raises:
          LaunchError: it fails otherwise.
        """
        done = subprocess.run(command.words, capture_output=True, text=True, check=False)
        if done.returncode and "NOT_FOUND" not in done.stderr:
            raise LaunchError(f"{command}\nended with {done.returncode}: {done.stderr.strip()}")
        return None if done.returncode else done.stdout.strip()
