"""Write what launches render anew: python -m tests.golden.launch.make (and read the difference)."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from launch.on.gke import Gke
from launch.on.job import Job, Place
from launch.on.local import Local
from launch.on.slurm import Slurm
from launch.on.snapshot import Snapshot
from launch.on.tpu_vm import TpuVm
from research.core.parts import describe

HERE = Path(__file__).parent
WORDS = ("train", "my experiments/mine.py", "--set", "name=it's", "--workdir", "runs/a b")


def v5e(**more: Any) -> TpuVm:
    """Give a place of 16 chips."""
    kind = {"accelerator": "v5litepod-16", "runtime_version": "v2-alpha-tpuv5-lite", **more}
    return TpuVm(zone="us-west4-a", project="mine", bucket="my-bucket", **kind)


PLACES: dict[str, Place] = {
    "local": Local(),
    "local-3-processes": Local(processes=3, port=12345),
    "slurm": Slurm(),
    "slurm-gpus": Slurm(
        nodes=2,
        devices_per_node=8,
        accelerator="h100",
        partition="gpu",
        account="mine",
        time_limit="1d12h",
        cpus=12,
        memory="900G",
        sbatch=("--exclusive", "--constraint=nvlink"),
    ),
    "gke-tpu": Gke(
        bucket="my-bucket",
        accelerator="tpu-v5-lite-podslice",
        topology="4x4",
        devices_per_node=4,
        slices=2,
        spot=True,
        queue="multislice-queue",
        service_account="trainer",
        namespace="research",
        time_limit="12h",
    ),
    "gke-gpus": Gke(
        bucket="my-bucket",
        accelerator="nvidia-h100-80gb",
        devices_per_node=8,
        nodes=3,
        image="example.org/mine/maktab:1",
    ),
    "gke-xpk": Gke(
        bucket="my-bucket",
        accelerator="v5litepod-16",
        slices=2,
        spot=True,
        xpk="my-cluster",
        project="mine",
        zone="us-west4-a",
    ),
    "tpu-vm": v5e(spot=True, wait="6h", service_account="a@b.example"),
    "tpu-vm-3-slices": v5e(slices=3, keep=True),
    "tpu-vm-now": v5e(accelerator="v4-8", runtime_version="tpu-ubuntu2204-base", now=True),
}


def job_on(name: str) -> Job:
    """Give a job whose name depends on neither this machine nor this checkout."""
    place = PLACES[name]
    snapshot = Snapshot(
        code=b"code",
        files=("my experiments/mine.py",),
        requirements="flax==0.12.8\njax==0.10.2\n",
        python="3.11",
        commit="0123456789abcdef0123456789abcdef01234567",
        changed=("my experiments/mine.py",),
    )
    return Job(
        title="mine",
        words=WORDS,
        folder=".",
        snapshot=snapshot,
        interpreter=None if place.installs else "/shared/my env/bin/python",
        max_restarts=7,
        place=describe(place),
    )


def rendered(name: str) -> str:
    """Spell a launch out, as `--dry-run` does."""
    job = job_on(name)
    return PLACES[name].render(job).text(job)


def main() -> None:
    """Write all of them."""
    for name in PLACES:
        (HERE / f"{name}.txt").write_text(rendered(name))


if __name__ == "__main__":
    main()
