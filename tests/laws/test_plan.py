"""Plans: what is read off a compiled program is what the program does, and the roofline adds up."""

import dataclasses
import json
import math
from types import SimpleNamespace

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from jax.sharding import AxisType, NamedSharding
from jax.sharding import PartitionSpec as P

from configs import layouts
from launch.plan import as_json, layouts_for, seconds
from research.core.layout import Layout
from research.core.parts import vary
from research.models.architecture import Architecture, Moe
from research.models.compute import Compute
from research.models.moe.softmax_top_k import SoftmaxTopK
from research.plan import search as searching
from research.plan.chips import CHIPS
from research.plan.collectives import Collective, bytes_by_axis, collectives, groups_of
from research.plan.compiled import (
    Compiled,
    DoesNotFit,
    compile_program,
    kept_activations,
    refusal,
)
from research.plan.hlo import Instruction, read, shapes_of
from research.plan.plan import Site, plan, shard_bytes
from research.plan.products import executed_flops, overlaps
from research.plan.roofline import link_rate, roofline, seconds_of
from research.plan.search import Trial, search
from research.plan.topologies import Topology, parse_topology
from research.plan.traffic import memory_traffic
from tests.flow.runs import tiny_run

LAYERS, ROWS, WIDTH = 5, 24, 32
MESH = {"data": 2, "fsdp": 4}
EXACT = 1e-12
ROUNDED = 5e-3  # data sheets give two or three digits

# As a TPU's compiler writes it: a loop whose trips only its condition, its body and its entry tell;
# a gather that is spread over a chain of fusions; a reduce-scatter as a fusion that slices an
# all-reduce; groups by mesh axes.
TPU_TEXT = """HloModule jit_f, is_scheduled=true

%add (x: f32[], y: f32[]) -> f32[] {
  %x = f32[]{:T(128)} parameter(0)
  %y = f32[]{:T(128)} parameter(1)
  ROOT %sum = f32[]{:T(128)} add(%x, %y)
}

%all-reduce-scatter (input: bf16[64,128]) -> bf16[16,128] {
  %input = bf16[64,128]{1,0:T(8,128)(2,1)} parameter(0)
  %all-reduce.1 = bf16[64,128]{1,0:T(8,128)(2,1)} all-reduce(%input), channel_id=7, \
replica_groups={{0,1,2,3},{4,5,6,7}}, use_global_device_ids=true, to_apply=%add
  %zero = s32[]{:T(128)} constant(0)
  ROOT %slice.1 = bf16[16,128]{1,0:T(8,128)(2,1)} dynamic-slice(%all-reduce.1, %zero, %zero), \
dynamic_slice_sizes={16,128}
}

%begin (p: bf16[8,128]) -> (bf16[8,128], bf16[32,128]) {
  %p = bf16[8,128]{1,0:T(8,128)(2,1)} parameter(0)
  %gather.1 = bf16[32,128]{1,0:T(8,128)(2,1)} all-gather(%p), channel_id=9, \
replica_groups=mesh['axis_0'=4,'axis_1'=2], device_ids=([2,4]T(1,0)) {'axis_0'}, dimensions={0}, \
use_global_device_ids=true, frontend_attributes={chain_id="0"}
  ROOT %start = (bf16[8,128]{1,0}, bf16[32,128]{1,0:S(1)}) custom-call(%gather.1), \
custom_call_target="AsyncCollectiveStart"
}

%end (q: bf16[8,128]) -> bf16[32,128] {
  %q = bf16[8,128]{1,0:T(8,128)(2,1)} parameter(0)
  %gather.2 = bf16[32,128]{1,0:T(8,128)(2,1)} all-gather(%q), channel_id=9, \
replica_groups=mesh['axis_0'=4,'axis_1'=2], device_ids=([2,4]T(1,0)) {'axis_0'}, dimensions={0}, \
use_global_device_ids=true, frontend_attributes={chain_id="0"}
  ROOT %done = bf16[32,128]{1,0:S(1)} custom-call(%q, %gather.2), \
custom_call_target="AsyncCollectiveDone"
}

%condition (c: (u32[], bf16[8,128])) -> pred[] {
  %bound = u32[]{:T(128)} constant(7)
  %c = (u32[]{:T(128)}, bf16[8,128]{1,0}) parameter(0)
  %counter = u32[]{:T(128)} get-tuple-element(%c), index=0
  ROOT %less = pred[]{:T(512)} compare(%counter, %bound), direction=LT
}

%body (b: (u32[], bf16[8,128])) -> (u32[], bf16[8,128]) {
  %b = (u32[]{:T(128)}, bf16[8,128]{1,0}) parameter(0)
  %count = u32[]{:T(128)} get-tuple-element(%b), index=0
  %two = u32[]{:T(128)} constant(2)
  %next = u32[]{:T(128)} add(%count, %two)
  %part = bf16[8,128]{1,0} get-tuple-element(%b), index=1
  %send = (bf16[8,128]{1,0}, bf16[8,128]{1,0}, u32[], u32[]) collective-permute-start(%part), \
channel_id=3, source_target_pairs={{0,4},{4,0},{1,5},{5,1},{2,6},{6,2},{3,7},{7,3}}
  %kernel = bf16[8,128]{1,0} custom-call(%part), custom_call_target="tpu_custom_call", \
frontend_attributes={kernel_metadata={
"xprof_metadata":"{}"
}}, metadata={op_name="kernel"}
  %sent = bf16[8,128]{1,0} collective-permute-done(%send)
  ROOT %again = (u32[]{:T(128)}, bf16[8,128]{1,0}) tuple(%next, %sent)
}

ENTRY %main (a: bf16[8,128], w: bf16[64,128]) -> bf16[16,128] {
  %a = bf16[8,128]{1,0:T(8,128)(2,1)} parameter(0)
  %w = bf16[64,128]{1,0:T(8,128)(2,1)} parameter(1)
  %one = u32[]{:T(128)} constant(1)
  %copied = u32[]{:T(128)} copy(%one)
  %enter = (u32[]{:T(128)}, bf16[8,128]{1,0}) tuple(%copied, %a)
  %loop = (u32[]{:T(128)}, bf16[8,128]{1,0}) while(%enter), condition=%condition, body=%body
  %first = (bf16[8,128]{1,0}, bf16[32,128]{1,0:S(1)}) fusion(%a), kind=kCustom, calls=%begin
  %last = bf16[32,128]{1,0:S(1)} fusion(%a), kind=kCustom, calls=%end
  ROOT %out = bf16[16,128]{1,0:T(8,128)(2,1)} fusion(%w), kind=kCustom, calls=%all-reduce-scatter
}
"""
TILE = 8 * 128 * 2


