"""The commands on a small real model: what they do, what they write, and what they say."""

from __future__ import annotations

import json
import os
import re
import shlex
import subprocess
import sys
from pathlib import Path

import jax
import numpy as np
import pytest
import typer.main

from launch.cli import app
from launch.harness import log_likelihoods, sampling_of, until
from launch.opened import find
from tests.flow.commands import (
    BOS,
    IDS,
    LOGITS,
    STORIES,
    THERE,
    log_p,
    maktab,
    model_folder,
    read_rows,
    write_rows,
)

LOSS_TOLERANCE = 2e-4  # nats; float32 logits of another library differ by about 1e-5
NEAR = 1e-6  # relative; the same sums in another order
START_S = 1.0  # what `maktab --help` may take of CPU time

RUNS, MODELS = ("train", "sweep", "launch", "show"), ("score", "generate", "evaluate", "harness")
COMMANDS = (*RUNS, "report", "replay", "export", *MODELS)

TEXT = "Once upon a time, there was a little girl"  # IDS[:13], the first of them BOS
KINDS = (
    {"id": "text", "text": TEXT},
    {"id": "pair", "prompt": "Once upon a time", "completion": ", there was"},
    {"id": "choice", "question": "Who?", "options": ["cat", "dog"], "answer": "B"},
    {"id": 7, "input_ids": IDS[:13].tolist()},
    {"id": 7, "input_ids": IDS[:13].tolist()},
)
LONG = {"id": "long", "input_ids": IDS[:20].tolist()}  # pads every batch that it is in to 32


def score(model: Path, data: Path, out: Path, *words) -> list[dict]:
    said = maktab("score", model, data, "--out", out, *words)
    assert said.code == 0, said.err
    return read_rows(out)


# Help


def test_help_starts_at_once_and_names_every_command():
    program = """
import sys, time
from launch.cli import main
sys.argv[1:] = ["--help"]
try:
    main()
finally:
    print(time.process_time(), "jax" in sys.modules)
"""
    root = Path(__file__).parents[2]
    done = subprocess.run(
        [sys.executable, "-c", program], capture_output=True, text=True, cwd=root, check=True
    )
    used, jax_is_there = done.stdout.splitlines()[-1].split()
    assert float(used) < START_S
    assert jax_is_there == "False"
    for command in COMMANDS:
        assert f" {command} " in done.stdout


@pytest.mark.parametrize("command", COMMANDS)
def test_every_command_has_help(command):
    said = maktab(command, "--help")
    assert said.code == 0
    assert "Usage:" in said.out


def test_every_command_in_the_docs_is_one():
    root, program = Path(__file__).parents[2], typer.main.get_command(app)
    lines = [
        line.strip()
        for file in (*root.glob("*.md"), *root.glob("docs/*.md"), root / "Makefile")
        for line in file.read_text().splitlines()
        if re.match(r"\s*(\$\(RUN\)/)?maktab [a-z]+ ", line)
    ]
    assert len(lines) >= len(COMMANDS)
    for line in lines:
        _, name, *words = shlex.split(line, comments=True)
        command = program.commands[name]
        command.make_context(name, words)  # raises for an option that is not there


# Runs


def test_train_says_what_it_trains_on_and_how_it_goes(swept):
    for words in ("0: kept", "23", "packing efficiency", "⟦", "step 2  round 0  loss"):
        assert words in swept.begun.out


def test_an_interrupted_run_says_how_to_go_on(swept):
    assert swept.begun.code == 130
    assert "interrupted: the same command goes on from the last checkpoint" in swept.begun.out


def test_a_sweep_resumes_what_was_begun_and_passes_over_what_is_finished(swept):
    assert swept.swept.code == 0, swept.swept.err
    assert "resuming at step 2 of 4" in swept.swept.out
    steps = [line["step"] for line in read_rows(swept.plain / "metrics.jsonl")]
    assert steps == [1, 2, 3, 4]
    before = (swept.hot / "metrics.jsonl").stat().st_mtime_ns
    again = maktab("sweep", swept.file, "--workdir", swept.folder)
    assert again.code == 0
    assert again.out.count("finished before") == 2
    assert (swept.hot / "metrics.jsonl").stat().st_mtime_ns == before


