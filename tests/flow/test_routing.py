"""A mixture of experts from end to end: what a run records of its routers, and what reports say."""

from __future__ import annotations

import dataclasses
import io
import json
import re
import shutil
from pathlib import Path

import numpy as np
import pytest
from rich.console import Console

from configs import curricula
from research.clock import Clock
from research.data.pool import Data
from research.data.sources import Jsonl
from research.evaluate.results import Evaluation
from research.evaluate.routing import AGREEMENT, RouterDrift
from research.evaluate.statistics import ratio_interval
from research.models.architecture import Moe
from research.models.compute import Compute
from research.models.moe.balancing import LossFree
from research.models.moe.capacity import Capacity
from research.models.moe.dropless import Dropless
from research.models.moe.sigmoid_top_k import SigmoidTopK
from research.report.report import report
from research.report.routing import busiest, idle, variation
from research.report.writers import Record
from research.train.loop import train
from research.train.prepare import prepare
from research.train.provenance import open_workdir
from tests.flow.runs import ARCHITECTURE, Silent, tiny_run, write_rows

E, A, STEPS = 5, 2, 6
MIXTURE = dataclasses.replace(
    ARCHITECTURE,
    moe=Moe(num_experts=E, experts_per_token=A, expert_dim=7, router=SigmoidTopK()),
)
PICTURES = [
    "routing-drift-layers-routing.png",
    "routing-drift-routing.png",
    "routing-experts-routing-kind.png",
    "routing-load.png",
    "routing-slices-routing-kind.png",
    "routing-training.png",
]


def lines(file: Path) -> list[dict]:
    return [json.loads(line) for line in file.read_text().splitlines()]


def show(renderable) -> str:
    console = Console(width=200, record=True, file=io.StringIO())
    console.print(renderable)
    return re.sub(r"\s+", " ", console.export_text())


@pytest.fixture(scope="module")
def run(tmp_path_factory) -> Path:
    """A run that balances its router without a loss, and drops what overflows while it trains."""
    folder = tmp_path_factory.mktemp("mixture")
    other = folder / "other"
    other.mkdir()
    file = write_rows(other, seed=1)
    rows = [row | {"kind": "ab"[x % 2]} for x, row in enumerate(lines(file))]
    file.write_text("".join(json.dumps(row) + "\n" for row in rows))
    asked = Data(
        sources=(Jsonl(path=str(file)),), rows=8, row_tokens=19, pack=False, needs_no_text=True
    )
    experiment = tiny_run(
        folder,
        {
            "model": MIXTURE,
            "balancing": LossFree(rate=0.03),
            "compute": Compute(dispatch=Capacity(factor=0.75), scoring_dispatch=Dropless()),
            "curriculum": curricula.random(),
            "clock": Clock(steps=STEPS, cycle_steps=2, evaluate_every=1, save_every=0),
            "evaluators": (RouterDrift(data=asked, slice_by=("kind",)),),
        },
    )
    prepared, workdir = prepare(experiment), folder / "runs" / "tiny" / "seed-0"
    open_workdir(prepared, workdir, ["maktab"])
    train(prepared, workdir, Silent())
    return workdir


def test_a_run_records_load_entropy_and_drops_of_every_layer(run):
    metrics = lines(run / "metrics.jsonl")
    for line in metrics:
        assert np.shape(line["router_load"]) == (2, E)
        assert np.sum(line["router_load"], axis=1) == pytest.approx([1, 1], abs=1e-5)
        assert all(0 < entropy <= np.log(E) + 1e-6 for entropy in line["router_entropy_nats"])
        assert all(0 < dropped < 1 for dropped in line["router_dropped_fraction"])


def test_drift_starts_at_nothing_and_grows(run):
    found = [line["metrics"] for line in lines(run / "evaluations.jsonl")]
    assert [values[AGREEMENT]["value"] for values in found[:1]] == [1.0]
    assert found[-1][AGREEMENT]["value"] < 0.999
    assert list(found[0]) == [AGREEMENT, f"{AGREEMENT}_layer_0", f"{AGREEMENT}_layer_1"]
    rows = lines(run / "evaluations" / f"routing-{STEPS}.jsonl")
    tokens = {
        line["id"]: len(line["input_ids"]) for line in lines(run.parents[2] / "other/rows.jsonl")
    }
    for row in rows:
        assert np.sum(row["load"], axis=1).tolist() == [A * tokens[row["id"]]] * 2
        assert row["slices"]["kind"] in ("a", "b")


def test_the_report_of_a_real_run_has_a_section_on_routing(run, tmp_path):
    said = show(report([run], tmp_path))
    page = (tmp_path / "report.html").read_text()
    assert "<h2>Routing</h2>" in page
    assert sorted(path.name for path in tmp_path.glob("routing*.png")) == PICTURES
    assert page.count("data:image/png;base64,") == len(PICTURES) + 1  # and the loss
    agreed = lines(run / "evaluations.jsonl")[-1]["metrics"][AGREEMENT]["value"]
    assert f"a token keeps {agreed:.1%} of the experts" in said
    assert "How far experts specialise by kind, on routing" in said
    assert "nothing is compared" in said  # drift is neither good nor bad


