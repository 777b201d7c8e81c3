"""The loop end to end: what is learnt, what is written, and what stays the same."""

from __future__ import annotations

import dataclasses
import json
import shutil
from pathlib import Path

import jax
import numpy as np
import pytest

from research.checkpoint import Checkpoints, Store
from research.clock import Clock
from research.core.layout import Layout
from research.core.parts import describe, rebuild, vary
from research.core.records import State
from research.curriculum.budget import EqualCompute, EqualSteps
from research.data.batches import pack_batch
from research.evaluate.likelihood import Likelihood
from research.optimizers.schedules import Constant
from research.optimizers.sgd import Sgd
from research.score.views import scoring_flops
from research.train.loop import NonFiniteError, train
from research.train.prepare import prepare
from research.train.provenance import OtherRunError, open_workdir
from research.train.step import compile_step, initialise, structure_of
from research.tuning.lora import Lora, Override
from tests.flow.runs import NUM_EXAMPLES, Silent, tiny_run

ACCUMULATION_TOLERANCE = 1e-6  # absolute, on parameters near 1 after a step of 2e-3
LOSS_TOLERANCE = 2e-5  # relative; float32 sums over devices come in another order, 8 steps long


def lines(file: Path) -> list[dict]:
    return [json.loads(line) for line in file.read_text().splitlines()]


def run(experiment, workdir: Path):
    return train(prepare(experiment), workdir, Silent())


@dataclasses.dataclass(frozen=True)
class Whole:
    """A run that was never stopped, on one device: its folder, and what it ended as."""

    workdir: Path
    state: State


@pytest.fixture(scope="module")
def whole(tmp_path_factory) -> Whole:
    folder = tmp_path_factory.mktemp("whole")
    return Whole(folder / "run", run(tiny_run(folder), folder / "run"))


def test_the_loss_falls_and_every_step_is_written_down(tmp_path):
    state = run(tiny_run(tmp_path, {"clock.steps": 24}), tmp_path / "run")
    metrics = lines(tmp_path / "run" / "metrics.jsonl")
    assert int(state.learner.step) == 24
    assert metrics[-1]["loss_nats"] < metrics[0]["loss_nats"] - 0.3
    order = lines(tmp_path / "run" / "order.jsonl")
    assert [line["step"] for line in order] == list(range(1, 25))
    seen = [x for line in order for row in line["rows"] for x in row]
    assert len(seen) == sum(m["examples"] for m in metrics)
    assert set(seen) <= set(range(NUM_EXAMPLES))


def test_a_round_trains_on_what_its_scores_chose(whole):
    for line in lines(whole.workdir / "order.jsonl"):
        with np.load(whole.workdir / "rounds" / f"{line['round']:04d}.npz") as arrays:
            chosen, scores = set(arrays["selected"].tolist()), arrays["score_X"]
        assert {x for row in line["rows"] for x in row} <= chosen
        left = np.setdiff1d(np.arange(NUM_EXAMPLES), list(chosen))
        assert np.round(scores[list(chosen)], 4).min() >= np.round(scores[left], 4).max()


def test_the_same_experiment_gives_the_same_bytes(tmp_path, whole):
    run(tiny_run(tmp_path), tmp_path / "run")
    for file in ("metrics.jsonl", "order.jsonl"):
        assert (tmp_path / "run" / file).read_bytes() == (whole.workdir / file).read_bytes()


