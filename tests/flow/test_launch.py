"""What a launch renders, what it refuses, and what its workers do: end, fail, get preempted."""

from __future__ import annotations

import ast
import dataclasses
import json
import os
import shutil
import signal
import subprocess
import sys
import time
import types
from pathlib import Path

import pytest
import yaml

from launch.on.each import launch_each
from launch.on.gke import Gke
from launch.on.job import LaunchError, write
from launch.on.local import Local
from launch.on.slurm import Slurm
from launch.on.snapshot import SnapshotError, pinned, take
from launch.on.start import place_of
from launch.on.supervise import supervise
from launch.on.tpu_vm import TpuVm
from launch.on.worker import decide, starts_again
from tests.flow import slurm
from tests.flow.commands import maktab
from tests.flow.launched import calls, clone_of, git, make_checkout, make_tools, plan, starts
from tests.golden.launch.make import HERE as GOLDEN
from tests.golden.launch.make import PLACES, job_on, rendered

ROOT = Path(__file__).parents[2]
EXPERIMENT = "my experiments/tiny.py"
SECRET = "hf_0123456789secret"
SOON_S = 240.0  # ends a hang; a busy machine starts a process in half a minute


@pytest.fixture
def checkout(tmp_path, monkeypatch):
    folder = make_checkout(tmp_path / "my checkout")
    monkeypatch.chdir(folder)
    return folder


@pytest.fixture
def tools(tmp_path, monkeypatch):
    folder = tmp_path / "tools"
    monkeypatch.setenv("PATH", f"{make_tools(folder)}{os.pathsep}{os.environ['PATH']}")
    return folder


def job_of(checkout, place, **changes):
    """Give a job that runs the stub of a checkout."""
    snapshot = take(checkout, jax_extra=place.jax_extra)
    interpreter = None if place.installs else sys.executable
    changes = {"snapshot": snapshot, "interpreter": interpreter, "max_restarts": 3, **changes}
    return dataclasses.replace(job_on("local"), title="tiny", **changes)


def worker(home, *words, **more):
    """Call the worker's program in a launch folder."""
    program = [sys.executable, str(home / "worker.py"), *map(str, words)]
    return subprocess.run(program, capture_output=True, text=True, timeout=SOON_S, **more)


def wait_for(file):
    until = time.monotonic() + SOON_S
    while not file.exists():
        assert time.monotonic() < until, f"{file} did not come"
        time.sleep(0.02)


# What is rendered


@pytest.mark.parametrize("name", PLACES)
def test_a_launch_renders_what_it_rendered(name):
    assert rendered(name) == (GOLDEN / f"{name}.txt").read_text()


def test_every_golden_file_is_of_a_place():
    assert {file.stem for file in GOLDEN.glob("*.txt")} == set(PLACES)


WITH_MANIFEST = [
    name for name in PLACES if "jobset.yaml" in PLACES[name].render(job_on(name)).files
]


@pytest.mark.parametrize("name", WITH_MANIFEST)
def test_manifests_follow_the_schemas_of_kubernetes_and_jobset(name):
    kubernetes = pytest.importorskip("kubernetes_validate")
    jsonschema = pytest.importorskip("jsonschema")
    files = PLACES[name].render(job_on(name)).files
    jobset = yaml.safe_load(files["jobset.yaml"])
    schema = json.loads((GOLDEN / "jobset-v1alpha2.json").read_text())
    jsonschema.Draft7Validator(schema).validate(jobset)
    (replicated,) = jobset["spec"]["replicatedJobs"]
    job = {"apiVersion": "batch/v1", "kind": "Job", "metadata": jobset["metadata"]}
    kubernetes.validate({**job, "spec": replicated["template"]["spec"]}, "1.32", strict=True)


def test_the_schemas_refuse_what_kubernetes_would():
    kubernetes = pytest.importorskip("kubernetes_validate")
    jsonschema = pytest.importorskip("jsonschema")
    jobset = PLACES["gke-tpu"].jobset(job_on("gke-tpu"))
    schema = json.loads((GOLDEN / "jobset-v1alpha2.json").read_text())
    jobset["spec"]["failurePolicy"]["maxRestart"] = 3
    with pytest.raises(jsonschema.ValidationError, match="maxRestart"):
        jsonschema.Draft7Validator(schema).validate(jobset)
    spec = jobset["spec"]["replicatedJobs"][0]["template"]["spec"]
    spec["podFailurePolicy"]["rules"][0]["onExitCodes"]["value"] = [1]
    job = {"apiVersion": "batch/v1", "kind": "Job", "metadata": {"name": "x"}, "spec": spec}
    with pytest.raises(kubernetes.ValidationError):
        kubernetes.validate(job, "1.32", strict=True)