def test_a_finished_run_is_not_another_one(swept):
    said = maktab("sweep", swept.file, "--workdir", swept.folder, "--set", "data.rows=8")
    assert said.code == 2
    assert "experiment.data.rows: 4 -> 8" in said.err


def test_a_run_that_diverges_does_not_keep_a_sweep_from_its_end(swept, tmp_path):
    words = ("--workdir", tmp_path, "--generator", "with_one_that_diverges")
    said = maktab("sweep", swept.file, *words)
    assert said.code == 3
    assert "stopped: 1 of 2 runs stopped" in said.err
    assert "were not finite" in said.err
    assert str(tmp_path / "diverges" / "seed-0") in said.err
    assert (tmp_path / "plain" / "seed-0" / "finished.json").exists()
    assert "plain, seed 0: finished before" in maktab("sweep", swept.file, *words).out


def test_a_run_writes_down_its_command_and_its_numbers(swept):
    described = json.loads((swept.hot / "experiment.json").read_text())
    assert described["experiment"]["tuning"]["rank"] == 3
    assert described["source"]["fingerprint"].startswith("sha256:")
    start = json.loads((swept.plain / "run.json").read_text())
    assert len(start) == 2, "one entry a start"
    assert {"command", "packages", "devices", "git"} <= start[0].keys()


def test_report_compares_the_arms(swept, tmp_path):
    said = maktab("report", swept.folder, "--out", tmp_path, "--control", "plain")
    assert said.code == 0, said.err
    assert "hot against plain" in said.out
    assert (tmp_path / "report.html").stat().st_size > 10_000
    assert list(tmp_path.glob("*.png"))


def test_show_asks_for_no_accelerator(swept, monkeypatch):
    devices = jax.devices

    def only_cpu(backend=None):
        assert backend == "cpu", "the default backend may be an accelerator"
        return devices(backend)

    monkeypatch.setattr(jax, "devices", only_cpu)
    said = maktab("show", swept.file, "--set", "layout.axes=(('data', 4096),)")
    assert said.code == 0, said.err
    assert jax.config.jax_platforms == "cpu"
    assert "4096" in said.out, "the layout is printed, not built"
    for words in ("embed_V_D", "260,032 parameters", "FLOPs a step", "peak", "one batch", "⟦"):
        assert words in said.out


@pytest.mark.slow
def test_show_runs_where_the_accelerator_cannot_be_opened(swept):
    code = "import sys; from launch.cli import main; main()"
    done = subprocess.run(
        [sys.executable, "-c", code, "show", swept.file],
        env={**os.environ, "JAX_PLATFORMS": "cuda"},
        capture_output=True,
        text=True,
        cwd=Path(__file__).parents[2],
        check=False,
    )
    assert done.returncode == 0, done.stderr


def test_replay_names_the_examples_of_a_step_with_their_scores(swept):
    said = maktab("replay", swept.plain, "--step", 3)
    assert said.code == 0, said.err
    (order,) = [line for line in read_rows(swept.plain / "order.jsonl") if line["step"] == 3]
    with np.load(swept.plain / "rounds" / "0001.npz") as arrays:
        scores = arrays["score_X"]
    for x in (x for row in order["rows"] for x in row):
        assert f"train-{x} " in said.out
        assert f"{scores[x]:.4f}" in said.out
    assert "round 1" in said.out


# Export


def own_parts_are_unknown() -> None:
    """Forget the experiment file, as another process would not know it."""
    sys.modules.pop("experiment_experiment", None)


