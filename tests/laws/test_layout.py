"""Layouts: every letter goes where its rule says; what does not fit is an error that says why."""

import dataclasses
import math

import jax
import jax.numpy as jnp
import pytest

from configs import layouts
from research.core.layout import Layout, Placement
from research.models.architecture import Architecture
from research.models.compute import Compute
from research.models.transformer import Transformer
from research.optimizers.adafactor import Adafactor
from research.optimizers.adamw import AdamW
from research.optimizers.moments import EightBit
from research.tuning.full import Full
from research.tuning.lora import Lora

MIB = 1024 * 1024
ARCH = Architecture(
    vocab_size=151_936,
    model_dim=1024,
    num_layers=28,
    num_heads=16,
    num_kv_heads=8,
    head_dim=128,
    ffw_dim=3072,
    query_key_norm=True,
)
MEMORY = {
    "full": (Full(), AdamW()),
    "adafactor": (Full(), Adafactor()),
    "eight_bits": (Full(), AdamW(moments=EightBit())),
    "lora": (Lora(rank=64), AdamW()),
    "lora_everywhere": (Lora(rank=64, targets=("all_linear", "embed_V_D", "head_D_V")), AdamW()),
}


def state(tuning, optimizer):
    """Give the shapes of all that a run keeps on devices."""
    model = Transformer(ARCH, layouts.single().on(jax.devices()), Compute())

    def start(params):
        trainable, frozen = tuning.split(params, jax.random.key(0))
        return trainable, frozen, optimizer.init(trainable)

    return jax.eval_shape(start, model.abstract())


@pytest.mark.parametrize("memory", MEMORY)
def test_fsdp_replicates_nothing_of_a_megabyte(memory):
    tree = state(*MEMORY[memory])
    place = layouts.fsdp().on(jax.devices())
    leaves = jax.tree_util.tree_leaves_with_path(tree)
    shardings = jax.tree.leaves(place.weights(tree))
    large = [
        (jax.tree_util.keystr(path), leaf, sharding)
        for (path, leaf), sharding in zip(leaves, shardings, strict=True)
        if leaf.size * leaf.dtype.itemsize >= MIB
    ]
    assert len(large) > 8
    for name, leaf, sharding in large:
        assert math.prod(sharding.shard_shape(leaf.shape)) * 8 == leaf.size, name


def test_data_replicates_weights_and_splits_rows():
    place = layouts.data().on(jax.devices())
    assert place.weight("gate_D_F", (28, 1024, 3072)).is_fully_replicated
    assert place.batch(jnp.zeros((16, 5))).shard_shape((16, 5)) == (2, 5)
    assert place.num_row_shards == 8


def test_groups_of_fsdp_split_rows_over_both_and_weights_over_one():
    place = layouts.fsdp(n=2, data=4).on(jax.devices())
    assert place.num_row_shards == 8
    assert place.weight("gate_D_F", (28, 1024, 3072)).shard_shape((28, 1024, 3072)) == (
        28,
        512,
        3072,
    )


def test_single_is_one_device_and_constrains_nothing():
    place = layouts.single().on(jax.devices())
    x = jnp.zeros((3, 5, 7))
    assert place.mesh.size == place.num_row_shards == 1
    assert place.constrain(x, "BTD") is x


def test_an_override_speaks_for_its_name_alone():
    place = layouts.fsdp().on(jax.devices())
    assert place.weight("embed_V_D", (40, 24)).spec == jax.P("fsdp", None)
    assert place.weight("head_D_V", (24, 40)).spec == jax.P("fsdp", None)


def test_stacks_are_never_split():
    place = layouts.fsdp().on(jax.devices())
    assert place.weight("ffw_norm_D", (8, 24)).spec == jax.P(None, "fsdp")


def test_a_moment_lies_where_its_parameter_lies():
    place = layouts.fsdp().on(jax.devices())
    tree = {"layers": {"0": {"gate_D_F": {"row_D": jnp.zeros((2, 24)), "column_F": jnp.zeros(9)}}}}
    kernel = place.weights(tree)["layers"]["0"]["gate_D_F"]
    assert kernel["row_D"].spec == jax.P(None, "fsdp")
    assert kernel["column_F"].spec == jax.P(None)


