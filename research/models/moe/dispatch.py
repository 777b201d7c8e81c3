"""How tokens come to their experts and back: what every dispatch promises, and moving rows."""

from __future__ import annotations

import dataclasses
import functools
import math
from collections.abc import Callable
from typing import Any, ClassVar, Protocol

import jax
import jax.numpy as jnp
from jaxtyping import Array, Bool, Float, Int

from research.core.layout import Placement
from research.core.records import record
from research.models.moe.bank import Experts
from research.models.moe.routing import Routing


class Dispatch(Protocol):
    """How the chosen experts are computed: a part.

    Attributes:
      breaks: which laws it breaks, in the words of `Router`.
    """

    breaks: ClassVar[tuple[str, ...]]

    def require(self, num_experts: int, place: Placement) -> None:
        """Refuse a placement that this dispatch cannot serve.

        Raises:
          ValueError: with what is wrong and what to choose.
        """
        ...

    def __call__(
        self, x_MD: Float[Array, "M D"], routing: Routing, experts: Experts, place: Placement
    ) -> tuple[Float[Array, "M D"], Bool[Array, "M A"]]:
        """Give sum_a weights_a expert_a(x) for every token, and which kept slots were dropped."""
        ...


@record
class Sorted:
    """Assignments in the order of their experts; those that are not kept come last.

    Attributes:
      slot_N: which slot of a token (m * A + a) stands at a place of the order.
      place_MA: where in the order a slot stands.
      sizes_E: kept assignments of each expert.
    """

    slot_N: Int[Array, " N"]
    place_MA: Int[Array, "M A"]
    sizes_E: Int[Array, " E"]


def sort_by_expert(experts_MA: jax.Array, kept_MA: jax.Array, num_experts: int) -> Sorted:
    """Sort assignments by expert, those of one expert by token."""
    slots = jnp.arange(experts_MA.size, dtype=jnp.int32)
    expert_N = jnp.where(kept_MA, experts_MA, num_experts).reshape(-1).astype(jnp.int32)
    if (num_experts + 1) * slots.size < 2**31:  # one sort of integers is 5 times an argsort on CPU
        slot_N = jnp.sort(expert_N * slots.size + slots) % slots.size
    else:
        slot_N = jnp.argsort(expert_N, stable=True)
    place_N = jnp.zeros_like(slots).at[slot_N].set(slots, unique_indices=True)
    sizes_E = jnp.sum(expert_N[:, None] == jnp.arange(num_experts), axis=0, dtype=jnp.int32)
    return Sorted(slot_N=slot_N, place_MA=place_N.reshape(experts_MA.shape), sizes_E=sizes_E)


@record
class Moves:
    """Where rows go and where they came from; an index out of range is nowhere.

    Attributes:
      source_N: the row that comes to each place.
      place_MA: the places that each row goes to; None: only `source_N` says, for moves in which
        most slots go nowhere.
      rows: M.
    """

    source_N: Int[Array, " N"]
    place_MA: Int[Array, "M A"] | None
    rows: int = dataclasses.field(metadata={"static": True})


@jax.custom_vjp
def spread(x_MD: jax.Array, moves: Moves) -> Float[Array, "N D"]:
    """Bring rows to their places; zeros where none comes. Law: the transpose of `collect`.

    Both directions read at indices, so that no device adds in an order of its own choice.
    """
    return _spread(x_MD, moves)


@jax.custom_vjp
def collect(y_ND: jax.Array, moves: Moves) -> Float[Array, "M D"]:
    """Add up, for every row, what stands at its places. Law: the transpose of `spread`."""
    return _collect(y_ND, moves)


def _spread(x_MD: jax.Array, moves: Moves) -> jax.Array:
    return x_MD.at[moves.source_N].get(mode="fill", fill_value=0)


def _collect(y_ND: jax.Array, moves: Moves) -> jax.Array:
    if moves.place_MA is None:
        zeros = jnp.zeros((moves.rows, y_ND.shape[1]), y_ND.dtype)
        return zeros.at[moves.source_N].add(y_ND, mode="drop")
    return y_ND.at[moves.place_MA].get(mode="fill", fill_value=0).sum(axis=1)


spread.defvjp(
    lambda x_MD, moves: (_spread(x_MD, moves), moves),
    lambda moves, bar_ND: (_collect(bar_ND, moves), None),
)
collect.defvjp(
    lambda y_ND, moves: (_collect(y_ND, moves), moves),
    lambda moves, bar_MD: (_spread(bar_MD, moves), None),
)


