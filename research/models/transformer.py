"""The decoder: one scanned transformer for every family, used as a function of its parameters."""

from __future__ import annotations

import dataclasses
import functools
from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp
from flax import nnx
from jax.ad_checkpoint import checkpoint_name
from jaxtyping import Array, Int

from research.core.generation import AT_ONCE, Decoding, Generated, Sampling, Statistic
from research.core.layout import Placement
from research.core.records import Batch, Output, record
from research.core.weights import take
from research.models.architecture import Architecture, Stack
from research.models.attention.cached import attend_cached
from research.models.attention.visibility import Visibility
from research.models.block import Block, norm_names, normalise
from research.models.compute import ATTENTION, Compute
from research.models.continuous import put_rows
from research.models.feedforward import FeedForward
from research.models.generate import generate
from research.models.moe.routing import Tokens
from research.models.parameters import parameter
from research.models.rope import Rope

Params = Any
NOISE = "noise"  # where a parameter tree carries the key of a noisy router


@record
class Cache:
    """Keys and values of what was fed, in slots; the position in each slot is stored beside them.

    Rows of different prompt lengths share slots: a padding slot has segment 0 and is never seen.

    Attributes:
      keys: stack name -> [L, B, K, H, S], or a tuple of L arrays where decoding is unrolled.
      values: stack name -> [L, B, K, S, H], or such a tuple.
      positions_BS, segments_BS: of each slot; segment 0 is empty.
      slot: the next free slot (scalar), the same for all rows.
    """

    keys: dict[str, Any]
    values: dict[str, Any]
    positions_BS: Int[Array, "B S"]
    segments_BS: Int[Array, "B S"]
    slot: Int[Array, ""]


def _write(stack: Any, layer: Any, slot: jax.Array, new: jax.Array, axis: int) -> Any:
    """Put `new` into one layer's slots from `slot` on; in place where the old ones are not kept."""
    if isinstance(stack, tuple):
        written = jax.lax.dynamic_update_slice_in_dim(stack[layer], new, slot, axis)
        return (*stack[:layer], written, *stack[layer + 1 :])
    start = [layer] + [0] * new.ndim
    start[axis + 1] = slot
    return jax.lax.dynamic_update_slice(stack, new[None], start)


