"""`maktab power`, as it is typed."""

import io
import re

import pytest
from rich.console import Console

from launch.cli import power as command
from launch.power import power

OPTIONS = {
    "rate": 0.43,
    "discordance": None,
    "seeds": None,
    "seed_spread": None,
    "comparisons": 1,
    "difference": None,
}


def said(**options) -> str:
    console = Console(width=120, record=True, file=io.StringIO())
    console.print(power(230, **{**OPTIONS, **options}))
    return re.sub(r"\s+", " ", console.export_text())


def test_a_study_of_230_items_is_told_what_it_cannot_see():
    assert "unpaired, control at 43% 13 points" in said()
    text = said(discordance=0.2, seeds=5, seed_spread=0.01, difference=0.0653)
    assert re.search(r"unpaired, control at 43% 13 points 9\d\d ", text)
    assert re.search(r"paired, 20% disagree 8\.\d+ points 3\d\d ", text)
    assert re.search(r"paired, 5 seeds, spread 1 points 8\.\d+ points -", text)


def test_many_comparisons_see_less():
    assert "unpaired, control at 43% 16.8 points" in said(comparisons=9)


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"rate": 43.0}, "--rate 43.0: expected a share"),
        ({"seeds": 5}, r"--seeds needs --discordance.* 0\.49 here"),
        ({"seed_spread": 0.1}, "--seed-spread takes no effect"),
        ({"difference": 0.0}, "no number of items"),
    ],
)
def test_what_makes_no_sense_is_refused(options, message):
    with pytest.raises(ValueError, match=message):
        said(**options)


def test_the_command_has_the_functions_options():
    assert set(command.__annotations__) - {"return"} == {"items", *OPTIONS}