def weights_at(routing: Routing, slot_N: jax.Array, dtype: Any) -> Float[Array, "N 1"]:
    """Give the weights of some slots, 0 of those out of range."""
    weights_N = (
        routing.weights_MA.reshape(-1)
        .at[slot_N]
        .get(mode="fill", fill_value=0, unique_indices=True)
    )
    return weights_N[:, None].astype(dtype)


def expert_axes(place: Placement) -> tuple[str, ...]:
    """Name the mesh axes that the layout splits experts over."""
    axes = dict(place.layout.weights).get("E", ())
    return tuple(axis for axis in axes if place.mesh.shape[axis] > 1)


def expert_shards(place: Placement) -> int:
    """Over how many devices the experts are split."""
    return math.prod(place.mesh.shape[axis] for axis in expert_axes(place))


def by_rows(
    run: Callable[[jax.Array, Routing, Experts], jax.Array],
    x_MD: jax.Array,
    routing: Routing,
    experts: Experts,
    place: Placement,
    split: tuple[str, ...] = (),
) -> jax.Array:
    """Call `run` on each device's own tokens, with the experts that live there.

    Tokens lie where the layout splits B and T, and experts stay split over F where it divides them:
    then a device gives its part of every sum, and the parts are added. Over all other mesh axes
    experts are gathered whole.

    Args:
      split: the mesh axes that experts stay split over.
    """
    if place.mesh.size == 1:
        return run(x_MD, routing, experts)
    rules = dict(place.layout.activations)
    rows, tokens = rules.get("B", ()), rules.get("T", ())
    widths = _width_axes(experts, place, (*rows, *tokens, *split))
    specs = {"E": split, "F": widths}

    def spec(letters: str) -> jax.P:
        return jax.P(*(specs.get(letter) or None for letter in letters))

    def local(x_BTD: jax.Array, routing: Routing, experts: Experts) -> jax.Array:
        routing = jax.tree.map(lambda leaf: leaf.reshape(-1, leaf.shape[-1]), routing)
        experts = _with_own_noise(_with_one_bias(experts, widths), (*rows, *tokens), widths)
        out_MD = run(x_BTD.reshape(-1, x_BTD.shape[-1]), routing, experts)
        out_MD = jax.lax.psum(out_MD, widths) if widths else out_MD
        return out_MD.reshape(x_BTD.shape)

    def unflatten(leaf: jax.Array) -> jax.Array:
        return leaf.reshape(routing.rows, -1, leaf.shape[-1])

    own = jax.P(rows or None, tokens or None)
    x_BTD, routing = unflatten(x_MD), jax.tree.map(unflatten, routing)
    out_BTD = jax.shard_map(
        local,
        mesh=place.mesh,
        in_specs=(own, own, jax.tree.map(spec, experts.letters())),
        out_specs=own,
        check_vma=False,
    )(x_BTD, routing, experts)
    return out_BTD.reshape(x_MD.shape)


def _width_axes(experts: Experts, place: Placement, taken: tuple[str, ...]) -> tuple[str, ...]:
    """Name the mesh axes that the layout splits F over, where they divide the experts' width."""
    axes = dict(place.layout.weights).get("F", ())
    axes = tuple(a for a in axes if place.mesh.shape[a] > 1 and a not in taken)
    shards = math.prod(place.mesh.shape[axis] for axis in axes)
    pairs = zip(jax.tree.leaves(experts.letters()), jax.tree.leaves(experts), strict=True)
    sizes = [leaf.shape[letters.index("F")] for letters, leaf in pairs if "F" in letters]
    return axes if all(size % shards == 0 for size in sizes) else ()


def _with_one_bias(experts: Experts, widths: tuple[str, ...]) -> Experts:
    """Keep the bias of the output on one of the devices whose parts are added."""
    name = "down_bias_ED"
    if not widths or name not in experts.weights:
        return experts
    first = jax.lax.axis_index(widths) == 0
    bias_ED = jnp.where(first, experts.weights[name], 0)
    return dataclasses.replace(experts, weights=experts.weights | {name: bias_ED})


def _with_own_noise(experts: Experts, tokens: tuple[str, ...], widths: tuple[str, ...]) -> Experts:
    """Let dropout differ between devices that hold other tokens, or other columns of F."""

    def fold(axes: tuple[str, ...], leaf: Any) -> Any:
        if not axes or not jnp.issubdtype(leaf.dtype, jax.dtypes.prng_key):
            return leaf
        return jax.random.fold_in(leaf, jax.lax.axis_index(axes))

    weights = {
        name: jax.tree.map(
            functools.partial(fold, (*tokens, *widths) if name.startswith("down") else tokens), leaf
        )
        for name, leaf in experts.weights.items()
    }
    return dataclasses.replace(experts, weights=weights)
