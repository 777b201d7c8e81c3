"""The report, from run directories that were written by the record that training uses."""

import io
import json
import re
from pathlib import Path

import numpy as np
import pytest
import scipy.stats
from rich.console import Console

from research.data.pool import Data, open_pool
from research.data.sources import Jsonl
from research.data.tokenizer import open_tokenizer
from research.evaluate.folds import fold_difference, fold_interval
from research.evaluate.power import detectable_difference, detectable_paired_difference
from research.evaluate.results import Evaluation
from research.evaluate.statistics import mean_interval, ratio_interval
from research.report import probe, probe_page, settings, tables
from research.report.comparison import compare, methods, over_seeds
from research.report.costs import cost
from research.report.document import MISSING, p_value
from research.report.drawing import look_of
from research.report.report import report
from research.report.runs import HOPELESS, Arm, Run, read_arms
from research.report.writers import Record
from research.train.provenance import EXCERPT, describe_pool

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
    texts = [
        {"index": x, "id": f"id-{x}", "prompt": f"ask {x}", "answer": f"say {x}"}
        | {"corrupted": x % 4 == 1}
        for x in range(POOL)
    ]
    (workdir / "pool.jsonl").write_text("".join(json.dumps(line) + "\n" for line in texts))
    record.evaluation(0, evaluation_of(0.05, rng))
    score, scoring = rng.normal(2.0, 0.5, POOL), 0.0
    for step in range(0, stop, CYCLE):
        round_ = step * ROUNDS // STEPS
        if step % (STEPS // ROUNDS) == 0:
            score = 0.9 * score + rng.normal(0, 0.15, POOL)
            chosen = np.argsort(-score)[:CHOSEN] if scored else rng.permutation(POOL)[:CHOSEN]
            shown = score if scored else np.full(POOL, np.nan)
            arrays = {"score_X": shown.astype(np.float32), "selected": chosen}
            arrays["scored_step_X"] = np.full(POOL, step - 2 * (round_ > 0))
            record.round(round_, step, scored_round_X=np.full(POOL, round_), **arrays)
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
        opens = scored and step % 6 == 0
        record.timing(end, {"wall_s": 1.5, **(SCORING if opens else {})})
        if end % 6 == 0:
            skill = (0.6 + gain) * (1 - np.exp(-end / 8)) + luck
            record.evaluation(end, evaluation_of(skill, rng))
        record.commit()
    record.close()
    return workdir


SCORING = {
    "score_s": 0.5,
    "score_prefill_s": 0.1,
    "score_decode_s": 0.3,
    "score_reshard_s": 0.0,
    "score_host_s": 0.1,
    "scored_rows": 100,
}


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
    assert [name for name in images if not name.startswith("probe-")] == [
        "coverage.png",
        "differences.png",
        "evaluation-restaurants.png",
        "loss.png",
    ]
    other = (out.parent / "probe.html").read_text()
    shown = page.count("data:image/png;base64,") + other.count("data:image/png;base64,")
    assert shown == len(images) + 1  # the collapse of uncertainty is on both
    assert not re.search(r'src="(?!data:)', page + other)
    assert set(re.findall(r'href="([^"]*)"', page + other)) == {"probe.html", "report.html"}
    assert all((out.parent / name).read_bytes().startswith(b"\x89PNG") for name in images)


def test_the_same_is_said_in_markdown_with_links_to_the_plots(reported):
    out, _ = reported
    page, text = out.read_text(), out.with_suffix(".md").read_text()
    assert text.startswith("# ")
    assert text.count("\n| --- |") == page.count("<table")
    links = re.findall(r"\]\((.*?)\)", text)
    assert all((out.parent / name).is_file() for name in links)
    assert len(links) == page.count("<img ")
    lines = text.splitlines()
    headers = [lines[k - 1] for k, line in enumerate(lines) if line.startswith("| --- |")]
    edges = re.compile(r"(?<!\\)\|")
    for header in headers:
        block = lines[lines.index(header) :]
        rows = block[: block.index("")]
        assert {len(edges.findall(row)) for row in rows} == {len(edges.findall(header))}


def test_the_same_runs_make_the_same_page(tmp_path):
    make_run(tmp_path, "edco", 3, gain=0.0, scored=True, stop=9)
    for name in ("first", "second"):
        report([tmp_path / "edco"], tmp_path / name)
    for page in ("report.html", "report.md", "probe.html", "probe.md"):
        first, second = ((tmp_path / name / page).read_bytes() for name in ("first", "second"))
        assert first == second


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


def test_what_arms_cost_is_added_up_over_all_runs_and_devices(runs, reported):
    _, text = reported
    arms = {arm.name: arm for arm in read_arms([runs])}
    found = cost(arms["uniform"].runs)  # two of 24 steps and one of 12, on 2 devices, 3 a cycle
    assert found.wall_s == 1.5 * (8 + 8 + 4)
    assert found.device_s == 2 * found.wall_s
    assert found.flops == 3e9 * (24 + 24 + 12)
    assert re.search(r"uniform 3 30 s 60 s", text)
    assert re.search(r"all 10 ", text)


def test_scoring_is_split_by_what_it_was_for(reported):
    text = reported[1]
    assert re.search(r"What scoring the pool took\.", text)
    openings = 3 * STEPS // 6
    rows, seconds = 100 * openings, 2 * 0.5 * openings  # on 2 devices
    assert re.search(rf"edco {rows / 1e3:.3g} k {seconds:.3g} s 0\.01 s 20 % 60 % \S 20 %", text)
    assert not re.search(r"uniform \d+ \S+ s 0\.01 s", text)


def test_folds_are_compared_fold_by_fold(tmp_path):
    losses = {"a": (1.0, 1.3, 0.8), "b": (0.9, 1.25, 0.6)}
    for arm, values in losses.items():
        for fold, value in enumerate(values):
            workdir = tmp_path / arm / str(fold)
            record = Record(workdir)
            record.truncate_to(0)
            source = {"type": "research.data.selection.Fold", "folds": 3, "fold": fold}
            experiment = {"name": arm, "seed": fold, "clock": {"steps": 1}}
            experiment["data"] = {"sources": [{"source": source, "weight": 1.0}]}
            (workdir / "experiment.json").write_text(json.dumps({"experiment": experiment}))
            estimate = mean_interval([value, value + 0.1])
            rows = tuple({"id": f"{fold}-{i}", "loss_nats": value + 0.1 * i} for i in range(2))
            record.metrics(1, {"loss_nats": 1.0})
            record.evaluation(1, Evaluation(name="q", metrics={"loss_nats": estimate}, rows=rows))
            record.close()
    standing = compare(read_arms([tmp_path]), "a")[1]
    differences = np.subtract(losses["b"], losses["a"])
    expected = fold_difference(differences, 3)
    assert standing.difference.p == pytest.approx(expected.p)
    assert standing.difference.low == pytest.approx(expected.low)
    assert standing.estimate.high == pytest.approx(
        fold_interval(np.asarray(losses["b"]) + 0.05, 3).high
    )


def test_the_fields_in_which_arms_differ_are_told():
    lora = {"type": "research.tuning.lora.Lora", "alpha": 8.0}
    tunings = ({"type": "research.tuning.full.Full"}, {**lora, "rank": 4}, {**lora, "rank": 16})
    arms = []
    for number, tuning in enumerate(tunings):
        held = {"name": str(number), "seed": number, "tuning": tuning, "sources": ["a", "b"]}
        held |= {"schedule": {"type": "Cosine", "peak_lr": 10.0**-number}, "rows": 8}
        arms.append(Arm(str(number), (Run(Path(), held, {}, (), (), (), (), ()),)))
    told = settings.table(arms)
    assert told.header == ("arm", "tuning", "schedule.peak_lr")
    assert told.rows[0] == ("0", "Full", "1")
    assert told.rows[2] == ("2", "Lora, rank 16", "0.01")
    assert settings.table(arms[:1]) is None


def test_a_hopeless_run_is_named_with_its_rung(tmp_path):
    make_run(tmp_path, "random", 0, gain=0.0, scored=False)
    workdir = make_run(tmp_path, "edco", 0, gain=0.0, scored=False, stop=6)
    verdict = {"rung": 1, "rungs": 2, "step": 6, "metric": "restaurants/exact"}
    verdict |= {"value": 0.1, "bar": 0.3}
    (workdir / HOPELESS).write_text(json.dumps(verdict))
    text = show(report([tmp_path], tmp_path))
    assert "Left behind as hopeless at rung 1 (step 6), by restaurants/exact" in text
    assert "not compared: edco seed 0." in text
    assert "hopeless, rung 1 of 2" in (tmp_path / "report.html").read_text()


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


# The probe


@pytest.fixture(scope="module")
def edco(runs):
    return next(arm for arm in read_arms([runs]) if arm.name == "edco")


def test_rounds_are_told_as_they_were(edco):
    run = edco.runs[0]
    found = probe.openings(run)
    first, second = run.rounds[:2]
    assert [o.step for o in found] == [0, 6, 12, 18]
    assert found[0].new == 1.0
    assert np.isnan([found[0].kept, found[0].with_last]).all()
    kept = set(first.selected.tolist()) & set(second.selected.tolist())
    assert found[1].kept == pytest.approx(len(kept) / CHOSEN)
    assert found[1].new == pytest.approx(1 - len(kept) / CHOSEN)
    assert found[1].coverage == pytest.approx((2 * CHOSEN - len(kept)) / POOL)
    assert found[1].pool == pytest.approx(second.scores.mean())
    assert found[1].selected == pytest.approx(np.sort(second.scores)[-CHOSEN:].mean())
    assert found[1].with_last == pytest.approx(
        scipy.stats.spearmanr(first.scores, second.scores).statistic
    )


def test_how_old_scores_are_and_how_many_wrong_answers_were_chosen_is_told(edco):
    run = edco.runs[0]
    found = probe.openings(run)
    assert [o.age for o in found] == [0, 2, 2, 2]
    wrong = run.rounds[1].selected % 4 == 1
    assert found[1].corrupted == pytest.approx(wrong.mean())
    table = probe_page.rounds_table(edco, [probe.openings(each) for each in edco.runs])
    assert table.header[-2:] == ("age", "corrupted")
    means = [probe.openings(each)[1].corrupted for each in edco.runs]
    assert table.rows[1][-2:] == ("2", f"{np.mean(means):.0%}")


def test_only_what_was_measured_anew_says_how_unsure_the_model_is_now(tmp_path):
    """A part is scored again: ranks and means are over that part, and no round repeats old ones."""
    record = Record(tmp_path)
    record.truncate_to(0)
    (tmp_path / "experiment.json").write_text('{"experiment": {"name": "part", "seed": 0}}')
    scores, chosen = np.arange(8.0), np.array([6, 7])
    ages = np.zeros(8, int)
    record.round(0, 0, score_X=scores, scored_round_X=ages, selected=chosen)
    later, ages = scores.copy(), ages.copy()
    later[:4], ages[:4] = [3.0, 2.0, 1.0, 0.0], 1
    record.round(1, 5, score_X=later, scored_round_X=ages, selected=chosen)
    record.round(2, 9, score_X=later, scored_round_X=ages, selected=chosen)
    record.close()
    (arm,) = read_arms([tmp_path])
    _, anew, none = probe.openings(arm.runs[0])
    assert (anew.measured, anew.pool, anew.with_last) == (4, 1.5, -1.0)
    assert none.measured == 0
    assert np.isnan([none.pool, none.with_last]).all()
    assert none.selected == 6.5


def test_quarters_are_cut_at_the_medians_of_each_round(edco):
    run = edco.runs[1]
    pairs = probe.pairs_of(run)
    assert len(pairs) == len({(n, x) for n, x in zip(pairs.round, pairs.example, strict=True)})
    for number in np.unique(pairs.round):
        here = pairs.round == number
        high = pairs.score[here] > np.median(pairs.score[here])
        wrong = pairs.loss[here] > np.median(pairs.loss[here])
        assert pairs.quarters()[here].tolist() == (2 * ~high + ~wrong).tolist()
    for quarter in range(4):
        places = probe.examples_of(pairs, quarter, 3)
        assert set(pairs.quarters()[places]) == {quarter}
        assert len(set(pairs.example[places])) == len(places) == 3
    line = next(line for line in run.order if line["step"] == pairs.step[0])
    flat = [x for row in line["rows"] for x in row]
    losses = [x for row in run.losses[pairs.step[0] - 1]["loss_nats"] for x in row]
    assert pairs.loss[0] == losses[flat.index(pairs.example[0])]


def test_who_is_never_selected_is_shown_with_its_text(edco):
    run = edco.runs[0]
    counts = probe.times_selected(run)
    assert counts.sum() == ROUNDS * CHOSEN
    left = np.flatnonzero(counts == 0)
    lowest = left[np.argmin(probe.mean_scores(run)[left])]
    document = probe_page.page([edco], look_of([edco], "edco"))
    tables = [table for section in document.sections for table in section.tables]
    table = next(t for t in tables if t.title.startswith("Never selected") and "edco" in t.title)
    assert table.rows[0][0] == f"id-{lowest}"
    assert table.rows[0][-1] == f"ask {lowest} \N{RIGHTWARDS ARROW} say {lowest}"
    share = f"{np.mean([np.mean(probe.times_selected(r) == 0) for r in edco.runs]):.0%}"
    said = [s for section in document.sections for s in section.sentences]
    assert any(s.startswith(f"{share} of the pool was never") for s in said)
    assert any("of the pool's answers are wrong on purpose" in s for s in said)


def test_every_figure_of_the_probe_says_what_it_shows(reported):
    out, _ = reported
    page = (out.parent / "probe.html").read_text()
    captions = re.findall(r"<figcaption><b>Figure \d+.</b> (.*?)</figcaption>", page)
    assert len(captions) > 8
    assert all("?" in caption or "same question" in caption for caption in captions)
    assert "<h2>uniform: round by round</h2>" in page  # chosen at random, and not scored
    assert "uniform: unsure or wrong?" not in page


def test_scores_that_training_reported_are_not_those_of_the_model_now(tmp_path):
    """The pool is never asked: no line of collapse, but all the rest of the page."""
    workdir = make_run(tmp_path, "free", 0, gain=0.0, scored=True, stop=12)
    estimator = {"type": "research.curriculum.estimators.free.Free", "of": "loss"}
    experiment = {"name": "free", "seed": 0, "curriculum": {"estimator": estimator}}
    (workdir / "experiment.json").write_text(json.dumps({"experiment": experiment}))
    for number in (0, 1):
        path = workdir / "rounds" / f"{number:04d}.npz"
        with np.load(path) as file:
            arrays = dict(file)
        arrays["scored_round_X"] -= 1
        arrays["score_X"] = arrays["score_X"] * (np.nan if number == 0 else 1)
        np.savez(path, **arrays)
    (arm,) = arms = read_arms([tmp_path])
    document = probe_page.page(arms, look_of(arms, "free"))
    names = [plot.name for section in document.sections for plot in section.plots]
    assert names == [
        "probe-scores-free",
        "probe-choice-free",
        "probe-quarters-free",
        "probe-left-out-free",
    ]
    assert probe.label_of(arm.runs[0]) == "free"


@pytest.mark.parametrize(
    ("described", "label"),
    [
        ({"type": "a.prefix_entropy.PrefixEntropy"}, "prefix entropy (nats)"),
        ({"type": "a.length.Length"}, "length"),
        ({"type": "research.curriculum.expressions.Sum"}, "combined score"),
        ({"type": "a.ScoredBy", "estimator": {"type": "b.Ifd"}}, "ifd of another model"),
    ],
)
def test_scores_are_named_by_their_estimator(tmp_path, described, label):
    experiment = {"name": "x", "seed": 0, "curriculum": {"estimator": described}}
    (tmp_path / "experiment.json").write_text(json.dumps({"experiment": experiment}))
    (arm,) = read_arms([tmp_path])
    assert probe.label_of(arm.runs[0]) == label


def test_a_single_run_without_rounds_has_no_probe(tmp_path):
    make_run(tmp_path, "plain", 0, gain=0.0, scored=False, stop=3)
    report([tmp_path], tmp_path / "out")
    assert not (tmp_path / "out" / "probe.html").exists()
    assert "probe.html" not in (tmp_path / "out" / "report.html").read_text()


# Budgets


def curriculum(policy: str, budget: str) -> dict:
    part = {"type": f"research.curriculum.policies.{policy}", "fraction": 0.25}
    return {"policy": part, "budget": {"type": f"research.curriculum.budget.{budget}"}}


def test_methods_stand_at_equal_steps_beside_equal_compute(tmp_path):
    random, top = "round_wise_uniform.RoundWiseUniform", "top_fraction.TopFraction"
    made = {
        "random": (curriculum(random, "EqualSteps"), STEPS),
        "random, longer": (curriculum(random, "EqualSteps"), 2 * STEPS),
        "edco": (curriculum(top, "EqualSteps"), STEPS),
        "edco, compute": (curriculum(top, "EqualCompute"), 12),
    }
    for name, (described, steps) in made.items():
        for seed in range(2):
            workdir = make_run(tmp_path, name, seed, gain=0.1, scored=True, stop=steps)
            experiment = {"name": name, "seed": seed, "clock": {"steps": steps}}
            experiment["curriculum"] = described
            (workdir / "experiment.json").write_text(json.dumps({"experiment": experiment}))
    arms = read_arms([tmp_path])
    names = [tuple(arm.name for arm in pair) for pair in methods(arms)]
    longer = ("random, longer", "random, longer")
    assert sorted(names) == [("edco", "edco, compute"), ("random", "random"), longer]
    charged = {arm.name: arm.runs[0].flops()[1] > 0 for arm in arms}
    assert charged == dict.fromkeys(longer, False) | {
        "random": False, "edco": True, "edco, compute": True
    }  # fmt: skip
    rows = compare(arms, "random")
    table = tables.side_by_side(rows, methods(arms), "random")
    equal, less = (next(r for r in rows if r.arm == name) for name in ("edco", "edco, compute"))
    told = {row[0]: row for row in table.rows}
    assert told["random"] == ("random", *("control", MISSING) * 2, "24")
    name, at_steps, p_at_steps, at_compute, p_at_compute, steps = told["edco"]
    assert (name, steps) == ("edco", "12")
    assert at_steps != at_compute
    assert p_at_steps == p_value(equal.corrected)
    assert p_at_compute == p_value(less.corrected)


def test_yes_no_items_are_told_what_they_could_have_shown(tmp_path):
    for arm, right in (("a", 40), ("b", 30)):
        for seed in range(2):
            workdir = tmp_path / arm / str(seed)
            record = Record(workdir)
            record.truncate_to(0)
            experiment = {"name": arm, "seed": seed, "clock": {"steps": 1}}
            (workdir / "experiment.json").write_text(json.dumps({"experiment": experiment}))
            rows = tuple({"id": str(i), "accuracy": float(i < right + seed)} for i in range(ITEMS))
            estimate = ratio_interval([row["accuracy"] for row in rows], np.ones(ITEMS))
            record.metrics(1, {"loss_nats": 1.0})
            record.evaluation(1, Evaluation(name="q", metrics={"accuracy": estimate}, rows=rows))
            record.close()
    standing = compare(read_arms([tmp_path]), "a")[1]
    assert standing.disagreement == pytest.approx(10 / ITEMS)
    text = show(report([tmp_path], tmp_path / "out", control="a"))
    unpaired = f"{detectable_difference(40.5 / ITEMS, ITEMS):.3f}"
    paired = f"{detectable_paired_difference(10 / ITEMS, ITEMS):.3f}"
    assert f"b accuracy on q {ITEMS} {unpaired} 21% {paired}" in text


def test_a_run_keeps_how_each_example_begins_and_ends(tmp_path):
    rows = [
        {"id": "short", "prompt": "Once upon a time", "completion": " there was a cat."},
        {"id": "long", "text": " ".join(["Tim saw a big dog."] * 30)},
    ]
    file = tmp_path / "rows.jsonl"
    file.write_text("".join(json.dumps(row) + "\n" for row in rows))
    folder = str(Path(__file__).parents[2] / "experiments/assets/stories260k")
    pool = open_pool(Data(sources=(Jsonl(path=str(file)),)), open_tokenizer(folder))
    short, long = describe_pool(pool)
    assert (short["prompt"], short["answer"]) == ("Once upon a time", "there was a cat.")
    assert long["answer"].startswith("Tim saw a big dog. Tim saw")
    assert long["answer"].endswith("saw a big dog.")
    assert EXCERPT - 2 <= len(long["answer"]) <= EXCERPT + 3
    assert (long["index"], long["id"], long["tokens"]) == (1, "long", pool.lengths_X[1])
    json.dumps([short, long])