def test_a_tpus_collectives_are_counted_as_often_as_they_run_and_once_each():
    program = read(TPU_TEXT)
    assert program.unknown_loops == ()
    assert program.runs["body"] == 3  # 1, 3, 5
    found = {one.kind: one for one in collectives(program, MESH)}
    assert set(found) == {"all-gather", "reduce-scatter", "collective-permute"}
    assert found["all-gather"].axes == ("fsdp",)
    assert found["all-gather"].step_bytes == 3 * TILE
    assert found["reduce-scatter"].axes == ("fsdp",)
    assert found["reduce-scatter"].step_bytes == 8 * TILE * 3 / 4
    assert found["collective-permute"].axes == ("data",)
    assert found["collective-permute"].step_bytes == 3 * TILE
    assert bytes_by_axis(tuple(found.values())) == {
        ("fsdp",): (3 + 6) * TILE,
        ("data",): 3 * TILE,
    }


def test_a_kernel_of_experts_multiplies_the_rows_that_some_expert_has():
    text = """HloModule jit_step, is_scheduled=true

ENTRY %main (n: s32[4], x: bf16[48,16], w: bf16[3,16,40]) -> bf16[48,40] {
  %n = s32[4]{0} parameter(0)
  %x = bf16[48,16]{1,0} parameter(1)
  %w = bf16[3,16,40]{2,1,0} parameter(2)
  ROOT %ragged-dot-none.1 = bf16[48,40]{1,0} custom-call(%n, %x, %w), \
custom_call_target="tpu_custom_call"
}
"""
    assert executed_flops(read(text)) == 2 * 48 * 16 * 40
    assert executed_flops(read(text), filled=1 / 4) == 2 * 12 * 16 * 40


SLICES = {"replica": 2, "data": 2, "fsdp": 4}
# Ids as libtpu gives them to 4 slices of 2x2, in the order in which the mesh's ring goes round.
IDS = [n * 100_000 + k for n in (1, 2, 3, 4) for k in (0, 1, 3, 2)]
EVERY = '"{1,2,3,4}x{0:3}"'
REPLICAS = ",".join(f"{{{n}0000{k},{n + 2}0000{k}}}" for n in (1, 2) for k in (0, 1, 3, 2))