def test_a_merged_export_is_the_trained_model(swept, tmp_path):
    said = maktab("export", swept.hot, "--to", tmp_path / "m", "--experiment", swept.file)
    assert said.code == 0, said.err
    assert "largest logit difference" in said.out
    assert {"config.json", "model.safetensors", "tokenizer.json"} <= {
        file.name for file in (tmp_path / "m").iterdir()
    }
    made = maktab("export", swept.hot, "--to", tmp_path / "a", "--as", "adapter")
    assert made.code == 0, made.err
    test = swept.file.parent / "test.jsonl"
    merged = score(tmp_path / "m", test, tmp_path / "m.jsonl")
    adapted = score(STORIES, test, tmp_path / "a.jsonl", "--adapter", tmp_path / "a")
    plain = score(STORIES, test, tmp_path / "b.jsonl")
    (last,) = [
        line["metrics"]["loss_nats"]
        for line in read_rows(swept.hot / "evaluations.jsonl")
        if (line["step"], line["name"]) == (4, "test")
    ]
    for rows in (merged, adapted):
        loss = sum(row["score_nats"] * row["num_scored"] for row in rows)
        loss /= sum(row["num_scored"] for row in rows)
        assert abs(loss - last["value"]) < LOSS_TOLERANCE
    assert abs(plain[0]["score_nats"] - merged[0]["score_nats"]) > 100 * LOSS_TOLERANCE


def test_a_file_with_parts_of_its_own_is_named_to_export(swept, tmp_path):
    own_parts_are_unknown()
    said = maktab("export", swept.hot, "--to", tmp_path / "a", "--as", "adapter")
    assert said.code == 2
    assert "experiment_experiment.Lengths" in said.err
    assert "--experiment FILE.py" in said.err
    words = ("--as", "adapter", "--experiment", swept.file)
    assert maktab("export", swept.hot, "--to", tmp_path / "a", *words).code == 0


def test_the_best_checkpoint_and_the_best_run_are_exported(swept, tmp_path):
    file = ("--experiment", swept.file)
    losses = {
        run: {
            line["step"]: line["metrics"]["loss_nats"]["value"]
            for line in read_rows(run / "evaluations.jsonl")
            if line["name"] == "test" and line["step"]
        }
        for run in (swept.plain, swept.hot)
    }
    best = min(losses[swept.plain], key=losses[swept.plain].__getitem__)
    said = maktab("export", swept.plain, "--to", tmp_path / "best", "--step", "best", *file)
    assert f"step {best} of" in said.out
    run = min(losses, key=lambda run: losses[run][4])
    by = ("--best-by", "test/loss_nats")
    said = maktab("export", swept.folder, "--to", tmp_path / "run", *by, *file)
    assert f"step 4 of {run} as merged" in said.out


# Scores


def test_scores_are_the_reference_librarys(tmp_path):
    """Loss and entropy of each token, against logits that transformers computed."""
    file = write_rows(tmp_path / "d.jsonl", *KINDS)
    rows = score(STORIES, file, tmp_path / "o.jsonl", "--per-token")
    assert [row["id"] for row in rows] == [row["id"] for row in KINDS], "input order, repeats kept"
    every = log_p(LOGITS[:12])
    losses = -np.take_along_axis(every, IDS[1:13, None], axis=1)[:, 0]
    entropies = -(np.exp(every) * every).sum(axis=1)
    for row in (rows[0], rows[3], rows[4]):  # the text begins with BOS, and the ids are its own
        assert (row["num_tokens"], row["num_scored"]) == (13, 12)
        assert len(row["token_loss_nats"]) == len(row["token_entropy_nats"]) == 12
        np.testing.assert_allclose(row["token_loss_nats"], losses, atol=LOSS_TOLERANCE)
        np.testing.assert_allclose(row["token_entropy_nats"], entropies, atol=LOSS_TOLERANCE)
        assert row["score_nats"] == pytest.approx(np.mean(losses), abs=LOSS_TOLERANCE)


def test_a_score_is_the_mean_over_what_training_would_train(tmp_path):
    file = write_rows(tmp_path / "d.jsonl", *KINDS)
    _, pair, choice, *_ = score(STORIES, file, tmp_path / "o.jsonl", "--per-token")
    assert (pair["num_tokens"], pair["num_scored"]) == (9, 4)  # ", there was" and EOS
    assert choice["num_scored"] == 2  # the letter and EOS
    for row in (pair, choice):
        trained = row["token_loss_nats"][-row["num_scored"] :]
        assert row["score_nats"] == pytest.approx(np.mean(trained), rel=NEAR)
    every = score(STORIES, file, tmp_path / "e.jsonl", "--estimator", "entropy", "--per-token")
    for row in every:
        trained = row["token_entropy_nats"][-row["num_scored"] :]
        assert row["score_nats"] == pytest.approx(np.mean(trained), rel=NEAR)


