"""On Google Kubernetes Engine: a JobSet, submitted by kubectl or by xpk."""

from __future__ import annotations

import math
import re
from typing import Any

import yaml

from launch.on.job import Command, Job, Rendering, Say, call, flags, is_duration, seconds
from launch.on.worker import AGAIN, starts_again
from research.core.parts import part, require

DIMENSIONS = {  # of a topology, by the kind of TPU (cloud.google.com/gke-tpu-accelerator)
    "tpu-v4-podslice": 3,
    "tpu-v5-lite-podslice": 2,
    "tpu-v5p-slice": 3,
    "tpu-v6e-slice": 2,
    "tpu7x": 3,
}
BUCKET, SCRATCH = "/bucket", "/tmp/maktab"  # in the container
GRACE_S = 120  # from SIGTERM to SIGKILL; a checkpoint must fit into it (a spot node leaves 25 s)
KEPT_S = 7 * 24 * 3600  # how long a finished JobSet can be looked at
PORT = 8476
CONTAINER, JOBS = "maktab", "workers"

SCRIPT = """\
#!/bin/bash
set -eu
launch={launch}
scratch={scratch}
python3 "$launch/worker.py" prepare --scratch "$scratch" --runs {runs}
{number}
exec python3 "$launch/worker.py" run --scratch "$scratch" \\
  --log "$launch/worker-$worker.log" -- {more}
"""
TPU_NUMBER = """\
hosts=$(tr ',' '\\n' <<< "${TPU_WORKER_HOSTNAMES:-one}" | wc -l)
worker=$(( ${MEGASCALE_SLICE_ID:-0} * hosts + ${TPU_WORKER_ID:-0} ))"""
POD_NUMBER = "worker=$JOB_COMPLETION_INDEX"


