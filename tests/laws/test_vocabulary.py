"""Laws of token statistics: bounds, minus infinity, chunks, and the hand-written gradient."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from research.core.records import Output
from research.core.vocabulary import entropy_of_logits, token_statistics

ROWS, TOKENS, WIDTH, VOCABULARY = 2, 7, 5, 11
FLOAT32_NOISE = 2e-6  # sums of 11 float32 terms of size 1
WIDE_NOISE = 2e-5  # the same with logits of size 30, where one unit in the last place is 2e-6


def example(seed: int = 0, size: float = 1.0) -> tuple[jax.Array, jax.Array, jax.Array]:
    keys = jax.random.split(jax.random.key(seed), 3)
    hidden_BTD = size * jax.random.normal(keys[0], (ROWS, TOKENS, WIDTH))
    head_DV = jax.random.normal(keys[1], (WIDTH, VOCABULARY))
    return hidden_BTD, head_DV, jax.random.randint(keys[2], (ROWS, TOKENS), 0, VOCABULARY)


def statistics(hidden_BTD, head, targets_BT, chunk_tokens=None, **output):
    output = Output(hidden_BTD=hidden_BTD, head=head, chunk_tokens=chunk_tokens, **output)
    return token_statistics(output, targets_BT)


def weighted_loss(hidden_BTD, head, targets_BT, **output) -> jax.Array:
    weights_BT = jnp.linspace(0.0, 2.0, ROWS * TOKENS).reshape(ROWS, TOKENS)
    return -jnp.sum(weights_BT * statistics(hidden_BTD, head, targets_BT, **output)[0])


def by_definition(hidden_BTD, head_DV, targets_BT) -> tuple[np.ndarray, np.ndarray]:
    """The two formulas in float64."""
    logits = np.asarray(hidden_BTD, np.float64) @ np.asarray(head_DV, np.float64)
    top = logits.max(-1, keepdims=True)
    log_p = logits - top - np.log(np.exp(logits - top).sum(-1, keepdims=True))
    chosen = np.take_along_axis(log_p, np.asarray(targets_BT)[..., None], axis=-1)[..., 0]
    return chosen, -np.sum(np.exp(log_p) * log_p, axis=-1)


@pytest.mark.parametrize("chunk_tokens", [None, 3, 7])
def test_statistics_are_the_formulas_in_float64(chunk_tokens):
    hidden_BTD, head_DV, targets_BT = example(size=3.0)
    seen = statistics(hidden_BTD, head_DV, targets_BT, chunk_tokens)
    for ours, exact in zip(seen, by_definition(hidden_BTD, head_DV, targets_BT), strict=True):
        np.testing.assert_allclose(ours, exact, atol=WIDE_NOISE)


@pytest.mark.parametrize("chunk_tokens", [None, 2, 3])
@pytest.mark.parametrize("soft_cap", [None, 1.5])
def test_the_gradient_is_that_of_log_softmax(chunk_tokens, soft_cap):
    hidden_BTD, head_DV, targets_BT = example(1)

    def plain(hidden_BTD, head_DV):
        logits_BTV = Output(hidden_BTD=hidden_BTD, head=head_DV, soft_cap=soft_cap).logits()
        log_p_BTV = jax.nn.log_softmax(logits_BTV)
        chosen = jnp.take_along_axis(log_p_BTV, targets_BT[..., None], axis=-1)[..., 0]
        return -jnp.sum(jnp.linspace(0.0, 2.0, ROWS * TOKENS).reshape(ROWS, TOKENS) * chosen)

    def ours(hidden_BTD, head_DV):
        return weighted_loss(
            hidden_BTD, head_DV, targets_BT, chunk_tokens=chunk_tokens, soft_cap=soft_cap
        )

    expected = jax.grad(plain, argnums=(0, 1))(hidden_BTD, head_DV)
    for bar, right in zip(
        jax.grad(ours, argnums=(0, 1))(hidden_BTD, head_DV), expected, strict=True
    ):
        assert float(jnp.max(jnp.abs(right))) > 0.1
        np.testing.assert_allclose(bar, right, atol=10 * FLOAT32_NOISE)


def test_a_tied_head_gets_the_same_numbers_and_the_transposed_gradient():
    hidden_BTD, head_DV, targets_BT = example(2)
    tied = {"head_name": "embed_V_D"}
    for one, other in zip(
        statistics(hidden_BTD, head_DV, targets_BT),
        statistics(hidden_BTD, head_DV.T, targets_BT, **tied),
        strict=True,
    ):
        np.testing.assert_allclose(one, other, atol=FLOAT32_NOISE)
    bar = jax.grad(weighted_loss, argnums=1)(hidden_BTD, head_DV, targets_BT)
    tied_bar = jax.grad(weighted_loss, argnums=1)(hidden_BTD, head_DV.T, targets_BT, **tied)
    np.testing.assert_allclose(tied_bar.T, bar, atol=10 * FLOAT32_NOISE)


def test_the_entropy_is_a_constant():
    hidden_BTD, head_DV, targets_BT = example(3)
    bar = jax.grad(lambda x: statistics(x, head_DV, targets_BT)[1].sum())(hidden_BTD)
    assert not np.any(bar)


@settings(max_examples=30, deadline=None)
@given(st.integers(0, 10_000), st.sampled_from([1e-3, 1.0, 30.0, 1e4]), st.integers(0, 9))
def test_entropy_lies_between_zero_and_ln_v(seed, size, hidden):
    logits_V = size * jax.random.normal(jax.random.key(seed), (1, 1, VOCABULARY))
    logits_V = logits_V.at[..., :hidden].set(-jnp.inf)
    allowed = np.log(VOCABULARY - hidden) + FLOAT32_NOISE
    targets_BT = jnp.full((1, 1), VOCABULARY - 1)
    identity = jnp.eye(VOCABULARY)
    entropies = [float(entropy_of_logits(logits_V)[0, 0])]
    if not hidden:
        entropies.append(float(statistics(logits_V, identity, targets_BT)[1][0, 0]))
    for entropy in entropies:
        assert 0.0 <= entropy <= allowed


def test_logits_of_minus_infinity_have_no_probability_and_no_gradient():
    kept = 4
    row_V = jnp.where(jnp.arange(VOCABULARY) < kept, 0.5, -jnp.inf)

    def loss(row_V):
        return statistics_of_row(row_V)[0].sum()

    logprob, entropy = statistics_of_row(row_V)
    np.testing.assert_allclose(logprob, -np.log(kept), atol=FLOAT32_NOISE)
    np.testing.assert_allclose(entropy, np.log(kept), atol=FLOAT32_NOISE)
    bar = jax.grad(loss)(row_V)
    expected = (np.arange(VOCABULARY) == 1) - np.where(np.arange(VOCABULARY) < kept, 1 / kept, 0)
    np.testing.assert_allclose(bar, expected, atol=FLOAT32_NOISE)


class FixedLogits:
    """A head that adds its own row of logits: how a masked vocabulary looks to the statistics."""

    def __init__(self, row_V: jax.Array):
        self.row_V = row_V

    def contract(self, equation: str, x: jax.Array) -> jax.Array:
        return jnp.zeros((*x.shape[:-1], 1)) + self.row_V


def statistics_of_row(row_V: jax.Array) -> tuple[jax.Array, jax.Array]:
    return statistics(jnp.ones((1, 1, WIDTH)), FixedLogits(row_V), jnp.ones((1, 1), jnp.int32))


def test_a_set_chunk_bounds_the_memory_of_the_gradient():
    rows, tokens, width, vocabulary, chunk = 2, 64, 8, 4096, 4
    hidden = jax.ShapeDtypeStruct((rows, tokens, width), jnp.float32)
    head = jax.ShapeDtypeStruct((width, vocabulary), jnp.float32)
    targets = jax.ShapeDtypeStruct((rows, tokens), jnp.int32)

    def temporaries(chunk_tokens: int | None) -> int:
        def loss(hidden, head, targets):
            return statistics(hidden, head, targets, chunk_tokens)[0].sum()

        compiled = jax.jit(jax.grad(loss, argnums=(0, 1))).lower(hidden, head, targets).compile()
        return compiled.memory_analysis().temp_size_in_bytes

    all_logits = rows * tokens * vocabulary * 4
    assert temporaries(None) > all_logits
    assert temporaries(chunk) < all_logits