@dataclasses.dataclass(frozen=True)
class Transformer:
    """An architecture on a placement, computed by a policy: functions of a parameter tree.

    The tree is {"embed_V_D", "layers": {stack: {"attention": ..., "ffw": ...}}, "final_norm_D",
    "head_D_V"}; every leaf under a stack has a leading axis L. Any leaf may be replaced by a leaf
    that brings its own `contract`, `take` and `grouped`.

    Attributes:
      decoding: how `generate` runs; it changes no row.
    """

    arch: Architecture
    place: Placement
    compute: Compute
    decoding: Decoding = AT_ONCE

    def init(self, key: jax.Array) -> Params:
        """Make random parameters in the placement's shardings."""
        return _compile_init(self)(key)

    def abstract(self) -> Params:
        """Give the tree of shapes and dtypes without touching a device."""
        return jax.eval_shape(self._init, jax.eval_shape(lambda: jax.random.key(0)))

    def _init(self, key: jax.Array) -> Params:
        def one(sparse: bool, layer_key: jax.Array) -> Params:
            return nnx.to_pure_dict(nnx.state(Block(layer_key, self.arch, self.place, sparse)))

        layers = {
            stack.name: jax.vmap(functools.partial(one, self.arch.kind(stack.first).sparse))(
                jnp.stack([jax.random.fold_in(key, layer) for layer in stack.layers])
            )
            for stage in self.arch.stages()
            for stack in stage
        }
        arch = self.arch
        names = ["embed_V_D", *norm_names(arch, "final")]
        names += (["positions_S_D"] if arch.learned_positions else []) + (
            [] if arch.tied_head else ["head_D_V"]
        )
        params = {
            n: parameter(n, key, arch.sizes, arch.init_std, arch.norm_offset).get_value()
            for n in names
        }
        dtype = self.compute.param_dtype
        return jax.tree.map(lambda leaf: leaf.astype(dtype), params | {"layers": layers})

    def apply(self, params: Params, batch: Batch) -> Output:
        """Run the whole batch at once: training, and scoring along a given text."""

        def mix(seen: Visibility, _: Any, query, key, value, sinks) -> tuple[jax.Array, None]:
            return self._attend(query, key, value, seen, sinks), None

        seen, routed = _seen(batch), {}
        x_BTD, turns = self._embed(params, batch.tokens_BT, seen)
        feed = self._feeder(batch.tokens_BT, seen, params.get(NOISE))
        for stage in self.arch.stages():
            body = functools.partial(self._period, stage, turns, seen, mix, feed)
            body = self.compute.rematerialise(body)
            layers = {s.name: (params["layers"][s.name], jnp.asarray(s.layers)) for s in stage}
            x_BTD, (_, found) = self.compute.repeat(body, x_BTD, layers, stage[0].count)
            routed |= {name: held for name, held in found.items() if held is not None}
        return self._output(params, x_BTD, routed or None)

    def with_noise(self, params: Params, key: jax.Array) -> Params:
        """Give parameters that carry the key of a noisy router's noise; others as they are."""
        noisy = self.arch.moe is not None and self.arch.moe.router.needs_noise
        return params | {NOISE: key} if noisy else params

    def prefill(self, params: Params, prompts: Batch, num_slots: int) -> tuple[Output, Cache]:
        """Run whole prompts at once, and keep their keys and values in the first T slots."""
        num_rows, num_tokens = prompts.tokens_BT.shape

        def attend(seen: Visibility, query, fed: tuple, held: tuple, sinks) -> jax.Array:
            del held
            return self._attend(query, fed[0], fed[1], seen, sinks)

        self.require_laws("causality", "batch_invariance")
        spare = ((0, 0), (0, num_slots - num_tokens))
        cache = dataclasses.replace(
            self.empty_cache(num_rows, num_slots),
            positions_BS=jnp.pad(prompts.positions_BT, spare),
            segments_BS=jnp.pad(prompts.segments_BT, spare),
        )
        return self._feed(params, cache, prompts.tokens_BT, _seen(prompts), attend)

    def extend(
        self,
        params: Params,
        cache: Cache,
        tokens_BT: Int[Array, "B T"],
        positions_BT: Int[Array, "B T"],
        segments_BT: Int[Array, "B T"],
    ) -> tuple[Output, Cache]:
        """Feed T more tokens into the cache's next T slots and run them against all slots."""
        put = jax.lax.dynamic_update_slice_in_dim
        cache = dataclasses.replace(
            cache,
            positions_BS=put(cache.positions_BS, positions_BT, cache.slot, axis=1),
            segments_BS=put(cache.segments_BS, segments_BT, cache.slot, axis=1),
        )
        seen = Visibility(
            query_positions_BT=positions_BT,
            query_segments_BT=segments_BT,
            key_positions_BS=cache.positions_BS,
            key_segments_BS=cache.segments_BS,
            ordered=False,
        )

        def attend(seen: Visibility, query, fed: tuple, held: tuple, sinks) -> jax.Array:
            del fed
            scale, cap = self.arch.score_scale, self.arch.attention_cap
            return attend_cached(
                query, held[0], held[1], seen, scale=scale, soft_cap=cap, sinks_KG=sinks
            )

        self.require_laws("causality", "batch_invariance")

        return self._feed(params, cache, tokens_BT, seen, attend)

    def empty_cache(self, num_rows: int, num_slots: int) -> Cache:
        """Make a cache to which nothing was fed."""
        empty_BS = jnp.zeros((num_rows, num_slots), jnp.int32)
        return Cache(
            keys=self._slots(num_rows, num_slots, "KHS"),
            values=self._slots(num_rows, num_slots, "KSW"),
            positions_BS=empty_BS,
            segments_BS=empty_BS,
            slot=jnp.int32(0),
        )

    def spread(self, cache: Cache, open_B: jax.Array, num_slots: int) -> Cache:
        """Give every row that is open what one row was fed, and room for more."""
        num_rows, fed = len(open_B), cache.positions_BS.shape[1]
        wide = self.empty_cache(num_rows, num_slots)

        def first(axis: int, empty: jax.Array, held: jax.Array) -> jax.Array:
            shape = [*empty.shape]
            shape[axis] = fed
            held = jnp.broadcast_to(held, shape)
            return jax.lax.dynamic_update_slice(empty, held, [0] * empty.ndim)

        segments_BS = jnp.where(open_B[:, None], cache.segments_BS, 0)
        return Cache(
            keys=jax.tree.map(functools.partial(first, -1), wide.keys, cache.keys),
            values=jax.tree.map(functools.partial(first, -2), wide.values, cache.values),
            positions_BS=first(-1, wide.positions_BS, cache.positions_BS),
            segments_BS=first(-1, wide.segments_BS, segments_BS),
            slot=cache.slot,
        )

    def seat(self, cache: Cache, place_ZR: jax.Array, new: Cache) -> Cache:
        """Put new rows into places of a cache, shard by shard of its rows.

        Shapes: `cache` has Z b rows, `new` has Z R; place b puts nothing.
        """
        put = functools.partial(put_rows, place_ZR)
        of_layers = functools.partial(put, axis=0 if self.unrolls_decoding else 1)
        return Cache(
            keys=jax.tree.map(of_layers, cache.keys, new.keys),
            values=jax.tree.map(of_layers, cache.values, new.values),
            positions_BS=put(cache.positions_BS, new.positions_BS),
            segments_BS=put(cache.segments_BS, new.segments_BS),
            slot=cache.slot,
        )

    def _slots(self, num_rows: int, num_slots: int, letters: str) -> dict[str, Any]:
        """Make empty slots for every layer: one array a stack, or one a layer."""
        sizes = self.arch.sizes | {"S": num_slots}
        shape = (num_rows, *(sizes[letter] for letter in letters))

        def empty(*stacked: int) -> jax.Array:
            slots = jnp.zeros((*stacked, *shape), self.compute.dtype)
            return self.place.constrain(slots, "B" + letters)

        return {
            stack.name: tuple(empty() for _ in stack.layers)
            if self.unrolls_decoding
            else empty(stack.count)
            for stage in self.arch.stages()
            for stack in stage
        }

    def _feed(
        self, params: Params, cache: Cache, tokens_BT: jax.Array, seen: Visibility, attend: Any
    ) -> tuple[Output, Cache]:
        """Run every layer on new tokens, writing keys and values from the next free slot on.

        The cache is carried from layer to layer and written in place, never copied.
        """

        def mix(seen: Visibility, held: Any, query, key, value, sinks) -> tuple[jax.Array, Any]:
            (keys, values), layer = held
            keys = _write(keys, layer, cache.slot, key.transpose(0, 2, 3, 1), axis=3)
            values = _write(values, layer, cache.slot, value.transpose(0, 2, 1, 3), axis=2)
            mixed = attend(seen, query, (key, value), (keys[layer], values[layer]), sinks)
            return mixed, (keys, values)

        def body(stage: tuple[Stack, ...], carry: tuple, layers: tuple):
            x_BTD, held = carry
            weights, layer = layers
            given = {name: (weights[name], (held[name], layer)) for name in held}
            x_BTD, (held, _) = self._period(stage, turns, seen, mix, feed, x_BTD, given)
            return (x_BTD, held), None

        x_BTD, turns = self._embed(params, tokens_BT, seen)
        feed = self._feeder(tokens_BT, seen)
        kept: dict[str, Any] = {}
        for stage in self.arch.stages():
            carry = x_BTD, {s.name: (cache.keys[s.name], cache.values[s.name]) for s in stage}
            step = functools.partial(body, stage)
            weights = {s.name: params["layers"][s.name] for s in stage}
            if self.unrolls_decoding:
                for layer in range(stage[0].count):
                    at = {name: _layer(stack, layer) for name, stack in weights.items()}
                    carry, _ = step(carry, (at, layer))
            else:
                carry, _ = jax.lax.scan(step, carry, (weights, jnp.arange(stage[0].count)))
            x_BTD, held = carry
            kept |= held
        cache = dataclasses.replace(
            cache,
            keys={name: pair[0] for name, pair in kept.items()},
            values={name: pair[1] for name, pair in kept.items()},
            slot=cache.slot + tokens_BT.shape[1],
        )
        return self._output(params, x_BTD), cache

    @property
    def longest_text(self) -> int | None:
        """The most tokens of one text that can be fed; None: positions do not end."""
        return self.arch.longest_text

    def unstack(self, params: Params) -> Params:
        """Take the layers apart where `extend` unrolls them, so that a loop of it need not."""
        if not self.unrolls_decoding:
            return params
        counts = {stack.name: stack.count for stage in self.arch.stages() for stack in stage}
        layers = {
            name: tuple(_layer(params["layers"][name], layer) for layer in range(count))
            for name, count in counts.items()
        }
        return params | {"layers": layers}

    @property
    def unrolls_decoding(self) -> bool:
        """Whether `extend` runs layer by layer: on a CPU, where a scan copies weights and cache."""
        return self.place.platform == "cpu"

    def generate(
        self,
        params: Params,
        prompts: Batch,
        sampling: Sampling,
        stop_ids: tuple[int, ...],
        key_B: jax.Array | None = None,
        statistic: Statistic | None = None,
    ) -> Generated:
        """Continue one prompt a row; see `research/models/generate.py`."""
        return generate(
            self,
            params,
            prompts,
            sampling,
            stop_ids,
            key_B,
            statistic=statistic,
            decoding=self.decoding,
            shards=self.place.num_row_shards,
        )

    def for_scoring(self) -> Transformer:
        """Give the model that scores, is evaluated and decodes: with the dispatch for these.

        Raises:
          ValueError: its router or its dispatch makes rows depend on one another.
        """
        dispatch = self.compute.scoring_dispatch or self.compute.dispatch
        compute = dataclasses.replace(self.compute, dispatch=dispatch)
        model = dataclasses.replace(self, compute=compute)
        model.require_laws("causality", "batch_invariance")
        return model

    def require_place(self) -> None:
        """Refuse a mesh that this model does not fit, from its shapes alone.

        Raises:
          ValueError: a mesh axis does not divide a parameter, the experts' dispatch cannot run, or
            the host's memory is asked for and cannot be reached.
        """
        self.place.weights(self.abstract())
        self.compute.require_memory(self.place)
        if self.place.layout.optimizer_on_host:
            self.place.require_host_memory("optimizer_on_host=True")
        if self.arch.moe is not None:
            self.compute.dispatch_on(self.place).require(self.arch.moe.num_experts, self.place)

    def require_laws(self, *laws: str) -> None:
        """Refuse what the router or the dispatch of this model makes wrong.

        Raises:
          ValueError: one of `laws` ("causality", "batch_invariance") is broken; it says by what.
        """
        if self.arch.moe is None:
            return
        router, dispatch = self.arch.moe.router, self.compute.dispatch_on(self.place)
        for part in (router, dispatch):
            broken = sorted(set(laws) & set(part.breaks))
            if broken:
                raise ValueError(
                    f"{part} breaks {' and '.join(broken)}: what a row gets depends on later "
                    "tokens or on other rows, so scoring and cached decoding would be wrong; "
                    "train with it, and score and decode with another router, or with "
                    "Compute(scoring_dispatch=Dropless()), which drops nothing"
                )

    def _attend(self, query, key, value, seen: Visibility, sinks: Any) -> jax.Array:
        backend, width = self.compute.attention_on(self.place), value.shape[-1]
        spare = query.shape[-1] - width
        if spare:  # every back-end takes values as wide as keys
            value = jnp.pad(value, ((0, 0),) * 3 + ((0, spare),))
        scale, cap = self.arch.score_scale, self.arch.attention_cap
        mixed = backend(query, key, value, seen, scale=scale, soft_cap=cap, sinks_KG=sinks)
        return checkpoint_name(mixed[..., :width] if spare else mixed, ATTENTION)

    def _embed(
        self, params: Params, tokens_BT: jax.Array, seen: Visibility
    ) -> tuple[jax.Array, dict[Rope, tuple[jax.Array, jax.Array]]]:
        """Look tokens up, and give the rotations of their positions."""
        arch, positions_BT = self.arch, seen.query_positions_BT
        segments_BT = seen.query_segments_BT
        x_BTD = self._look_up({"embed_V_D": params["embed_V_D"]}, tokens_BT)
        if arch.embed_scale != 1.0:
            x_BTD = x_BTD * jnp.asarray(arch.embed_scale, x_BTD.dtype)
        if arch.learned_positions:
            x_BTD = x_BTD + take(params["positions_S_D"], positions_BT, x_BTD.dtype)
        kinds = (arch.kind(layer) for layer in range(arch.num_layers))
        ropes = {kind.rope for kind in kinds if kind.rope is not None}
        turns = {rope: rope.cos_sin(positions_BT, segments_BT, arch.rotary_dim) for rope in ropes}
        return self.place.constrain(x_BTD, "BTD"), turns

    def _look_up(self, weights: Params, tokens_BT: jax.Array) -> jax.Array:
        """Give the embeddings of tokens.

        Left to the compiler, every device looks all rows up in its part of a split table, and adds:
        the least to move while decoding. With more tokens than the table has rows, the table is
        gathered, so that memory and traffic do not grow with the number of devices.
        """

        def look_up(weights: Params, tokens_BT: jax.Array) -> jax.Array:
            return take(weights["embed_V_D"], tokens_BT, self.compute.dtype)

        if tokens_BT.size < self.arch.vocab_size:
            return look_up(weights, tokens_BT)
        return self.place.by_rows(look_up, weights, self.compute.dtype, tokens_BT)

    def _feeder(self, tokens_BT: jax.Array, seen: Visibility, key: Any = None) -> Callable:
        """Give what runs a layer's feed-forward: `feed(held, ffw, x_BTD) -> (out_BTD, routed)`."""
        if self.arch.moe is None:
            return lambda held, ffw, x_BTD: (ffw(x_BTD), None)
        dispatch = self.compute.dispatch_on(self.place)
        tokens = Tokens(
            ids_M=tokens_BT.reshape(-1),
            real_M=seen.query_segments_BT.reshape(-1) > 0,
            rows=tokens_BT.shape[0],
        )

        def feed(held: Any, ffw: Any, x_BTD: jax.Array) -> tuple[jax.Array, Any]:
            if isinstance(ffw, FeedForward):
                return ffw(x_BTD), None
            noise = None if key is None else jax.random.fold_in(key, held)
            return ffw(x_BTD, dataclasses.replace(tokens, key=noise), dispatch)

        return feed

    def _period(
        self,
        stage: tuple[Stack, ...],
        turns: dict[Rope, tuple[jax.Array, jax.Array]],
        seen: Visibility,
        mix: Any,
        feed: Any,
        x_BTD: jax.Array,
        layers: Any,
    ) -> tuple[jax.Array, tuple[dict, dict]]:
        """Run one layer of each stack of a stage; give what `mix` and `feed` hand back."""
        kept, routed = {}, {}
        for stack in stage:
            layer, held = layers[stack.name]
            kind = self.arch.kind(stack.first)
            block = nnx.merge(block_graph(self.arch, self.place, kind.sparse), layer)
            local = dataclasses.replace(seen, window=kind.window)
            rope = kind.rope
            turn = (lambda x: x) if rope is None else functools.partial(_turn, rope, turns[rope])
            x_BTD, kept[stack.name], routed[stack.name] = block(
                x_BTD, turn, functools.partial(mix, local, held), functools.partial(feed, held)
            )
        return x_BTD, (kept, routed)

    def _output(self, params: Params, x_BTD: jax.Array, router: Any = None) -> Output:
        tied = self.arch.tied_head
        return Output(
            hidden_BTD=normalise(
                self.arch, x_BTD, params["final_norm_D"], params.get("final_norm_bias_D")
            ),
            head=params["embed_V_D"] if tied else params["head_D_V"],
            router=router,
            head_name="embed_V_D" if tied else "head_D_V",
            logit_scale=self.arch.logit_scale,
            soft_cap=self.arch.logit_cap,
            chunk_tokens=self.compute.vocabulary_chunk,
            place=self.place,
        )


