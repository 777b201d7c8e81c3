"""A checkout whose `maktab` is a stub, and stand-ins for the tools that a launch calls."""

from __future__ import annotations

import json
import stat
import subprocess
import sys
from collections.abc import Mapping, Sequence
from pathlib import Path

from launch.on.snapshot import take

EXPERIMENT = """
from pathlib import Path

from configs import curricula
from research.clock import Clock
from research.data.pool import Data
from research.data.sources import Jsonl
from research.experiment import Experiment
from research.huggingface.pretrained import Pretrained
from research.objectives.cross_entropy import CrossEntropy
from research.optimizers.adamw import AdamW
from research.optimizers.schedules import Constant
from research.tuning.lora import Lora

ROWS = Path(__file__).resolve().parent / "rows.jsonl"


def get_config():
    return Experiment(
        name="plain",
        model=Pretrained(folder="someone/some-model"),
        data=Data(sources=(Jsonl(path=str(ROWS)),), rows=4, row_tokens=32),
        tuning=Lora(rank=3),
        objective=CrossEntropy(),
        optimizer=AdamW(),
        schedule=Constant(peak_lr=3e-3),
        curriculum=curricula.random(),
        clock=Clock(steps=4, cycle_steps=1),
    )


def sweep():
    yield get_config()
"""

STUB = '''
"""Ends with the next code of runs/plan.json; saves and ends with 75 on SIGTERM."""

import json, os, signal, sys, time
from pathlib import Path

def preempted(*_):
    signal.signal(signal.SIGTERM, signal.SIG_IGN)  # Slurm tells the command and its worker
    Path("runs/saved").touch()
    print("saved", flush=True)
    sys.exit(75)

signal.signal(signal.SIGTERM, preempted)
words = sys.argv[1:]
worker = words[words.index("--process") + 1] if "--process" in words else os.environ.get(
    "SLURM_PROCID", os.environ.get("STUB_WORKER", "0"))
starts = Path(f"runs/starts-{worker}.jsonl")
before = len(starts.read_text().splitlines()) if starts.exists() else 0
with starts.open("a") as file:
    file.write(json.dumps({"words": words, "code": str(Path(__file__).parent)}) + "\\n")
plan = json.loads(Path("runs/plan.json").read_text())[int(worker)]
code = plan[before]
print(f"worker {worker}, start {before + 1}", flush=True)
if code == "wait":
    Path(f"runs/waits-{worker}").touch()
    for _ in range(600):
        time.sleep(0.1)
        print("tick", flush=True)
if code < 0:
    os.kill(os.getpid(), -code)
sys.exit(code)
'''

GCLOUD = '''
"""Keeps queued resources and buckets in a folder, and runs what ssh is told on its 'workers'."""

import json, os, shutil, subprocess, sys
from pathlib import Path

home = Path(__file__).resolve().parent.parent
words = sys.argv[1:]
with (home / "calls.jsonl").open("a") as file:
    file.write(json.dumps(["gcloud", *words]) + "\\n")
given = dict(word[2:].partition("=")[::2] for word in words if word.startswith("--"))
plain = [word for word in words if not word.startswith("--")]
state = home / "state"

def preempted():
    if not (home / "preempt").exists():
        return False
    (home / "preempt").unlink()
    state.write_text("SUSPENDED")
    return True

if plain[:2] == ["storage", "cp"]:
    to = home / "buckets" / plain[-1].removeprefix("gs://")
    to.mkdir(parents=True, exist_ok=True)
    for name in plain[2:-1]:
        shutil.copy(name, to)
elif plain[2] == "queued-resources" and plain[3] == "create":
    state.write_text("WAITING_FOR_RESOURCES")
elif plain[2] == "queued-resources" and plain[3] == "delete":
    state.unlink()
elif plain[2] == "queued-resources":
    if not state.exists():
        sys.exit("ERROR: (gcloud.compute.tpus.queued-resources.describe) NOT_FOUND: no such thing")
    print(state.read_text())
    if state.read_text() == "WAITING_FOR_RESOURCES":
        state.write_text("ACTIVE")
elif plain[3] == "describe":
    print("READY\\t2" if state.exists() and state.read_text() == "ACTIVE" else "PREEMPTED\\t2")
else:
    workers = ["0", "1"] if given["worker"] == "all" else [given["worker"]]
    for worker in workers:
        vm = home / f"vm-{worker}"
        vm.mkdir(exist_ok=True)
        if given["worker"] != "all" and preempted():
            sys.exit(255)
        env = {**os.environ, "HOME": str(vm), "STUB_WORKER": worker}
        code = subprocess.run(["bash", "-c", given["command"]], cwd=vm, env=env).returncode
        if code:
            sys.exit(code)
'''

