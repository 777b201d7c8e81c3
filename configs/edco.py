"""The comparison around EDCO: a control for a small base, the authors' settings, and the arms.

Every function takes the folder of the assets, `experiments/assets`, and reads nothing.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping

from configs import curricula, domains
from research.checkpoint import Checkpoints
from research.clock import Clock
from research.core.parts import vary
from research.core.protocols import Source
from research.curriculum.curriculum import Curriculum
from research.curriculum.policies.round_wise_uniform import RoundWiseUniform
from research.data.pool import Data
from research.data.rows import Rendering
from research.data.sources import Jsonl
from research.evaluate.choice import MultipleChoice
from research.evaluate.likelihood import Likelihood
from research.experiment import Experiment
from research.huggingface.pretrained import Pretrained
from research.models.compute import Compute
from research.objectives.cross_entropy import CrossEntropy
from research.optimizers.adamw import AdamW
from research.optimizers.schedules import Linear
from research.tuning.full import Full

SEEDS = 5
QWEN3, LLAMA = "Qwen/Qwen3-4B", "meta-llama/Llama-3.2-3B-Instruct"  # the authors' models for SFT
SMALL_ROUNDS, RELEASED_ROUNDS = 4, 8
# A tenth of the questions: of the pool's share, what a laptop scores and learns in a minute.
SMALL_POOL = (0.30, 0.40)
SMALL_STEPS = 16 * SMALL_ROUNDS  # 16 a round: once through a quarter of the pool, 16 questions each
RELEASED_STEPS = 218 * RELEASED_ROUNDS
# Question and answer have 47 tokens in the mean; 89 % have no more than this, the others are left
# out of the pool.
ROW_TOKENS, LEFT_OUT = 64, 0.15
ASKED_TOKENS = 512  # a test question is read with all its options: 387 at most


def questions(assets: str, fraction: tuple[float, float]) -> Source:
    """Give some of O-RAN's questions, cut by their hash."""
    return domains.between(Jsonl(path=f"{assets}/oran_bench/train.jsonl.gz"), fraction)


def only_asked(assets: str) -> tuple[Source, ...]:
    """Give the 2,080 questions that no run is trained on."""
    dev = Jsonl(path=f"{assets}/oran_bench/dev.jsonl.gz")
    return questions(assets, domains.PARTS["test"]), dev


def closed_book(
    *sources: Source,
    rows: int,
    row_tokens: int = ROW_TOKENS,
    held_out: tuple[Source, ...] = (),
    left_out: float | None = None,
) -> Data:
    """Give rows of one example each: every arm then sees equally many examples a step.

    Args:
      held_out: what is tested, as prompt and completion; rows that ask the same are left out.
      left_out: the share of rows that may be left out, longer ones too; None: those are cut.
    """
    data = Data(
        sources=sources,
        rows=rows,
        row_tokens=row_tokens,
        rendering=Rendering(template=False),
        pack=False,
        truncate=left_out is None,
        held_out=held_out,
    )
    return data if left_out is None else vary(data, {"max_bad_fraction": left_out})


def lettered(
    *sources: Source, rows: int, truncate: bool = False, held_out: tuple[Source, ...] = ()
) -> Data:
    """Give rows of one question with shuffled options each, answered by letter and text."""
    return Data(
        sources=sources,
        rows=rows,
        row_tokens=1024,
        rendering=Rendering(answer="letter_and_text", shuffle_options=0),
        pack=False,
        truncate=truncate,
        held_out=held_out,
    )


def asked(
    *sources: Source, name: str, slice_by: tuple[str, ...] = (), row_tokens: int = ASKED_TOKENS
) -> MultipleChoice:
    """Ask questions without their options: which is the likeliest answer, by its text?

    Args:
      row_tokens: holds a question with all its options; what is computed is as long as it must be.
    """
    data = closed_book(*map(domains.cloze, sources), rows=64, row_tokens=row_tokens)
    by = ("text_per_byte",)
    return MultipleChoice(name=name, data=data, by=by, cloze=" {option}", slice_by=slice_by)


def told(*sources: Source, name: str) -> Likelihood:
    """Measure how likely the right answers are, in nats a token."""
    answers = map(domains.closed_book, sources)
    return Likelihood(name=name, data=closed_book(*answers, rows=64, row_tokens=ASKED_TOKENS))