def handed_over(kind: str, target: str) -> str:
    """Write a program that hands a tile to the runtime between slices and takes it back."""
    attributes = (
        'is_host_transfer=true, frontend_attributes={_xla_host_transfer_handler_name="xla_megascale'
        f'_runtime",_xla_megascale_target={target},_xla_megascale_transfer_type="{kind}"}}'
    )
    kept = "(bf16[8,128]{1,0}, u32[], token[])"
    return f"""HloModule jit_step, is_scheduled=true

ENTRY %main (a: bf16[8,128]) -> bf16[8,128] {{
  %a = bf16[8,128]{{1,0}} parameter(0)
  %after = token[] after-all()
  %send.1 = {kept} send(%a, %after), channel_id=2, {attributes}
  %recv.1 = {kept} recv(%after), channel_id=1, {attributes}
  %sent = token[] send-done(%send.1), channel_id=2
  %taken = (bf16[8,128]{{1,0}}, token[]) recv-done(%recv.1), channel_id=1
  ROOT %out = bf16[8,128]{{1,0}} get-tuple-element(%taken), index=0
}}
"""


@pytest.mark.parametrize(
    ("kind", "target", "axes", "group", "sent"),
    [
        ("ALL_REDUCE", EVERY, ("replica", "data"), (0, 4, 8, 12), 2 * 3 / 4),
        ("ALL_REDUCE", f"{{{REPLICAS}}}", ("replica",), (0, 8), 1),
        ("ALL_GATHER", EVERY, ("replica", "data"), (0, 4, 8, 12), 3),
        ("REDUCE_SCATTER", EVERY, ("replica", "data"), (0, 4, 8, 12), 3 / 4),
        ("ALL_TO_ALL", f"{{{REPLICAS}}}", ("replica",), (0, 8), 1 / 2),
        ("ONE_TO_ONE", "{{100003->200003},{200003->100003}}", ("data",), (2, 6), 1),
    ],
)
def test_what_slices_send_one_another_is_read_where_it_is_handed_over(
    kind, target, axes, group, sent
):
    (found,) = collectives(read(handed_over(kind, target)), SLICES, IDS)
    assert (found.axes, found.group) == (axes, group)
    assert found.step_bytes == sent * TILE


def test_slices_that_are_written_in_another_way_are_refused():
    with pytest.raises(ValueError, match="not written in a known way"):
        collectives(read(handed_over("ALL_REDUCE", '"all"')), SLICES, IDS)


def test_what_lies_on_the_chip_is_no_memory_traffic():
    everywhere = read(TPU_TEXT.replace(":S(1)", ""))
    on_chip = read(TPU_TEXT)
    assert memory_traffic(everywhere) - memory_traffic(on_chip) == 2 * 4 * TILE


def test_a_loop_that_nothing_bounds_is_counted_once_and_named_unless_its_turns_are_given():
    text = TPU_TEXT.replace("direction=LT", "direction=NE").replace(
        "condition=%condition, body=%body",
        'condition=%condition, body=%body, metadata={op_name="jit(f)/while"}',
    )
    assert read(text).unknown_loops == ("jit(f)/while",)
    assert read(text).runs["body"] == 1
    assert read(text, {"f)/while": 11}).runs["body"] == 11
    assert read(text, {"f)/while": 11}).unknown_loops == ()


def test_a_loop_that_counts_keeps_its_turns_whatever_its_name():
    """Prefill's loop over layers is called as the loop that adds tokens, which ends by its data."""
    text = TPU_TEXT.replace(
        "condition=%condition, body=%body",
        'condition=%condition, body=%body, metadata={op_name="jit(f)/while"}',
    )
    assert read(text, {"f)/while": 11}).runs["body"] == 3


def test_a_text_that_is_no_program_is_refused():
    with pytest.raises(ValueError, match="no ENTRY"):
        read("module @jit_f {}")


@pytest.mark.parametrize(
    ("text", "groups"),
    [
        ("replica_groups={{0,2},{1,3}}", [[0, 2], [1, 3]]),
        ("replica_groups={}", [[0, 1, 2, 3]]),
        ("replica_groups=[2,2]<=[4]", [[0, 1], [2, 3]]),
        ("replica_groups=[2,2]<=[2,2]T(1,0)", [[0, 2], [1, 3]]),
        ("replica_groups=mesh['a'=2,'b'=2] {'a'}", [[0, 2], [1, 3]]),
        ("replica_groups=mesh['a'=2,'b'=2] {'a','b'}", [[0, 1, 2, 3]]),
        ("replica_groups=mesh['a'=2,'b'=2], device_ids=([2,2]T(1,0)) {'a'}", [[0, 1], [2, 3]]),
        ("replica_groups=mesh['a'=2,'b'=2], device_ids=(3,2,1,0) {'b'}", [[3, 2], [1, 0]]),
        ("replica_groups=mesh['a'=4] {'a':(2)2}", [[0, 1], [2, 3]]),
        ("replica_groups=mesh['a'=4] {'a':(1)2}", [[0, 2], [1, 3]]),
        ("source_target_pairs={{0,1},{1,0}}", [[0, 1], [1, 0]]),
    ],
)
def test_groups_are_read_in_every_way_they_are_written(text, groups):
    instruction = Instruction("x", (), "all-gather", (), "", f", channel_id=1, {text}, more=1")
    assert groups_of(instruction, 4).tolist() == groups