@pytest.mark.parametrize("tuning", [None, Lora(rank=3, dropout=0.1)], ids=["full", "lora"])
def test_a_run_that_stopped_anywhere_goes_on_bit_for_bit(tmp_path, tuning):
    changes = {} if tuning is None else {"tuning": tuning}
    whole = run(tiny_run(tmp_path, changes), tmp_path / "whole")
    for cut in (2, 4):  # inside a round, and where one ends
        workdir = tmp_path / f"cut-{cut}"

        class Stop(Silent):
            def recorded(self, cycle, metrics, timing, cut=cut):
                if cycle.last == cut + 2:  # a later cycle is recorded, its checkpoint lost
                    raise KeyboardInterrupt

        with pytest.raises(KeyboardInterrupt):
            train(prepare(tiny_run(tmp_path, changes)), workdir, Stop())
        forget_checkpoints_after(workdir, cut)
        resumed = run(tiny_run(tmp_path, changes), workdir)
        for file in ("metrics.jsonl", "order.jsonl", "rounds/0001.npz"):
            assert (workdir / file).read_bytes() == (tmp_path / "whole" / file).read_bytes()
        same = jax.tree.map(
            lambda a, b: np.array_equal(a, b, equal_nan=True),
            (whole.learner, whole.curriculum.arrays()),
            (resumed.learner, resumed.curriculum.arrays()),
        )
        assert all(jax.tree.leaves(same))


def forget_checkpoints_after(workdir: Path, step: int) -> None:
    for folder in (workdir / "checkpoints").iterdir():
        if folder.is_dir() and int(folder.name) > step:
            shutil.rmtree(folder)


def losses(workdir: Path) -> list[float]:
    return [m["loss_nats"] for m in lines(workdir / "metrics.jsonl")]


def test_devices_only_change_the_order_of_sums(tmp_path, whole):
    layout = Layout(
        axes=(("data", 2), ("fsdp", 4)),
        weights=(("D", ("fsdp",)),),
        activations=(("B", ("data", "fsdp")),),
        overrides=(("embed_V_D", (("V", ()), ("D", ("fsdp",)))),),
    )
    run(tiny_run(tmp_path, {"layout": layout}), tmp_path / "run")
    np.testing.assert_allclose(losses(tmp_path / "run"), losses(whole.workdir), rtol=LOSS_TOLERANCE)
    order = "order.jsonl"
    assert (tmp_path / "run" / order).read_bytes() == (whole.workdir / order).read_bytes()


def test_a_run_goes_on_with_another_device_count(tmp_path, whole):
    first = tiny_run(tmp_path, {"layout": Layout(axes=(("data", 8),))})

    class Stop(Silent):
        def recorded(self, cycle, metrics, timing):
            if cycle.last == 4:
                raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        train(prepare(first), tmp_path / "moved", Stop())
    moved = run(vary(first, {"layout": Layout()}), tmp_path / "moved")
    order = "order.jsonl"
    assert (tmp_path / "moved" / order).read_bytes() == (whole.workdir / order).read_bytes()
    for name, array in moved.curriculum.arrays().items():
        if name not in ("score_X", "signal_YX"):
            np.testing.assert_array_equal(array, whole.state.curriculum.arrays()[name])
    moved_losses = losses(tmp_path / "moved")
    np.testing.assert_allclose(moved_losses, losses(whole.workdir), rtol=LOSS_TOLERANCE)


def test_arms_that_differ_in_numbers_share_one_compiled_step(tmp_path):
    compile_step.cache_clear()
    jax.clear_caches()
    for index, changes in enumerate(
        ({}, {"schedule.peak_lr": 3e-3}, {"optimizer.weight_decay": 0.0}, {"seed": 5})
    ):
        run(tiny_run(tmp_path, changes), tmp_path / str(index))
    assert compile_step.cache_info().misses == 1
    prepared = prepare(tiny_run(tmp_path))
    learner, _ = initialise(prepared.place, prepared.experiment.update(), prepared.params(), 0)
    step = compile_step(prepared.model, prepared.place, structure_of(learner))
    assert step._cache_size() == 1


def test_micro_batches_add_up_to_the_batch(tmp_path, whole):
    run(tiny_run(tmp_path, {"micro_batches": 4}), tmp_path / "run")
    np.testing.assert_allclose(losses(tmp_path / "run"), losses(whole.workdir), rtol=LOSS_TOLERANCE)


def test_a_non_finite_update_is_withheld_and_named(tmp_path):
    poisoned = tiny_run(tmp_path, {"schedule.peak_lr": 1e38, "max_gradient_norm": None})
    with pytest.raises(NonFiniteError, match=r"steps 2 to 2.*max_withheld=0.*step 2: the .*row-"):
        run(poisoned, tmp_path / "run")


