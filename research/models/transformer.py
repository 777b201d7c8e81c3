"""The decoder: one scanned transformer for every family, used as a function of its parameters."""

from __future__ import annotations

import dataclasses
import functools
import zlib
from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp
from flax import nnx
from jaxtyping import Array, Int

from research.core.axes import declared, shape_of
from research.core.generation import Generated, Sampling, Statistic
from research.core.layout import Placement
from research.core.records import Batch, Output, record
from research.core.weights import contract, take, value_of
from research.models.architecture import Architecture, Stack
from research.models.attention.cached import attend_cached
from research.models.attention.visibility import Visibility
from research.models.compute import Compute
from research.models.generate import generate
from research.models.rope import rotate

Params = Any


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


def parameter(name: str, key: jax.Array, arch: Architecture) -> nnx.Param:
    """Make one parameter from its name: shape by letters, scale by fan-in, norms 1, biases 0."""
    axes, shape = declared(name), shape_of(name, arch.sizes)
    if axes.is_kernel:
        fan_in = axes.matrix(shape)[1] if not name.startswith("embed") else 1
        std = arch.init_std or (fan_in**-0.5 if fan_in > 1 else 0.02)
        key = jax.random.fold_in(key, zlib.crc32(name.encode()))
        return nnx.Param(std * jax.random.normal(key, shape, jnp.float32))
    fill = jnp.zeros if "bias" in name else jnp.ones
    return nnx.Param(fill(shape, jnp.float32))


def rms_norm(x: jax.Array, scale: Any, eps: float) -> jax.Array:
    """x / sqrt(mean(x^2) + eps) * scale, in float32. Source: Zhang & Sennrich, arXiv 1910.07467."""
    y = x.astype(jnp.float32)
    y = y * jax.lax.rsqrt(jnp.mean(y * y, axis=-1, keepdims=True) + eps)
    return (y * value_of(scale).astype(jnp.float32)).astype(x.dtype)


class Attention(nnx.Module):
    """Grouped-query attention with rotary positions."""

    def __init__(self, key: jax.Array, arch: Architecture, place: Placement):
        self.arch, self.place = arch, place
        self.query_D_KGH = parameter("query_D_KGH", key, arch)
        self.key_D_KH = parameter("key_D_KH", key, arch)
        self.value_D_KH = parameter("value_D_KH", key, arch)
        self.out_KGH_D = parameter("out_KGH_D", key, arch)
        if arch.qkv_bias:
            self.query_bias_KGH = parameter("query_bias_KGH", key, arch)
            self.key_bias_KH = parameter("key_bias_KH", key, arch)
            self.value_bias_KH = parameter("value_bias_KH", key, arch)
        if arch.out_bias:
            self.out_bias_D = parameter("out_bias_D", key, arch)
        if arch.query_key_norm:
            self.query_norm_H = parameter("query_norm_H", key, arch)
            self.key_norm_H = parameter("key_norm_H", key, arch)

    def project(self, x_BTD: jax.Array, cos_sin: tuple) -> tuple[jax.Array, jax.Array, jax.Array]:
        """Give rotated queries [B, T, K, G, H] and keys, and values, both [B, T, K, H]."""
        arch = self.arch
        query = contract("BTD,DKGH->BTKGH", x_BTD, self.query_D_KGH)
        key = contract("BTD,DKH->BTKH", x_BTD, self.key_D_KH)
        value = contract("BTD,DKH->BTKH", x_BTD, self.value_D_KH)
        if arch.qkv_bias:
            query = query + value_of(self.query_bias_KGH).astype(query.dtype)
            key = key + value_of(self.key_bias_KH).astype(key.dtype)
            value = value + value_of(self.value_bias_KH).astype(value.dtype)
        if arch.query_key_norm:
            query = rms_norm(query, self.query_norm_H, arch.norm_eps)
            key = rms_norm(key, self.key_norm_H, arch.norm_eps)
        query, key = rotate(query, *cos_sin), rotate(key, *cos_sin)
        return self.place.constrain(query, "BTKGH"), self.place.constrain(key, "BTKH"), value

    def close(self, mixed_BTKGH: jax.Array) -> jax.Array:
        """Bring the heads back to the residual width."""
        out_BTD = contract("BTKGH,KGHD->BTD", mixed_BTKGH, self.out_KGH_D)
        return (
            out_BTD + value_of(self.out_bias_D).astype(out_BTD.dtype)
            if self.arch.out_bias
            else out_BTD
        )


