"""The scorer over a real pool with a real model: every example once, whatever the machine."""

from __future__ import annotations

import dataclasses
import functools
import json
from pathlib import Path

import jax
import numpy as np
import pytest

from configs import curricula, layouts
from research.core.generation import Decoding
from research.core.layout import Layout
from research.core.parts import part
from research.core.protocols import View
from research.curriculum.estimators.length import Length
from research.curriculum.estimators.prefix_entropy import PrefixEntropy
from research.curriculum.estimators.teacher_forced_entropy import TeacherForcedEntropy
from research.curriculum.estimators.teacher_forced_loss import TeacherForcedLoss
from research.data.batches import single_rows
from research.data.pool import Data, open_pool
from research.data.sources import Jsonl
from research.data.tokenizer import open_tokenizer
from research.huggingface.folder import load, open_folder
from research.models.compute import Compute
from research.models.flops import attention_flops, kernel_parameters
from research.models.transformer import Transformer
from research.plan.collectives import collectives
from research.plan.hlo import read
from research.score.pool import (
    ScoringError,
    as_it_decodes,
    ask_pool,
    batches_of,
    score_batch,
)
from research.score.rows import score_rows
from research.score.views import render_views, scoring_flops
from research.train.prepare import elsewhere
from research.tuning.lora import Lora

FOLDER = Path(__file__).parents[2] / "experiments/assets/stories260k"
ONE = Layout().on(jax.devices()[:1])
EIGHT = layouts.fsdp().on(jax.devices())  # weights and rows both split
KEY = jax.random.key(17)
PREFIX = 5
ENTROPY = PrefixEntropy(prefix_tokens=PREFIX)
NOISE_NATS = 2e-5  # float32 sums of other shapes; measured 2e-6. Scores are ranked to 1e-4
GOLDEN_NATS = 1e-4  # our logits against those of another library

TURNS = 1000  # of a loop that ends by its data, so that what it holds is told from the rest
ANY_ROW_BYTES = 16  # whether any row goes on is asked of all devices
PROMPTS = [
    "Once upon a time",
    "Lily and Tom went to the park. They saw a big",
    "The dog was sad because",
    "Mom said",
    '"I like your hat," said the',
    "One day, a little bird wanted to fly to the moon, but the moon was very",
    "Tim had a red ball. He",
]


@part
class TraceCounter:
    """An estimator that scores an example by its id and counts how often it is traced."""

    name: str

    views = (View(content="training"),)
    new_tokens = 0

    def score(self, model, params, batches, key_B, stop_ids):
        TRACES.append((self.name, batches[0].tokens_BT.shape))
        return batches[0].ids_BZ[:, 0] / 2


TRACES: list[tuple] = []


def model_on(place):
    return Transformer(open_folder(FOLDER).architecture, place, Compute())


def params_on(place):
    return load(FOLDER, model_on(place))


@pytest.fixture(scope="module")
def params():
    return params_on(ONE)


def pool_of(folder, rows):
    file = folder / "rows.jsonl"
    file.write_text("\n".join(json.dumps(row) for row in rows))
    data = Data(sources=(Jsonl(path=str(file)),), row_tokens=512)
    return open_pool(data, open_tokenizer(str(FOLDER)))


@pytest.fixture(scope="module")
def pool(tmp_path_factory):
    rows = [{"id": f"p{i}", "prompt": p, "completion": " end."} for i, p in enumerate(PROMPTS)]
    return pool_of(tmp_path_factory.mktemp("pool"), rows)


@pytest.fixture(scope="module")
def numbers(tmp_path_factory):
    """A prime pool of rows of token ids, of many lengths."""
    rows = [{"id": f"n{i}", "input_ids": list(range(1, 3 + 5 * i))} for i in range(11)]
    return pool_of(tmp_path_factory.mktemp("numbers"), rows)


def scores_of(estimator, params, pool, ids=None, place=ONE, round_=0, **options):
    views = render_views(estimator, pool)
    ids = range(len(pool)) if ids is None else ids
    return ask_pool(
        estimator,
        model_on(place),
        params,
        views,
        ids,
        round_=round_,
        key=KEY,
        place=place,
        **options,
    ).finish()