def test_a_pool_that_holds_test_rows_is_refused_by_name(tmp_path):
    experiment = tiny_run(tmp_path)
    tested = vary(experiment.data, {"pack": False})
    experiment = vary(experiment, {"evaluators": (Likelihood(data=tested),)})
    with pytest.raises(ValueError, match="29 of 29 rows of the pool are also tested"):
        prepare(experiment)
    assert len(prepare(vary(experiment, {"max_leaked_fraction": 1.0})).leaks) == NUM_EXAMPLES


def test_equal_compute_pays_for_scoring_with_steps(tmp_path):
    steps = {}
    for name, budget in (("steps", EqualSteps()), ("compute", EqualCompute())):
        changes = {"clock.steps": 40, "curriculum.budget": budget}
        prepared = prepare(tiny_run(tmp_path, changes))
        steps[name] = prepared.experiment.clock.steps
    paid = (
        2
        * scoring_flops(
            prepared.experiment.curriculum.estimator,
            prepared.model.arch,
            prepared.model.abstract(),
            prepared.terms[0].views,
        ).sum()
    )
    assert steps["steps"] == 40
    assert steps["compute"] == int((40 * prepared.step_flops - paid) / prepared.step_flops) < 40


def test_the_best_checkpoint_is_kept_beside_the_last(tmp_path):
    tested = vary(tiny_run(tmp_path).data, {"pack": False})
    changes = {
        "clock": Clock(steps=8, cycle_steps=2, evaluate_every=1),
        "schedule": Constant(peak_lr=0.2),  # too high: the first checkpoint is not the worst
        "evaluators": (Likelihood(name="test", data=tested),),
        "max_leaked_fraction": 1.0,
        "checkpoints": Checkpoints(keep_last=1, keep_best=1, metric="test/loss_nats"),
    }
    run(tiny_run(tmp_path, changes), tmp_path / "run")
    losses = {
        line["step"]: line["metrics"]["loss_nats"]["value"]
        for line in lines(tmp_path / "run" / "evaluations.jsonl")
        if line["step"]
    }
    best = min(losses, key=losses.__getitem__)
    with Store(tmp_path / "run" / "checkpoints", changes["checkpoints"]) as store:
        assert store.best() == best
        assert store.steps == sorted({best, 8})


def test_a_profile_is_written_for_the_steps_asked_for(tmp_path):
    train(prepare(tiny_run(tmp_path)), tmp_path / "run", Silent(), profile=(3, 4))
    assert list((tmp_path / "run" / "profile").rglob("*.xplane.pb"))


def test_parameters_that_overflowed_are_not_saved(tmp_path):
    decay = Sgd(weight_decay=1e3)  # finite gradients, and an update beyond float32
    huge = {"optimizer": decay, "schedule": Constant(peak_lr=3e38), "clock.cycle_steps": 1}
    with pytest.raises(NonFiniteError, match="not finite, though every gradient was"):
        run(tiny_run(tmp_path, huge), tmp_path / "run")


def test_a_changed_cycle_length_goes_on_at_the_very_next_step(tmp_path, whole):
    class Stop(Silent):
        def recorded(self, cycle, metrics, timing):
            if cycle.last == 6:
                raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        train(prepare(tiny_run(tmp_path)), tmp_path / "cut", Stop())
    forget_checkpoints_after(tmp_path / "cut", 2)
    resumed = run(tiny_run(tmp_path, {"clock.cycle_steps": 3}), tmp_path / "cut")
    order = "order.jsonl"
    assert (tmp_path / "cut" / order).read_bytes() == (whole.workdir / order).read_bytes()
    ended = (resumed.learner, whole.state.learner)
    for a, b in zip(*map(jax.tree.leaves, ended), strict=True):
        np.testing.assert_array_equal(a, b)