@pytest.mark.parametrize("name", [name for name in PLACES if "slurm" in name or "gke" in name])
@pytest.mark.skipif(not shutil.which("shellcheck"), reason="shellcheck is not installed")
def test_scripts_pass_shellcheck(name, tmp_path):
    for file, text in PLACES[name].render(job_on(name)).files.items():
        if text.startswith("#!/bin/bash"):
            (tmp_path / file).write_text(text)
            words = ["shellcheck", "--severity=warning", str(tmp_path / file)]
            done = subprocess.run(words, capture_output=True, text=True, timeout=SOON_S)
            assert done.returncode == 0, done.stdout


@pytest.mark.slow
@pytest.mark.skipif(not shutil.which("gcloud"), reason="gcloud is not installed")
def test_gcloud_knows_every_command_and_option(tmp_path):
    """Its linter reads commands without running them; it sees an empty configuration."""
    wanted = [
        command.words
        for name, place in PLACES.items()
        for rendering in [place.render(job_on(name))]
        for command in (*rendering.commands, *rendering.later)
        if command.words[0] == "gcloud"
    ]
    # It splits at spaces; what is said over ssh is none of its business.
    texts = {" ".join("--command=x" if "--command" in w else w for w in words) for words in wanted}
    texts = sorted(text.replace("'", "") for text in texts)
    texts.append("gcloud compute tpus queued-resources create x --not-an-option")
    (tmp_path / "commands.json").write_text(json.dumps([{"command_string": t} for t in texts]))
    own = {"CLOUDSDK_CONFIG": str(tmp_path), "NO_GCE_CHECK": "true"}
    lint = ["gcloud", "meta", "lint-gcloud-commands", f"--commands-file={tmp_path}/commands.json"]
    done = subprocess.run(
        lint, capture_output=True, text=True, timeout=SOON_S, env={**os.environ, **own}
    )
    found = json.loads(done.stdout)
    assert len(found) == len(texts)
    assert [each["error_message"] for each in found[:-1]] == [None] * (len(texts) - 1)
    assert "--not-an-option" in found[-1]["error_message"]


@pytest.mark.slow
@pytest.mark.skipif(not shutil.which("xpk"), reason="xpk is not installed")
def test_xpk_takes_its_command(tmp_path):
    words = PLACES["gke-xpk"].render(job_on("gke-xpk")).commands[-1].words
    words = [word for word in words if not word.startswith("--storage")]  # asks the cluster
    words += ["--dry-run", "--skip-validation", f"--output-manifest-file={tmp_path}/xpk.yaml"]
    own = {"HOME": str(tmp_path), "CLOUDSDK_CONFIG": str(tmp_path), "KUBECONFIG": "/dev/null"}
    done = subprocess.run(
        words, capture_output=True, text=True, timeout=SOON_S, env={**os.environ, **own}
    )
    assert done.returncode == 0, done.stdout + done.stderr
    manifest = (tmp_path / "xpk.yaml").read_text()
    assert f"bash /bucket/{job_on('gke-xpk').home}/pod.sh" in manifest


def test_a_dry_run_says_everything_and_creates_nothing(checkout):
    before = sorted(checkout.rglob("*"))
    said = maktab("launch", "--on", "slurm", "--dry-run", EXPERIMENT, "sweep", "--set", "seed=3")
    assert said.code == 0, said.err
    assert "sbatch --parsable launches/tiny-" in said.out
    assert '"sweep",\n    "my experiments/tiny.py",\n    "--set",\n    "seed=3"' in said.out
    assert sorted(checkout.rglob("*")) == before


def with_two_runs(checkout):
    """Let the sweep of a checkout yield two runs."""
    file = checkout / EXPERIMENT
    text = file.read_text().replace(
        "import Lora\n", "import Lora\nfrom research.core.parts import vary\n"
    )
    file.write_text(text + "    yield vary(get_config(), {'seed': 7})\n")


def test_each_run_of_a_sweep_may_be_a_job_of_its_own(checkout, tools):
    with_two_runs(checkout)
    said = maktab("launch", "--on", "slurm", "--each", EXPERIMENT, "sweep", "--workdir", "runs/x")
    assert said.code == 0, said.err
    specs = [json.loads(file.read_text()) for file in checkout.glob("launches/*/launch.json")]
    ends = sorted(spec["command"][-4:] for spec in specs)
    assert ends == [["--workdir", "runs/x", "--only", f"plain/seed-{n}"] for n in (0, 7)]
    assert len({spec["code"] for spec in specs}) == 1
    assert len(calls(tools)) == 2


