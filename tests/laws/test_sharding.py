"""Every layout learns what one device learns: loss, gradients and the shardings of the state."""

import functools
import math

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from configs import layouts
from research.core.records import Batch
from research.experiment import Update
from research.models.architecture import Architecture, Moe
from research.models.compute import Compute
from research.models.moe.softmax_top_k import SoftmaxTopK
from research.models.transformer import Transformer
from research.objectives.cross_entropy import CrossEntropy
from research.optimizers.schedules import Constant
from research.optimizers.sgd import Sgd
from research.train.step import compile_step, initialise, structure_of
from research.tuning.full import Full
from research.tuning.lora import Lora

RELATIVE = 1e-5  # of the largest gradient of a parameter: sums are taken in another order
ROWS, TOKENS, VOCABULARY = 8, 24, 48
DENSE = Architecture(
    vocab_size=VOCABULARY,
    model_dim=32,
    num_layers=2,
    num_heads=8,
    num_kv_heads=4,
    head_dim=6,
    ffw_dim=40,
    query_key_norm=True,
)
MOE = Architecture(
    vocab_size=VOCABULARY,
    model_dim=32,
    num_layers=2,
    num_heads=8,
    num_kv_heads=4,
    head_dim=6,
    ffw_dim=40,
    moe=Moe(num_experts=8, experts_per_token=2, expert_dim=16, router=SoftmaxTopK(), shared_dim=24),
)
MODELS = {"dense": DENSE, "moe": MOE}
TUNINGS = {
    "full": Full(),
    "lora": Lora(rank=4, alpha=8.0, targets=("all_linear", "embed_V_D", "head_D_V")),
}
LAYOUTS = {
    "data": layouts.data(),
    "fsdp": layouts.fsdp(),
    "fsdp_tensor": layouts.fsdp_tensor(2),
    "tensor": layouts.fsdp_tensor(4, fsdp=1, data=2),
    "context": layouts.context(2),
    "fsdp_tensor_context": layouts.fsdp_tensor(2, context=2),
    "expert": layouts.expert(4),
    "expert_tensor": layouts.expert(2, tensor=2),
    "expert_context": layouts.expert(2, context=2),
    "pod": layouts.pod(2, tensor=2),
    "pod_expert": layouts.pod(2, expert=2),
}
EVERY = [(layout, tuning, model) for layout in LAYOUTS for tuning in TUNINGS for model in MODELS]
SLOW = [pytest.mark.slow, pytest.mark.timeout(3000)]  # compiling is slow on a busy machine
FEW = {
    ("fsdp_tensor_context", "lora", "dense"),
    ("expert_tensor", "full", "moe"),
}


def batch() -> Batch:
    """Two examples a row, packed, and padding at its end."""
    numbers = np.random.default_rng(0)
    first, second = 11, 9
    segments = np.repeat([1, 2, 0], [first, second, TOKENS - first - second])
    positions = np.concatenate([np.arange(first), np.arange(second), np.zeros(4, int)])
    weights = (segments > 0) & (numbers.random((ROWS, TOKENS)) < 0.7)
    return Batch(
        tokens_BT=numbers.integers(0, VOCABULARY, (ROWS, TOKENS), dtype=np.int32),
        targets_BT=numbers.integers(0, VOCABULARY, (ROWS, TOKENS), dtype=np.int32),
        weights_BT=weights.astype(np.float32),
        positions_BT=np.tile(positions, (ROWS, 1)).astype(np.int32),
        segments_BT=np.tile(segments, (ROWS, 1)).astype(np.int32),
        ids_BZ=np.arange(2 * ROWS, dtype=np.int32).reshape(ROWS, 2),
    )


@functools.cache
def learned(layout: str, tuning: str, model: str, micro_batches: int = 1):
    """Give (what one step of gradient descent changed, loss, programs compiled, learner)."""
    place = (LAYOUTS[layout] if layout else layouts.single()).on(
        jax.devices() if layout else jax.devices()[:1]
    )
    transformer = Transformer(MODELS[model], place, Compute())
    update = Update(
        tuning=TUNINGS[tuning],
        objective=CrossEntropy(),
        optimizer=Sgd(momentum=0.9),
        schedule=Constant(peak_lr=1.0),
        max_gradient_norm=None,
        micro_batches=micro_batches,
    )
    learner, frozen = initialise(place, update, start(transformer), seed=3)
    before = jax.tree.map(np.asarray, learner.trainable)
    step = compile_step(transformer, place, structure_of(learner))
    compiled = step._cache_size()
    rows = jax.device_put(batch(), place.batch(batch()))
    span = (np.float32(0), np.float32(9))
    update, span, key = jax.device_put((update, span, jax.random.key(1)), place.replicated)
    learner, report = step(learner, frozen, rows, update, span, key)
    changed = jax.tree.map(lambda a, b: np.asarray(a) - b, learner.trainable, before)
    losses = [float(report.totals["loss_nats"].mean)]
    learner, report = step(learner, frozen, rows, update, span, key)
    losses.append(float(report.totals["loss_nats"].mean))
    return changed, losses, step._cache_size() - compiled, learner