def test_length_counts_tokens_and_prefix_entropy_looks_at_answers(tmp_path):
    file = write_rows(tmp_path / "d.jsonl", *KINDS)
    lengths = score(STORIES, file, tmp_path / "l.jsonl", "--estimator", "length")
    assert all(row["score_nats"] == row["num_tokens"] for row in lengths)
    words = ("--estimator", "prefix_entropy", "--set", "prefix_tokens=1")
    rows = score(STORIES, file, tmp_path / "p.jsonl", *words)
    first = log_p(LOGITS[4])  # after "<s> Once upon a time"
    assert rows[1]["score_nats"] == pytest.approx(-(np.exp(first) @ first), abs=LOSS_TOLERANCE)
    assert rows[0]["score_nats"] == rows[3]["score_nats"], "of what would follow it"


@pytest.mark.slow
def test_the_releases_estimator_is_bounded_and_follows_the_seed(tmp_path):
    file = write_rows(tmp_path / "d.jsonl", *KINDS)
    words = ("--estimator", "edco_release", "--set", "prefix_tokens=24", "--seed")
    one, other, again = (
        [row["score_nats"] for row in score(STORIES, file, tmp_path / "o.jsonl", *words, seed)]
        for seed in (1, 2, 1)
    )
    assert one == again != other
    assert all(0 <= value <= np.log(20) for value in one)


def test_a_conversation_is_scored_through_the_template(tmp_path):
    turns = "{% for m in messages %}{{ m.role }}: {{ m.content }}</s>{% endfor %}"
    template = turns + "{% if add_generation_prompt %}assistant:{% endif %}"
    model = model_folder(tmp_path / "chat", tokenizer={"chat_template": template})
    talk = [{"role": "user", "content": "cat?"}, {"role": "assistant", "content": "dog"}]
    file = write_rows(tmp_path / "d.jsonl", {"messages": talk})
    (row,) = score(model, file, tmp_path / "o.jsonl")
    assert 0 < row["num_scored"] < row["num_tokens"] - 8
    assert row["id"], "a row without an id is named by its content"


def test_a_folder_without_a_tokenizer_takes_ids_alone(bare, tmp_path):
    file = write_rows(tmp_path / "d.jsonl", KINDS[3])
    (row,) = score(bare, file, tmp_path / "o.jsonl")
    (same,) = score(STORIES, file, tmp_path / "p.jsonl")
    assert row == same
    said = maktab(
        "score", bare, write_rows(tmp_path / "t.jsonl", KINDS[0]), "--out", tmp_path / "x"
    )
    assert said.code == 2
    assert "a row of kind text needs a tokenizer" in said.err


def test_a_row_that_is_too_long_is_named_and_nothing_is_written(tmp_path):
    rows = [{"id": f"row-{i}", "input_ids": IDS[: 5 + 7 * (i == 2)].tolist()} for i in range(4)]
    file, out = write_rows(tmp_path / "d.jsonl", *rows), tmp_path / "o.jsonl"
    out.write_text("what was there before\n")
    said = maktab("score", STORIES, file, "--out", out, "--row-tokens", 8)
    assert said.code == 2
    assert f"{file}:3" in said.err
    assert "row-2" in said.err
    assert "12 tokens" in said.err
    assert out.read_text() == "what was there before\n"
    assert sorted(path.name for path in tmp_path.iterdir()) == ["d.jsonl", "o.jsonl"]
    cut = score(STORIES, file, out, "--row-tokens", 8, "--truncate")
    assert [row["num_tokens"] for row in cut] == [5, 5, 8, 5]