@pytest.mark.slow
def test_where_launches_stay_each_run_has_one_at_the_same_time(checkout, monkeypatch):
    monkeypatch.setenv("PYTHONPATH", str(ROOT))
    monkeypatch.setenv("PYTHONSAFEPATH", "1")
    with_two_runs(checkout)
    plan(checkout, [4, 4])
    words = ["launch", "--on", "local", "--each", EXPERIMENT, "sweep"]
    with pytest.raises(LaunchError, match="2 of 2 launches failed: plain/seed-0"):
        launch_each(["plain/seed-0", "plain/seed-7"], "tiny", words, print)
    only = sorted(start["words"][-1] for start in starts(checkout / "runs"))
    assert only == ["plain/seed-0", "plain/seed-7"]


@pytest.mark.parametrize(
    ("words", "message"),
    [
        (["--on", "slurm", "--each", EXPERIMENT], "--each is for a sweep"),
        (["--on", "local", "--each", EXPERIMENT, "sweep"], "on this one: maktab sweep --jobs N"),
    ],
)
def test_each_is_refused_where_it_cannot_be(checkout, words, message):
    said = maktab("launch", *words)
    assert said.code == 2
    assert message in said.err
    assert not (checkout / "launches").exists()


def test_nothing_of_the_environment_is_written(checkout, tools, monkeypatch):
    monkeypatch.setenv("HF_TOKEN", SECRET)
    said = maktab("launch", "--on", "slurm", EXPERIMENT)
    assert said.code == 0, said.err
    (home,) = (checkout / "launches").iterdir()
    for file in home.iterdir():
        assert SECRET.encode() not in file.read_bytes()
    assert SECRET not in said.out
    assert calls(tools) == [["sbatch", "--parsable", f"launches/{home.name}/job.sbatch"]]


# What is refused, before anything is made


@pytest.mark.parametrize(
    ("words", "message"),
    [
        (["--on", "moon"], "--on 'moon' is unknown; choose from local, tpu-vm, gke, slurm"),
        (["--on", "local", "--zone", "z"], "--zone has no effect with --on local"),
        (["--on", "local", "--processes", "0"], "--processes 0 must be at least 1"),
        (["--on", "slurm", "--accelerator", "h100"], "needs --devices-per-node"),
        (["--on", "slurm", "--time-limit", "tomorrow"], "expected a duration such as 90m"),
        (["--on", "slurm", "--memory", "much"], "expected a size such as 200G"),
        (["--on", "slurm", "--partition", "a b"], "--partition 'a b' is no name"),
        (["--on", "slurm", "--sbatch", "exclusive"], "expected an option"),
        (["--on", "slurm", "--tasks-per-node", "-1"], "--tasks-per-node -1 is negative"),
        (["--on", "slurm", "--name", "My_Name"], "up to 30 of a-z, 0-9 and -"),
        (["--on", "tpu-vm"], "--accelerator is missing, such as v5litepod-16; --runtime-version"),
        (["--on", "gke", "--bucket", "gs://b/c"], "expected a bucket's name alone"),
        (["--on", "gke", "--bucket", "bucket", "--project", "p"], "they are for --xpk"),
    ],
)
def test_a_wrong_option_is_refused(checkout, words, message):
    said = maktab("launch", *words, EXPERIMENT)
    assert said.code == 2
    assert message in said.err
    assert not (checkout / "launches").exists()


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"accelerator": "tpu-v5-lite-podslice", "topology": "4x4x4"}, "takes 2 numbers"),
        ({"accelerator": "tpu-v9", "topology": "4x4"}, "no kind of TPU node"),
        ({"accelerator": "tpu-v6e-slice", "topology": "3x3"}, "9 chips, which nodes of"),
        ({"accelerator": "tpu-v6e-slice", "topology": "2x4", "nodes": 2}, "says how many hosts"),
        ({"accelerator": "nvidia-l4", "topology": "2x4"}, "is for TPUs, not for nvidia-l4"),
        ({"accelerator": "nvidia-l4", "slices": 2}, "for others give --nodes"),
        ({"devices_per_node": 0, "accelerator": "nvidia-l4"}, "go together"),
        ({"xpk": "c", "accelerator": "v5litepod-16", "queue": "q"}, "xpk decides that"),
        ({"xpk": "c", "accelerator": "tpu-v6e-slice", "devices_per_node": 0}, "such as v5litepod"),
    ],
)
def test_a_wrong_set_of_nodes_is_refused(options, message):
    options = {"devices_per_node": 0 if "xpk" in options else 4, **options}
    with pytest.raises(ValueError, match=message):
        Gke(bucket="bucket", **options)