def test_minus_one_takes_the_devices_that_are_there():
    assert dict(layouts.data().on(jax.devices()[:6]).mesh.shape) == {"data": 6}
    assert dict(layouts.fsdp(data=2).on(jax.devices()).mesh.shape) == {"data": 2, "fsdp": 4}


@pytest.mark.parametrize(
    ("layout", "devices"),
    [(layouts.data(n=9), 8), (layouts.fsdp(data=3), 8), (layouts.fsdp(data=16), 8)],
)
def test_a_mesh_that_does_not_fit_names_its_axes_and_the_devices(layout, devices):
    with pytest.raises(ValueError, match=rf"'data': .* does not fit {devices} devices"):
        layout.on(jax.devices()[:devices])


def test_a_size_that_does_not_divide_names_the_letter_the_size_and_the_mesh_axis():
    place = layouts.fsdp().on(jax.devices())
    with pytest.raises(ValueError, match=r"gate_D_F: axis D has size 20.*'fsdp'.* of size 8"):
        place.weight("gate_D_F", (20, 40))
    with pytest.raises(ValueError, match=r"batch: axis B has size 12.*'fsdp'.* of size 8"):
        place.batch(jnp.zeros((12, 5)))
    with pytest.raises(ValueError, match=r"BTD: axis B has size 12"):
        place.constrain(jnp.zeros((12, 5, 8)), "BTD")


def test_one_mesh_axis_for_two_letters_names_both_and_the_axis():
    layout = Layout(
        axes=(("fsdp", 8),), weights=(("D", ("fsdp",)), ("F", ("fsdp",))), activations=()
    )
    with pytest.raises(ValueError, match=r"gate_D_F: mesh axis 'fsdp' .* by both D and F"):
        layout.on(jax.devices()).weight("gate_D_F", (24, 40))


@pytest.mark.parametrize(
    ("fields", "message"),
    [
        ({"axes": (("data", -1), ("fsdp", -1))}, "more than one -1"),
        ({"axes": (("data", 2), ("data", 4))}, "repeats a mesh axis"),
        ({"axes": (("data", 0),)}, "must be positive"),
        ({"weights": (("D", ("tensor",)),)}, r"rules name \['tensor'\], but axes are \['data'\]"),
    ],
)
def test_a_layout_that_cannot_be_is_refused_when_it_is_made(fields, message):
    with pytest.raises(ValueError, match=message):
        Layout(**fields)


def test_state_on_the_host_keeps_its_sharding_and_leaves_scalars_on_the_device():
    layout = dataclasses.replace(layouts.fsdp(), optimizer_on_host=True)
    place, tree = layout.on(jax.devices()), {"gate_D_F": jnp.zeros((2, 24, 16))}
    state = jax.eval_shape(AdamW().init, tree)
    held, there = place.optimizer(state), place.weights(state)
    assert held.mu["gate_D_F"] == there.mu["gate_D_F"].with_memory_kind("pinned_host")
    assert held.count == there.count
    assert place.weights(tree)["gate_D_F"].memory_kind == "device"


@pytest.mark.parametrize(
    ("layout", "compute", "setting"),
    [
        (Layout(optimizer_on_host=True), Compute(), "optimizer_on_host=True"),
        (Layout(), Compute(remat="offload"), "remat='offload'"),
        (Layout(), Compute(remat="offload_dots"), "remat='offload_dots'"),
    ],
)
def test_a_device_that_cannot_reach_the_host_is_an_error_that_says_what_it_reaches(
    monkeypatch, layout, compute, setting
):
    model = Transformer(ARCH, layout.on(jax.devices()), compute)
    model.require_place()
    monkeypatch.setattr(Placement, "memory_kinds", ("device",))
    with pytest.raises(ValueError, match=rf"{setting} .*'pinned_host'.*cpu devices.*\['device'\]"):
        model.require_place()