GCSFUSE = """
import sys
from pathlib import Path

bucket, folder = sys.argv[-2:]
Path(folder).rmdir()
Path(folder).symlink_to(Path(__file__).resolve().parent.parent / "buckets" / bucket)
"""

UV = """
import json, os, sys
from pathlib import Path

home = Path(__file__).resolve().parent.parent
with (home / "calls.jsonl").open("a") as file:
    file.write(json.dumps(["uv", *sys.argv[1:]]) + "\\n")
if sys.argv[1] == "venv":
    python = Path(sys.argv[-1]) / "bin" / "python"
    python.parent.mkdir(parents=True)
    python.write_text(f"#!/bin/sh\\nexec '{sys.executable}' \\"$@\\"\\n")
    python.chmod(0o755)
"""

RECORDER = """
import json, sys
from pathlib import Path

home = Path(__file__).resolve().parent.parent
with (home / "calls.jsonl").open("a") as file:
    file.write(json.dumps([Path(__file__).name, *sys.argv[1:]]) + "\\n")
print("done")
"""

MOUNTPOINT = """
import sys
from pathlib import Path

sys.exit(not Path(sys.argv[-1]).is_symlink())
"""

TOOLS = {"gcloud": GCLOUD, "gcsfuse": GCSFUSE, "uv": UV, "mountpoint": MOUNTPOINT}
TOOLS |= {"kubectl": RECORDER, "xpk": RECORDER, "sbatch": RECORDER}


def make_checkout(folder: Path) -> Path:
    """Make a committed checkout of a maktab that is a stub."""
    files = {
        "pyproject.toml": '[project]\nname = "maktab"\ndependencies = ["packaging"]\n',
        ".gitignore": "runs/\nlaunches/\n__pycache__/\nignored.jsonl\n",
        "launch/__init__.py": "",
        "launch/__main__.py": STUB,
        "launch/on/worker.py": "",
        "my experiments/tiny.py": EXPERIMENT,
        "my experiments/rows.jsonl": '{"text": "a row"}\n',
    }
    return committed(folder, files)


def committed(folder: Path, files: Mapping[str, str]) -> Path:
    """Make a folder with more files a repository of one commit."""
    for name, text in files.items():
        (folder / name).parent.mkdir(parents=True, exist_ok=True)
        (folder / name).write_text(text)
    git(folder, "init", "--quiet")
    git(folder, "add", "--all")
    git(folder, "-c", "user.name=a", "-c", "user.email=a@b", "commit", "--quiet", "-m", "one")
    return folder


def clone_of(root: Path, clone: Path, files: Mapping[str, str] | None = None) -> Path:
    """Make a committed checkout of a checkout as it is now, and of more files."""
    others = git(root, "ls-files", "--others", "--exclude-standard", "-z").split("\0")[:-1]
    snapshot = take(root, also=[root / name for name in others], fetched=False)
    clone.mkdir()
    (clone / "code.tar.gz").write_bytes(snapshot.code)
    subprocess.run(["tar", "-xzf", "code.tar.gz"], cwd=clone, check=True)
    return committed(clone, files or {})


def git(folder: Path, *words: str) -> str:
    """Run git."""
    done = subprocess.run(["git", "-C", str(folder), *words], capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    return done.stdout


def plan(checkout: Path, *codes: Sequence[int | str]) -> None:
    """Say how every worker's starts end: an exit code, a signal below 0, or "wait"."""
    runs = checkout / "runs"
    runs.mkdir(exist_ok=True)
    (runs / "plan.json").write_text(json.dumps(codes))


def starts(runs: Path, worker: int = 0) -> list[dict]:
    """Give what every start of a worker was told."""
    return [json.loads(line) for line in (runs / f"starts-{worker}.jsonl").read_text().splitlines()]


def make_tools(folder: Path) -> Path:
    """Write the stand-ins; give the folder for PATH."""
    programs = folder / "bin"
    programs.mkdir(parents=True)
    for name, text in TOOLS.items():
        (programs / name).write_text(f"#!{sys.executable} -IS\n{text}")
        (programs / name).chmod(stat.S_IRWXU)
    return programs


def calls(folder: Path) -> list[list[str]]:
    """Give the words of every call of a stand-in."""
    return [json.loads(line) for line in (folder / "calls.jsonl").read_text().splitlines()]