def made_run(folder: Path, arm: str, seed: int, fondness: float) -> None:
    """Write a run whose two layers with experts, of three, favour the first expert."""
    workdir = folder / arm / f"seed-{seed}"
    numbers = np.random.default_rng([seed, len(arm)])
    record = Record(workdir)
    record.truncate_to(0)
    content = {
        "experiment": {"name": arm, "seed": seed, "clock": {"steps": 20}},
        "architecture": {"num_layers": 3, "moe": {"dense_layers": [1]}},
    }
    (workdir / "experiment.json").write_text(json.dumps(content))
    for step in range(0, 21, 5):
        kept = 1.0 - fondness * step / 40
        record.evaluation(step, made_evaluation(kept, numbers))
        if step:
            shares = numbers.dirichlet([40.0] * E, 2) * (1 - fondness)
            shares[:, 0] += fondness
            values = {
                "loss_nats": 2.0,
                "router_load": shares.tolist(),
                "router_entropy_nats": [1.5, 1.25],
                "router_dropped_fraction": [0.0, 0.0],
            }
            record.metrics(step, {**values, "tokens": 9, "examples": 2})
        record.commit()
    record.close()


def made_evaluation(kept: float, numbers: np.random.Generator) -> Evaluation:
    """Agree in a share of assignments; one slice likes expert 0, the other 1, in layer 2."""
    rows = []
    for x in range(24):
        load = numbers.multinomial(8, [1 / E] * E, 2)
        load[1, x % 2] += 8
        load[0, 2] += 8
        agreed = {AGREEMENT: kept, f"{AGREEMENT}_count": 32}
        rows.append(
            {"id": f"i{x}", **agreed, "load": load.tolist(), "slices": {"kind": "ab"[x % 2]}}
        )
    names = (AGREEMENT, f"{AGREEMENT}_layer_0", f"{AGREEMENT}_layer_2")
    metric = ratio_interval(np.full(24, 32 * kept), np.full(24, 32))
    return Evaluation(name="routing", metrics=dict.fromkeys(names, metric), rows=tuple(rows))


def test_arms_stand_side_by_side_with_their_seeds(tmp_path):
    for seed in range(3):
        made_run(tmp_path / "runs", "even", seed, 0.0)
        made_run(tmp_path / "runs", "fond of one", seed, 0.6)
    said = show(report([tmp_path / "runs"], tmp_path / "page", control="even"))
    assert sorted(path.name for path in (tmp_path / "page").glob("routing*.png")) == PICTURES
    even, fond = (
        re.search(rf"{arm}: in the last cycle .*? takes ([\d.]+) times", said).group(1)
        for arm in ("even", "fond of one")
    )
    assert float(even) < 1.5 < 2.9 < float(fond)
    assert "a token keeps 100.0% of the experts" in said
    assert "a token keeps 70.0% of the experts" in said
    row = re.search(r"fond of one .{0,60}? 2, 2, 2 (\d\.\d+) (\d\.\d+) 3 of 3", said)
    assert row, said
    assert float(row.group(1)) > 0.1 > float(row.group(2))


def test_dense_runs_have_no_section_on_routing_and_stand_beside_others(tmp_path):
    made_run(tmp_path / "runs", "mixture", 0, 0.2)
    made_run(tmp_path / "runs", "dense", 0, 0.0)
    dense = tmp_path / "runs" / "dense" / "seed-0"
    kept = [
        {k: v for k, v in line.items() if "router" not in k}
        for line in lines(dense / "metrics.jsonl")
    ]
    (dense / "metrics.jsonl").write_text("".join(json.dumps(line) + "\n" for line in kept))
    (dense / "evaluations.jsonl").write_text("")
    shutil.rmtree(dense / "evaluations")
    show(report([dense], tmp_path / "alone"))
    assert "Routing" not in (tmp_path / "alone" / "report.html").read_text()
    assert not list((tmp_path / "alone").glob("routing*"))
    said = show(report([tmp_path / "runs"], tmp_path / "both", control="dense"))
    assert "mixture: in the last cycle" in said
    assert "dense: in the last cycle" not in said


def test_numbers_of_load_mean_what_they_say():
    collapsed, even = np.eye(E)[:1], np.full((1, E), 1 / E)
    assert (busiest(collapsed), busiest(even)) == (pytest.approx([E]), pytest.approx([1.0]))
    assert (idle(collapsed), idle(even)) == (pytest.approx([1 - 1 / E]), pytest.approx([0.0]))
    load = np.random.default_rng(0).dirichlet([1.0] * E, 1)
    assert variation(load) == pytest.approx(load.std(axis=1) / load.mean(axis=1))
    assert variation(even) == pytest.approx([0.0])