@pytest.mark.parametrize(
    "option",
    ["--ntasks-per-node=2", "--ntasks 2", "-n2", "--nodes=2", "-N 2", "--exclusive --nt=2"],
)
def test_what_would_change_the_number_of_tasks_unheard_is_refused(option):
    with pytest.raises(ValueError, match="would change how many processes run"):
        Slurm(sbatch=("--exclusive", option))


def test_options_of_sbatch_that_count_nothing_are_passed_on():
    options = ("--nodelist=a[1-2]", "--nice=5", "--no-kill", "-p gpu", "--constraint=big-nodes")
    assert Slurm(sbatch=options).sbatch == options


@pytest.mark.parametrize(
    ("options", "count"),
    [
        ({}, 1),
        ({"nodes": 3}, 3),
        ({"tasks_per_node": 2}, 2),
        ({"nodes": 3, "tasks_per_node": 2}, 6),
        ({"nodes": 3, "devices_per_node": 8}, 24),
    ],
)
def test_slurm_tells_the_processes_that_there_are_several(options, count):
    place = Slurm(**options)
    rendering = place.render(job_on("slurm"))
    told = json.loads(rendering.files["launch.json"])["command"]
    assert place.tasks == count
    assert f"--ntasks-per-node={count // place.nodes}\n" in rendering.files["job.sbatch"]
    assert ("--distributed" in told) == (count > 1)


def test_devices_say_how_many_tasks_a_node_has():
    with pytest.raises(ValueError, match="each device has a task"):
        Slurm(devices_per_node=8, tasks_per_node=2)


def test_tpus_that_the_queue_alone_makes_are_not_made_without_it():
    tpu = {"accelerator": "v4-32", "runtime_version": "r", "zone": "z", "bucket": "bucket"}
    with pytest.raises(ValueError, match="leave out --now"):
        TpuVm(**tpu, slices=2, now=True)
    with pytest.raises(ValueError, match="--now does not"):
        TpuVm(**tpu, wait="6h", now=True)


@pytest.mark.parametrize(
    ("words", "code", "message"),
    [
        (["--set", "tuning.rnak=4"], 2, "rnak"),
        (["--workdir", "elsewhere"], 2, "give runs/elsewhere"),
        (["--workdir", "runs/../elsewhere"], 2, "would be lost"),
        (["--wrokdir", "runs/x"], 2, "--wrokdir"),
        (["sweep", "--generator", "none"], 2, "has no none()"),
    ],
)
def test_what_is_passed_on_is_checked_here(checkout, words, code, message):
    said = maktab("launch", "--on", "local", EXPERIMENT, *words)
    assert said.code == code
    assert message in said.err
    assert not (checkout / "launches").exists()


def test_an_absolute_workdir_is_for_machines_that_share_files(checkout):
    words = ["--dry-run", EXPERIMENT, "--workdir", "/shared/runs"]
    assert maktab("launch", "--on", "slurm", *words).code == 0
    said = maktab("launch", "--on", "gke", "--bucket", "bucket", *words)
    assert said.code == 2
    assert "would be lost with the worker" in said.err


def test_data_that_git_does_not_know_is_refused(checkout):
    file = checkout / "ignored.jsonl"
    file.write_text("{}\n")
    text = (checkout / EXPERIMENT).read_text().replace("str(ROWS)", "'ignored.jsonl'")
    (checkout / EXPERIMENT).write_text(text)
    said = maktab("launch", "--on", "local", "--dry-run", EXPERIMENT)
    assert said.code == 2
    assert "ignored.jsonl: git does not know it" in said.err


def test_a_module_that_git_does_not_know_is_refused(checkout, monkeypatch):
    file = checkout / "configs" / "new.py"
    file.parent.mkdir()
    file.touch()
    monkeypatch.setitem(sys.modules, "configs.new", types.SimpleNamespace(__file__=str(file)))
    said = maktab("launch", "--on", "local", "--dry-run", EXPERIMENT)
    assert said.code == 2
    assert "new.py: git does not know it" in said.err


def test_a_missing_tool_is_said_before_anything_is_written(checkout, monkeypatch):
    monkeypatch.setenv("PATH", str(Path(shutil.which("git")).parent))
    monkeypatch.setattr(shutil, "which", lambda tool: None)
    said = maktab("launch", "--on", "slurm", EXPERIMENT)
    assert said.code == 3
    assert "sbatch: not on PATH" in said.err
    assert not (checkout / "launches").exists()


def test_options_of_every_place_are_on_the_command_line():
    """Every field of a place is an option, and every option is of a place."""
    said = maktab("launch", "--help")
    for place in (Local, TpuVm, Gke, Slurm):
        for field in dataclasses.fields(place):
            assert f"--{field.name.replace('_', '-')} " in said.out
    assert place_of("slurm", {"nodes": 3, "sbatch": ["--exclusive"]}).sbatch == ("--exclusive",)