@pytest.mark.parametrize("place", [ONE, EIGHT], ids=["one", "eight"])
def test_every_id_is_scored_exactly_once(numbers, place):
    ids = np.array([7, 2, 9, 0, 10])
    seen = []
    scored = scores_of(
        TraceCounter(name="once"),
        None,
        numbers,
        ids,
        place=place,
        rows_per_batch=3,
        watch=lambda done, total: seen.append((done, total)),
    )
    np.testing.assert_array_equal(scored.ids_N, ids)
    np.testing.assert_array_equal(scored.score_N, ids / 2)
    assert seen[-1] == (5, 5)
    everyone = scores_of(TraceCounter(name="once"), None, numbers, place=place, rows_per_batch=4)
    np.testing.assert_array_equal(everyone.score_N, np.arange(11) / 2)
    with pytest.raises(ValueError, match="1 ids come twice"):
        scores_of(TraceCounter(name="once"), None, numbers, [3, 3])


def test_batches_hold_every_id_in_the_smallest_bucket_that_fits():
    lengths_X = np.array([3, 40, 16, 17, 9, 100, 33])
    batches = list(batches_of(lengths_X, np.arange(7), 2, None))
    assert [(ids.tolist(), bucket) for ids, bucket in batches] == [
        ([5, 1], 128),
        ([6, 3], 64),
        ([2, 4], 16),
        ([0], 16),
    ]
    with pytest.raises(ValueError, match="has 100 tokens, the largest bucket 64"):
        list(batches_of(lengths_X, np.arange(7), 2, (64, 32)))


def test_rounds_and_subsets_share_one_program_a_bucket(numbers):
    for round_ in range(3):
        for ids in (range(11), range(round_, 11, 2), [10 - round_]):
            scores_of(
                TraceCounter(name="rounds"), None, numbers, ids, round_=round_, rows_per_batch=2
            )
    shapes = [shape for name, shape in TRACES if name == "rounds"]
    assert sorted(shapes) == [(2, 16), (2, 32), (2, 64)]


@pytest.fixture(scope="module")
def alone(params, pool):
    """Prefix entropy of each example on one device, in one large bucket."""
    return scores_of(ENTROPY, params, pool, rows_per_batch=7, buckets=(64,), stop_ids=(1, 2))


def test_scores_do_not_depend_on_devices_buckets_batch_or_order(params, pool, alone):
    ids = np.array([4, 0, 6, 1, 5, 3, 2])
    other = scores_of(
        ENTROPY, params_on(EIGHT), pool, ids, place=EIGHT, rows_per_batch=3, stop_ids=(1, 2)
    )
    np.testing.assert_allclose(other.score_N, alone.score_N[ids], atol=NOISE_NATS)
    assert alone.score_N.std() > 0.1


ENDS = PrefixEntropy(prefix_tokens=12)
STOPS = tuple(range(3, 512, 4))  # a quarter of all tokens: answers end anywhere


def test_rows_that_wait_for_a_place_score_as_in_batches_of_their_own(params, pool):
    views = render_views(ENDS, pool)
    options = {"stop_ids": STOPS, "rows_per_batch": 2, "buckets": (32,)}
    model, waiting = as_it_decodes(ENDS, model_on(ONE), views, 2)
    assert (model.decoding, waiting) == (Decoding(rows=2, admitted=1), 8)
    other, alone = as_it_decodes(ENDS, without_refill(), views, 2)
    assert (other.decoding, alone) == (Decoding(), 2)
    scored = [
        ask_pool(ENDS, m, params, views, range(7), round_=0, key=KEY, place=ONE, **options).finish()
        for m in (model_on(ONE), without_refill())
    ]
    np.testing.assert_allclose(scored[0].score_N, scored[1].score_N, atol=NOISE_NATS)
    assert scored[0].cost.flops == scored[1].cost.flops


def without_refill() -> Transformer:
    compute = Compute(scoring_refill=False)
    return dataclasses.replace(model_on(ONE), compute=compute)