class GatedFeedForward(nnx.Module):
    """down(silu(gate(x)) * up(x)). Source: Shazeer 2020, arXiv 2002.05202."""

    def __init__(self, key: jax.Array, arch: Architecture, place: Placement):
        self.arch, self.place = arch, place
        self.gate_D_F = parameter("gate_D_F", key, arch)
        self.up_D_F = parameter("up_D_F", key, arch)
        self.down_F_D = parameter("down_F_D", key, arch)
        if arch.ffw_bias:
            self.gate_bias_F = parameter("gate_bias_F", key, arch)
            self.up_bias_F = parameter("up_bias_F", key, arch)
            self.down_bias_D = parameter("down_bias_D", key, arch)

    def __call__(self, x_BTD: jax.Array) -> jax.Array:
        gate_BTF = contract("BTD,DF->BTF", x_BTD, self.gate_D_F)
        up_BTF = contract("BTD,DF->BTF", x_BTD, self.up_D_F)
        if self.arch.ffw_bias:
            gate_BTF = gate_BTF + value_of(self.gate_bias_F).astype(gate_BTF.dtype)
            up_BTF = up_BTF + value_of(self.up_bias_F).astype(up_BTF.dtype)
        hidden_BTF = self.place.constrain(nnx.silu(gate_BTF) * up_BTF, "BTF")
        out_BTD = contract("BTF,FD->BTD", hidden_BTF, self.down_F_D)
        return (
            out_BTD + value_of(self.down_bias_D).astype(out_BTD.dtype)
            if self.arch.ffw_bias
            else out_BTD
        )


class Block(nnx.Module):
    """One layer: attention and feed-forward, each after a norm and added to the residual."""

    def __init__(self, key: jax.Array, arch: Architecture, place: Placement):
        self.arch, self.place = arch, place
        self.attention_norm_D = parameter("attention_norm_D", key, arch)
        self.attention = Attention(jax.random.fold_in(key, 0), arch, place)
        self.ffw_norm_D = parameter("ffw_norm_D", key, arch)
        self.ffw = GatedFeedForward(jax.random.fold_in(key, 1), arch, place)

    def __call__(self, x_BTD: jax.Array, cos_sin: tuple, mix: Any) -> tuple[jax.Array, Any]:
        """Run the layer; `mix(query, key, value)` attends and may hand something back."""
        normed = rms_norm(x_BTD, self.attention_norm_D, self.arch.norm_eps)
        mixed_BTKGH, kept = mix(*self.attention.project(normed, cos_sin))
        x_BTD = self.place.constrain(x_BTD + self.attention.close(mixed_BTKGH), "BTD")
        normed = rms_norm(x_BTD, self.ffw_norm_D, self.arch.norm_eps)
        return self.place.constrain(x_BTD + self.ffw(normed), "BTD"), kept


