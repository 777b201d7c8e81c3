"""The report, from run directories that were written by the record that training uses."""

import io
import json
import re
from pathlib import Path

import numpy as np
import pytest
from rich.console import Console

from research.evaluate.results import Evaluation
from research.evaluate.statistics import mean_interval, ratio_interval
from research.report.comparison import compare, over_seeds
from research.report.report import report
from research.report.runs import read_arms
from research.report.writers import Record

STEPS, CYCLE, ROUNDS, POOL, CHOSEN, ITEMS = 24, 3, 4, 61, 15, 47


def evaluation_of(skill: float, rng: np.random.Generator) -> Evaluation:
    """Answer `ITEMS` items, each with 2 to 5 parts, of which a share of about `skill` is right."""
    asked = 2 + np.arange(ITEMS) % 4
    easy = np.random.default_rng(11).normal(0, 0.12, ITEMS)  # the same items for every run
    share = np.clip(skill + easy + rng.normal(0, 0.05, ITEMS), 0, 1)
    found = np.round(share * asked)
    rows = tuple(
        {"id": f"item-{i}", "slot_accuracy": f / n, "slot_accuracy_count": int(n), "exact": f == n}
        for i, (f, n) in enumerate(zip(found, asked, strict=True))
    )
    rows = tuple({**row, "exact": float(row["exact"])} for row in rows)
    exact = ratio_interval([row["exact"] for row in rows], np.ones(ITEMS))
    metrics = {"slot_accuracy": ratio_interval(found, asked), "exact": exact}
    half = slice(0, 20)
    slices = {"area=riverside": {"slot_accuracy": ratio_interval(found[half], asked[half])}}
    return Evaluation(name="restaurants", metrics=metrics, slices=slices, rows=rows)