def test_an_instruction_that_all_prompts_begin_with_is_read_once(params, tmp_path, monkeypatch):
    told = "Tom and Lily like to answer in a few short words. They say it in one line. "
    rows = [{"id": str(i), "prompt": told + p, "completion": "."} for i, p in enumerate(PROMPTS)]
    pool = pool_of(tmp_path, rows)
    views = render_views(ENDS, pool)
    model, _ = as_it_decodes(ENDS, model_on(ONE), views, 3)
    shared = model.decoding.shared_tokens
    tokens = [example.tokens for example in views.examples[0]]
    assert 16 <= shared < min(map(len, tokens))
    assert (
        len({tuple(t[:shared]) for t in tokens})
        == 1
        < len({tuple(t[: shared + 1]) for t in tokens})
    )
    options = {"rows_per_batch": 7, "stop_ids": STOPS, "buckets": (128,)}
    got = scores_of(ENDS, params, pool, **options)
    monkeypatch.setattr("research.score.pool.WORTH_SHARING", 9.0)
    assert as_it_decodes(ENDS, model_on(ONE), views, 7)[0].decoding == Decoding()
    want = scores_of(ENDS, params, pool, **options)
    np.testing.assert_allclose(got.score_N, want.score_N, atol=NOISE_NATS)


def test_cost_is_what_was_asked_for_without_discount(pool, params, alone):
    cost, arch = alone.cost, open_folder(FOLDER).architecture
    counts = np.array([len(e.tokens) for e in render_views(ENTROPY, pool).examples[0]])
    assert (cost.rows, cost.prefill_tokens) == (7, counts.sum())
    assert cost.generated_tokens == 7 * PREFIX
    body, head = kernel_parameters(arch, params)
    expected = (
        2 * body * (counts.sum() + 7 * PREFIX)
        + 2 * head * 7 * PREFIX
        + attention_flops(arch, counts + PREFIX).sum()
    )
    np.testing.assert_allclose(cost.flops, expected)
    views = render_views(Length(), pool)
    assert scoring_flops(Length(), arch, params, views).sum() == 0


def test_adapters_that_do_nothing_yet_change_no_score(params, pool):
    tuning = Lora(rank=2)
    trainable, frozen = tuning.split(params, jax.random.key(0))
    joined = tuning.join(trainable, frozen)
    plain, adapted = (
        scores_of(TeacherForcedLoss(), tree, pool, rows_per_batch=7, buckets=(64,))
        for tree in (params, joined)
    )
    np.testing.assert_array_equal(plain.score_N, adapted.score_N)
    assert adapted.cost.flops > plain.cost.flops


def test_a_round_with_a_score_that_is_not_finite_fails_by_name(params, pool):
    broken = jax.tree.map(lambda leaf: leaf * np.nan, params)
    with pytest.raises(ScoringError, match=r"7 of 7 scores .* first p0 \(.*rows.jsonl:1\)"):
        scores_of(TeacherForcedLoss(), broken, pool, rows_per_batch=7, buckets=(64,))


def test_a_model_scores_its_pool_and_the_hardest_part_is_planned(params, pool, alone):
    curriculum = curricula.edco(fraction=0.45, rounds=2, prefix_tokens=PREFIX, instruction="")
    state = curriculum.init(len(pool))
    ids = curriculum.ids_to_score(state, 0, seed=0)
    scored = dataclasses.replace(alone, ids_N=ids)
    state = curriculum.rescore(state, scored.ids_N, scored.score_N, 0, scored.cost.flops)
    state = curriculum.open_round(state, 0, seed=0)
    planned, state = curriculum.plan(state, 3, seed=0)
    assert sorted(planned) == sorted(np.argsort(-alone.score_N)[:3])
    assert state.scoring_flops == alone.cost.flops


