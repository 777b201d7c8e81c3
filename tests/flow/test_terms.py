"""Measurements of a curriculum on a real model: other models, guides, letters, and their cost."""

from __future__ import annotations

import json
from pathlib import Path

import jax
import numpy as np
import pytest

from configs import curricula, layouts
from research.core.layout import Layout
from research.core.parts import vary
from research.core.protocols import View
from research.curriculum.estimators.excess_loss import ExcessLoss
from research.curriculum.estimators.given import Given
from research.curriculum.estimators.gradient_norm import GradientNorm
from research.curriculum.estimators.gradient_similarity import GradientSimilarity
from research.curriculum.estimators.option_letters import OptionLetters
from research.curriculum.estimators.scored_by import ScoredBy
from research.curriculum.estimators.teacher_forced_loss import TeacherForcedLoss
from research.curriculum.expressions import nats
from research.curriculum.policies.top_fraction import TopFraction
from research.data.pool import Data, open_pool
from research.data.sources import Jsonl
from research.data.tokenizer import open_tokenizer
from research.huggingface.folder import load, open_folder
from research.huggingface.pretrained import Pretrained
from research.models.compute import Compute
from research.models.flops import forward_flops, training_flops
from research.models.transformer import Transformer
from research.objectives.cross_entropy import CrossEntropy
from research.objectives.selective import Selective
from research.score.pool import Gauge, ask_pool
from research.score.terms import ask_terms, open_terms
from research.score.views import render_views, scoring_flops
from research.train.budget import step_flops
from tests.flow.runs import tiny_run

FOLDER = Path(__file__).parents[2] / "experiments/assets/stories260k"
STORIES = Pretrained(folder=str(FOLDER))
PLACE = Layout().on(jax.devices()[:1])
MODEL = Transformer(open_folder(FOLDER).architecture, PLACE, Compute())
KEY = jax.random.key(5)
GRADIENTS = 1e-4  # relative: float32 sums of other shapes
ROWS = [
    {"id": "p0", "prompt": "Tim had a", "completion": " red ball.", "level": 2},
    {"id": "p1", "prompt": "Mom said", "completion": " no to the big dog.", "level": 0},
    {"id": "p2", "prompt": "The cat", "completion": " sat on a mat and ate.", "level": 1},
]
QUESTIONS = [
    {"id": "q0", "question": "What is red?", "options": ["a ball", "a fish"], "answer": 0},
    {"id": "q1", "question": "Who sat?", "options": ["a cat on it", "Tim"], "answer": "B"},
]


def data_of(folder, rows, name="rows"):
    file = folder / f"{name}.jsonl"
    file.write_text("\n".join(json.dumps(row) for row in rows))
    return Data(sources=(Jsonl(path=str(file)),), row_tokens=96)


def pool_of(folder, rows, name="rows"):
    return open_pool(data_of(folder, rows, name), open_tokenizer(str(FOLDER)))


@pytest.fixture(scope="module")
def params():
    return load(FOLDER, MODEL)


def measured(estimator, pool, params, before=None, round_=0):
    curriculum = curricula.round_wise(
        estimator, TopFraction(fraction=0.5), rounds=2, rescore_fraction=0.0
    )
    terms = open_terms(curriculum, pool, MODEL, ())
    ids = np.arange(len(pool))
    shape = (len(terms), len(pool))
    signals, cost = ask_terms(
        terms,
        np.full(shape, np.nan, np.float32) if before is None else before,
        params,
        ids,
        round_=round_,
        key=KEY,
        place=PLACE,
        rows_per_batch=3,
        gauge=Gauge(),
    ).finish()
    return signals, cost.flops


def test_a_model_that_scores_by_its_own_weights_scores_the_same_bits(params, tmp_path):
    pool = pool_of(tmp_path, ROWS)
    signal_YN, flops = measured(ExcessLoss(reference=STORIES), pool, params)
    np.testing.assert_array_equal(signal_YN[0], signal_YN[1])
    views = render_views(TeacherForcedLoss(), pool)
    once = scoring_flops(TeacherForcedLoss(), MODEL.arch, params, views).sum()
    assert flops == pytest.approx(2 * once)


def test_another_model_is_asked_once_and_the_rows_speak_for_nothing(params, tmp_path):
    pool = pool_of(tmp_path, ROWS)
    estimator = nats(ExcessLoss(reference=STORIES)) + nats(Given(field="level"))
    first, paid = measured(estimator, pool, params)
    np.testing.assert_array_equal(first[2], [2, 0, 1])
    other = jax.tree.map(lambda leaf: leaf * 1.1, params)
    second, again = measured(estimator, pool, other, before=first, round_=1)
    np.testing.assert_array_equal(second[1:], first[1:])
    assert (second[0] != first[0]).all()
    assert again == pytest.approx(paid / 2)


