"""Plan the runs of docs/scale.md with `maktab plan`: one JSON each under results/plans/.

`python -m benchmarks.scaling [NAME ...]` plans those whose JSON is not there, or those that are
named; `python -m benchmarks.scaling_page` writes the tables. TPUs need libtpu and GPUs jax's CUDA
plugin in the environment that runs it; neither needs the hardware.
"""

from __future__ import annotations

import argparse
import dataclasses
import importlib.util
import os
import subprocess
import sys
from pathlib import Path

RESULTS = Path("benchmarks/results/plans")
SCALE = "experiments/scale"
LLAMA_8B = "llama3p1_8b_lora"
ONE_GROUP = "layout.axes=(('data',1),('fsdp',-1))"
TRAINING = ("--program", "training")
ROWS_A_CHIP = 4  # 8 chips have more tokens than the vocabulary has words: all gather their table
PLAIN = "--xla_jf_spmd_threshold_for_windowed_einsum_mib=1000000"  # gathers are not cut into rings
TOO_LARGE = 3  # the exit code of a plan that does not fit


@dataclasses.dataclass(frozen=True, kw_only=True)
class Study:
    """One call of `maktab plan`.

    Attributes:
      name: of its JSON.
      group: the section of the page that shows it.
      title: what the page calls it.
      words: what follows the topology on the command line.
      flags: of libtpu, its LIBTPU_INIT_ARGS.
    """

    name: str
    group: str
    title: str
    file: str
    topology: str
    words: tuple[str, ...] = ()
    flags: str = ""

    @property
    def command(self) -> str:
        """What a user would type."""
        words = [f"'{word}'" if " " in word else word for word in self.words]
        flags = [f"LIBTPU_INIT_ARGS={self.flags}"] if self.flags else []
        return " ".join([*flags, "maktab plan", self.file, "--topology", self.topology, *words])


def fits(name: str, title: str, file: str, topology: str, *words: str) -> Study:
    """Describe a committed study: all three programs."""
    return Study(
        name=name,
        group="studies",
        title=title,
        file=f"{SCALE}/{file}.py",
        topology=topology,
        words=words,
    )


def of_training(group: str, name: str, title: str, file: str, topology: str, *sets: str) -> Study:
    """Describe a plan of the training step alone, with some settings."""
    words = tuple(word for each in sets for word in ("--set", each))
    return Study(
        name=name,
        group=group,
        title=title,
        file=f"{SCALE}/{file}.py",
        topology=topology,
        words=(*TRAINING, *words),
    )


STUDIES = (
    fits("llama-8b-v5e", "Llama 3.1 8B, LoRA, v5e-8", "llama3p1_8b_lora", "v5e-8"),
    fits("qwen-30b-v5p", "Qwen3 30B-A3B, LoRA, v5p-16 (8 chips)", "qwen3_30b_a3b_lora", "v5p-16"),
    fits("llama-70b-v5p", "Llama 3.1 70B, full, 64 of v5p", "llama3p1_70b_full", "v5p:4x4x4"),
    fits(
        "llama-70b-v6e",
        "Llama 3.1 70B, full, 256 of v6e",
        "llama3p1_70b_full",
        "v6e:16x16",
        "--set",
        "data.rows=256",
        "--set",
        "compute.scoring_rows=256",
    ),
    fits("mixtral-v5p", "Mixtral 8x7B, full, 32 of v5p", "mixtral_8x7b_full", "v5p-64"),
    fits("deepseek-v5p", "DeepSeek-V3, LoRA, 256 of v5p", "deepseek_v3_lora", "v5p:4x8x8"),
    *(
        dataclasses.replace(
            of_training(
                "weak",
                f"weak-{n}",
                f"{n} chips",
                "llama3p1_8b_full",
                shape,
                f"data.rows={ROWS_A_CHIP * n}",
            ),
            flags=PLAIN,
        )
        for n, shape in ((8, "v5p:2x2x2"), (32, "v5p:2x4x4"), (64, "v5p:4x4x4"), (256, "v5p:4x8x8"))
    ),
    *(
        of_training(
            "default",
            f"weak-{n}-default",
            f"{n} chips, one row each",
            "llama3p1_8b_full",
            shape,
            f"data.rows={n}",
        )
        for n, shape in ((8, "v5p:2x2x2"), (256, "v5p:4x8x8"))
    ),
    *(
        of_training(
            "slices",
            f"slices-{n}",
            f"{n} slices of 64 v5p",
            "llama3p1_70b_slices",
            f"{n}*v5p:4x4x4",
            f"data.rows={64 * n}",
            f"layout.axes=(('replica',{n}),('fsdp',-1))",
        )
        for n in (2, 4)
    ),
    of_training("gpus", "a100-1", "Llama 3.1 8B, LoRA, one A100", LLAMA_8B, "a100:1"),
    of_training("gpus", "h200-8", "Llama 3.1 8B, LoRA, 8 H200", LLAMA_8B, "h200:8"),
    of_training(
        "gpus", "h100-64", "Llama 3.1 70B, full, 64 H100", "llama3p1_70b_full", "h100:64", ONE_GROUP
    ),
    of_training("gpus", "h200-16", "Llama 3.1 70B, full, 16 H200", "llama3p1_70b_full", "h200:16"),
    of_training(
        "refused",
        "llama-8b-v5e-all",
        "8B LoRA, v5e-8, all activations kept",
        LLAMA_8B,
        "v5e-8",
        "compute.remat=none",
    ),
    Study(
        name="search",
        group="search",
        title="Llama 3.1 8B, LoRA",
        file=f"{SCALE}/{LLAMA_8B}.py",
        topology="a100:8",
        words=(
            *("--search", "--try-layout", "fsdp", "--try-rows", "1", "--try-rows", "4"),
            *("--try-remat", "full", "--try-remat", "dots", "--try-remat", "none"),
        ),
    ),
)


def main() -> None:
    """Plan what is asked for, or what is not there yet."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("names", nargs="*", help="Plan these again.")
    names = parser.parse_args().names
    known = {study.name: study for study in STUDIES}
    if unknown := sorted(set(names) - set(known)):
        parser.error(f"{unknown}: there are {', '.join(known)}")
    for study in STUDIES:
        out = RESULTS / f"{study.name}.json"
        if study.name in names or not (names or out.exists()):
            run(study, out)


def run(study: Study, out: Path) -> None:
    """Run one command; what the compiler refuses is a result too."""
    if not can_compile(study.topology):
        print(f"{study.name}: passed over, its compiler is not installed", flush=True)
        return
    print(f"{study.name}: {study.command}", flush=True)
    words = [study.file, "--topology", study.topology, *study.words, "--out", str(out)]
    done = subprocess.run(
        [sys.executable, "-m", "launch", "plan", *words],
        env=os.environ | ({"LIBTPU_INIT_ARGS": study.flags} if study.flags else {}),
        check=False,
    )
    if done.returncode not in (0, TOO_LARGE):
        raise SystemExit(f"{study.name}: exit code {done.returncode}")


def can_compile(topology: str) -> bool:
    """Whether this environment has the compiler for a topology."""
    gpu = topology.startswith(("a100", "h100", "h200"))
    return importlib.util.find_spec("jax_cuda13_plugin" if gpu else "libtpu") is not None


if __name__ == "__main__":
    main()