def test_groups_written_in_another_way_are_an_error():
    instruction = Instruction("x", (), "all-gather", (), "", ", replica_groups=everyone")
    with pytest.raises(ValueError, match="known way"):
        groups_of(instruction, 4)


def test_shapes_are_read_with_their_memory():
    one, other = shapes_of("(bf16[2,3]{1,0:T(8,128)(2,1)S(1)}, /*index=5*/pred[])")
    assert (one.dims, one.nbytes, one.space) == ((2, 3), 12, 1)
    assert (other.dims, other.nbytes, other.space) == ((), 1, 0)


@pytest.fixture(scope="module")
def scanned():
    """Compile a scan over layers whose weights are gathered, and its gradient, on 2 x 4 devices."""
    axes = (AxisType.Auto,) * 2
    mesh = jax.make_mesh(tuple(MESH.values()), tuple(MESH), axis_types=axes)
    rows = NamedSharding(mesh, P(("data", "fsdp")))

    def loss(weights, x):
        def layer(x, w):
            return jax.lax.with_sharding_constraint(jnp.sin(x @ w), rows), None

        x, _ = jax.lax.scan(layer, x, weights)
        return x.sum()

    weights = jax.ShapeDtypeStruct(
        (LAYERS, WIDTH, WIDTH), jnp.float32, sharding=NamedSharding(mesh, P(None, "fsdp"))
    )
    x = jax.ShapeDtypeStruct((ROWS, WIDTH), jnp.float32, sharding=rows)
    program = jax.jit(jax.grad(loss), out_shardings=weights.sharding)
    return program.trace(weights, x).lower().compile()


def test_a_gather_inside_a_scan_counts_once_a_layer(scanned):
    found = collectives(read(scanned.as_text()), MESH)
    gathers = [c for c in found if c.kind == "all-gather" and c.runs == LAYERS]
    matrix = WIDTH * WIDTH * 4
    assert gathers
    assert all(c.axes == ("fsdp",) for c in gathers)
    assert all(c.step_bytes == LAYERS * matrix * 3 / 4 for c in gathers)
    assert any("data" in c.axes and c.kind == "all-reduce" for c in found)


def test_products_inside_a_scan_count_once_a_layer(scanned):
    once = 2 * ROWS * WIDTH * WIDTH / 8  # of one layer, on one device
    expected = once * (3 * LAYERS)  # forward, and backward for rows and for weights
    assert executed_flops(read(scanned.as_text())) == pytest.approx(expected, rel=EXACT)


def test_what_layers_keep_for_the_backward_pass_is_what_one_loop_hands_another(scanned):
    kept = kept_activations(read(scanned.as_text()))
    stack = LAYERS * (ROWS / 8) * WIDTH * 4
    assert kept == 2 * stack  # a layer's input, and the cosine of its product


@settings(max_examples=60, deadline=None)
@given(
    st.integers(1, 7),
    st.integers(1, 6),
    st.integers(0, 5),
    st.integers(0, 5),
    st.integers(1, 3),
    st.integers(1, 3),
    st.integers(1, 3),
)
def test_overlaps_are_what_a_convolution_of_ones_adds_up(
    size, window, low, high, stride, dilate, reach
):
    spread = (size - 1) * dilate + 1 + low + high - ((window - 1) * reach + 1)
    if spread < 0:
        return
    places = spread // stride + 1
    padded = np.zeros(low + (size - 1) * dilate + 1 + high)
    padded[low : low + (size - 1) * dilate + 1 : dilate] = 1
    met = sum(padded[p * stride + k * reach] for p in range(places) for k in range(window))
    assert overlaps(size, window, places, low, stride, dilate, reach) == met


