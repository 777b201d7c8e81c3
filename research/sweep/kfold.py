"""Cross-validation: one experiment made into k, each tested on what it has not seen."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from typing import Any

from research.core.parts import vary
from research.core.protocols import Source
from research.data.pool import Weighted
from research.data.selection import Fold
from research.experiment import Experiment


def kfold(
    experiment: Experiment, folds: int, *, by: str = "id", salt: str = "fold"
) -> Iterator[Experiment]:
    """Yield `folds` experiments of one name, whose held-out folds are disjoint and cover the pool.

    Run number f trains on all rows but those of fold f; evaluators that read the same sources as
    the pool get that fold alone, others stay as they are. Its seed is `folds * seed + f`, so that
    fold f of every arm is paired with fold f of every other, and an experiment at several seeds
    makes runs that differ.

    Args:
      by: the field that decides a row's fold; rows that share it are never apart. It must be a
        field of the source that the pool reads, such as the sheet that several texts describe.
      salt: another text gives other folds.

    Raises:
      ValueError: no evaluator reads the pool's sources, so that nothing would be held out.

    Law: each row is held out in exactly one of the runs, and never trained on there.
    """
    sources = experiment.data.sources
    tested = [
        index for index, each in enumerate(experiment.evaluators) if each.data.sources == sources
    ]
    if not tested:
        raise ValueError(
            f"{experiment.name}: no evaluator reads data.sources, so no fold would be held out; "
            "give the evaluator the same sources as the pool, kfold takes them apart"
        )
    for fold in range(folds):
        rest, held = (
            folded(sources, by=by, fold=fold, folds=folds, salt=salt, held_out=held_out)
            for held_out in (False, True)
        )
        changes = {f"evaluators.{index}.data.sources": held for index in tested}
        changes |= {"seed": folds * experiment.seed + fold, "data.sources": rest}
        yield vary(experiment, changes)


def folded(sources: Sequence[Source | Weighted], **fold: Any) -> tuple[Source | Weighted, ...]:
    """Take the same fold of each source; weights stay."""
    return tuple(
        vary(each, {"source": Fold(source=each.source, **fold)})
        if isinstance(each, Weighted)
        else Fold(source=each, **fold)
        for each in sources
    )