def test_rows_for_people_agree_with_golden_logits(params, tmp_path):
    golden = np.load(FOLDER / "golden.npz")
    tokens, logits = golden["input_ids"].tolist(), golden["logits"].astype(np.float64)
    pool = pool_of(tmp_path, [{"id": "g", "input_ids": tokens}, {"id": "h", "input_ids": [1, 9]}])
    log_p = logits - np.log(np.exp(logits).sum(-1, keepdims=True))
    loss = -log_p[np.arange(len(tokens) - 1), tokens[1:]]
    entropy = -(np.exp(log_p) * log_p).sum(-1)[:-1]
    rows = score_rows(
        TeacherForcedLoss(), model_on(ONE), params, pool, key=KEY, place=ONE, per_token=True
    )
    first, second = rows
    assert (first["id"], first["num_tokens"], first["num_scored"]) == ("g", 125, 124)
    assert (second["id"], second["num_tokens"], second["num_scored"]) == ("h", 2, 1)
    np.testing.assert_allclose(first["token_loss_nats"], loss, atol=GOLDEN_NATS)
    np.testing.assert_allclose(first["token_entropy_nats"], entropy, atol=GOLDEN_NATS)
    assert abs(first["score_nats"] - loss.mean()) < GOLDEN_NATS
    assert len(second["token_loss_nats"]) == 1


def test_rows_for_people_describe_the_example_whatever_the_estimator(params, pool):
    rows = list(score_rows(Length(), model_on(ONE), params, pool, key=KEY, place=ONE))
    assert [row["id"] for row in rows] == list(pool.ids)
    assert [row["score_nats"] for row in rows] == pool.lengths_X.tolist()
    assert [row["num_tokens"] for row in rows] == pool.lengths_X.tolist()
    answer = [int(example.trained.sum()) for example in pool.examples]
    assert [row["num_scored"] for row in rows] == answer
    assert set(rows[0]) == {"id", "num_tokens", "num_scored", "score_nats"}


def test_weights_laid_out_for_scoring_are_not_gathered_for_every_token(pool, alone, monkeypatch):
    split = model_on(EIGHT)
    whole = elsewhere(split, layouts.data())
    held = params_on(EIGHT)
    moved = jax.device_put(held, whole.place.weights(held))
    views, ids = render_views(ENTROPY, pool), np.arange(len(pool))
    scored = ask_pool(
        ENTROPY, whole, moved, views, ids, round_=0, key=KEY, place=whole.place, stop_ids=(1, 2),
        rows_per_batch=3,
    ).finish()  # fmt: skip
    np.testing.assert_allclose(scored.score_N, alone.score_N, atol=NOISE_NATS)
    # As on a TPU or GPU, where layers are scanned; a CPU gathers all weights once a batch.
    monkeypatch.setattr(Transformer, "unrolls_decoding", False)
    assert sent_a_token(whole, moved, views) <= ANY_ROW_BYTES
    layers = sum(leaf.nbytes for leaf in jax.tree.leaves(held["layers"]))
    assert sent_a_token(split, held, views) > layers / 2


def sent_a_token(model, params, views) -> float:
    """Add up what a device sends in a turn of the loop that generates."""
    build = functools.partial(single_rows, views.examples[0], list(range(len(PROMPTS))), 32)
    batch = model.place.put_rows(8, build)
    lowered = score_batch.lower(
        ENTROPY, model, model.place, (1, 2, 3), params, (batch,), KEY, np.int32(0)
    )
    program = read(lowered.compile().as_text(), {"while": TURNS})
    found = collectives(program, model.place.mesh.shape)
    return sum(one.step_bytes for one in found if one.runs >= TURNS) / TURNS


def test_a_layout_for_scoring_that_cannot_be_is_refused(pool):
    with pytest.raises(ValueError, match=r"scoring_layout: .*'data': 3.* does not fit 1 devices"):
        elsewhere(model_on(ONE), layouts.data(3))
    with pytest.raises(ValueError, match=r"scoring_layout: .*axis . has size"):
        elsewhere(model_on(EIGHT), layouts.fsdp_tensor(8))


def test_entropy_of_the_whole_pool_is_the_same_on_eight_devices(params, numbers):
    one = scores_of(TeacherForcedEntropy(), params, numbers)
    eight = scores_of(TeacherForcedEntropy(), params_on(EIGHT), numbers, place=EIGHT)
    np.testing.assert_allclose(eight.score_N, one.score_N, atol=NOISE_NATS)
