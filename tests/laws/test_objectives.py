"""Laws of the objective: only trained targets count, however rows are cut, padded or packed."""

from __future__ import annotations

import dataclasses

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from research.core.layout import Layout
from research.core.records import Batch
from research.models.architecture import Architecture
from research.models.compute import Compute
from research.models.transformer import Transformer
from research.objectives.cross_entropy import CrossEntropy
from research.objectives.selective import Selective

ARCH = Architecture(
    vocab_size=29, model_dim=12, num_layers=2, num_heads=4, num_kv_heads=2, head_dim=6, ffw_dim=20
)
MODEL = Transformer(ARCH, Layout().on(jax.devices()[:1]), Compute())
PARAMS = MODEL.init(jax.random.key(0))
FLOAT32 = 1e-5  # nats: sums of some tens of terms in single precision
SUMS = 1e-6  # relative: the same terms, added in another order
GRADIENTS = 2e-5  # relative: the norm of a small embedding amplifies float32 noise some 20 times


def example(seed: int, length: int, trained_from: int) -> tuple[np.ndarray, np.ndarray]:
    """Give (tokens, which of them are trained targets)."""
    tokens = np.random.default_rng(seed).integers(1, ARCH.vocab_size, length)
    return tokens, np.arange(length) >= trained_from


EXAMPLES = [example(1, 7, 3), example(2, 5, 1), example(3, 9, 6)]


def pack(rows: list[list[int]], width: int, num_slots: int) -> Batch:
    """Lay examples out: `rows` lists which examples each row holds."""
    fields = {name: np.zeros((len(rows), width), np.int32) for name in ("tok", "tgt", "pos", "seg")}
    weights = np.zeros((len(rows), width), np.float32)
    ids = np.full((len(rows), num_slots), -1, np.int32)
    for row, held in enumerate(rows):
        start = 0
        for slot, index in enumerate(held):
            tokens, trained = EXAMPLES[index]
            span = slice(start, start + len(tokens))
            fields["tok"][row, span], fields["pos"][row, span] = tokens, np.arange(len(tokens))
            fields["seg"][row, span], ids[row, slot] = slot + 1, index
            fields["tgt"][row, start : span.stop - 1] = tokens[1:]
            weights[row, start : span.stop - 1] = trained[1:]
            start = span.stop
    return Batch(
        tokens_BT=jnp.asarray(fields["tok"]),
        targets_BT=jnp.asarray(fields["tgt"]),
        weights_BT=jnp.asarray(weights),
        positions_BT=jnp.asarray(fields["pos"]),
        segments_BT=jnp.asarray(fields["seg"]),
        ids_BZ=jnp.asarray(ids),
    )


@jax.jit
def see(params, batch, objective=CrossEntropy()):  # noqa: B008
    def loss(params):
        total, report = objective(MODEL, params, batch)
        return total.sum, (total, report)

    gradient, (total, report) = jax.grad(loss, has_aux=True)(params)
    return total, report, gradient


def by_id(report) -> dict[int, dict[str, float]]:
    rows = {name: np.asarray(values).ravel() for name, values in report.rows.items()}
    return {
        int(i): {name: float(values[n]) for name, values in rows.items() if name != "id"}
        for n, i in enumerate(rows["id"])
        if i >= 0
    }


def close(left, right, rtol: float, atol: float) -> None:
    jax.tree.map(lambda a, b: np.testing.assert_allclose(a, b, rtol=rtol, atol=atol), left, right)


def test_the_loss_is_the_textbook_formula_in_float64():
    batch = pack([[0], [1], [2]], 9, 1)
    total, report, _ = see(PARAMS, batch)
    logits = np.asarray(MODEL.apply(PARAMS, batch).logits(), np.float64)
    log_p = logits - np.log(np.exp(logits).sum(-1, keepdims=True))
    nats = -np.take_along_axis(log_p, np.asarray(batch.targets_BT)[..., None], -1)[..., 0]
    entropy = -(np.exp(log_p) * log_p).sum(-1)
    weights = np.asarray(batch.weights_BT, np.float64)
    assert float(total.sum) == pytest.approx((weights * nats).sum(), abs=FLOAT32)
    assert float(total.count) == weights.sum() == 4 + 4 + 3
    seen = report.totals["entropy_nats"]
    assert float(seen.sum) == pytest.approx((weights * entropy).sum(), abs=FLOAT32)
    for row, values in by_id(report).items():
        assert values["tokens"] == weights[row].sum()
        assert values["loss_nats"] == pytest.approx((weights * nats)[row].sum(), abs=FLOAT32)
        assert values["entropy_nats"] == pytest.approx((weights * entropy)[row].sum(), abs=FLOAT32)


