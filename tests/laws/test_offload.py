"""What waits in the host's memory, and what is computed twice, changes no result."""

import dataclasses
import functools

import jax
import numpy as np
import pytest

from configs import layouts
from research.checkpoint import Checkpoints, Store
from research.core.records import Batch
from research.experiment import Update
from research.models.architecture import Architecture
from research.models.compute import REMAT_POLICIES, Compute
from research.models.transformer import Transformer
from research.objectives.cross_entropy import CrossEntropy
from research.optimizers.adamw import AdamW
from research.optimizers.moments import EightBit
from research.optimizers.muon import Muon
from research.optimizers.schedules import Constant
from research.train.step import (
    abstractly,
    all_finite,
    compile_reset,
    compile_step,
    initialise,
    structure_of,
)
from research.tuning.full import Full

SAME_ARITHMETIC = 1e-5  # of the largest number of a leaf: another program adds in another order
ROWS, TOKENS = 8, 12
ARCH = Architecture(
    vocab_size=40,
    model_dim=16,
    num_layers=3,
    num_heads=4,
    num_kv_heads=2,
    head_dim=6,
    ffw_dim=24,
)


def batch() -> Batch:
    numbers = np.random.default_rng(0)
    tokens = numbers.integers(0, 40, (ROWS, TOKENS + 1), dtype=np.int32)
    ones = np.ones((ROWS, TOKENS), np.int32)
    return Batch(
        tokens_BT=tokens[:, :-1],
        targets_BT=tokens[:, 1:],
        weights_BT=ones.astype(np.float32),
        positions_BT=np.cumsum(ones, axis=1, dtype=np.int32) - 1,
        segments_BT=ones,
        ids_BZ=np.arange(ROWS, dtype=np.int32)[:, None],
    )


def begin(layout, optimizer, compute=Compute()):  # noqa: B008
    """Give (update, learner, step on the batch)."""
    devices = jax.devices() if layout.axes != (("data", 1),) else jax.devices()[:1]
    place = layout.on(devices)
    model = Transformer(ARCH, place, compute)
    update = Update(
        tuning=Full(),
        objective=CrossEntropy(),
        optimizer=optimizer,
        schedule=Constant(peak_lr=0.01),
        max_gradient_norm=1.0,
        micro_batches=1,
    )
    learner, frozen = initialise(place, update, model.init(jax.random.key(0)), seed=3)
    program = compile_step(model, place, structure_of(learner))
    rows = jax.device_put(batch(), place.batch(batch()))
    span = (np.int32(0), np.int32(9))
    held = place.put_everywhere((update, span, jax.random.key(1)))

    def step(learner):
        return program(learner, frozen, rows, *held)

    return learner, step, program


@functools.cache
def after_two_steps(layout, optimizer):
    learner, step, program = begin(layout, optimizer)
    before = jax.tree.map(lambda x: x.sharding, learner)
    learner, _ = step(learner)
    learner, report = step(learner)
    assert jax.tree.map(lambda x: x.sharding, learner) == before
    assert program._cache_size() == 1
    return learner, float(report.totals["loss_nats"].mean)


CASES = {
    "one device": (layouts.single(), AdamW()),
    "eight devices, eight bits": (
        layouts.fsdp_tensor(2),
        AdamW(moments=EightBit(min_side=4)),
    ),
    "one device, muon": (layouts.single(), Muon()),
}


@pytest.mark.parametrize(
    "case", [pytest.param(c, marks=[] if c == "one device" else [pytest.mark.slow]) for c in CASES]
)
def test_a_state_on_the_host_learns_the_same(case):
    layout, optimizer = CASES[case]
    here, loss = after_two_steps(layout, optimizer)
    there, loss_there = after_two_steps(
        dataclasses.replace(layout, optimizer_on_host=True), optimizer
    )
    kinds = {x.sharding.memory_kind for x in jax.tree.leaves(there.optimizer) if x.ndim}
    assert kinds == {"pinned_host"}
    assert loss_there == pytest.approx(loss, rel=SAME_ARITHMETIC)
    for (path, a), b in zip(
        jax.tree_util.tree_leaves_with_path(there), jax.tree.leaves(here), strict=True
    ):
        name = jax.tree_util.keystr(path)
        if ".trainable" in name or (".optimizer" in name and "bits" not in case):
            bound = SAME_ARITHMETIC * np.abs(np.asarray(b)).max()
            np.testing.assert_allclose(a, b, rtol=0, atol=bound, err_msg=name)


def test_a_state_on_the_host_is_saved_restored_and_reset_there(tmp_path):
    layout = dataclasses.replace(layouts.single(), optimizer_on_host=True)
    learner, _ = after_two_steps(layout, AdamW())
    assert all_finite((learner.trainable, learner.optimizer))
    with Store(tmp_path / "checkpoints", Checkpoints()) as store:
        store.save(2, learner, {"score_X": np.arange(5)}, source={"of": "a test"}, metrics={})
        store.wait()
        again, _ = store.restore(abstractly(learner), source={"of": "a test"})
    jax.tree.map(np.testing.assert_array_equal, again, learner)
    assert jax.tree.map(lambda x: x.sharding, again) == jax.tree.map(lambda x: x.sharding, learner)
    fresh = compile_reset(AdamW(), structure_of(learner))(learner.trainable)
    assert jax.tree.map(lambda x: x.sharding, fresh) == jax.tree.map(
        lambda x: x.sharding, learner.optimizer
    )


@pytest.mark.parametrize(
    "remat",
    [
        pytest.param(name, marks=[] if name == "offload" else [pytest.mark.slow])
        for name in REMAT_POLICIES
        if name != "none"
    ],
)
def test_what_a_layer_keeps_changes_no_gradient(remat):
    kept, twice = (gradients(Compute(remat=name)) for name in ("none", remat))
    for a, b in zip(jax.tree.leaves(twice), jax.tree.leaves(kept), strict=True):
        np.testing.assert_allclose(a, b, rtol=0, atol=1e-5 * np.abs(b).max())


@functools.cache
def gradients(compute):
    """Give the gradients of the batch, as a first moment without memory holds them."""
    learner, step, _ = begin(layouts.single(), AdamW(b1=0.0), compute)
    return jax.tree.map(np.asarray, step(learner)[0].optimizer.mu)