def test_a_reference_that_reads_other_tokens_is_refused_and_a_plain_scorer_is_not(params, tmp_path):
    other = tmp_path / "other"
    other.mkdir()
    for file in FOLDER.iterdir():
        (other / file.name).write_bytes(file.read_bytes())
    tokenizer = json.loads((other / "tokenizer.json").read_text())
    tokenizer["model"]["merges"] = tokenizer["model"]["merges"][:20]
    (other / "tokenizer.json").write_text(json.dumps(tokenizer))
    pool, strange = pool_of(tmp_path, ROWS), Pretrained(folder=str(other))
    with pytest.raises(ValueError, match=r"3 of 3 rows have other tokens there, first .*rows"):
        measured(ExcessLoss(reference=strange), pool, params)
    signal_YN, _ = measured(ScoredBy(estimator=TeacherForcedLoss(), model=strange), pool, params)
    views = render_views(TeacherForcedLoss(), pool.read_by(open_tokenizer(str(other))))
    alone = ask_pool(
        TeacherForcedLoss(), MODEL, params, views, range(3), round_=0, key=KEY, place=PLACE,
        rows_per_batch=3,
    ).finish()  # fmt: skip
    np.testing.assert_array_equal(signal_YN[0], alone.score_N)


def test_a_row_that_states_nothing_is_named(params, tmp_path):
    pool = pool_of(tmp_path, [*ROWS[:2], {**ROWS[2], "level": None}])
    with pytest.raises(ValueError, match=r"rows.jsonl:3: level=None is no number"):
        measured(Given(field="level"), pool, params)


def test_letters_are_the_tokens_where_the_options_begin_to_differ(params, tmp_path):
    pool = pool_of(tmp_path, QUESTIONS)
    tokenizer = open_tokenizer(str(FOLDER))
    slots = pool.views(range(2), View(content="slot"))
    letters = pool.views(range(2), View(content="letters"))
    for slot, letter, example, right in zip(slots, letters, pool.examples, (0, 1), strict=True):
        assert tokenizer.decode(slot.tokens).strip().endswith("Answer:")
        assert len(set(letter.tokens.tolist())) == 2
        start = example.tokens[: len(slot.tokens) + 1]
        np.testing.assert_array_equal(start, [*slot.tokens, letter.tokens[right]])
    (scores,), flops = measured(OptionLetters(), pool, params)
    assert (scores > 0).all()
    assert (scores <= np.log(2)).all()
    counts = np.array([len(slot.tokens) for slot in slots])
    expected = forward_flops(MODEL.arch, params, counts + 1, predictions=1).sum()
    assert flops == pytest.approx(expected)
    third = {**QUESTIONS[0], "options": ["a", "b", "c"]}  # here C is two tokens, of which B has one
    with pytest.raises(ValueError, match="its 3 letters do not each begin with a token"):
        measured(OptionLetters(), pool_of(tmp_path, [third]), params)
    with pytest.raises(ValueError, match="has no letters to choose from"):
        measured(OptionLetters(), pool_of(tmp_path, ROWS), params)


def test_gradients_agree_with_a_guide_of_the_row_itself_and_cost_a_backward_pass(params, tmp_path):
    pool, targets = pool_of(tmp_path, ROWS), ("final_norm_D", "up_D_F")
    guide = data_of(tmp_path, ROWS[1:2], "guide")
    estimator = GradientSimilarity(guide=guide, targets=targets, size=64)
    (scores,), flops = measured(estimator, pool, params)
    assert scores[1] == pytest.approx(1.0, abs=1e-5)
    assert (np.abs(np.delete(scores, 1)) < 0.99).all()
    counts = np.array([len(example.tokens) for example in pool.examples])
    kept = {
        "final_norm_D": params["final_norm_D"],
        "up_D_F": params["layers"]["0"]["ffw"]["up_D_F"],
    }
    one = training_flops(MODEL.arch, params, kept, counts)
    assert flops == pytest.approx(one.sum() + one[1])
    (norms,), alone = measured(GradientNorm(targets=targets), pool, params)
    assert (norms > 0).all()
    assert alone == pytest.approx(one.sum())


def test_gradients_of_single_rows_are_taken_where_rows_and_weights_are_split(params, tmp_path):
    place = layouts.fsdp().on(jax.devices())
    model = Transformer(MODEL.arch, place, Compute())
    estimator, pool = GradientNorm(targets=("final_norm_D",)), pool_of(tmp_path, ROWS)
    views = render_views(estimator, pool)
    one, eight = (
        ask_pool(
            estimator, model, tree, views, range(3), round_=0, key=KEY, place=model.place,
            rows_per_batch=3,
        ).finish().score_N
        for model, tree in ((MODEL, params), (model, load(FOLDER, model)))
    )  # fmt: skip
    np.testing.assert_allclose(eight, one, rtol=GRADIENTS)


def test_a_step_that_trains_on_a_part_is_charged_a_look_at_all_and_the_part(tmp_path):
    plain = tiny_run(tmp_path, {"micro_batches": 2})
    picky = vary(plain, {"objective": Selective(objective=CrossEntropy(), keep_percent=30)})
    model = Transformer(plain.model, PLACE, plain.compute)
    tokens = plain.data.row_tokens
    train = step_flops(plain, model) / plain.data.rows
    look = float(forward_flops(model.arch, model.abstract(), tokens))
    assert step_flops(picky, model) == pytest.approx(8 * look + 2 * 2 * train)
    assert step_flops(picky, model, whole=True) == step_flops(plain, model)
