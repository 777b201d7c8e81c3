"""Where arrays live: a mesh, and the table from axis letters to mesh axes."""

from __future__ import annotations

import functools
import math
from collections.abc import Callable, Sequence
from typing import Any

import jax
import numpy as np
from jax.experimental import mesh_utils
from jax.sharding import AxisType, Mesh, NamedSharding
from jax.sharding import PartitionSpec as P

from research.core.axes import axes_of
from research.core.parts import part, require

Rule = tuple[str, tuple[str, ...]]
HOST = "pinned_host"  # the kind of memory that devices read and write themselves


@part
class Layout:
    """A mesh shape and, for weights and activations, which mesh axes each letter is split over.

    Attributes:
      axes: mesh axes with their sizes, in order; one size may be -1, "the devices that are there".
      weights: letter -> mesh axes, for parameters and their optimiser state.
      activations: letter -> mesh axes, for everything that carries B.
      spare: letter -> mesh axes, in the order of preference: a kernel's letter takes over the axes
        that `weights` left unused in it, where they divide it.
      overrides: parameter name -> its own letter table, where a name must differ from its letters.
      optimizer_on_host: keep the arrays of the optimiser's state in the host's memory between two
        updates; an update brings them to the device and takes them back. Changes no number.
    """

    axes: tuple[tuple[str, int], ...] = (("data", 1),)
    weights: tuple[Rule, ...] = ()
    activations: tuple[Rule, ...] = (("B", ("data",)),)
    spare: tuple[Rule, ...] = ()
    overrides: tuple[tuple[str, tuple[Rule, ...]], ...] = ()
    optimizer_on_host: bool = False

    def __post_init__(self) -> None:
        names = [name for name, _ in self.axes]
        rules = (*self.weights, *self.activations, *self.spare)
        used = {a for _, axes in rules for a in axes}
        used |= {a for _, rules in self.overrides for _, axes in rules for a in axes}
        require(
            self,
            (
                len(set(names)) == len(names),
                f"axes={self.axes} repeats a mesh axis; name each once",
            ),
            (
                sum(size == -1 for _, size in self.axes) <= 1,
                f"axes={self.axes} has more than one -1; at most one size can be inferred",
            ),
            (
                all(size == -1 or size > 0 for _, size in self.axes),
                f"axes={self.axes}: sizes must be positive, or -1 for the devices that are there",
            ),
            (used <= set(names), f"rules name {sorted(used - set(names))}, but axes are {names}"),
        )

    def on(self, devices: Sequence[Any]) -> Placement:
        """Build the mesh over `devices`.

        Raises:
          ValueError: the mesh does not fit the number of devices.
        """
        sizes = [size for _, size in self.axes]
        known = math.prod(size for size in sizes if size != -1)
        if -1 in sizes:
            sizes[sizes.index(-1)] = len(devices) // known
        if (
            math.prod(sizes) == 0
            or math.prod(sizes) > len(devices)
            or (-1 in [size for _, size in self.axes] and math.prod(sizes) != len(devices))
        ):
            raise ValueError(
                f"layout {dict(self.axes)} does not fit {len(devices)} devices; change the sizes "
                "so that their product divides the devices (or use -1 for one axis)"
            )
        names = tuple(name for name, _ in self.axes)
        grid = _grid(tuple(sizes), devices[: math.prod(sizes)])
        mesh = Mesh(grid, names, axis_types=(AxisType.Auto,) * len(names))
        return Placement(self, mesh)