def make_run(folder: Path, arm: str, seed: int, *, gain: float, scored: bool, stop: int = STEPS):
    """Write the directory of a run that was killed after `stop` steps (or finished)."""
    workdir = folder / arm / f"seed-{seed}"
    rng = np.random.default_rng([len(arm), seed])
    luck = rng.normal(0, 0.01)
    record = Record(workdir)
    record.truncate_to(0)
    experiment = {"name": arm, "seed": seed, "clock": {"steps": STEPS}}
    (workdir / "experiment.json").write_text(json.dumps({"experiment": experiment}))
    start = {"git": {"commit": "0123456789abcdef", "diff": "x"}, "devices": ["cpu:0", "cpu:1"]}
    begun = {"random": 0, "edco": 1}.get(arm, 2)  # the control was begun first
    (workdir / "run.json").write_text(json.dumps([{**start, "started": f"2026-01-0{begun + 1}"}]))
    record.evaluation(0, evaluation_of(0.05, rng))
    score, scoring = rng.normal(2.0, 0.5, POOL), 0.0
    for step in range(0, stop, CYCLE):
        round_ = step * ROUNDS // STEPS
        if step % (STEPS // ROUNDS) == 0:
            score = 0.9 * score + rng.normal(0, 0.15, POOL)
            chosen = np.argsort(-score)[:CHOSEN] if scored else rng.permutation(POOL)[:CHOSEN]
            shown = score if scored else np.full(POOL, np.nan)
            record.round(round_, step, score_X=shown.astype(np.float32), selected=chosen)
        for update in range(step + 1, step + CYCLE + 1):
            ids = rng.permutation(chosen)[:8].reshape(4, 2)
            losses = 0.6 * score[ids] + rng.normal(0, 0.2, ids.shape)
            record.order(update, round_, ids.tolist())
            record.losses(update, losses.tolist())
        end = step + CYCLE
        loss = 1 + 2 * np.exp(-end / 9) + luck + rng.normal(0, 0.03)
        scoring += 4e9 if scored and step % 6 == 0 else 0.0
        flops = {"flops": 3e9 * CYCLE, "scoring_flops": scoring}
        counts = {"tokens": 900, "examples": 24}
        record.metrics(end, {"round": round_, "loss_nats": loss, **counts, **flops})
        record.timing(end, {"wall_s": 1.5})
        if end % 6 == 0:
            skill = (0.6 + gain) * (1 - np.exp(-end / 8)) + luck
            record.evaluation(end, evaluation_of(skill, rng))
        record.commit()
    record.close()
    return workdir


def sweep(folder: Path) -> Path:
    """Three arms of three seeds, one of them unfinished, and an arm with a single seed."""
    for seed in range(3):
        make_run(folder, "random", seed, gain=0.0, scored=False)
        make_run(folder, "edco", seed, gain=0.12, scored=True)
        make_run(folder, "uniform", seed, gain=0.0, scored=False, stop=STEPS if seed else 12)
    make_run(folder, "lora", 0, gain=-0.2, scored=True)
    return folder


@pytest.fixture(scope="module")
def runs(tmp_path_factory) -> Path:
    return sweep(tmp_path_factory.mktemp("sweep"))


def show(renderable) -> str:
    console = Console(width=160, record=True, file=io.StringIO())
    console.print(renderable)
    return re.sub(r"\s+", " ", console.export_text())


@pytest.fixture(scope="module")
def reported(runs, tmp_path_factory) -> tuple[Path, str]:
    """The page, and what the terminal shows."""
    out = tmp_path_factory.mktemp("page") / "below"
    return out / "report.html", show(report([runs], out, control="random"))


def test_the_page_needs_no_other_file_and_its_plots_lie_beside_it(reported):
    out, _ = reported
    page = out.read_text()
    images = sorted(path.name for path in out.parent.glob("*.png"))
    assert images == [
        "coverage.png",
        "curriculum-edco.png",
        "curriculum-lora.png",
        "evaluation-restaurants.png",
        "loss.png",
    ]
    assert page.count("data:image/png;base64,") == len(images)
    assert not re.search(r'(src|href)="(?!data:)', page)
    assert all((out.parent / name).read_bytes().startswith(b"\x89PNG") for name in images)


def test_the_same_runs_make_the_same_page(tmp_path):
    make_run(tmp_path, "edco", 3, gain=0.0, scored=True, stop=6)
    for name in ("first", "second"):
        report([tmp_path], tmp_path / name)
    first, second = (tmp_path / name / "report.html" for name in ("first", "second"))
    assert first.read_bytes() == second.read_bytes()


def test_the_findings_say_what_the_numbers_say(reported):
    _, text = reported
    assert re.search(
        r"edco reaches slot_accuracy on restaurants .* better than random by \+0\.\d", text
    )
    assert re.search(r"lora reaches .* worse than random by", text)
    assert "One shared seed says nothing about other seeds." in text
    assert re.search(r"uniform reaches .* could be chance", text)
    assert "All arms had equal updates." in text
    assert re.search(r"Arms differ in compute: (edco|lora) had 1\.\d+ times", text)
    assert "Not finished, and so not compared: uniform seed 0." in text
    assert "probably have been missed" in text


def test_the_tables_hold_the_means_of_the_runs(runs, reported):
    _, text = reported
    arms = {arm.name: arm for arm in read_arms([runs])}
    finals = [
        json.loads((run.path / "evaluations.jsonl").read_text().splitlines()[-1])
        for run in arms["edco"].runs
    ]
    values = [line["metrics"]["slot_accuracy"]["value"] for line in finals]
    found = over_seeds(arms["edco"], "restaurants", "slot_accuracy")
    assert found == mean_interval(values)
    assert f"{np.mean(values):.3f}" in text
    assert re.search(r"edco 24 192 \d+ 7\.2 k \d+ G \d+ % 12 s", text)


def test_arms_come_in_the_order_of_paths_and_then_as_they_were_begun(runs):
    assert [arm.name for arm in read_arms([runs])] == ["random", "edco", "lora", "uniform"]
    chosen = read_arms([runs / "lora", runs])
    assert [arm.name for arm in chosen] == ["lora", "random", "edco", "uniform"]


def test_every_comparison_is_corrected(runs):
    arms = read_arms([runs])
    standings = {s.arm: s for s in compare(arms, arms[0].name)}
    assert standings["random"].difference is None
    assert all(standings[a].corrected >= standings[a].difference.p for a in ("edco", "lora"))
    assert standings["uniform"].difference.seeds == 2  # its first seed never finished
    assert standings["edco"].difference.items == ITEMS


def test_a_yes_no_metric_of_one_seed_is_tested_by_mcnemar(tmp_path):
    for arm, right in (("a", 40), ("b", 30)):
        workdir = tmp_path / arm
        record = Record(workdir)
        record.truncate_to(0)
        experiment = {"name": arm, "seed": 0, "clock": {"steps": 1}}
        (workdir / "experiment.json").write_text(json.dumps({"experiment": experiment}))
        rows = tuple({"id": str(i), "accuracy": float(i < right)} for i in range(ITEMS))
        estimate = ratio_interval([row["accuracy"] for row in rows], np.ones(ITEMS))
        record.metrics(1, {"loss_nats": 1.0})
        record.evaluation(1, Evaluation(name="q", metrics={"accuracy": estimate}, rows=rows))
        record.close()
    standing = compare(read_arms([tmp_path]), "a")[1]
    assert (standing.discordance.only_first, standing.discordance.only_second) == (0, 10)
    assert standing.difference.value == pytest.approx(-10 / ITEMS)
    assert standing.verdict == "worse"


def test_a_run_that_has_not_begun_is_shown_as_such(tmp_path):
    (tmp_path / "run").mkdir()
    (tmp_path / "run" / "experiment.json").write_text('{"experiment": {"name": "new", "seed": 5}}')
    text = show(report([tmp_path], tmp_path))
    assert "nothing can be compared yet" in text
    assert "unfinished" in (tmp_path / "report.html").read_text()


def test_a_torn_last_line_is_left_out_and_said_and_any_other_is_an_error(tmp_path):
    workdir = make_run(tmp_path, "edco", 1, gain=0.0, scored=True, stop=12)
    whole = (workdir / "metrics.jsonl").read_text()
    (workdir / "metrics.jsonl").write_text(whole[:-20])
    report([workdir], tmp_path)
    assert "seed-1/metrics.jsonl" in (tmp_path / "report.html").read_text()
    (workdir / "metrics.jsonl").write_text(whole[:30] + "\n" + whole)
    with pytest.raises(ValueError, match=r"metrics\.jsonl:1: not JSON"):
        report([workdir], tmp_path)


def test_what_is_missing_or_twice_is_named(tmp_path):
    with pytest.raises(ValueError, match="no run directory"):
        report([tmp_path], tmp_path)
    first = make_run(tmp_path / "x", "edco", 1, gain=0.0, scored=False, stop=3)
    make_run(tmp_path / "y", "edco", 1, gain=0.0, scored=False, stop=3)
    with pytest.raises(ValueError, match="seed 1 twice"):
        report([tmp_path], tmp_path)
    with pytest.raises(ValueError, match="'nobody' is no arm"):
        report([first], tmp_path, control="nobody")


def test_names_cannot_break_the_page(tmp_path):
    make_run(tmp_path, "<b>bold & loud", 2, gain=0.0, scored=True, stop=6)
    report([tmp_path], tmp_path)
    page = (tmp_path / "report.html").read_text()
    assert "<b>bold" not in page
    assert "&lt;b&gt;bold &amp; loud" in page