def test_rows_of_weight_zero_change_nothing():
    batch = pack([[0], [1], [2]], 9, 1)
    silent = dataclasses.replace(batch, weights_BT=batch.weights_BT.at[1].set(0.0))
    garbage = dataclasses.replace(
        silent,
        tokens_BT=batch.tokens_BT.at[1].set(3),
        targets_BT=batch.targets_BT.at[1].set(7),
    )
    total, report, gradient = see(PARAMS, silent)
    other_total, other_report, other_gradient = see(PARAMS, garbage)
    assert total.sum == other_total.sum
    assert total.count == other_total.count == 4 + 3
    close(gradient, other_gradient, GRADIENTS, FLOAT32)
    assert by_id(report) == by_id(other_report)
    assert by_id(report)[1] == {"tokens": 0, "loss_nats": 0, "entropy_nats": 0}


def test_packed_examples_equal_unpacked_ones():
    total, report, gradient = see(PARAMS, pack([[0], [1], [2]], 9, 1))
    packed_total, packed_report, packed_gradient = see(PARAMS, pack([[1, 2], [0]], 16, 2))
    close(total, packed_total, SUMS, 0)
    close(gradient, packed_gradient, GRADIENTS, FLOAT32)
    close(by_id(report), by_id(packed_report), SUMS, FLOAT32)


def test_micro_batches_add_up_to_the_whole_batch():
    total, report, gradient = see(PARAMS, pack([[0], [1], [2]], 9, 1))
    pieces = [see(PARAMS, pack([[index]], 9, 1)) for index in range(3)]
    summed = pieces[0][1] + pieces[1][1] + pieces[2][1]
    close(pieces[0][0] + pieces[1][0] + pieces[2][0], total, SUMS, 0)
    close(
        jax.tree.map(lambda *g: sum(g), *(piece[2] for piece in pieces)),
        gradient,
        GRADIENTS,
        FLOAT32,
    )
    close(summed.totals, report.totals, SUMS, 0)
    close(by_id(summed), by_id(report), SUMS, FLOAT32)


def test_fractional_weights_scale_their_targets():
    batch = pack([[0], [1], [2]], 9, 1)
    half = dataclasses.replace(batch, weights_BT=0.5 * batch.weights_BT)
    (total, _, _), (half_total, _, _) = see(PARAMS, batch), see(PARAMS, half)
    close(jax.tree.map(lambda x: 0.5 * x, total), half_total, SUMS, 0)


def test_entropy_is_reported_only_where_it_is_asked_for():
    batch = pack([[0], [1], [2]], 9, 1)
    with_entropy, report, gradient = see(PARAMS, batch)
    without, bare, bare_gradient = see(PARAMS, batch, CrossEntropy(entropy=False))
    assert set(report.totals) - set(bare.totals) == {"entropy_nats"}
    assert set(report.rows) - set(bare.rows) == {"entropy_nats"}
    close((with_entropy, gradient), (without, bare_gradient), GRADIENTS, FLOAT32)


HARDEST_TWO = Selective(objective=CrossEntropy(), keep_percent=50)  # of three rows, rounded up


def test_selective_backpropagation_has_the_gradient_of_the_hardest_rows_alone():
    batch = pack([[0], [1], [2]], 9, 1)
    total, report, gradient = see(PARAMS, batch, HARDEST_TWO)
    losses = {row: seen["loss_nats"] / seen["tokens"] for row, seen in by_id(report).items()}
    kept = sorted(losses, key=losses.__getitem__)[1:]
    alone, _, expected = see(PARAMS, pack([[row] for row in sorted(kept)], 9, 1))
    close(gradient, expected, rtol=GRADIENTS, atol=FLOAT32)
    assert float(total.count) == float(alone.count)
    assert float(total.sum) == pytest.approx(float(alone.sum), rel=SUMS)
    assert report.totals["kept_loss_nats"].mean > report.totals["loss_nats"].mean


def test_selective_backpropagation_reports_every_row_in_its_place():
    batch = pack([[2], [0, 1]], 14, 2)
    _, plain, _ = see(PARAMS, batch)
    _, seen, _ = see(PARAMS, batch, Selective(objective=CrossEntropy(), keep_percent=1))
    close(seen.rows, plain.rows, rtol=SUMS, atol=FLOAT32)
    assert float(seen.totals["loss_nats"].count) == 11
    assert float(seen.totals["kept_loss_nats"].count) in (3, 8)


def test_keeping_all_rows_is_the_objective_itself_and_padding_is_never_kept():
    batch = pack([[0], [1], [2]], 9, 1)
    everything = Selective(objective=CrossEntropy(), keep_percent=100)
    close(see(PARAMS, batch, everything)[2], see(PARAMS, batch)[2], rtol=SUMS, atol=FLOAT32)
    padded = pack([[], [], [0], []], 9, 1)
    total, _, _ = see(PARAMS, padded, Selective(objective=CrossEntropy(), keep_percent=25))
    assert float(total.count) == 4


def test_how_many_rows_are_kept_is_static_and_at_least_one():
    kept = [Selective(objective=CrossEntropy(), keep_percent=p).num_kept(7) for p in (1, 30, 100)]
    assert kept == [1, 3, 7]
    with pytest.raises(ValueError, match="keep_percent=0"):
        Selective(objective=CrossEntropy(), keep_percent=0)