@part
class Gke:
    """Pods of a JobSet: the hosts of one or more TPU slices, or nodes with GPUs.

    Attributes:
      accelerator: the node pool's kind, such as tpu-v5-lite-podslice or nvidia-h100-80gb; for xpk
        its own name of a size, such as v5litepod-16; empty: nodes without.
      topology: of a TPU slice, such as 4x4; it says how many hosts there are.
      devices_per_node: chips or GPUs of a node.
      slices: TPU slices.
      nodes: nodes with GPUs, or without.
      bucket: holds the snapshot, the runs and the logs, mounted with Cloud Storage FUSE.
      image: anything with Python, bash and pip; or with the whole environment, for --python.
      queue: a Kueue LocalQueue; empty: none.
      service_account: of Kubernetes, one that may use the bucket.
      time_limit: of one start, such as 12h.
      xpk: a cluster that xpk knows: it makes the JobSet.
      project, zone: of that cluster.
    """

    bucket: str = ""
    accelerator: str = ""
    topology: str = ""
    devices_per_node: int = 0
    slices: int = 1
    nodes: int = 1
    image: str = "python:3.11"
    namespace: str = "default"
    queue: str = ""
    service_account: str = "default"
    spot: bool = False
    time_limit: str = ""
    xpk: str = ""
    project: str = ""
    zone: str = ""

    def __post_init__(self) -> None:
        tpu, by_xpk = self.is_tpu, bool(self.xpk)
        sizes = self.topology.split("x") if self.topology else []
        require(
            self,
            *bucket_checks(self.bucket),
            *spoken_of_nodes(self),
            (
                by_xpk or not tpu or self.accelerator in DIMENSIONS,
                f"--accelerator {self.accelerator} is no kind of TPU node; there are "
                f"{', '.join(DIMENSIONS)}",
            ),
            (
                by_xpk or len(sizes) == DIMENSIONS.get(self.accelerator, len(sizes)),
                f"--topology {self.topology!r}: {self.accelerator} takes "
                f"{DIMENSIONS.get(self.accelerator)} numbers, such as 4x4 or 2x2x2",
            ),
            (all(size.isdigit() for size in sizes), f"--topology {self.topology!r}: not numbers"),
            (
                tpu or not self.topology,
                f"--topology {self.topology} is for TPUs, not for {self.accelerator or 'a CPU'}",
            ),
            (
                is_duration(self.time_limit),
                f"--time-limit {self.time_limit!r}: expected a duration such as 90m, 12h or 1d12h",
            ),
            *xpk_checks(self),
        )

    @property
    def installs(self) -> bool:
        """Pods make their environment."""
        return True

    @property
    def is_tpu(self) -> bool:
        """Whether nodes have TPUs."""
        return bool(self.xpk) or self.accelerator.startswith("tpu")

    @property
    def jax_extra(self) -> str:
        """What jax needs for the accelerator."""
        return "tpu" if self.is_tpu else "cuda13" if self.accelerator else ""

    @property
    def tools(self) -> tuple[str, ...]:
        """What uploads and what submits."""
        return ("gcloud", "xpk" if self.xpk else "kubectl")

    @property
    def pods(self) -> int:
        """How many pods a slice has, or how many there are."""
        if not self.is_tpu:
            return self.nodes
        chips = math.prod(int(size) for size in self.topology.split("x"))
        return chips // self.devices_per_node

    @property
    def stays(self) -> bool:
        """Kubernetes keeps the job."""
        return False

    def render(self, job: Job) -> Rendering:
        """Upload the launch folder, then create the JobSet."""
        names = ["launch.json", "pod.sh", *job.copied()]
        home, kube = f"gs://{self.bucket}/{job.home}/", f"--namespace={self.namespace}"
        upload = ("gcloud", "storage", "cp", *(f"{job.home}/{name}" for name in names), home)
        create = ("kubectl", "create", kube, f"--filename={job.home}/jobset.yaml")
        delete = ("kubectl", "delete", "jobset", job.name, kube)
        files = {"launch.json": job.spec(*self.meeting()), "pod.sh": self.script(job)}
        if self.xpk:
            create, where = self.workload(job), self.cluster()
            delete = ("xpk", "workload", "delete", f"--workload={job.name}", *where)
        else:
            files["jobset.yaml"] = yaml.safe_dump(self.jobset(job), sort_keys=False, width=100)
        selector = f"--selector=jobset.sigs.k8s.io/jobset-name={job.name}"
        pods = ("kubectl", "get", "pods", kube, selector)
        logs = ("kubectl", "logs", kube, selector, f"--container={CONTAINER}", "--follow")
        return Rendering(
            files=files,
            commands=(
                Command(why="upload what workers verify", words=upload),
                Command(why="submit", words=create),
            ),
            later=(
                Command(why="see where it is", words=pods),
                Command(why="follow", words=(*logs, "--prefix", "--max-log-requests=1000")),
                Command(
                    why="fetch the logs of every worker, those of earlier starts included",
                    words=("gcloud", "storage", "cp", f"{home}worker-*.log", f"{job.home}/"),
                ),
                Command(why="stop it for good", words=delete),
            ),
        )

    def meeting(self) -> tuple[str, ...]:
        """Words of the command by which workers find one another, if jax does so by itself."""
        return ("--distributed",) if self.is_tpu else ()

    def script(self, job: Job) -> str:
        """What a pod runs: the numbers it needs are in its environment."""
        more = ""
        if not self.is_tpu and self.nodes > 1:
            address = f"{job.name}-{JOBS}-0-0.{job.name}:{PORT}"
            more = f'--coordinator {address} --processes {self.nodes} --process "$worker"'
        return SCRIPT.format(
            launch=f"{BUCKET}/{job.home}",
            scratch=f"{SCRATCH}/{job.name}",
            runs=f"{BUCKET}/runs",
            number=TPU_NUMBER if self.is_tpu else POD_NUMBER,
            more=more,
        ).replace(" -- \n", "\n")

    def jobset(self, job: Job) -> dict[str, Any]:
        """Give the manifest.

        A pod that ends with a code other than 75 or a signal fails its Job for the reason
        PodFailurePolicy, and that fails the JobSet; every other failure, a lost node among them,
        starts all of it again.
        Source: https://jobset.sigs.k8s.io, API jobset.x-k8s.io/v1alpha2.
        """
        rule = {
            "name": "stop",
            "action": "FailJobSet",
            "onJobFailureReasons": ["PodFailurePolicy"],
        }
        labels = {"kueue.x-k8s.io/queue-name": self.queue} if self.queue else {}
        exclusive = {"alpha.jobset.sigs.k8s.io/exclusive-topology": "cloud.google.com/gke-nodepool"}
        return {
            "apiVersion": "jobset.x-k8s.io/v1alpha2",
            "kind": "JobSet",
            "metadata": {
                "name": job.name,
                "namespace": self.namespace,
                **({"labels": labels} if labels else {}),
                **({"annotations": exclusive} if self.is_tpu else {}),
            },
            "spec": {
                "ttlSecondsAfterFinished": KEPT_S,
                "failurePolicy": {"maxRestarts": job.max_restarts, "rules": [rule]},
                "replicatedJobs": [
                    {
                        "name": JOBS,
                        "replicas": self.slices,
                        "template": {"spec": self.indexed_job(job)},
                    }
                ],
            },
        }

    def indexed_job(self, job: Job) -> dict[str, Any]:
        """Give a Job of a pod a host, that fails with the first of them."""
        codes = [code for code in range(1, 256) if starts_again(code)]
        fails = {
            "action": "FailJob",
            "onExitCodes": {"containerName": CONTAINER, "operator": "NotIn", "values": codes},
        }
        limit = seconds(self.time_limit)
        return {
            "parallelism": self.pods,
            "completions": self.pods,
            "completionMode": "Indexed",
            "backoffLimit": 0,
            **({"activeDeadlineSeconds": limit} if limit else {}),
            "podFailurePolicy": {"rules": [fails]},
            "template": {
                "metadata": {"annotations": {"gke-gcsfuse/volumes": "true"}},
                "spec": self.pod(job),
            },
        }

    def pod(self, job: Job) -> dict[str, Any]:
        """Give a pod: one container, the bucket, and room for shared memory."""
        where, spot = self.node_selector(), "cloud.google.com/gke-spot"
        tolerated = {"key": spot, "operator": "Equal", "value": "true", "effect": "NoSchedule"}
        options = "implicit-dirs,metadata-cache:ttl-secs:0"  # one hears of another by files there
        attributes = {"bucketName": self.bucket, "mountOptions": options}
        bucket = {"driver": "gcsfuse.csi.storage.gke.io", "volumeAttributes": attributes}
        device = "google.com/tpu" if self.is_tpu else "nvidia.com/gpu"
        limits = {"limits": {device: self.devices_per_node}} if self.devices_per_node else {}
        return {
            "restartPolicy": "Never",
            "serviceAccountName": self.service_account,
            "terminationGracePeriodSeconds": GRACE_S,
            **({"nodeSelector": where} if where else {}),
            **({"tolerations": [tolerated]} if self.spot else {}),
            "containers": [
                {
                    "name": CONTAINER,
                    "image": self.image,
                    "command": ["bash", f"{BUCKET}/{job.home}/pod.sh"],
                    "resources": limits,
                    "volumeMounts": [
                        {"name": "bucket", "mountPath": BUCKET},
                        {"name": "memory", "mountPath": "/dev/shm"},
                    ],
                }
            ],
            "volumes": [
                {"name": "bucket", "csi": bucket},
                {"name": "memory", "emptyDir": {"medium": "Memory"}},
            ],
        }

    def node_selector(self) -> dict[str, str]:
        """Say which nodes will do."""
        prefix = "cloud.google.com/gke-"
        kind = "tpu-accelerator" if self.is_tpu else "accelerator"
        wanted = {kind: self.accelerator, "tpu-topology": self.topology}
        wanted["spot"] = "true" if self.spot else ""
        return {f"{prefix}{name}": value for name, value in wanted.items() if value}

    def cluster(self) -> tuple[str, ...]:
        """Name the cluster to xpk."""
        return flags(cluster=self.xpk, project=self.project, zone=self.zone)

    def workload(self, job: Job) -> tuple[str, ...]:
        """Give the command of xpk; its own rule starts again after 42 and 127 to 255 as well."""
        options = flags(
            workload=job.name,
            tpu_type=self.accelerator,
            num_slices=self.slices,
            docker_image=self.image,
            storage=self.bucket,
            max_restarts=job.max_restarts,
            restart_on_exit_codes=AGAIN,
            termination_grace_period_seconds=GRACE_S,
            spot=self.spot,
            docker_name=CONTAINER,
            command=f"bash {BUCKET}/{job.home}/pod.sh",
        )
        return ("xpk", "workload", "create", *self.cluster(), *options)

    def start(self, job: Job, say: Say) -> int:
        """Upload and submit it."""
        rendering = self.render(job)
        for command in rendering.commands:
            say(call(command, say))
        for command in rendering.later:
            say(str(command))
        return 0