def test_the_folder_of_out_is_made(tmp_path):
    file = write_rows(tmp_path / "d.jsonl", KINDS[3])
    assert score(STORIES, file, tmp_path / "new" / "deep" / "o.jsonl")


# Generation


def generate(model: Path, data: Path, out: Path, *words) -> list[dict]:
    said = maktab("generate", model, data, "--out", out, "--max-tokens", 6, *words)
    assert said.code == 0, said.err
    return read_rows(out)


def test_generation_continues_every_kind_of_row_up_to_the_stop_token(stopping, bare, tmp_path):
    opened = {"id": "open", "prompt": "Once upon a time"}
    file = write_rows(tmp_path / "d.jsonl", *KINDS, opened, LONG)
    rows = {row["id"]: row for row in generate(stopping, file, tmp_path / "o.jsonl")}
    assert list(rows) == ["text", "pair", "choice", 7, "open", "long"], "input order"
    assert rows["pair"]["output_ids"] == rows["open"]["output_ids"] == IDS[5:7].tolist()
    assert rows["pair"]["output_ids"][-1] == THERE, "the stop token is one of the new ones"
    assert rows["pair"]["text"] == ", there"
    assert rows["text"]["output_ids"] == rows[7]["output_ids"]
    assert rows[7]["output_ids"][0] == np.argmax(LOGITS[12])
    assert all(0 < len(row["output_ids"]) <= 6 for row in rows.values())
    begun = {"id": "ids", "input_ids": IDS[:5].tolist()}
    same = generate(bare, write_rows(tmp_path / "i.jsonl", begun, LONG), tmp_path / "b.jsonl")
    assert same[0] == {"id": "ids", "output_ids": IDS[5:7].tolist()}, "config.json names the stop"
    assert same[1]["output_ids"] == rows["long"]["output_ids"]
    said = maktab("generate", stopping, file, "--max-tokens", 6)
    assert said.out.splitlines()[1] == ", there", "without --out, texts are printed"


def test_ignoring_stop_tokens_makes_every_token(stopping, tmp_path):
    file = write_rows(tmp_path / "d.jsonl", *KINDS, LONG)
    rows = generate(stopping, file, tmp_path / "o.jsonl", "--ignore-eos")
    assert [len(row["output_ids"]) for row in rows] == [6] * 6
    assert rows[1]["output_ids"] == IDS[5:11].tolist()


def test_a_prompt_is_plain_text_and_its_continuation_is_printed(stopping):
    begun = f"{TEXT}. She was a happy girl. Once upon a time"  # 32 tokens or fewer, more than 16
    said = maktab("generate", stopping, "--prompt", begun, "--max-tokens", 6)
    assert said.code == 0, said.err
    assert said.out == ", there\n"


def test_a_long_prompt_keeps_its_end_where_asked(stopping, tmp_path):
    begun = {"id": "long", "input_ids": [9] * 15 + LONG["input_ids"]}
    file = write_rows(tmp_path / "d.jsonl", begun)
    said = maktab("generate", stopping, file, "--max-tokens", 6, "--row-tokens", 20)
    assert said.code == 2
    assert f"{file}:1: too long: 35 tokens" in said.err
    (row,) = generate(stopping, file, tmp_path / "o.jsonl", "--row-tokens", 20, "--truncate")
    assert row["output_ids"][0] == np.argmax(LOGITS[19])


def test_more_tokens_than_positions_are_noted(stopping, tmp_path, monkeypatch):
    monkeypatch.setattr("launch.generate.continued", lambda *_: [])
    file = write_rows(tmp_path / "d.jsonl", {"input_ids": [7] * 500})
    assert "note:" not in maktab("generate", stopping, file, "--max-tokens", 12).out
    said = maktab("generate", stopping, file, "--max-tokens", 13)
    assert "note: 500 tokens of a prompt and 13 new ones are more than the 512" in said.out


# Evaluation


