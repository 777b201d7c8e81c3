"""Is what is tested also trained on? Found by normalised text, before anything is trained."""

from __future__ import annotations

from research.data.leakage import Leak, comparable, leaked
from research.data.pool import Pool
from research.evaluate.evaluate import opened
from research.experiment import Experiment


def find_leaks(experiment: Experiment, pool: Pool, vocab_size: int) -> tuple[Leak, ...]:
    """Give the rows of the pool that an evaluator's items repeat, whole or for the most part.

    Raises:
      ValueError: more than `experiment.max_leaked_fraction` of the pool equals a test row.
    """
    texts = [(example.id, comparable(example.row)) for example in pool.examples]
    leaks: dict[str, Leak] = {}
    for data in dict.fromkeys(evaluator.data for evaluator in experiment.evaluators):
        items = opened(data, pool.tokenizer, vocab_size).examples
        tested = [(example.id, comparable(example.row)) for example in items]
        for leak in leaked(texts, tested):
            if leak.equal or leak.pool_id not in leaks:
                leaks[leak.pool_id] = leak
    equal = [leak for leak in leaks.values() if leak.equal]
    if len(equal) > experiment.max_leaked_fraction * len(pool):
        pairs = ", ".join(f"{leak.pool_id} = {leak.test_id}" for leak in equal[:5])
        raise ValueError(
            f"{len(equal)} of {len(pool)} rows of the pool are also tested ({pairs}); split the "
            "data by what identifies a row (research/data/selection.py: Split), name the test "
            "source in data.held_out, or raise max_leaked_fraction"
        )
    return tuple(leaks.values())
