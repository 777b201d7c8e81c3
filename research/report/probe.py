"""What the curriculum of a run saw and chose, round by round, as the run recorded it."""

from __future__ import annotations

import dataclasses
import json
import re
from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
from scipy.stats import rankdata

from research.evaluate.results import Estimate
from research.evaluate.statistics import spearman
from research.report.runs import Arm, Line, Round, Run

QUARTERS = (
    "high score, high loss",
    "high score, low loss",
    "low score, high loss",
    "low score, low loss",
)


@dataclasses.dataclass(frozen=True, kw_only=True)
class Opening:
    """What one round saw and chose when it opened.

    Attributes:
      measured: examples that were scored anew for it.
      pool, selected: mean score of the pool, and of what was selected.
      new, kept: share of the selected that no earlier round had, and that the last one had too.
      coverage: share of the pool that this or an earlier round selected.
      with_last: rank correlation of the new scores with what the same examples had before.
      age: updates since the new scores were measured, in the mean; NaN where it is not recorded.
      corrupted: share of the selected whose answers are wrong on purpose; NaN where the pool does
        not say.
    """

    number: int
    step: int
    measured: int
    pool: float
    selected: float
    new: float
    kept: float
    coverage: float
    with_last: float
    age: float
    corrupted: float


def corrupted(run: Run) -> np.ndarray | None:
    """Give which examples of the pool have wrong answers on purpose; None: it does not say."""
    told = {x: line["corrupted"] for x, line in run.pool.items() if "corrupted" in line}
    return np.array([told.get(x, False) for x in range(len(run.pool))]) if told else None


def measured_anew(opened: Round) -> np.ndarray:
    """Give the scores [X] that the model of this very round gave; NaN where they are older."""
    rounds = opened.arrays.get("scored_round_X")
    return (
        opened.scores
        if rounds is None
        else np.where(rounds == opened.number, opened.scores, np.nan)
    )


def openings(run: Run) -> list[Opening]:
    """Follow a run's rounds."""
    seen, last, wrong = set(), None, corrupted(run)
    found = []
    for opened in run.rounds:
        chosen, scores = set(opened.selected.tolist()), measured_anew(opened)
        before = np.full_like(scores, np.nan) if last is None else last.scores
        kept = chosen & set([] if last is None else last.selected.tolist())
        new, seen = chosen - seen, seen | chosen
        found.append(
            Opening(
                number=opened.number,
                step=opened.step,
                measured=int(np.isfinite(scores).sum()),
                pool=mean(scores),
                selected=mean(opened.scores[opened.selected]),
                new=len(new) / max(len(chosen), 1),
                kept=float("nan") if last is None else len(kept) / max(len(chosen), 1),
                coverage=len(seen) / max(len(opened.scores), 1),
                with_last=spearman(before, scores).value,
                age=_age(opened),
                corrupted=float("nan") if wrong is None else mean(wrong[opened.selected] * 1.0),
            )
        )
        last = opened
    return found


def _age(opened: Round) -> float:
    """Give the mean age of the scores that were measured for a round, in updates."""
    steps = opened.arrays.get("scored_step_X")
    if steps is None:
        return float("nan")
    return mean(opened.step - steps[np.isfinite(measured_anew(opened))].astype(np.float64))


def by_round(told: Sequence[Sequence[Opening]], name: str) -> tuple[np.ndarray, np.ndarray]:
    """Give (round numbers, values [runs, rounds]) of a field of `Opening`; NaN where missing."""
    series = [{o.number: getattr(o, name) for o in opened} for opened in told]
    numbers = sorted(set().union(*series))
    values = [[found.get(number, np.nan) for number in numbers] for found in series]
    return np.asarray(numbers), np.asarray(values, np.float64)


def with_rounds(arms: Sequence[Arm]) -> list[Arm]:
    """Give the runs that chose more than once, by arm."""
    kept = [Arm(arm.name, tuple(run for run in arm.runs if len(run.rounds) > 1)) for arm in arms]
    return [arm for arm in kept if arm.runs]


def scored(arms: Sequence[Arm]) -> list[Arm]:
    """Give the runs that know a score of anything, by arm."""
    kept = [Arm(arm.name, tuple(run for run in arm.runs if _knows(run))) for arm in arms]
    return [arm for arm in kept if arm.runs]


def _knows(run: Run) -> bool:
    return any(np.isfinite(opened.scores).any() for opened in run.rounds)


def asked_again(run: Run) -> bool:
    """Whether the model itself was asked about the pool as a round opened.

    It was not where scores are what training reported of each example.
    """
    return any(np.isfinite(measured_anew(opened)).any() for opened in run.rounds)


def estimator_of(run: Run) -> str:
    """Name what a run's scores were measured by, with all its settings; empty: nothing."""
    described = (run.experiment.get("curriculum") or {}).get("estimator")
    return "" if described is None else json.dumps(described, sort_keys=True)