def evaluate(model: Path, data: Path, out: Path, *words) -> tuple[dict, list[dict]]:
    said = maktab("evaluate", model, data, "--out", out, *words)
    assert said.code == 0, said.err
    summary = json.loads(out.read_text())
    for metric in summary["metrics"].values():
        assert {"value", "count", "low", "high"} == metric.keys()
        assert metric["low"] <= metric["value"] <= metric["high"]
    return summary, read_rows(out.with_name(f"{out.stem}.rows.jsonl"))


def test_texts_have_likelihoods_by_slice(tmp_path):
    texts = [{"id": f"t{i % 3}", "kind": "ab"[i % 2], "text": TEXT[: 19 + 3 * i]} for i in range(5)]
    file = write_rows(tmp_path / "d.jsonl", *texts)
    summary, rows = evaluate(STORIES, file, tmp_path / "o.json", "--slice", "kind")
    assert [row["id"] for row in rows] == [row["id"] for row in texts], (
        "a row an item, repeats kept"
    )
    scored = score(STORIES, file, tmp_path / "s.jsonl")
    for row, other in zip(rows, scored, strict=True):
        assert row["loss_nats"] == pytest.approx(other["score_nats"], rel=NEAR)
        assert row["loss_nats_count"] == other["num_scored"]
    metrics = summary["metrics"]
    assert metrics.keys() == {"loss_nats", "perplexity", "bits_per_byte"}
    mean = np.average(
        [row["score_nats"] for row in scored], weights=[row["num_scored"] for row in scored]
    )
    assert metrics["loss_nats"]["value"] == pytest.approx(mean, rel=NEAR)
    assert metrics["perplexity"]["value"] == pytest.approx(np.exp(mean), rel=NEAR)
    assert metrics["loss_nats"]["count"] == summary["examples"] == 5
    assert {name: part["loss_nats"]["count"] for name, part in summary["slices"].items()} == {
        "kind=a": 3,
        "kind=b": 2,
    }


def test_questions_have_accuracies_and_the_row_says_what_was_chosen(tmp_path):
    rows = [{**KINDS[2], "id": f"q{i}", "answer": i % 2} for i in range(3)]
    file = write_rows(tmp_path / "d.jsonl", *rows)
    summary, items = evaluate(STORIES, file, tmp_path / "o.json")
    for by in ("letter", "text"):
        value = summary["metrics"][f"accuracy_{by}"]
        chosen = [item[f"accuracy_{by}_chosen"] for item in items]
        right = np.equal(chosen, [row["answer"] for row in rows])
        assert value["value"] == pytest.approx(np.mean(right))
        assert value["count"] == 3
    assert "accuracy_text_per_byte" in summary["metrics"]


def test_answers_are_compared_whole_or_by_what_a_pattern_finds(stopping, tmp_path):
    begun = "Once upon a time"
    rows = [
        {"id": "right", "prompt": begun, "completion": ","},
        {"id": "wrong", "prompt": begun, "completion": " , and"},
        {"id": "other", "prompt": begun, "completion": " cat,"},
    ]
    file = write_rows(tmp_path / "d.jsonl", *rows)
    words = ("--max-tokens", 6)
    summary, items = evaluate(stopping, file, tmp_path / "o.json", *words)
    assert [item["exact_match"] for item in items] == [1.0, 0.0, 0.0]
    assert items[0]["output"] == ",", "the stop token is no part of an answer"
    assert summary["metrics"]["exact_match"]["value"] == pytest.approx(1 / 3)
    words = (*words, "--pattern", "(,)")
    summary, items = evaluate(stopping, file, tmp_path / "p.json", *words)
    assert [item["exact_match"] for item in items] == [1.0, 1.0, 1.0]
    assert summary["metrics"]["found"]["value"] == 1.0


# lm-evaluation-harness