@dataclasses.dataclass(frozen=True)
class Transformer:
    """An architecture on a placement, computed by a policy: functions of a parameter tree.

    The tree is {"embed_V_D", "layers": {stack: {"attention": ..., "ffw": ...}}, "final_norm_D",
    "head_D_V"}; every leaf under a stack has a leading axis L. Any leaf may be replaced by a leaf
    that brings its own `contract` and `take`.
    """

    arch: Architecture
    place: Placement
    compute: Compute

    def init(self, key: jax.Array) -> Params:
        """Make random parameters in the placement's shardings."""
        return _compile_init(self)(key)

    def abstract(self) -> Params:
        """Give the tree of shapes and dtypes without touching a device."""
        return jax.eval_shape(self._init, jax.eval_shape(lambda: jax.random.key(0)))

    def _init(self, key: jax.Array) -> Params:
        def one(layer_key: jax.Array) -> Params:
            return nnx.to_pure_dict(nnx.state(Block(layer_key, self.arch, self.place)))

        layers = {
            stack.name: jax.vmap(one)(
                jnp.stack([jax.random.fold_in(key, layer) for layer in stack.layers])
            )
            for stage in self.arch.stages()
            for stack in stage
        }
        names = ["embed_V_D", "final_norm_D"] + ([] if self.arch.tied_head else ["head_D_V"])
        params = {name: parameter(name, key, self.arch).get_value() for name in names}
        dtype = self.compute.param_dtype
        return jax.tree.map(lambda leaf: leaf.astype(dtype), params | {"layers": layers})

    def apply(self, params: Params, batch: Batch) -> Output:
        """Run the whole batch at once: training, and scoring along a given text."""

        def mix(seen: Visibility, _: Any, query: jax.Array, key: jax.Array, value: jax.Array):
            return self._attend(query, key, value, seen), None

        seen = _seen(batch)
        x_BTD, cos_sin = self._embed(params, batch.tokens_BT, seen)
        for stage in self.arch.stages():
            body = functools.partial(self._period, stage, cos_sin, seen, mix)
            body = self.compute.rematerialise(body)
            layers = {stack.name: (params["layers"][stack.name], None) for stack in stage}
            x_BTD, _ = self.compute.repeat(body, x_BTD, layers, stage[0].count)
        return self._output(params, x_BTD)

    def prefill(self, params: Params, prompts: Batch, num_slots: int) -> tuple[Output, Cache]:
        """Run whole prompts at once, and keep their keys and values in the first T slots."""
        num_rows, num_tokens = prompts.tokens_BT.shape

        def attend(seen: Visibility, query: jax.Array, fed: tuple, held: tuple) -> jax.Array:
            del held
            return self._attend(query, fed[0], fed[1], seen)

        spare = ((0, 0), (0, num_slots - num_tokens))
        cache = Cache(
            keys=self._slots(num_rows, num_slots, "KHS"),
            values=self._slots(num_rows, num_slots, "KSH"),
            positions_BS=jnp.pad(prompts.positions_BT, spare),
            segments_BS=jnp.pad(prompts.segments_BT, spare),
            slot=jnp.int32(0),
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

        def attend(seen: Visibility, query: jax.Array, fed: tuple, held: tuple) -> jax.Array:
            del fed
            scale = self.arch.head_dim**-0.5
            return attend_cached(query, held[0], held[1], seen, scale=scale)

        return self._feed(params, cache, tokens_BT, seen, attend)

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

        def mix(seen: Visibility, held: Any, query: jax.Array, key: jax.Array, value: jax.Array):
            (keys, values), layer = held
            keys = _write(keys, layer, cache.slot, key.transpose(0, 2, 3, 1), axis=3)
            values = _write(values, layer, cache.slot, value.transpose(0, 2, 1, 3), axis=2)
            mixed = attend(seen, query, (key, value), (keys[layer], values[layer]))
            return mixed, (keys, values)

        def body(stage: tuple[Stack, ...], carry: tuple, layers: tuple):
            x_BTD, held = carry
            weights, layer = layers
            given = {name: (weights[name], (held[name], layer)) for name in held}
            return self._period(stage, cos_sin, seen, mix, x_BTD, given), None

        x_BTD, cos_sin = self._embed(params, tokens_BT, seen)
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
        return generate(self, params, prompts, sampling, stop_ids, key_B, statistic=statistic)

    def _attend(self, query: jax.Array, key: jax.Array, value: jax.Array, seen: Visibility):
        backend = self.compute.attention_on(self.place)
        return backend(query, key, value, seen, scale=self.arch.head_dim**-0.5)

    def _embed(
        self, params: Params, tokens_BT: jax.Array, seen: Visibility
    ) -> tuple[jax.Array, tuple[jax.Array, jax.Array]]:
        """Look tokens up, and give the rotation of their positions."""
        x_BTD = take(params["embed_V_D"], tokens_BT, self.compute.dtype)
        x_BTD = self.place.constrain(x_BTD, "BTD")
        return x_BTD, self.arch.rope.cos_sin(seen.query_positions_BT, self.arch.head_dim)

    def _period(
        self, stage: tuple[Stack, ...], cos_sin: tuple, seen: Visibility, mix: Any, x_BTD, layers
    ):
        """Run one layer of each stack of a stage."""
        graphdef = block_graph(self.arch, self.place)
        kept = {}
        for stack in stage:
            layer, held = layers[stack.name]
            local = dataclasses.replace(seen, window=self.arch.window(stack.first))
            block = nnx.merge(graphdef, layer)
            x_BTD, kept[stack.name] = block(x_BTD, cos_sin, functools.partial(mix, local, held))
        return x_BTD, kept

    def _output(self, params: Params, x_BTD: jax.Array) -> Output:
        tied = self.arch.tied_head
        return Output(
            hidden_BTD=rms_norm(x_BTD, params["final_norm_D"], self.arch.norm_eps),
            head=params["embed_V_D"] if tied else params["head_D_V"],
            equation="BTD,VD->BTV" if tied else "BTD,DV->BTV",
            chunk_tokens=self.compute.vocabulary_chunk,
            place=self.place,
        )


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
def block_graph(arch: Architecture, place: Placement) -> nnx.GraphDef:
    """Split one abstract block once: the structure that parameters are merged into."""
    block = nnx.eval_shape(lambda: Block(jax.random.key(0), arch, place))
    return nnx.split(block)[0]


def parameter_count(params: Params) -> int:
    """Count the parameters of a (possibly abstract) tree."""
    return sum(leaf.size for leaf in jax.tree.leaves(params))