# The snapshot


def test_equal_files_make_equal_bytes(checkout, tmp_path):
    first = take(checkout)
    for file in checkout.rglob("*.py"):
        os.utime(file, (1, 1))
    again = take(checkout)
    assert (first.code_name, first.requirements_name) == (again.code_name, again.requirements_name)
    assert first.changed == ()
    assert first.commit == git(checkout, "rev-parse", "HEAD").strip()


def test_changed_files_travel_and_are_recorded(checkout):
    clean = take(checkout)
    (checkout / EXPERIMENT).write_text("changed\n")
    (checkout / "new.py").write_text("new\n")
    (checkout / "unknown.py").write_text("stays\n")
    (checkout / "launch" / "__init__.py").unlink()
    dirty = take(checkout, also=[checkout / "new.py"])
    assert dirty.changed == ("launch/__init__.py", EXPERIMENT, "new.py")
    assert set(dirty.files) == {*clean.files, "new.py"} - {"launch/__init__.py"}
    assert dirty.code_name != clean.code_name


def test_pins_are_what_is_installed_and_name_no_place():
    text = take(ROOT, jax_extra="tpu").requirements
    pins = dict(line.split("==") for line in text.splitlines())
    assert {"jax[tpu]", "jaxlib", "flax", "numpy", "safetensors"} <= pins.keys()
    assert "/" not in text
    assert "://" not in text


def test_what_cannot_be_pinned_is_named(checkout):
    with pytest.raises(SnapshotError, match="no-such-package, which this project requires, is not"):
        pinned(["no-such-package"])
    (checkout / "link").symlink_to("/etc/hostname")
    git(checkout, "add", "link")
    with pytest.raises(SnapshotError, match="link links to /etc/hostname, outside"):
        take(checkout)


def test_an_experiment_outside_of_the_checkout_is_refused(checkout, tmp_path):
    (tmp_path / "outside.py").write_text("")
    said = maktab("launch", "--on", "local", tmp_path / "outside.py")
    assert said.code == 2
    assert "git checkout" in said.err


# The worker


def test_the_worker_needs_python_alone():
    tree = ast.parse((ROOT / "launch" / "on" / "worker.py").read_text())
    imported = {
        name.split(".")[0]
        for node in ast.walk(tree)
        if isinstance(node, (ast.Import, ast.ImportFrom))
        for name in ([node.module] if isinstance(node, ast.ImportFrom) else [])
        + ([alias.name for alias in node.names] if isinstance(node, ast.Import) else [])
    }
    assert imported <= set(sys.stdlib_module_names)


def test_a_worker_runs_what_was_launched_not_what_is_there_now(checkout):
    place, folder = Local(), Path.cwd()
    plan(folder, [0])
    job = job_of(folder, place)
    home = write(job, place.render(job))
    (folder / "launch" / "__main__.py").write_text("raise SystemExit(9)\n")
    assert worker(home, "prepare").returncode == 0
    done = worker(home, "run", "--", "--process", "0")
    assert (done.returncode, done.stdout) == (0, "worker 0, start 1\n")
    (start,) = starts(folder / "runs")
    assert start["words"] == [*job.words, "--process", "0"]
    assert Path(start["code"]).parent == home.absolute() / "code"