def bucket_checks(bucket: str) -> tuple[tuple[bool, str], ...]:
    """Check a bucket's name."""
    plain = re.fullmatch(r"[a-z0-9][a-z0-9._-]{1,61}[a-z0-9]", bucket) is not None
    return (
        (
            plain or not bucket,
            f"--bucket {bucket!r}: expected a bucket's name alone, without gs:// and folders",
        ),
        (
            bool(bucket),
            "--bucket is missing: what is launched, its runs and its logs go through a Cloud "
            "Storage bucket (with a hierarchical namespace, so that a checkpoint's folder is "
            "renamed at once)",
        ),
    )


def spoken_of_nodes(place: Gke) -> tuple[tuple[bool, str], ...]:
    """Check how many of what there are, where no other tool counts them."""
    if place.xpk:
        return ((place.slices > 0, f"--slices {place.slices} must be at least 1"),)
    chips, devices = 0, place.devices_per_node
    if place.is_tpu and re.fullmatch(r"\d+(x\d+)+", place.topology):
        chips = math.prod(int(size) for size in place.topology.split("x"))
    return (
        (place.nodes > 0, f"--nodes {place.nodes} must be at least 1"),
        (place.slices > 0, f"--slices {place.slices} must be at least 1"),
        (
            bool(devices) == bool(place.accelerator),
            f"--accelerator {place.accelerator!r} and --devices-per-node {devices} go together: "
            "which devices a node has, and how many",
        ),
        (
            not place.is_tpu or place.nodes == 1,
            f"--nodes {place.nodes}: the --topology says how many hosts a TPU slice has",
        ),
        (
            place.is_tpu or place.slices == 1,
            f"--slices {place.slices} are of TPUs; for others give --nodes",
        ),
        (
            not (chips and devices) or chips % devices == 0,
            f"--topology {place.topology} has {chips} chips, which nodes of --devices-per-node "
            f"{devices} cannot share evenly",
        ),
    )


def xpk_checks(place: Gke) -> tuple[tuple[bool, str], ...]:
    """Check what goes with xpk and what goes without."""
    fields = {"topology": "", "devices_per_node": 0, "nodes": 1, "queue": "", "time_limit": ""}
    fields |= {"namespace": "default", "service_account": "default"}
    if not place.xpk:
        fields = {"project": "", "zone": ""}
    idle = [name for name, default in fields.items() if getattr(place, name) != default]
    names = ", ".join(f"--{name.replace('_', '-')}" for name in idle)
    why = "xpk decides that" if place.xpk else "kubectl knows its cluster; they are for --xpk"
    return (
        (not idle, f"{names} has no effect here: {why}"),
        (
            not place.xpk or bool(re.fullmatch(r"[a-z0-9-]+-\d+", place.accelerator)),
            f"--accelerator {place.accelerator!r}: xpk takes a kind and a size, such as "
            "v5litepod-16",
        ),
    )