@pytest.mark.parametrize(
    ("text", "kind", "shape", "slices"),
    [
        ("v5e:16x16", "v5e", (16, 16), 1),
        ("v5e-8", "v5e", (2, 4), 1),
        ("v5p-16", "v5p", (2, 2, 2), 1),
        ("v5p-128", "v5p", (4, 4, 4), 1),
        ("v6e-256", "v6e", (16, 16), 1),
        ("2*v6e:4x8", "v6e", (4, 8), 2),
        ("tpu7x:2x2x1", "7x", (2, 2, 1), 1),
        ("H100:16", "h100", (16,), 1),
        ("cpu:8", "cpu", (8,), 1),
    ],
)
def test_topologies_are_read_by_shape_and_by_name(text, kind, shape, slices):
    assert parse_topology(text) == Topology(kind=kind, shape=shape, slices=slices)


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("v5e", "expected KIND:SHAPE"),
        ("v9:2x2", "'v9' is no kind of device"),
        ("v5e:2x2x2", "v5e has 2 dimensions, not 3"),
        ("v5p-100", "there are v5p-8, v5p-16"),
        ("h100-8", "not named by numbers"),
        ("h100:65", "at most 64"),
        ("h100:12", "multiple of 8"),
        ("2*h100:8", "only TPUs come in slices"),
        ("v5e:0x4", "must be positive"),
    ],
)
def test_a_topology_that_there_is_not_says_why(text, message):
    with pytest.raises(ValueError, match=message):
        parse_topology(text)


@pytest.mark.parametrize(
    ("text", "rings"),
    [
        ("v5e:16x16", (True, True)),
        ("v6e:8x16", (False, True)),
        ("v5p:4x4x8", (True, True, True)),
        ("v5p:2x2x4", (False, False, False)),
    ],
)
def test_dimensions_close_to_rings_where_the_vendor_closes_them(text, rings):
    assert parse_topology(text).rings == rings


def test_every_chip_says_where_its_numbers_are_from():
    for chip in CHIPS.values():
        assert 0 < chip.usable_bytes <= 1.01 * chip.memory_bytes, chip.name
        assert 100 < chip.balance("bfloat16") < 1000, chip.name
        wanted = {"memory", "usable", "peak", "memory bandwidth", "links", "slower network"}
        assert set(chip.sources) == wanted
        assert all(chip.sources.values())


@pytest.mark.parametrize("name", ["v4", "v5e", "v5p", "v6e", "7x"])
def test_an_exact_float32_product_takes_six_bfloat16_passes_on_a_tpu(name):
    peak = CHIPS[name].peak_flops_per_s
    assert peak["bfloat16"] == pytest.approx(6 * peak["float32"], rel=EXACT)


@pytest.mark.parametrize(
    ("name", "cores", "clock"),
    [("a100", 6912, 1.41e9), ("h100", 16896, 1.98e9), ("h200", 16896, 1.98e9)],
)
def test_an_exact_float32_product_runs_on_the_cuda_cores_of_a_gpu(name, cores, clock):
    peak = CHIPS[name].peak_flops_per_s["float32"]
    assert peak == pytest.approx(2 * cores * clock, rel=ROUNDED)


def collective(**fields) -> Collective:
    """Make an all-gather over four devices in a row."""
    known = {
        "kind": "all-gather",
        "axes": ("fsdp",),
        "group": (0, 1, 2, 3),
        "runs": 2.0,
        "operand_bytes": 1e9,
        "sent_bytes": 3e9,
        "shape": "",
        "source": "",
    }
    return Collective(**(known | fields))


def compiled(**fields) -> Compiled:
    """Make a program by its numbers."""
    known = {
        "name": "training",
        "argument_bytes": 0.0,
        "kept_bytes": 0.0,
        "temporary_bytes": 0.0,
        "peak_bytes": 0.0,
        "activation_bytes": 0.0,
        "flops": 197e12,
        "traffic_bytes": 2 * 819e9,
        "collectives": (collective(),),
        "largest": (),
        "unknown_loops": (),
        "compile_s": 0.0,
    }
    return Compiled(**(known | fields))


def chips(*coords, slice_index=None):
    """Make devices of a TPU at some places."""
    return [SimpleNamespace(coords=c, slice_index=slice_index) for c in coords]


ROW = chips(*[(0, y, 0) for y in range(4)])


def test_the_roofline_is_its_formula():
    time = roofline(compiled(), parse_topology("v5e:4x4"), ROW, "bfloat16", 394e12)
    assert time is not None
    assert time.compute_s == pytest.approx(1.0)
    assert time.memory_s == pytest.approx(2.0)
    assert time.network_s == {("fsdp",): pytest.approx(2 * 3e9 / 50e9)}
    assert (time.step_s, time.bound) == (pytest.approx(2.0), "memory")
    assert time.serial_s == pytest.approx(3.12)
    assert time.mfu(time.step_s) == pytest.approx(394e12 / (4 * 197e12 * 2.0))
    assert time.intensity == pytest.approx(time.balance / 2)
    assert roofline(compiled(), parse_topology("cpu:4"), ROW, "bfloat16", 1.0) is None