def label_of(run: Run) -> str:
    """Name a run's score for an axis, with its unit where it is known."""
    return _label((run.experiment.get("curriculum") or {}).get("estimator") or {})


def _label(described: Mapping[str, Any]) -> str:
    module, _, name = str(described.get("type", "score")).rpartition(".")
    if module.endswith(".expressions"):
        return "combined score"
    if name == "ScoredBy":
        return f"{_label(described['estimator'])} of another model"
    words = re.sub(r"(?<=[a-z])(?=[A-Z])", " ", name).lower()
    nats = any(word in words for word in ("entropy", "loss", "edco"))
    return f"{words} (nats)" if nats else words


@dataclasses.dataclass(frozen=True, kw_only=True)
class Pairs:
    """Score and loss of each example that a round trained on, when it first did.

    Attributes:
      round, example, step: which; N pairs in order.
      score: as the round opened, before any of its updates.
      loss: in nats a trained token, as the update saw it.
    """

    round: np.ndarray
    example: np.ndarray
    step: np.ndarray
    score: np.ndarray
    loss: np.ndarray

    def __len__(self) -> int:
        return len(self.round)

    def within_rounds(self) -> tuple[np.ndarray, np.ndarray]:
        """Give the places of (score, loss) among the pairs of the same round, in (0, 1)."""
        places = np.zeros((len(self), 2))
        for number in np.unique(self.round):
            here = self.round == number
            both = np.transpose([self.score[here], self.loss[here]])
            places[here] = (rankdata(both, axis=0) - 0.5) / here.sum()
        return places[:, 0], places[:, 1]

    def quarters(self) -> np.ndarray:
        """Give the index in QUARTERS of each pair, cut at the medians of its round."""
        score, loss = self.within_rounds()
        return 2 * (score <= 0.5) + (loss <= 0.5)


def pairs_of(run: Run) -> Pairs:
    """Put scores and losses together."""
    opened = {round_.number: round_ for round_ in run.rounds}
    seen = {line["step"]: line["loss_nats"] for line in run.losses}
    first: dict[tuple[int, int], tuple[int, float]] = {}
    for line in run.order:
        if line["round"] not in opened or line["step"] not in seen:
            continue
        for ids, losses in zip(line["rows"], seen[line["step"]], strict=True):
            for example, loss in zip(ids, losses, strict=True):
                if loss is not None:
                    first.setdefault((line["round"], example), (line["step"], loss))
    rows = [(n, x, step, opened[n].scores[x], loss) for (n, x), (step, loss) in first.items()]
    found = np.asarray(rows, np.float64).reshape(-1, 5)
    found = found[np.isfinite(found).all(axis=1)]
    number, example, step = found[:, :3].T.astype(np.int64)
    return Pairs(round=number, example=example, step=step, score=found[:, 3], loss=found[:, 4])


def agreement(runs: Sequence[Run]) -> Estimate:
    """Correlate score and loss inside each round of each run, and pool the ranks.

    Over all rounds at once the two would agree or not because both change as training goes on.
    """
    places = [pairs_of(run).within_rounds() for run in runs]
    return spearman(*np.concatenate([np.transpose(pair) for pair in places]).T)


def examples_of(pairs: Pairs, quarter: int, count: int) -> list[int]:
    """Give the pairs that lie deepest in a quarter, each example once, the deepest first."""
    score, loss = pairs.within_rounds()
    depth = np.minimum(np.abs(score - 0.5), np.abs(loss - 0.5))
    inside = np.flatnonzero(pairs.quarters() == quarter)
    chosen: dict[int, int] = {}
    for place in inside[np.argsort(-depth[inside], kind="stable")].tolist():
        chosen.setdefault(int(pairs.example[place]), place)
    return list(chosen.values())[:count]


def times_selected(run: Run) -> np.ndarray:
    """Count the rounds that selected each example of the pool."""
    counts = np.zeros(len(run.rounds[0].scores), np.int64)
    for opened in run.rounds:
        counts[np.unique(opened.selected)] += 1
    return counts


def mean_scores(run: Run) -> np.ndarray:
    """Give the mean of each example's scores [X] over the rounds; NaN where it has none."""
    scores = np.asarray([opened.scores for opened in run.rounds])
    known = np.isfinite(scores)
    total = np.where(known, scores, 0).sum(axis=0)
    return np.divide(total, known.sum(axis=0), out=np.full(len(total), np.nan), where=known.any(0))


def text_of(line: Line) -> str:
    """Give an example's text as the run kept it; empty where it kept none."""
    prompt, answer = (" ".join(str(line.get(part, "")).split()) for part in ("prompt", "answer"))
    return " \N{RIGHTWARDS ARROW} ".join(part for part in (prompt, answer) if part)


def mean(values: np.ndarray) -> float:
    """Give the mean of what is known; NaN where nothing is."""
    known = values[np.isfinite(values)]
    return float(known.mean()) if known.size else float("nan")
