"""Laws of parts: they vary, travel as JSON, and are traced by their floats alone."""

from __future__ import annotations

import json
import sys

import jax
import pytest

from research.core.parts import describe, part, rebuild, require, vary
from research.optimizers.adamw import AdamW
from research.optimizers.muon import Muon


@part
class Pair:
    """Two numbers that are right only together."""

    low: int
    high: int
    rate: float = 0.5

    def __post_init__(self) -> None:
        require(self, (self.low < self.high, f"low={self.low} must be below high={self.high}"))


@part
class Holder:
    """A part in a part, and parts in a tuple."""

    pair: Pair
    pairs: tuple[Pair, ...] = ()
    name: str = "x"


HOLDER = Holder(pair=Pair(low=1, high=2), pairs=(Pair(low=0, high=3), Pair(low=4, high=5)))


def test_fields_that_need_one_another_change_together():
    varied = vary(HOLDER, {"pair.low": 7, "pair.high": 9, "pairs.1.high": 6})
    assert varied.pair == Pair(low=7, high=9)
    assert varied.pairs == (HOLDER.pairs[0], Pair(low=4, high=6))
    assert vary(HOLDER, {}) == HOLDER


def test_an_unknown_path_names_what_there_is():
    with pytest.raises(ValueError, match=r"no field 'lw'. Did you mean 'low'\?.*low, high, rate"):
        vary(HOLDER, {"pair.lw": 1})
    with pytest.raises(ValueError, match="no field '2'"):
        vary(HOLDER, {"pairs.2.low": 1})


def test_a_part_changed_whole_may_be_changed_further():
    varied = vary(HOLDER, {"pair": Pair(low=3, high=8), "pair.rate": 0.1})
    assert varied.pair == Pair(low=3, high=8, rate=0.1)


def test_floats_are_leaves_and_everything_else_is_structure():
    leaves, structure = jax.tree.flatten(HOLDER)
    assert leaves == [0.5, 0.5, 0.5]
    assert jax.tree.structure(vary(HOLDER, {"pair.rate": 0.9})) == structure
    assert jax.tree.structure(vary(HOLDER, {"name": "y"})) != structure


def test_parts_that_differ_in_floats_share_one_compilation():
    double = jax.jit(lambda holder: holder.pair.rate * 2)
    assert [float(double(vary(HOLDER, {"pair.rate": r}))) for r in (0.25, 1.5)] == [0.5, 3.0]
    assert double._cache_size() == 1


@pytest.mark.parametrize("value", [AdamW(weight_decay=0.1), Muon()])
def test_a_part_comes_back_from_json(value):
    assert rebuild(json.loads(json.dumps(describe(value)))) == value


def test_only_our_own_parts_are_made_from_json(monkeypatch):
    monkeypatch.delitem(sys.modules, "wave", raising=False)  # some library may have wanted it
    with pytest.raises(ValueError, match="is no part"):
        rebuild({"type": "subprocess.Popen", "args": ["true"]})
    with pytest.raises(ValueError, match=r"cannot rebuild 'wave\.Wave_read'"):
        rebuild({"type": "wave.Wave_read", "f": "x"})
    assert "wave" not in sys.modules