@pytest.mark.parametrize(
    ("topology", "devices", "links"),
    [
        ("v5e:4x4", ROW, 1),  # a line
        ("v5e:4x16", chips(*[(0, y, 0) for y in range(16)]), 2),  # a ring
        ("v5e:4x16", ROW, 1),  # a part of a ring
        ("v5p:4x4x4", ROW, 2),
        ("v5p:4x4x4", chips(*[(0, y, z) for y in range(4) for z in range(4)]), 4),
        ("7x:4x4x4", chips((0, 0, 0), (0, 0, 0)), 6),  # two cores of one chip
    ],
)
def test_a_group_sends_over_two_links_of_every_ring_it_spans(topology, devices, links):
    asked = parse_topology(topology)
    assert asked.chip is not None
    assert link_rate(devices, asked, asked.chip) == links * asked.chip.link_bytes_per_s


def test_what_crosses_slices_is_shared_by_the_members_on_each_side():
    topology = parse_topology("2*v5e:4x4")
    chip = topology.chip
    assert chip is not None
    assert chip.outer_bytes_per_s is not None
    two = chips((0, 0, 0), (0, 1, 0), slice_index=0) + chips((0, 0, 0), (0, 1, 0), slice_index=1)
    crossing = 1e9  # 4 GB in all: a slice is sent 2 GB by its two counterparts
    assert seconds_of(collective(), topology, chip, two) == pytest.approx(
        crossing / chip.outer_bytes_per_s
    )
    pair = collective(kind="collective-permute", group=(1, 2), sent_bytes=1e9)
    assert seconds_of(pair, topology, chip, two) == pytest.approx(1e9 / chip.outer_bytes_per_s)


def test_gpus_of_one_node_share_a_switch_and_nodes_a_slower_network():
    topology = parse_topology("h100:16")
    chip = topology.chip
    assert chip is not None
    devices = [SimpleNamespace(id=i) for i in range(16)]
    inside = collective(group=tuple(range(8)))
    assert seconds_of(inside, topology, chip, devices) == pytest.approx(3e9 / 450e9)
    across = collective(group=(0, 8), sent_bytes=1e9)
    assert seconds_of(across, topology, chip, devices) == pytest.approx(1e9 / 50e9)


TINY = Architecture(
    vocab_size=64,
    model_dim=16,
    num_layers=2,
    num_heads=4,
    num_kv_heads=2,
    head_dim=8,
    ffw_dim=40,
    max_positions=64,
    tied_head=True,
)


@pytest.fixture(scope="module")
def tiny(tmp_path_factory):
    """Plan a step of a tiny run on the simulated devices; no data is there to be read."""
    changes = {
        "model": TINY,
        "data.rows": 8,
        "data.row_tokens": 24,
        "layout": layouts.fsdp(),
        "compute": Compute(remat="full"),
    }
    experiment = tiny_run(tmp_path_factory.mktemp("nothing"), changes)
    return plan(experiment, parse_topology("cpu:8"), ("training",))


def test_a_plan_says_what_a_device_holds(tiny):
    ffw, attention, norms = 3 * 16 * 40, 16 * 8 * (4 + 2 + 2 + 4), 2 * 16
    parameters = 64 * 16 + 16 + 2 * (ffw + attention + norms)
    assert tiny.parameter_bytes == 4 * parameters / 8
    assert tiny.gradient_bytes == tiny.parameter_bytes
    assert 2 * tiny.parameter_bytes <= tiny.optimizer_bytes <= 2 * tiny.parameter_bytes + 8
    assert tiny.largest_arguments[0].nbytes == 4 * 2 * 16 * 40 / 8
    (step,) = tiny.programs
    assert step.compiled.peak_bytes > tiny.parameter_bytes + tiny.optimizer_bytes
    assert step.compiled.unknown_loops == ()
    assert step.compiled.activation_bytes == 2 * 1 * 24 * 16 * 4  # a layer's input, one row


def test_a_plan_sends_along_the_axes_of_its_mesh_alone(tiny):
    assert tiny.mesh == {"fsdp": 8}
    assert set(bytes_by_axis(tiny.programs[0].compiled.collectives)) == {("fsdp",)}


def test_a_plan_without_a_known_chip_fits_and_estimates_no_time(tiny):
    assert tiny.fits
    assert tiny.usable_bytes is None
    assert tiny.programs[0].time is None
    told = json.loads(json.dumps(as_json(tiny)))
    assert told["topology"] == "cpu:8"
    assert told["programs"][0]["sent_bytes"]["fsdp"] > 0