def start(model: Transformer):
    """Give the same weights on every layout, with factors that are not zero."""
    one = Transformer(model.arch, layouts.single().on(jax.devices()[:1]), Compute())
    params = jax.tree.map(np.asarray, one.init(jax.random.key(0)))
    return jax.device_put(params, model.place.weights(params))


@pytest.mark.parametrize(
    ("layout", "tuning", "model"),
    [pytest.param(*case, marks=[] if case in FEW else SLOW) for case in EVERY],
)
def test_eight_devices_learn_what_one_learns(layout, tuning, model):
    alike(learned(layout, tuning, model), learned("", tuning, model))


@pytest.mark.slow
@pytest.mark.timeout(3000)
@pytest.mark.parametrize("layout", ["fsdp_tensor_context", "expert_tensor"])
def test_micro_batches_on_eight_devices_learn_what_one_batch_on_one_learns(layout):
    model = "moe" if "expert" in layout else "dense"
    alike(learned(layout, "lora", model, micro_batches=2), learned("", "lora", model))


def alike(many: tuple, one: tuple) -> None:
    """Assert that losses and changes agree, and that there was one program."""
    changed, losses, programs, _ = many
    expected, expected_losses, _, _ = one
    np.testing.assert_allclose(losses, expected_losses, rtol=RELATIVE)
    assert programs == 1
    for (path, ours), theirs in zip(
        jax.tree_util.tree_leaves_with_path(changed), jax.tree.leaves(expected), strict=True
    ):
        scale = np.abs(theirs).max()
        name = jax.tree_util.keystr(path)
        np.testing.assert_allclose(ours, theirs, rtol=0, atol=RELATIVE * scale, err_msg=name)


@pytest.mark.parametrize(
    ("layout", "tuning", "model"),
    [case for case in EVERY if case in FEW],
)
def test_the_optimiser_lies_where_its_parameters_lie(layout, tuning, model):
    learner = learned(layout, tuning, model)[3]
    moments = jax.tree_util.tree_leaves_with_path(learner.optimizer)
    for path, leaf in jax.tree_util.tree_leaves_with_path(learner.trainable):
        same = [moment for name, moment in moments if name[-len(path) :] == path]
        assert [moment.sharding for moment in same] == [leaf.sharding], path


BIG = {
    "fsdp_tensor": layouts.fsdp_tensor(2),
    "context": layouts.context(2),
    "all_context": layouts.context(8),
    "expert": layouts.expert(4),
    "expert_context": layouts.expert(2, context=2),
    "pod": layouts.pod(2, tensor=2),
}


@pytest.mark.parametrize("layout", BIG)
@pytest.mark.parametrize("tuning", TUNINGS)
def test_no_weight_of_a_megabyte_is_whole_on_a_device_of_its_slice(layout, tuning):
    arch = Architecture(
        vocab_size=32_000,
        model_dim=2048,
        num_layers=4,
        num_heads=16,
        num_kv_heads=8,
        head_dim=128,
        ffw_dim=6144,
        moe=Moe(num_experts=16, experts_per_token=2, expert_dim=768, router=SoftmaxTopK()),
    )
    place = BIG[layout].on(jax.devices())
    model = Transformer(arch, place, Compute())
    tree = jax.eval_shape(TUNINGS[tuning].split, model.abstract(), jax.random.key(0))
    shardings = jax.tree.leaves(place.weights(tree))
    leaves = jax.tree_util.tree_leaves_with_path(tree)
    held = dict(BIG[layout].axes).get("replica", 1)
    large = 0
    for (path, leaf), sharding in zip(leaves, shardings, strict=True):
        if leaf.size * leaf.dtype.itemsize >= 2**20:
            large += 1
            parts = leaf.size // math.prod(sharding.shard_shape(leaf.shape))
            assert parts == 8 // held, jax.tree_util.keystr(path)
    assert large > 8


def test_axes_of_size_one_are_left_out():
    assert dict(layouts.fsdp_tensor(2).axes) == {"fsdp": -1, "tensor": 2}
    assert layouts.pod(1) == layouts.fsdp()


def test_an_expert_axis_that_does_not_divide_the_experts_is_named():
    place = layouts.expert(8).on(jax.devices())
    with pytest.raises(ValueError, match=r"gate_E_D_F: axis E has size 6.*'expert'.*size 8"):
        place.weight("gate_E_D_F", (2, 6, 32, 16))


def test_keys_and_values_of_a_packed_row_stay_apart_over_the_context():
    """The law of packing, on a mesh that splits T in the middle of an example."""
    place = LAYOUTS["context"].on(jax.devices())
    model = Transformer(DENSE, place, Compute())
    params, rows = start(model), batch()
    other = np.array(rows.tokens_BT)
    other[:, :11] = (other[:, :11] + 1) % VOCABULARY  # another first example
    apply = jax.jit(lambda rows: model.apply(params, rows).logits())
    changed = Batch(**{**vars(rows), "tokens_BT": other})
    first, second = (np.asarray(apply(x)) for x in (rows, changed))
    assert np.abs(first[:, :11] - second[:, :11]).max() > 0.1
    np.testing.assert_array_equal(first[:, 11:20], second[:, 11:20])
    assert jnp.isfinite(first).all()