def small(assets: str, pool: Source | None = None) -> Experiment:
    """Give the control arm for the small base: plain random order, closed-book.

    Args:
      pool: rows of question and answer_text; None: a tenth of O-RAN's questions.
    """
    source = questions(assets, SMALL_POOL) if pool is None else pool
    tested, _ = only_asked(assets)
    held_out = tuple(map(domains.closed_book, only_asked(assets)))
    learnt = domains.closed_book(source)
    return Experiment(
        name="random",
        model=Pretrained(folder=f"{assets}/edco_base"),
        data=closed_book(learnt, rows=16, held_out=held_out, left_out=LEFT_OUT),
        tuning=Full(),
        objective=CrossEntropy(),
        optimizer=AdamW(b1=0.9, b2=0.95, weight_decay=0.1),
        schedule=Linear(peak_lr=3e-4, warmup_fraction=0.05, final_fraction=0.05),
        schedule_spans_round=True,
        curriculum=curricula.random(),
        clock=Clock(
            steps=SMALL_STEPS,
            cycle_steps=SMALL_STEPS // SMALL_ROUNDS,
            save_every=0,
            evaluate_first=False,
        ),
        evaluators=(
            asked(tested, name="oran", slice_by=("difficulty",)),
            told(tested, name="right-answers"),
        ),
        checkpoints=Checkpoints(keep_last=1),
    )


def of_right_answers(control: Experiment) -> Experiment:
    """Evaluate the loss of right answers alone: a fifth of the time, and it tells more apart."""
    losses = [evaluator for evaluator in control.evaluators if isinstance(evaluator, Likelihood)]
    return vary(control, {"evaluators": tuple(losses)})


def released(assets: str, hub: str) -> Experiment:
    """Give the control arm with the authors' settings for SFT, on their models.

    Source: released code of EDCO, arXiv 2601.03725: pool 7,000, 8 rounds of 218 steps, batch 8,
      learning rate 2.5e-6 to 1.25e-7, fresh optimiser and schedule every round. Letters for
      answers and the test set are ours.
    """
    pool = questions(assets, domains.PARTS["pool"])
    tested = lettered(*only_asked(assets), rows=32)
    clock = Clock(steps=RELEASED_STEPS, cycle_steps=109, save_every=2, evaluate_every=0)
    letters = MultipleChoice(name="oran", data=tested, by=("letter",), slice_by=("difficulty",))
    return vary(
        small(assets),
        {
            "model": Pretrained(folder=hub),
            "data": lettered(pool, rows=8, held_out=only_asked(assets)),
            "schedule": Linear(peak_lr=2.5e-6, final_fraction=0.05),
            "clock": clock,
            "compute": Compute(dtype="bfloat16", remat="full"),
            "evaluators": (letters,),
        },
    )


def small_edco(**settings) -> Curriculum:
    """Give EDCO as the small base is trained with it."""
    shape = {"fraction": 0.25, "rounds": SMALL_ROUNDS, "prefix_tokens": 32, "instruction": ""}
    return curricula.edco(**(shape | settings))


def released_edco(**settings) -> Curriculum:
    """Give EDCO with the authors' rounds and a request for a quick answer."""
    shape = {"fraction": 0.25, "rounds": RELEASED_ROUNDS, "prefix_tokens": 64}
    return curricula.edco(**{"instruction": curricula.QUICK_ANSWER, **shape, **settings})


def measured(edco: Curriculum) -> Curriculum:
    """Give EDCO's fair control, scored like EDCO but for the record alone."""
    return vary(edco, {"policy": RoundWiseUniform(fraction=edco.policy.fraction)})


def small_arms() -> dict[str, Curriculum]:
    """Give every arm for the small base, the controls first; none asks for a quick answer, which
    the base would not understand, the release's in Chinese least of all."""
    release = curricula.edco_release(fraction=0.25, rounds=SMALL_ROUNDS)
    plain = {"estimator.prefix_tokens": 32, "estimator.instruction": ""}
    there = arms(rounds=SMALL_ROUNDS, prefix_tokens=32, instruction="")
    del there["length"]  # five runs less
    return there | {"EDCO release": vary(release, plain)}


def released_arms() -> dict[str, Curriculum]:
    """Give every arm with the authors' rounds and a request for a quick answer."""
    return arms(rounds=RELEASED_ROUNDS, prefix_tokens=64, instruction=curricula.QUICK_ANSWER)


def arms(*, rounds: int, prefix_tokens: int, instruction: str) -> dict[str, Curriculum]:
    """Give the arms of E1 by name."""
    shape = {"fraction": 0.25, "rounds": rounds}
    scored = shape | {"prefix_tokens": prefix_tokens, "instruction": instruction}
    edco = curricula.edco(**scored)
    return {
        "random": curricula.random(),
        "round-wise random": measured(edco),
        "EDCO": edco,
        "EDCO release": curricula.edco_release(**shape),
        "static EDCO": curricula.static_edco(**scored),
        "bottom": curricula.easiest(**scored),
        "static perplexity": curricula.static_perplexity(),
        "length": curricula.shortest_first(),
        "dynamic loss": curricula.dynamic_loss(**shape),
        "dynamic entropy": curricula.dynamic_entropy(**shape),
    }


def compare(
    control: Experiment, curriculums: Mapping[str, Curriculum], seeds: int = SEEDS
) -> Iterator[Experiment]:
    """Yield each arm at each seed; arms that share a seed share the order of chance."""
    for seed in range(seeds):
        for name, curriculum in curriculums.items():
            yield vary(control, {"name": name, "seed": seed, "curriculum": curriculum})
