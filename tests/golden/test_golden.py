"""What must not change unnoticed: every experiment's numbers, and one loss curve."""

from __future__ import annotations

import json

import jax
import numpy as np

from tests.golden.make import HERE, configs, curve

CURVE_TOLERANCE = 2e-4  # nats; another processor orders float32 sums otherwise, 20 steps long


def test_every_experiment_says_what_it_said(monkeypatch):
    def touched(*_args, **_kwargs):
        raise AssertionError("an experiment file touched a device")

    monkeypatch.setattr(jax, "devices", touched)
    first, second = configs(), configs()
    assert first == second
    assert first == json.loads((HERE / "configs.json").read_text())


def test_twenty_steps_give_the_same_losses(tmp_path):
    golden = json.loads((HERE / "curve.json").read_text())
    np.testing.assert_allclose(curve(tmp_path), golden, atol=CURVE_TOLERANCE)