def _turn(rope: Rope, cos_sin: tuple[jax.Array, jax.Array], x: jax.Array) -> jax.Array:
    return rope.rotate(x, cos_sin)


def _layer(stack: Any, layer: int) -> Any:
    """Give one layer's parameters of a stack, or of a stack that was taken apart."""
    return stack[layer] if isinstance(stack, tuple) else jax.tree.map(lambda x: x[layer], stack)


def _seen(batch: Batch) -> Visibility:
    """Let the tokens of a batch see one another."""
    return Visibility(
        query_positions_BT=batch.positions_BT,
        query_segments_BT=batch.segments_BT,
        key_positions_BS=batch.positions_BT,
        key_segments_BS=batch.segments_BT,
    )


@functools.lru_cache(maxsize=32)
def _compile_init(model: Transformer) -> Callable[[jax.Array], Params]:
    """Give the program that draws a model's parameters; random numbers take long to compile."""
    return jax.jit(model._init, out_shardings=model.place.weights(model.abstract()))


@functools.cache
def block_graph(arch: Architecture, place: Placement, sparse: bool) -> nnx.GraphDef:
    """Split one abstract block once: the structure that parameters are merged into."""
    block = nnx.eval_shape(lambda: Block(jax.random.key(0), arch, place, sparse))
    return nnx.split(block)[0]


def parameter_count(params: Params) -> int:
    """Count the parameters of a (possibly abstract) tree."""
    return sum(leaf.size for leaf in jax.tree.leaves(params))