@pytest.mark.parametrize(
    ("shards", "active", "share"),
    [(1, 3, 1), (2, 3, 1 / 2), (4, 3, 3 / 8), (8, 3, 3 / 8)],  # 8, 4, 2 and 1 experts a device
)
def test_the_rows_of_experts_are_filled_as_even_routing_fills_them(tmp_path, shards, active, share):
    moe = Moe(num_experts=8, experts_per_token=active, expert_dim=24, router=SoftmaxTopK())
    layout = layouts.expert(shards) if shards > 1 else layouts.fsdp()
    changes = {"model": vary(TINY, {"moe": moe}), "data.rows": 8, "layout": layout}
    site = Site(tiny_run(tmp_path, changes), parse_topology("cpu:8"))
    tokens = 40
    room = shards * tokens * min(active, 8 // shards)  # of every device for one, for each token
    assert site.filled(site.place) == pytest.approx(tokens * active / room)
    assert site.filled(site.place) == pytest.approx(share)


COUNTERS = 12  # bytes: scalars of the learner and of the optimiser


def site_of(folder, **changes) -> Site:
    """Make the site of a tiny run whose weights lie over eight devices."""
    known = {"model": TINY, "data.rows": 8, "data.row_tokens": 24, "layout": layouts.fsdp()}
    return Site(tiny_run(folder, known | changes), parse_topology("cpu:8"))


def test_scoring_is_planned_where_it_runs_beside_what_training_keeps(tmp_path, tiny):
    site = site_of(tmp_path, scoring_layout=layouts.data())
    made = plan(site.experiment, parse_topology("cpu:8"), ("scoring",))
    (scoring,) = made.programs
    assert made.parameter_bytes == tiny.parameter_bytes
    assert scoring.parameter_bytes == 8 * made.parameter_bytes
    kept = made.parameter_bytes + made.optimizer_bytes
    assert kept <= scoring.beside_bytes <= kept + COUNTERS
    assert scoring.compiled.argument_bytes > scoring.parameter_bytes
    assert scoring.compiled.peak_bytes > scoring.parameter_bytes
    assert made.peak_bytes == scoring.compiled.peak_bytes + scoring.beside_bytes
    scores = 4 * site.experiment.compute.scoring_rows / 8
    for one in scoring.compiled.collectives:  # nothing but scores travels: no weight is gathered
        assert one.axes == ("data",)
        assert one.operand_bytes <= scores
    assert any("scoring_layout, mesh {'data': 8}" in note for note in made.notes)
    told = as_json(made)["programs"][0]
    assert told["peak_bytes"] == made.peak_bytes


def test_scoring_where_training_is_keeps_the_optimisers_state_beside_it(tmp_path):
    site = site_of(tmp_path)
    learner, frozen = site.state()
    (trainable, _), beside = site.scoring_state(learner, frozen)
    assert jax.tree.leaves(trainable) == jax.tree.leaves(learner.trainable)
    kept = shard_bytes(learner.optimizer)
    assert kept > 0
    assert kept <= beside <= kept + COUNTERS
    assert site.notes() == ()


def test_weights_that_lie_as_in_training_are_held_once(tmp_path):
    renamed = Layout(
        axes=(("rows", 8),),
        weights=(("D", ("rows",)),),
        activations=(("B", ("rows",)),),
    )
    plain, other = site_of(tmp_path), site_of(tmp_path, scoring_layout=renamed)
    learner, frozen = other.state()
    (moved, _), beside = other.scoring_state(learner, frozen)
    pairs = zip(jax.tree.leaves(learner.trainable), jax.tree.leaves(moved), strict=True)
    copied = [a for a, b in pairs if not a.sharding.is_equivalent_to(b.sharding, a.ndim)]
    assert 0 < len(copied) < len(jax.tree.leaves(moved))
    alone = plain.scoring_state(*plain.state())[1]
    assert beside == alone + shard_bytes(copied)


def test_moments_that_wait_on_the_host_take_no_room_beside_scoring(tmp_path):
    on_host = dataclasses.replace(layouts.fsdp(), optimizer_on_host=True)
    site = site_of(tmp_path, layout=on_host)
    assert site.scoring_state(*site.state())[1] <= COUNTERS


@pytest.mark.parametrize(
    ("layout", "why"),
    [
        (layouts.data(16), "'data': 16.* does not fit 8 devices"),
        (layouts.fsdp_tensor(8), "axis . has size"),
    ],
)
def test_a_layout_for_scoring_that_cannot_be_is_refused_as_a_run_refuses_it(tmp_path, layout, why):
    with pytest.raises(ValueError, match=f"scoring_layout: .*{why}"):
        site_of(tmp_path, scoring_layout=layout)


def test_rows_that_no_layout_divides_are_refused_before_compiling(tmp_path):
    experiment = tiny_run(tmp_path, {"model": TINY, "data.rows": 6, "layout": layouts.fsdp()})
    with pytest.raises(ValueError, match=r"data.rows=6 is no multiple of 8"):
        plan(experiment, parse_topology("cpu:8"))


def test_more_simulated_devices_than_there_are_say_what_to_do():
    with pytest.raises(ValueError, match="jax_num_cpu_devices"):
        parse_topology("cpu:99").devices()


def test_a_search_stops_at_the_first_size_that_does_not_fit_and_sorts_the_rest(
    monkeypatch, tmp_path, tiny
):
    asked = []

    def planned(experiment, topology, programs):
        rows, remat = experiment.data.rows // 8, experiment.compute.remat
        asked.append((remat, rows))
        if remat == "none" and rows > 1:
            raise DoesNotFit("training: 20 of 16")
        time = roofline(
            compiled(traffic_bytes=0.0, flops=197e12 * (2 if remat == "full" else 1)),
            parse_topology("v5e:4x4"),
            ROW,
            "bfloat16",
            1.0,
        )
        (step,) = tiny.programs
        step = dataclasses.replace(step, time=time, tokens=rows * 24)
        return dataclasses.replace(tiny, programs=(step,))

    monkeypatch.setattr(searching, "plan", planned)
    seen = []
    found = search(
        tiny_run(tmp_path, {"model": TINY, "data.rows": 8}),
        parse_topology("cpu:8"),
        {"fsdp": layouts.fsdp()},
        ("full", "none"),
        (4, 2, 1),
        lambda trial, count: seen.append((trial, count)),
    )
    assert asked == [("full", 1), ("full", 2), ("full", 4), ("none", 1), ("none", 2)]
    order = [(t.remat, t.rows) for t in found]
    assert order[:4] == [("full", 4), ("full", 2), ("none", 1), ("full", 1)]
    assert {t.reason for t in found[4:]} == {
        "training: 20 of 16",
        "not tried: 2 rows did not fit",
    }
    assert len(seen) == 6
    assert {count for _, count in seen} == {6}


def test_a_trial_that_does_not_fit_ranks_behind_a_slow_one_that_does(tiny):
    small = Trial(layout="a", remat="full", rows=1, plan=tiny)
    large = Trial(layout="a", remat="none", rows=1, plan=dataclasses.replace(tiny, usable_bytes=1))
    refused = Trial(layout="a", remat="none", rows=2, reason="why")
    assert sorted([refused, large, small], key=lambda t: t.rank) == [small, large, refused]


def test_a_refusal_gives_the_compilers_figures():
    told = "RESOURCE_EXHAUSTED: XLA:TPU compile permanent error. Ran out of memory in memory space "
    told += "hbm. Used 20.12G of 15.75G hbm. Exceeded hbm capacity by 4.37G.\n\nTotal hbm usage"
    assert refusal(told) == "Used 20.12G of 15.75G hbm. Exceeded hbm capacity by 4.37G."
    other = "RESOURCE_EXHAUSTED: Ran out of memory on HBM, the total memory required for HLO "
    other += "temporaries (40.00G) exceeds available HBM (30.75G)."
    assert refusal(other).startswith("the total memory required for HLO temporaries (40.00G)")


def test_a_program_that_fails_for_another_reason_is_not_said_not_to_fit():
    with pytest.raises(jax.errors.JaxRuntimeError, match="No such compile option"):
        compile_program(
            "training", jax.jit(jnp.sin), (jnp.zeros(3),), {"data": 1}, {"no_such_flag": 1}, {}
        )


def test_layouts_worth_trying_divide_heads_experts_and_devices():
    assert set(layouts_for(TINY, 8)) == {"fsdp", "fsdp in 2 groups", "tensor 2"}
    for layout in layouts_for(TINY, 8).values():
        assert math.prod(layout.on(jax.devices()).mesh.shape.values()) == 8
    assert set(layouts_for(vary(TINY, {"num_kv_heads": 4}), 2)) == {"fsdp"}


def test_times_are_written_with_their_unit():
    assert [seconds(x) for x in (2.345, 0.0123, 1e-5)] == ["2.35 s", "12.3 ms", "10 us"]
