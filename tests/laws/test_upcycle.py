"""Laws of sparse upcycling: the mixture starts as the dense model, in memory and as a folder."""

from __future__ import annotations

import dataclasses
import functools

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from launch.export import probe
from research.core.layout import Layout
from research.huggingface.folder import load, open_folder
from research.models.activations import Gelu
from research.models.architecture import Architecture, Moe
from research.models.compute import Compute
from research.models.moe.hashed import Hashed
from research.models.moe.sigmoid_top_k import SigmoidTopK
from research.models.moe.softmax_top_k import SoftmaxTopK
from research.models.transformer import Transformer
from research.models.upcycle import upcycle
from tests.flow.commands import IDS, LOGITS, STORIES, maktab, model_folder

E, A, L = 5, 2, 3
PLACE = Layout().on(jax.devices()[:1])
DENSE = Architecture(
    vocab_size=29,
    model_dim=12,
    num_layers=L,
    num_heads=4,
    num_kv_heads=2,
    head_dim=6,
    ffw_dim=10,
)
BIASED = dataclasses.replace(DENSE, ffw_gated=False, ffw_bias=True, activation=Gelu(tanh=True))
MIXTURE = Moe(num_experts=E, experts_per_token=A, expert_dim=10, router=SoftmaxTopK())
QWEN2 = {  # with biases that no family with experts has beside these norms
    "model_type": "qwen2",
    "architectures": ["Qwen2ForCausalLM"],
    "attention_bias": None,
    "mlp_bias": None,
}
FLOAT32 = 2e-5  # logits of order 1: A weighted copies are added in place of one feed-forward


@functools.cache
def dense_of(arch: Architecture):
    """Give a model with noise for parameters, biases included."""
    model, numbers = Transformer(arch, PLACE, Compute()), np.random.default_rng(0)
    return model, jax.tree.map(
        lambda leaf: jnp.asarray(0.3 * numbers.normal(size=leaf.shape), jnp.float32),
        model.abstract(),
    )


def apply(model: Transformer, params):
    return jax.jit(model.apply)(params, probe(model))


def difference(arch: Architecture, moe: Moe, **settings) -> float:
    dense, params = dense_of(arch)
    sparse, mixed = upcycle(dense, params, moe, jax.random.key(1), **settings)
    assert jax.tree.structure(mixed) == jax.tree.structure(sparse.abstract())
    return float(jnp.abs(logits_of(dense, params) - logits_of(sparse, mixed)).max())


def logits_of(model: Transformer, params) -> jax.Array:
    return apply(model, params).logits()


@pytest.mark.parametrize("router", [SoftmaxTopK(), SigmoidTopK(), Hashed()], ids=repr)
def test_the_mixture_starts_as_the_dense_model_under_every_router(router):
    assert difference(DENSE, dataclasses.replace(MIXTURE, router=router)) < FLOAT32


def test_biases_and_dense_layers_stay_what_they_are():
    biased = dataclasses.replace(
        MIXTURE, expert_bias=True, router_bias=True, dense_layers=(1,), num_experts=3
    )
    assert difference(BIASED, biased) < FLOAT32


def test_weights_that_do_not_sum_to_one_make_another_model():
    loose = dataclasses.replace(MIXTURE, router=SoftmaxTopK(normalise=False))
    assert difference(DENSE, loose) > 100 * FLOAT32


def test_an_indifferent_router_is_uniform_and_a_drawn_one_is_not():
    dense, params = dense_of(DENSE)
    entropies = []
    for std in (0.0, 0.5):
        sparse, mixed = upcycle(dense, params, MIXTURE, jax.random.key(1), std)
        seen = apply(sparse, mixed).router["0"]
        entropies.append(float(jnp.max(seen.entropy_B / seen.tokens_B)))
    assert entropies[0] == pytest.approx(np.log(E), abs=1e-6)
    assert entropies[1] < np.log(E) - 1e-3


@pytest.mark.parametrize(
    ("arch", "moe", "words"),
    [
        (DENSE, dataclasses.replace(MIXTURE, expert_dim=7), "expert_dim must be 10"),
        (DENSE, dataclasses.replace(MIXTURE, shared_dim=4), "shared_dim must be 0"),
        (DENSE, dataclasses.replace(MIXTURE, expert_bias=True), "expert_bias must be False"),
        (dataclasses.replace(DENSE, moe=MIXTURE), MIXTURE, "has experts already"),
    ],
)
def test_what_would_be_another_model_is_refused(arch, moe, words):
    with pytest.raises(ValueError, match=words):
        upcycle(Transformer(arch, PLACE, Compute()), {}, moe, jax.random.key(0))


def test_a_folder_becomes_a_folder_with_the_same_logits(tmp_path):
    to = tmp_path / "mixture"
    said = maktab("upcycle", STORIES, "--experts", 3, "--per-token", 2, "--to", to)
    assert said.code == 0, said.err
    assert "a mixtral model" in said.out
    assert "largest logit difference" in " ".join(said.out.split())
    opened = open_folder(to)
    assert opened.family.model_type == "mixtral"
    assert opened.architecture.moe.num_experts == 3
    model = Transformer(opened.architecture, PLACE, Compute())
    batch = probe(model)
    batch = dataclasses.replace(
        jax.tree.map(lambda x: x[:1, :1].repeat(len(IDS), 1), batch),
        tokens_BT=jnp.asarray(IDS)[None],
        positions_BT=jnp.arange(len(IDS))[None],
        ids_BZ=jnp.zeros((1, 1), jnp.int32),
    )
    logits = jax.jit(lambda params: model.apply(params, batch).logits())(load(opened, model))
    np.testing.assert_allclose(logits[0], LOGITS, atol=1e-4)
    assert (to / "tokenizer.json").read_bytes() == (STORIES / "tokenizer.json").read_bytes()
    assert '"eos_token_id": 2' in (to / "config.json").read_text()


def test_what_cannot_be_upcycled_is_refused_before_weights_are_read(tmp_path):
    words = ("--experts", 4, "--per-token", 2, "--to", tmp_path / "new")
    odd = model_folder(tmp_path / "odd", config=QWEN2)
    assert "no supported family can hold" in refusal("upcycle", odd, *words)
    assert "must lie in 1..4" in refusal("upcycle", STORIES, *words[:3], 5, *words[4:])
    assert "is unknown" in refusal("upcycle", STORIES, *words, "--router", "best")
    assert "not an empty folder" in refusal("upcycle", STORIES, *words[:-1], tmp_path)
    assert not (tmp_path / "new").exists()


def refusal(*words) -> str:
    said = maktab(*words)
    assert said.code == 2, said
    return " ".join(said.err.split())
