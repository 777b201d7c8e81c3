"""Every optimiser equals the plain optax one where optax is right: on single matrices."""

from __future__ import annotations

import jax
import jax.numpy as jnp
import numpy as np
import optax
import optax.contrib
import pytest

from research.optimizers.adafactor import Adafactor
from research.optimizers.adamw import AdamW
from research.optimizers.lion import Lion
from research.optimizers.muon import Muon
from research.optimizers.sgd import Sgd

RATE = 0.03
KERNELS_ONLY = {"layers": {"wide_D_F": True, "tall_F_D": True, "norm_D": False}}
SAME_FORMULA = 2e-6  # one formula, float32, four steps

PAIRS = [
    (
        AdamW(b1=0.8, b2=0.9, eps=1e-4, weight_decay=0.1),
        optax.adamw(RATE, b1=0.8, b2=0.9, eps=1e-4, weight_decay=0.1, mask=KERNELS_ONLY),
    ),
    (Sgd(), optax.sgd(RATE)),
    (Sgd(momentum=0.9, nesterov=True), optax.sgd(RATE, momentum=0.9, nesterov=True)),
    (Lion(weight_decay=0.2), optax.lion(RATE, weight_decay=0.2, mask=KERNELS_ONLY)),
    (Adafactor(min_factored=6), optax.adafactor(RATE, min_dim_size_to_factor=6)),
    (
        Adafactor(min_factored=128, min_scale=None, clip_rms=None, decay=0.6),
        optax.adafactor(
            RATE, decay_rate=0.6, clipping_threshold=None, multiply_by_parameter_scale=False
        ),
    ),
    (
        # optax hands its Nesterov switch to Adam too, and its Adam then has another name.
        Muon(nesterov=False, weight_decay=0.1, rms=0.3, rest=AdamW(b1=0.7)),
        optax.contrib.muon(RATE, nesterov=False, weight_decay=0.1, consistent_rms=0.3, adam_b1=0.7),
    ),
]


def draw(seed: int) -> dict:
    numbers = np.random.default_rng(seed)
    shapes = {"wide_D_F": (6, 11), "tall_F_D": (11, 6), "norm_D": (6,)}
    return {
        "layers": {n: jnp.asarray(numbers.normal(size=s), jnp.float32) for n, s in shapes.items()}
    }


@pytest.mark.parametrize(("ours", "theirs"), PAIRS, ids=lambda v: str(v)[:60])
def test_four_steps_equal_optax_on_matrices(ours, theirs):
    params = expected = draw(0)
    state, their_state = ours.init(params), theirs.init(expected)
    step, their_step = jax.jit(ours.update), jax.jit(theirs.update)
    for seed in (1, 2, 3, 4):
        updates, state = step(draw(seed), state, params, jnp.float32(RATE))
        params = optax.apply_updates(params, updates)
        their_updates, their_state = their_step(draw(seed), their_state, expected)
        expected = optax.apply_updates(expected, their_updates)
    for name, leaf in params["layers"].items():
        np.testing.assert_allclose(leaf, expected["layers"][name], rtol=0, atol=SAME_FORMULA)