def test_a_worker_refuses_what_was_not_launched(checkout):
    place = Local()
    job = job_of(checkout, place)
    home = write(job, place.render(job))
    code = home / job.snapshot.code_name
    content = bytearray(code.read_bytes())
    content[len(content) // 2] ^= 1
    code.write_bytes(content)
    done = worker(home, "prepare")
    assert done.returncode == 2
    assert "is not what was launched" in done.stderr
    code.unlink()
    assert "is missing" in worker(home, "prepare").stderr


def test_code_that_was_changed_on_the_worker_is_unpacked_again(checkout):
    place = Local()
    job = job_of(checkout, place)
    home = write(job, place.render(job))
    assert worker(home, "prepare").returncode == 0
    changed = home / "code" / EXPERIMENT
    before = changed.read_bytes()
    changed.write_text("changed")
    assert worker(home, "prepare").returncode == 0
    assert changed.read_bytes() == before


def test_a_worker_refuses_another_environment(checkout):
    place = Local()
    other = dataclasses.replace(take(checkout), requirements="packaging==1.0\nabsent==2.0\n")
    job = job_of(checkout, place, snapshot=other)
    home = write(job, place.render(job))
    done = worker(home, "prepare")
    assert done.returncode == 2
    assert "is here, 1.0 was pinned; absent (none) is here, 2.0 was pinned" in done.stderr


def start_worker(home, *words, **more):
    program = [sys.executable, str(home / "worker.py"), "run", *words]
    return subprocess.Popen(program, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, **more)


def test_a_worker_passes_sigterm_on_and_ends_as_the_command_does(checkout):
    place = Local()
    plan(checkout, ["wait"])
    job = job_of(checkout, place)
    home = write(job, place.render(job))
    assert worker(home, "prepare").returncode == 0
    running = start_worker(home, "--exit", str(home / "exit-0"), "--log", str(home / "kept.log"))
    wait_for(checkout / "runs" / "waits-0")
    running.send_signal(signal.SIGTERM)
    said = running.communicate(timeout=SOON_S)[0].decode()
    assert running.returncode == 75
    assert (home / "exit-0").read_text() == "75"
    assert said.startswith("worker 0, start 1\n")
    assert said.endswith("saved\n")
    assert (home / "kept.log").read_text() == said


def test_a_command_whose_reader_went_away_saves(checkout):
    place = Local()
    plan(checkout, ["wait"])
    job = job_of(checkout, place)
    home = write(job, place.render(job))
    assert worker(home, "prepare").returncode == 0
    running = start_worker(home)
    wait_for(checkout / "runs" / "waits-0")
    running.stdout.close()
    assert running.wait(timeout=SOON_S) == 75
    assert (checkout / "runs" / "saved").exists()


def test_a_start_waits_for_the_one_before_it(checkout):
    place = Local()
    plan(checkout, ["wait", 0])
    job = job_of(checkout, place)
    home = write(job, place.render(job))
    assert worker(home, "prepare").returncode == 0
    first = start_worker(home, "--alone")
    wait_for(checkout / "runs" / "waits-0")
    second = start_worker(home, "--alone")
    time.sleep(0.5)
    assert len(starts(checkout / "runs")) == 1
    first.send_signal(signal.SIGTERM)
    assert second.wait(timeout=SOON_S) == 0
    assert first.wait() == 75


def test_the_first_that_fails_decides():
    assert decide([0, 0]) == 0
    assert decide([0, 75, 1]) == 75
    assert decide([1, 143, 75]) == 1
    assert decide([134, 1]) == 75
    assert decide([2]) == 2
    assert [code for code in (1, 2, 3, 130, 137, 143, 255) if starts_again(code)] == [137, 143, 255]


def test_the_verdict_is_of_the_worker_that_ended_first(checkout):
    place = Local()
    job = job_of(checkout, place)
    home = write(job, place.render(job))
    for second, (number, code) in enumerate([(1, 3), (0, 143)]):
        (home / f"exit-{number}").write_text(str(code))
        os.utime(home / f"exit-{number}", (second, second))
    (home / "worker-1.log").write_text("why\n")
    done = worker(home, "verdict", "--workers", 3)
    assert done.returncode == 3
    assert "worker 1 ended first, with 3" in done.stdout
    assert done.stdout.endswith("  why\n")
    (home / "exit-1").write_text("0")
    assert worker(home, "verdict", "--workers", 3).returncode == 75


# Keeping it going


def commands(*codes):
    """Give a command a worker: what it says, and how it ends."""
    program = "import os, sys; print('last words'); c = int(sys.argv[1]); "
    program += "sys.stdout.flush(); os.kill(os.getpid(), -c) if c < 0 else sys.exit(c)"
    return [[sys.executable, "-c", program, str(code)] for code in codes]


def test_a_preempted_job_starts_again_until_it_ends(tmp_path):
    said, plans = [], iter([commands(0, 75), commands(-9, 0), commands(0, 0)])
    code = supervise(lambda: next(plans), tmp_path, max_restarts=2, say=said.append, backoff_s=0)
    assert code == 0
    assert said == [
        "worker 1 ended first, with 75: start 2 of at most 3 in 0 s",
        "worker 0 ended first, with 137: start 3 of at most 3 in 0 s",
    ]
    assert (tmp_path / "worker-0.log").read_text() == "last words\n" * 3


def test_a_failed_job_stops_with_its_last_lines(tmp_path):
    with pytest.raises(
        LaunchError, match=r"(?s)worker 0 ended first, with 3; the end of .*last words"
    ):
        supervise(lambda: commands(3), tmp_path, max_restarts=5, say=print, backoff_s=0)
    assert (tmp_path / "worker-0.log").read_text() == "last words\n"


def test_a_job_that_is_always_preempted_stops(tmp_path):
    with pytest.raises(LaunchError, match="that was start 3, and --max-restarts allows no more"):
        supervise(lambda: commands(75), tmp_path, max_restarts=2, say=print, backoff_s=0)
    assert (tmp_path / "worker-0.log").read_text() == "last words\n" * 3


def test_local_processes_get_address_number_and_index(checkout):
    plan(checkout, [0], [0])
    words = ["--on", "local", "--processes", "2", "--port", "23456", EXPERIMENT]
    said = maktab("launch", *words, "--workdir", "runs/a b")
    assert said.code == 0, said.err
    for index in range(2):
        (start,) = starts(checkout / "runs", index)
        assert start["words"] == [
            *("train", EXPERIMENT, "--workdir", "runs/a b", "--coordinator", "127.0.0.1:23456"),
            *("--processes", "2", "--process", str(index)),
        ]
    (home,) = (checkout / "launches").iterdir()
    logs = [(home / f"worker-{index}.log").read_text() for index in range(2)]
    assert logs == ["worker 0, start 1\n", "worker 1, start 1\n"]


# Stand-ins for clusters


def tpu_of(checkout, **changes):
    options = {"accelerator": "v5litepod-8", "runtime_version": "r", "zone": "z", **changes}
    place = TpuVm(bucket="bucket", **options)
    job = job_of(checkout, place)
    write(job, place.render(job))
    return place, job


def test_tpus_are_asked_for_again_and_given_back(checkout, tools):
    place, job = tpu_of(checkout, spot=True)
    bucket = tools / "buckets" / "bucket"
    bucket.mkdir(parents=True)
    # A worker may be ended before it was heard of: then there is one start more.
    plan(bucket, [0] * 4, [75, 0, 0, 0])
    (tools / "preempt").touch()
    said = []
    assert place.start(job, said.append, poll_s=0, backoff_s=0) == 0
    verbs = [words[4] for words in calls(tools) if words[3:4] == ["queued-resources"]]
    assert [verb for verb in verbs if verb != "describe"] == [
        "create",
        "delete",
        "create",
        "delete",
    ]
    assert f"{job.name} is SUSPENDED: asking for it again" in said
    for index in range(2):
        last = starts(bucket / "runs", index)[-1]
        assert last["words"] == [*job.words, "--distributed"]
        assert f"vm-{index}/maktab/{job.name}/code" in last["code"]
        assert f"worker {index}, start" in (Path(job.home) / f"worker-{index}.log").read_text()
    installed = [words for words in calls(tools) if words[:2] == ["uv", "venv"]]
    assert len(installed) == 2  # once a worker, whatever the number of starts


def test_a_failure_on_a_tpu_stops_and_gives_it_back(checkout, tools):
    place, job = tpu_of(checkout)
    (tools / "buckets" / "bucket").mkdir(parents=True)
    plan(tools / "buckets" / "bucket", [3], [0])
    with pytest.raises(LaunchError, match="worker 0 ended first, with 3"):
        place.start(job, print, poll_s=0, backoff_s=0)
    assert calls(tools)[-1][3:5] == ["queued-resources", "delete"]
    assert not (tools / "state").exists()


def test_tpus_that_will_not_come_are_given_up(checkout, tools):
    place, job = tpu_of(checkout, wait="1h")
    (tools / "state").write_text("FAILED")
    with pytest.raises(LaunchError, match="is FAILED, so it will not come; see why with"):
        place.start(job, print, poll_s=0, backoff_s=0)
    assert not (tools / "state").exists()


def test_a_jobset_is_uploaded_and_created_and_its_pods_run(checkout, tools, monkeypatch):
    words = ["--on", "gke", "--bucket", "bucket", "--accelerator", "tpu-v6e-slice"]
    words += ["--topology", "2x4", "--devices-per-node", "4"]
    said = maktab("launch", *words, EXPERIMENT)
    assert said.code == 0, said.err
    upload, create = calls(tools)
    (home,) = (checkout / "launches").iterdir()
    assert create == [
        *("kubectl", "create", "--namespace=default"),
        f"--filename=launches/{home.name}/jobset.yaml",
    ]
    assert upload[-1] == f"gs://bucket/launches/{home.name}/"
    bucket = tools / "buckets" / "bucket"
    plan(bucket, [0], [0])
    script = (bucket / "launches" / home.name / "pod.sh").read_text()
    script = script.replace("/bucket", str(bucket)).replace("/tmp/maktab", str(tools / "tmp"))
    for name, value in {"STUB_WORKER": "1", "TPU_WORKER_ID": "1"}.items():
        monkeypatch.setenv(name, value)
    monkeypatch.setenv("TPU_WORKER_HOSTNAMES", "a,b")
    done = subprocess.run(["bash", "-c", script], capture_output=True, text=True, timeout=SOON_S)
    assert done.returncode == 0, done.stderr
    assert starts(bucket / "runs", 1)[0]["words"] == ["train", EXPERIMENT, "--distributed"]
    log = bucket / "launches" / home.name / "worker-1.log"
    assert log.read_text() == "worker 1, start 1\n"


# A real Slurm


@pytest.mark.slow
@pytest.mark.timeout(600)
@pytest.mark.skipif(bool(slurm.why_not()), reason=slurm.why_not())
def test_slurm_queues_a_preempted_job_again(checkout, tmp_path_factory):
    """Two tasks; the first start is preempted by a signal, the second ends."""
    plan(checkout, ["wait", 0], [0, 0])
    words = ["--on", "slurm", "--tasks-per-node", "2", "--sbatch=--overcommit", EXPERIMENT]
    program = [sys.executable, "-m", "launch", "launch", *words]
    with slurm.one_node(tmp_path_factory.mktemp("s")) as env:
        own = {**env, "PYTHONPATH": str(ROOT), "PYTHONSAFEPATH": "1"}
        done = subprocess.run(program, env=own, capture_output=True, text=True, timeout=SOON_S)
        assert done.returncode == 0, done.stderr
        (home,) = (checkout / "launches").iterdir()
        script = str(home / "job.sbatch")
        test = subprocess.run(["sbatch", "--test-only", script], env=env, timeout=30)
        assert test.returncode == 0
        wait_for(checkout / "runs" / "waits-0")
        wait_for(home / "exit-1")
        slurm.said(env, "scancel", "--batch", "--signal=TERM", "1")
        job = slurm.ended(env, 1)
    assert "JobState=COMPLETED" in job
    assert "Restarts=1" in job
    log = (home / "worker-0.log").read_text()
    assert log.startswith("worker 0, start 1\n")
    assert log.endswith("saved\nworker 0, start 2\n")
    assert "worker 0 ended first, with 75" in (home / "job.log").read_text()
    assert (home / "worker-1.log").read_text() == "worker 1, start 1\nworker 1, start 2\n"


@pytest.mark.slow
@pytest.mark.timeout(600)
@pytest.mark.skipif(bool(slurm.why_not()), reason=slurm.why_not())
def test_slurm_runs_each_run_of_a_sweep_as_a_job(checkout, tmp_path_factory):
    with_two_runs(checkout)
    plan(checkout, [0, 0])
    words = ["--on", "slurm", "--each", EXPERIMENT, "sweep"]
    program = [sys.executable, "-m", "launch", "launch", *words]
    with slurm.one_node(tmp_path_factory.mktemp("s")) as env:
        own = {**env, "PYTHONPATH": str(ROOT), "PYTHONSAFEPATH": "1"}
        done = subprocess.run(program, env=own, capture_output=True, text=True, timeout=SOON_S)
        assert done.returncode == 0, done.stderr
        jobs = [slurm.ended(env, number) for number in (1, 2)]
    assert all("JobState=COMPLETED" in job for job in jobs)
    only = sorted(start["words"][-1] for start in starts(checkout / "runs"))
    assert only == ["plain/seed-0", "plain/seed-7"]


@pytest.mark.slow
@pytest.mark.timeout(600)
@pytest.mark.skipif(bool(slurm.why_not()), reason=slurm.why_not())
def test_slurm_trains_to_the_end(tmp_path_factory):
    """This checkout, as it is, on one node."""
    clone = clone_of(ROOT, tmp_path_factory.mktemp("clone") / "maktab")
    settings = ["clock.steps=2", "clock.cycle_steps=1", "clock.evaluate_every=0", "evaluators=()"]
    words = ["experiments/quickstart.py", "--workdir", "runs/on slurm"]
    words += [word for setting in settings for word in ("--set", setting)]
    program = [sys.executable, "-m", "launch", "launch", "--on", "slurm", *words]
    with slurm.one_node(tmp_path_factory.mktemp("s")) as env:
        done = subprocess.run(
            program, cwd=clone, env=env, capture_output=True, text=True, timeout=SOON_S
        )
        assert done.returncode == 0, done.stderr
        job = slurm.ended(env, 1)
    (home,) = (clone / "launches").iterdir()
    assert "JobState=COMPLETED" in job, (home / "job.log").read_text()
    finished = json.loads((clone / "runs" / "on slurm" / "finished.json").read_text())
    assert finished["step"] == 2
    begun = json.loads((clone / "runs" / "on slurm" / "run.json").read_text())
    assert begun[0]["git"]["commit"] == git(clone, "rev-parse", "HEAD").strip()