def test_a_clock_that_moves_rounds_is_refused_on_resume(tmp_path):
    class Stop(Silent):
        def recorded(self, cycle, metrics, timing):
            if cycle.last == 6:
                raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        train(prepare(tiny_run(tmp_path)), tmp_path / "run", Stop())
    with pytest.raises(ValueError, match="lies in round 0 of this clock"):
        run(tiny_run(tmp_path, {"clock.steps": 40}), tmp_path / "run")


def test_accumulated_gradients_are_those_of_the_whole_batch(tmp_path):
    updated = {}
    for count in (1, 4):
        prepared = prepare(tiny_run(tmp_path, {"micro_batches": count, "optimizer": Sgd()}))
        update = prepared.experiment.update()
        learner, frozen = initialise(prepared.place, update, prepared.params(), 0)
        step = compile_step(prepared.model, prepared.place, structure_of(learner))
        rows = [[(x, prepared.pool.examples[x])] for x in range(8)]  # 4 to 12 trained tokens a row
        batch = pack_batch(rows, 19, 1)
        span = (np.int32(0), np.int32(1))
        learner, _ = step(learner, frozen, batch, update, span, jax.random.key(0))
        updated[count] = jax.tree.leaves(learner.trainable)
    for one, four in zip(updated[1], updated[4], strict=True):
        np.testing.assert_allclose(four, one, atol=ACCUMULATION_TOLERANCE)


def test_what_a_run_writes_about_itself_rebuilds_the_experiment(tmp_path):
    tested = vary(tiny_run(tmp_path).data, {"pack": False})
    experiments = [
        tiny_run(tmp_path),
        tiny_run(tmp_path, {"tuning": Lora(overrides=(Override(target="query_D_KGH", rank=2),))}),
        tiny_run(tmp_path, {"model.windows": (3, None)}),
        tiny_run(tmp_path, {"evaluators": (Likelihood(data=tested, slice_by=("id",)),)}),
    ]
    for experiment in experiments:
        assert rebuild(json.loads(json.dumps(describe(experiment)))) == experiment


def test_a_work_directory_belongs_to_one_experiment(tmp_path):
    prepared = prepare(tiny_run(tmp_path))
    assert open_workdir(prepared, tmp_path / "run", ["maktab"]) == []
    longer = prepare(tiny_run(tmp_path, {"clock.steps": 12}))
    assert open_workdir(longer, tmp_path / "run", ["maktab"]) == ["experiment.clock.steps: 8 -> 12"]
    other = prepare(tiny_run(tmp_path, {"optimizer.weight_decay": 0.3}))
    with pytest.raises(OtherRunError, match=r"experiment\.optimizer\.weight_decay: 0\.1 -> 0\.3"):
        open_workdir(other, tmp_path / "run", ["maktab"])


def test_a_field_that_an_earlier_version_did_not_have_is_its_default(tmp_path):
    prepared, workdir = prepare(tiny_run(tmp_path)), tmp_path / "run"
    open_workdir(prepared, workdir, ["maktab"])
    file = workdir / "experiment.json"
    written = json.loads(file.read_text())
    del written["experiment"]["seed"]
    file.write_text(json.dumps(written))
    assert open_workdir(prepared, workdir, ["maktab"]) == []
    file.write_text(json.dumps(written))
    other = prepare(vary(prepared.experiment, {"seed": 1}))
    with pytest.raises(OtherRunError, match=r"experiment\.seed: 0 -> 1"):
        open_workdir(other, workdir, ["maktab"])


def test_a_schedule_may_span_the_round(tmp_path):
    rates = {}
    for spans in (False, True):
        name = f"spans-{spans}"
        changes = {"schedule_spans_round": spans, "clock.cycle_steps": 1}
        run(tiny_run(tmp_path, changes), tmp_path / name)
        rates[spans] = [m["learning_rate"] for m in lines(tmp_path / name / "metrics.jsonl")]
    assert rates[True][:4] == rates[True][4:]
    assert rates[False][:4] != rates[False][4:]