def test_the_harness_gets_log_likelihoods_and_whether_greedy_says_them(bare):
    from rich.console import Console

    console = Console()
    opened = find(str(bare), None, "float32").load(console)
    ids = IDS.tolist()
    pairs = [(ids[:5], ids[5:10]), (ids[:5], [7, 8]), ([BOS], ids[1:12])]
    found = log_likelihoods(opened, pairs, 512, 4, console)
    every = log_p(LOGITS)
    for (context, rest), (value, greedy) in zip(pairs[::2], found[::2], strict=True):
        places = np.arange(len(context) - 1, len(context) - 1 + len(rest))
        assert value == pytest.approx(every[places, rest].sum(), abs=LOSS_TOLERANCE)
        assert greedy == bool(np.all(np.argmax(LOGITS[places], axis=1) == rest))
    assert found[0][1] is True
    assert found[1][1] is False
    cut = log_likelihoods(opened, [([9] * 30 + ids[:5], ids[5:10])], 9, 4, console)
    assert cut[0] == pytest.approx(found[0], abs=LOSS_TOLERANCE), "contexts lose their beginning"


def test_the_harnesss_settings_are_read():
    assert sampling_of({"until": ["x"], "max_gen_toks": 7}).max_new_tokens == 7
    assert sampling_of({"do_sample": False, "temperature": 0.0}).temperature is None
    assert sampling_of({"do_sample": True, "temperature": 0.5}).temperature == 0.5
    assert until("a cat. A dog", [".", "dog"]) == "a cat"
    assert until("a cat", None) == "a cat"


TASKS = {
    "tiny_choice": """
output_type: multiple_choice
doc_to_text: "{{question}}"
doc_to_choice: "{{options}}"
doc_to_target: "{{answer}}"
metric_list:
  - metric: acc
""",
    "tiny_answer": """
output_type: generate_until
doc_to_text: "{{question}}"
doc_to_target: " a little girl named"
generation_kwargs: {until: [" Lily"], max_gen_toks: 9}
metric_list:
  - metric: exact_match
""",
    "tiny_text": """
output_type: loglikelihood_rolling
doc_to_text: ""
doc_to_target: "{{question}}"
metric_list:
  - metric: byte_perplexity
""",
}


@pytest.mark.slow
def test_an_export_runs_through_the_harness(swept, tmp_path, monkeypatch):
    pytest.importorskip("lm_eval")
    for name in ("HF_HUB_OFFLINE", "HF_DATASETS_OFFLINE"):
        monkeypatch.setenv(name, "1")
    monkeypatch.setenv("HF_HOME", str(tmp_path / "cache"))
    model, tasks = tmp_path / "model", tmp_path / "tasks"
    assert maktab("export", swept.hot, "--to", model, "--experiment", swept.file).code == 0
    tasks.mkdir()
    questions = write_rows(
        tmp_path / "q.jsonl",
        {"question": "Once upon a time, there was", "options": [" a little", " qq"], "answer": 0},
        {"question": "The dog said", "options": [" zzz", " hello"], "answer": 1},
        {"question": "The cat was", "options": [" happy", " qqz"], "answer": 1},
    )
    for name, task in TASKS.items():
        data = f"task: {name}\ndataset_path: json\ntest_split: test\n"
        data += f"dataset_kwargs: {{data_files: {{test: {questions}}}}}\n"
        (tasks / f"{name}.yaml").write_text(data + task)
    out = tmp_path / "o.json"
    words = ("--tasks", "tiny_*", "--include-path", tasks, "--out", out, "--batch-rows", 8)
    said = maktab("harness", model, *words)
    assert said.code == 0, said.err
    results = json.loads(out.read_text())["results"]
    assert results["tiny_choice"]["acc,none"] == pytest.approx(2 / 3)
    assert results["tiny_answer"]["sample_len"] == 3
    said = maktab("harness", model, *words[2:], "--tasks", "nothing_of_the_kind")
    assert said.code == 2
    assert "nothing_of_the_kind" in said.err


def test_without_the_harness_the_extra_is_named(stopping, tmp_path, monkeypatch):
    monkeypatch.setitem(sys.modules, "lm_eval", None)
    for name in [name for name in sys.modules if name.startswith("lm_eval.")]:
        monkeypatch.delitem(sys.modules, name)
    said = maktab("harness", stopping, "--tasks", "x", "--out", tmp_path / "o.json")
    assert said.code == 2
    assert "pip install 'maktab[lm-eval]'" in said.err