class Placement:
    """A layout on actual devices: the only thing that makes shardings.

    Compares and hashes by its layout and mesh, so that it can be a static field of a module.
    """

    def __init__(self, layout: Layout, mesh: Mesh):
        self.layout, self.mesh = layout, mesh

    def __eq__(self, other: object) -> bool:
        return isinstance(other, Placement) and (self.layout, self.mesh) == (
            other.layout,
            other.mesh,
        )

    def __hash__(self) -> int:
        return hash((self.layout, self.mesh))

    @property
    def platform(self) -> str:
        """The mesh's platform: "cpu", "gpu" or "tpu"."""
        return self.mesh.devices.flat[0].platform

    @property
    def memory_kinds(self) -> tuple[str, ...]:
        """The kinds of memory that the mesh's devices address, by jax's names."""
        return tuple(memory.kind for memory in self.mesh.devices.flat[0].addressable_memories())

    @property
    def num_row_shards(self) -> int:
        """Over how many shards the rows of a batch are split: batch sizes must be a multiple."""
        axes = dict(self.layout.activations).get("B", ())
        return math.prod(self.mesh.shape[a] for a in axes)

    def divisible(self, rows: int) -> int:
        """Round a number of rows up to one that the row shards divide."""
        return -(-rows // self.num_row_shards) * self.num_row_shards

    @property
    def replicated(self) -> NamedSharding:
        """The sharding of scalars."""
        return NamedSharding(self.mesh, P())

    def spec(self, letters: str, shape: tuple[int, ...], rules: dict, what: str) -> P:
        """Translate letters to a PartitionSpec; leading axes beyond the letters are not split.

        Raises:
          ValueError: one mesh axis is used twice in an array, or does not divide its dimension.
        """
        entries: list[Any] = [None] * (len(shape) - len(letters))
        used: dict[str, str] = {}
        for letter, size in zip(letters, shape[len(shape) - len(letters) :], strict=True):
            axes = tuple(a for a in rules.get(letter, ()) if self.mesh.shape[a] > 1)
            for axis in axes:
                if axis in used:
                    raise ValueError(
                        f"{what}: mesh axis {axis!r} is asked for by both {used[axis]} and "
                        f"{letter}; give one of them another mesh axis, or override this name in "
                        "the layout"
                    )
                used[axis] = letter
            shards = math.prod(self.mesh.shape[a] for a in axes)
            if size % shards:
                raise ValueError(
                    f"{what}: axis {letter} has size {size}, which mesh axes {axes} of size "
                    f"{shards} do not divide; change the mesh, or override this name in the layout"
                )
            entries.append(axes if len(axes) > 1 else (axes[0] if axes else None))
        return P(*entries)

    def weight(self, name: str, shape: tuple[int, ...], factor: bool = False) -> NamedSharding:
        """Give the sharding of the parameter (or optimiser moment) called `name`.

        Args:
          factor: it is a row or column that stands for a kernel: it takes spare axes as one does.
        """
        axes = axes_of(name)
        if axes is None or len(shape) < len(axes.letters):
            return self.replicated
        rules = {**dict(self.layout.weights), **dict(dict(self.layout.overrides).get(name, ()))}
        if axes.is_kernel or factor:
            rules = self._with_spare(axes.letters, shape, rules)
        return NamedSharding(self.mesh, self.spec(axes.letters, shape, rules, name))

    def _with_spare(self, letters: str, shape: tuple[int, ...], rules: dict) -> dict:
        """Add the mesh axes that no letter uses, where a spare letter takes them."""
        sizes = dict(zip(letters, shape[len(shape) - len(letters) :], strict=True))
        rules = {letter: rules[letter] for letter in letters if letter in rules}
        for letter, axes in self.layout.spare:
            taken = {axis for held in rules.values() for axis in held}
            for axis in axes:
                wanted = (*rules.get(letter, ()), axis)
                shards = math.prod(self.mesh.shape[a] for a in wanted)
                if axis not in taken and letter in sizes and sizes[letter] % shards == 0:
                    rules[letter] = wanted
        return rules

    def weights(self, tree: Any) -> Any:
        """Give the shardings of a tree whose leaves' names declare their axes; others replicate."""

        def sharding(path: tuple, leaf: Any) -> NamedSharding:
            keys = (str(getattr(key, "key", getattr(key, "name", ""))) for key in path)
            found = [(name, axes) for name in keys if (axes := axes_of(name)) is not None]
            if not found:
                return self.replicated
            factor = any(axes.is_kernel for _, axes in found)
            return self.weight(found[-1][0], leaf.shape, factor)

        return jax.tree_util.tree_map_with_path(sharding, tree)

    def optimizer(self, state: Any) -> Any:
        """Give the shardings of an optimiser's state: those of weights, on the host if asked."""

        def sharding(leaf: Any, of_weight: NamedSharding) -> NamedSharding:
            on_host = self.layout.optimizer_on_host and leaf.ndim > 0
            return of_weight.with_memory_kind(HOST) if on_host else of_weight

        return jax.tree.map(sharding, state, self.weights(state))

    def require_host_memory(self, setting: str) -> None:
        """Refuse a setting that wants the host's memory where devices cannot address it.

        Raises:
          ValueError: with the kinds of memory that there are.
        """
        if HOST not in self.memory_kinds:
            raise ValueError(
                f"{setting} keeps arrays in {HOST!r} memory, but {self.platform} devices address "
                f"{list(self.memory_kinds)} only; leave it out, or take devices that do"
            )

    def batch(self, tree: Any) -> Any:
        """Give the shardings of arrays whose first axis is B."""
        rules = dict(self.layout.activations)

        def sharding(leaf: Any) -> NamedSharding:
            spec = self.spec("B", leaf.shape[:1], rules, "batch")
            return NamedSharding(self.mesh, spec)

        return jax.tree.map(sharding, tree)

    def put_everywhere(self, tree: Any) -> Any:
        """Put scalars, keys and the like on every device; all processes give the same."""
        if not self.mesh.is_multi_process:
            return jax.device_put(tree, self.replicated)
        return jax.jit(_same, out_shardings=self.replicated)(tree)

    def put_rows(self, num_rows: int, build: Callable[[slice], Any]) -> Any:
        """Put a batch of `num_rows` on the mesh; each process builds only what its devices hold.

        Args:
          build: gives a range of the rows, as a tree of NumPy arrays whose first axis is B.

        Law: the arrays are the same for any number of processes.
        """
        if not self.mesh.is_multi_process:
            rows = build(slice(0, num_rows))
            return jax.device_put(rows, self.batch(rows))
        sharding = self.batch(jax.ShapeDtypeStruct((num_rows,), np.int32))
        held: Any = sharding.addressable_devices_indices_map((num_rows,)).values()
        ranges = sorted({index[0].indices(num_rows)[:2] for index in held})
        built = {start: build(slice(start, stop)) for start, stop in ranges}

        def place(*parts: np.ndarray) -> jax.Array:
            by_start = dict(zip(built, parts, strict=True))

            def part_at(index: Any) -> np.ndarray:
                return by_start[index[0].start or 0]

            shape = (num_rows, *parts[0].shape[1:])
            return jax.make_array_from_callback(shape, sharding, part_at)

        return jax.tree.map(place, *built.values())

    def constrain(self, x: jax.Array, letters: str) -> jax.Array:
        """Pin an activation to the layout; the identity on one device."""
        if self.mesh.size == 1:
            return x
        rules = dict(self.layout.activations)
        return jax.lax.with_sharding_constraint(
            x, NamedSharding(self.mesh, self.spec(letters, x.shape, rules, letters))
        )

    def by_rows(self, function: Callable, weights: Any, dtype: Any, *rows: Any) -> Any:
        """Call `function(weights, *rows)` on each device's own rows, with whole weights there.

        A weight is gathered once, at `dtype`, and its gradient is reduced once, at the weight's own
        dtype, to the shards that there are. Left to the compiler, a loop that reads a weight in its
        body reduces the weight's gradient over all devices in every turn.

        Args:
          weights: a tree whose leaves' names declare their axes. What lies below a name (the parts
            of a low-rank leaf) comes whole and its gradient is reduced whole.
        """
        if self.num_row_shards == 1:
            return function(weights, *rows)
        axes = dict(self.layout.activations)["B"]

        def split(path: tuple, leaf: Any) -> P:
            name = getattr(path[-1], "key", None)
            if name is None or axes_of(str(name)) is None:
                return P()
            spec = self.weight(str(name), leaf.shape).spec
            return P(*(_among(axes, entry) for entry in spec))

        specs = jax.tree_util.tree_map_with_path(split, weights)

        def own(shards: Any, *rows: Any) -> Any:
            whole = jax.tree.map(lambda x, spec: _gathered(spec, dtype, x), shards, specs)
            return function(whole, *rows)

        return jax.shard_map(
            own,
            mesh=self.mesh,
            in_specs=(specs, *(P(axes) for _ in rows)),
            out_specs=P(axes),
            axis_names=set(axes),
            check_vma=False,
        )(weights, *rows)


def _grid(sizes: tuple[int, ...], devices: Sequence[Any]) -> np.ndarray:
    """Order devices so that neighbours are linked; slices of a TPU lie along the first axes.

    Raises:
      ValueError: the sizes cannot be cut along the slices.
    """
    slices = {getattr(d, "slice_index", 0) for d in devices if d.platform == "tpu"} or {0}
    left, outer = len(slices), []
    for size in sizes:
        outer.append(math.gcd(size, left))
        left //= outer[-1]
    if left > 1:
        raise ValueError(
            f"mesh {sizes} does not split along {len(slices)} slices; give an axis that spans them "
            f"a multiple of {len(slices)}, such as pod(slices={len(slices)})"
        )
    if len(slices) == 1:
        return mesh_utils.create_device_mesh(sizes, devices, allow_split_physical_axes=True)
    inner = [size // share for size, share in zip(sizes, outer, strict=True)]
    return mesh_utils.create_hybrid_device_mesh(
        inner, outer, devices, allow_split_physical_axes=True
    )


def _among(axes: tuple[str, ...], entry: Any) -> Any:
    """Keep those mesh axes of an entry of a PartitionSpec that are among `axes`."""
    names = entry if isinstance(entry, tuple) else (entry,)
    kept = tuple(name for name in names if name in axes)
    return kept or None


@functools.partial(jax.custom_vjp, nondiff_argnums=(0, 1))
def _gathered(spec: P, dtype: Any, shard: jax.Array) -> jax.Array:
    """Gather an array from its shards at `dtype`, inside `shard_map`; it keeps its own dtype."""
    if not any(spec):
        return shard
    x = shard.astype(dtype)
    for dim, axes in enumerate(spec):
        x = x if axes is None else jax.lax.all_gather(x, axes, axis=dim, tiled=True)
    return x.astype(shard.dtype)


def _scattered(spec: P, dtype: Any, _: None, bar: jax.Array) -> tuple[jax.Array]:
    for dim, axes in enumerate(spec):
        if axes is not None:
            bar = jax.lax.psum_scatter(bar, axes, scatter_dimension=dim, tiled=True)
    return (bar,)


_gathered.defvjp(lambda spec, dtype, shard: (_gathered(spec, dtype, shard), None), _scattered)


def _same(tree: Any) -> Any:
    return tree
