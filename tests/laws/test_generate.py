"""What generation promises: the uncached model's path, row by row, whatever surrounds a row."""

import dataclasses
import functools
import re

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from configs import layouts
from research.core.generation import FullEntropy, Sampling, TopEntropy
from research.core.parts import part
from research.core.records import Batch
from research.core.vocabulary import entropy_of_logits
from research.models.architecture import Architecture
from research.models.attention.cached import attend_cached
from research.models.attention.reference import Reference
from research.models.attention.visibility import Visibility
from research.models.compute import Compute
from research.models.sampling import draw, kept_weights
from research.models.transformer import Transformer
from research.tuning.lora import Lora

FLOAT32 = 2e-5  # three layers of float32 products, summed in another order
NEAR_TIE = 1e-4  # logits this close may change places when sums are made in another order
V, N = 37, 9
ARCH = Architecture(
    vocab_size=V,
    model_dim=20,
    num_layers=3,
    num_heads=6,
    num_kv_heads=2,
    head_dim=10,
    ffw_dim=28,
    query_key_norm=True,
    windows=(4, 4, None),
)
LENGTHS = (7, 3, 5)
GREEDY = Sampling(max_new_tokens=N)
SAMPLED = Sampling(max_new_tokens=N, temperature=0.9, top_k=23, top_p=0.95)


QUICK = {"xla_backend_optimization_level": 0}  # compiling is the cost of these tests
MODEL = Transformer(ARCH, layouts.single().on(jax.devices()), Compute())
ENTROPY = FullEntropy()


def noise(shape, scale: float) -> np.ndarray:
    return scale * np.random.RandomState(np.prod(shape)).randn(*shape).astype(np.float32)


@functools.cache
def params():
    """Give weights with which every token depends on what came before."""

    def fill(path, leaf):
        return noise(leaf.shape, 0.4) + ("norm" in str(path[-1]))

    return jax.device_put(jax.tree_util.tree_map_with_path(fill, MODEL.abstract()))


def text(seed: int, length: int) -> list[int]:
    return np.random.RandomState(seed).randint(0, V, length).tolist()


TEXTS = [text(seed, length) for seed, length in enumerate(LENGTHS)]


def prompts(texts: list[list[int]], width: int, left: bool = False) -> Batch:
    """Pad each text on one side; padding carries a token and a position, which must not matter."""
    shape = (len(texts), width)
    tokens, positions = np.full(shape, V - 1, np.int32), np.full(shape, 90, np.int32)
    segments = np.zeros(shape, np.int32)
    for row, ids in enumerate(texts):
        at = np.s_[row, width - len(ids) :] if left else np.s_[row, : len(ids)]
        tokens[at], positions[at], segments[at] = ids, np.arange(len(ids)), 1
    return Batch(
        tokens_BT=tokens,
        targets_BT=np.zeros(shape, np.int32),
        weights_BT=np.zeros(shape, np.float32),
        positions_BT=positions,
        segments_BT=segments,
        ids_BZ=np.arange(len(texts), dtype=np.int32)[:, None],
    )


def keys(ids) -> jax.Array:
    return jax.vmap(jax.random.fold_in, (None, 0))(jax.random.key(5), jnp.asarray(ids))


@functools.cache
def program(model: Transformer, stop_ids: tuple[int, ...]):
    """Give (params, batch, sampling, key_B, statistic) -> Generated, compiled quickly."""

    def made(params, batch, sampling, key_B, statistic):
        return model.generate(params, batch, sampling, stop_ids, key_B, statistic)

    return jax.jit(made, compiler_options=QUICK)


def run(batch, sampling=GREEDY, ids=None, stop_ids=(), model=MODEL, statistic=ENTROPY, tree=None):
    key_B = keys(range(len(batch.tokens_BT)) if ids is None else ids)
    tree = params() if tree is None else tree
    made = program(model, stop_ids)(tree, batch, sampling, key_B, statistic)
    return jax.tree.map(np.asarray, made)


@functools.cache
def base(sampling=GREEDY):
    """The three texts, right-padded to the longest."""
    return run(prompts(TEXTS, 7), sampling)


@functools.cache
def forward():
    return jax.jit(lambda batch: MODEL.apply(params(), batch).logits())


def predictions(row: int, made) -> np.ndarray:
    """The uncached logits from which the row's new tokens should have been chosen, [N, V]."""
    whole = TEXTS[row] + made.tokens_BN[row].tolist()
    logits = forward()(prompts([whole], max(LENGTHS) + N))
    return np.asarray(logits)[0, len(TEXTS[row]) - 1 : len(whole) - 1]


def assert_same(got, want):
    """Same tokens, and the same entropies within float32 noise."""
    np.testing.assert_array_equal(got.tokens_BN, want.tokens_BN)
    np.testing.assert_array_equal(got.lengths_B, want.lengths_B)
    np.testing.assert_allclose(got.entropy_BN, want.entropy_BN, atol=FLOAT32, rtol=FLOAT32)


def test_no_prediction_of_these_tests_is_a_near_tie():
    """The tests below may then ask for equal greedy tokens; where this fails, change the seed."""
    gaps = [np.diff(np.sort(predictions(row, base()), axis=-1)[:, -2:]) for row in range(3)]
    assert np.min(gaps) > NEAR_TIE


@pytest.mark.parametrize("sampling", [GREEDY, SAMPLED], ids=["greedy", "sampled"])
def test_entropies_are_those_of_the_uncached_model_along_the_same_path(sampling):
    made = base(sampling)
    for row in range(3):
        want = entropy_of_logits(predictions(row, made))
        np.testing.assert_allclose(made.entropy_BN[row], want, atol=FLOAT32, rtol=FLOAT32)


def test_greedy_takes_the_uncached_models_highest_logit():
    for row in range(3):
        np.testing.assert_array_equal(
            base().tokens_BN[row], predictions(row, base()).argmax(axis=-1)
        )
        assert len(np.unique(base().tokens_BN[row])) > 2  # no path is stuck


def test_the_truncated_entropy_is_of_the_likeliest_tokens_renormalised():
    made = run(prompts(TEXTS, 7), statistic=TopEntropy(count=5))
    for row in range(3):
        top = np.sort(predictions(row, made).astype(np.float64), axis=-1)[:, -5:]
        p = np.exp(top) / np.exp(top).sum(-1, keepdims=True)
        want = -(p * np.log(p)).sum(-1)
        np.testing.assert_allclose(made.entropy_BN[row], want, atol=FLOAT32, rtol=FLOAT32)


@pytest.mark.parametrize("sampling", [GREEDY, SAMPLED], ids=["greedy", "sampled"])
@pytest.mark.parametrize("left", [False, True], ids=["right_padded", "left_padded"])
def test_padding_and_batch_mates_change_nothing(sampling, left):
    mates = [text(8, 11), TEXTS[2], TEXTS[0], text(9, 2), TEXTS[1]]
    ids = (7, 2, 0, 8, 1)
    made = run(prompts(mates, 12, left), sampling, ids)
    assert_same(jax.tree.map(lambda x: x[np.array([2, 4, 1])], made), base(sampling))


def test_another_key_draws_another_path_and_the_same_key_the_same():
    same, other = (run(prompts(TEXTS, 7), SAMPLED, ids) for ids in ((0, 1, 2), (0, 9, 2)))
    np.testing.assert_array_equal(same.tokens_BN, base(SAMPLED).tokens_BN)
    changed = (other.tokens_BN != same.tokens_BN).any(axis=1)
    np.testing.assert_array_equal(changed, [False, True, False])


def test_a_stop_token_ends_its_own_row_and_counts_itself():
    path = base().tokens_BN
    stop = int(path[0, 3])
    made = run(prompts(TEXTS, 7), stop_ids=(stop, V + 5))
    for row in range(3):
        places = np.flatnonzero(path[row] == stop)
        length = places[0] + 1 if len(places) else N
        assert made.lengths_B[row] == length
        assert made.finished_B[row] == bool(len(places))
        np.testing.assert_array_equal(made.tokens_BN[row, :length], path[row, :length])
        np.testing.assert_array_equal(made.tokens_BN[row, length:], 0)
        np.testing.assert_allclose(
            made.entropy_BN[row, :length], base().entropy_BN[row, :length], atol=FLOAT32
        )
        assert (made.entropy_BN[row, :length] > 0).all()
        np.testing.assert_array_equal(made.entropy_BN[row, length:], 0)
    assert made.lengths_B.min() < N == made.lengths_B.max()


def test_without_stop_tokens_every_row_gets_all_its_tokens():
    assert (base().lengths_B == N).all()
    assert not base().finished_B.any()


def test_a_row_without_a_prompt_stays_empty():
    made = run(prompts([TEXTS[0], [], TEXTS[2]], 7))
    np.testing.assert_array_equal(made.lengths_B, [N, 0, N])
    assert not made.tokens_BN[1].any()
    assert not made.entropy_BN[1].any()
    np.testing.assert_array_equal(made.tokens_BN[::2], base().tokens_BN[::2])


@part
class Witness:
    """A statistic that tells how often it was computed."""

    calls: tuple = ()

    def __call__(self, logits_BV):
        jax.debug.callback(lambda: SEEN.append(1))
        return jnp.zeros(len(logits_BV))


SEEN: list[int] = []


def test_the_loop_ends_when_no_row_goes_on():
    SEEN.clear()
    stop_ids = tuple({int(base().tokens_BN[row, 3]) for row in range(3)})
    made = run(prompts(TEXTS, 7), stop_ids=stop_ids, statistic=Witness())
    jax.effects_barrier()
    assert len(SEEN) == made.lengths_B.max() <= 4


def test_scalars_of_the_sampling_share_one_compilation():
    base(SAMPLED)
    compiled = program(MODEL, ())._cache_size()
    run(prompts(TEXTS, 7), dataclasses.replace(SAMPLED, temperature=0.3, top_p=0.2))
    assert program(MODEL, ())._cache_size() == compiled


def test_logits_exist_for_one_token_a_row():
    made = jax.make_jaxpr(lambda p, b: MODEL.generate(p, b, GREEDY, (), None, ENTROPY))(
        MODEL.abstract(), prompts(TEXTS, 7)
    )
    shapes = {value.aval.shape for equation in equations(made.jaxpr) for value in equation.outvars}
    with_vocabulary = {shape for shape in shapes if V in shape and len(shape) > 1}
    assert (3, V) in with_vocabulary
    assert {np.prod(shape) for shape in with_vocabulary} == {3 * V}


def equations(jaxpr):
    """Walk every equation, also those inside loops and calls."""
    for equation in jaxpr.eqns:
        yield equation
        for value in jax.tree.leaves(list(equation.params.values())):
            inner = getattr(value, "jaxpr", value)
            if hasattr(inner, "eqns"):
                yield from equations(inner)


def test_no_step_copies_the_cache():
    """On a CPU arrays of the cache's shape are made once and written in place, never cut out."""
    args = params(), prompts(TEXTS, 7), GREEDY, keys(range(3)), ENTROPY
    rows, kv, width, slots = 3, 2, 10, 7 + N - 1
    made = rf"= f32\[(?:\d+,)?{rows},{kv},(?:{width},{slots}|{slots},{width})\]\S* "
    text = program(MODEL, ()).lower(*args).compile().as_text()
    assert re.search(made + r"dynamic-update-slice\(", text)
    assert not re.search(made + r"(?:copy|transpose|dynamic-slice)\(", text)


def test_eight_devices_generate_what_one_generates():
    texts = [text(20 + row, 3 + row % 4) for row in range(8)]
    model = dataclasses.replace(MODEL, place=layouts.data().on(jax.devices()))
    batch = prompts(texts, 7)
    placed = jax.device_put(batch, model.place.batch(batch))
    tree = jax.device_put(params(), model.place.weights(params()))
    assert_same(run(placed, SAMPLED, model=model, tree=tree), run(batch, SAMPLED))


def test_layers_scanned_as_on_an_accelerator_decode_like_layers_apart(monkeypatch):
    batch = prompts(TEXTS, 7)
    fed, at, real = np.array([[1], [2], [4]]), np.array([[7], [3], [5]]), np.ones((3, 1), int)

    def decode(params, batch):
        _, cache = MODEL.prefill(params, batch, 8)
        output, cache = MODEL.extend(MODEL.unstack(params), cache, fed, at, real)
        return output.logits(), jax.tree.map(jnp.stack, (cache.keys, cache.values), is_leaf=of_list)

    def of_list(x):
        return isinstance(x, tuple) and not isinstance(x[0], dict)

    apart = jax.jit(lambda *args: decode(*args), compiler_options=QUICK)(params(), batch)
    monkeypatch.setattr(Transformer, "unrolls_decoding", False)
    scanned = jax.jit(lambda *args: decode(*args), compiler_options=QUICK)(params(), batch)
    jax.tree.map(
        lambda a, b: np.testing.assert_allclose(a, b, atol=FLOAT32, rtol=FLOAT32), scanned, apart
    )


def test_adapters_generate_what_merged_weights_generate():
    tuning = Lora(rank=3, alpha=5.0, targets=("query_D_KGH", "down_F_D"))
    trainable, frozen = jax.jit(tuning.split)(params(), jax.random.key(0))
    trainable = jax.tree.map(lambda x: x + noise(x.shape, 0.2), trainable)
    adapted, merged = (
        run(prompts(TEXTS, 7), tree=tree)
        for tree in (tuning.join(trainable, frozen), jax.jit(tuning.merge)(trainable, frozen))
    )
    assert_same(adapted, merged)
    assert (merged.tokens_BN != base().tokens_BN).any()


@pytest.mark.parametrize("window", [None, 4])
@pytest.mark.parametrize("capped", [False, True], ids=["plain", "soft_cap_and_sinks"])
def test_cached_attention_is_attention(window, capped):
    rows, fed, slots, kv, group, width = 2, 3, 11, 5, 2, 6
    random = np.random.RandomState(0)
    query = random.randn(rows, fed, kv, group, width).astype(np.float32)
    key, value = random.randn(2, rows, slots, kv, width).astype(np.float32)
    seen = Visibility(
        query_positions_BT=np.array([[7, 8, 9], [3, 4, 0]]),
        query_segments_BT=np.array([[1, 1, 1], [1, 1, 0]]),
        key_positions_BS=np.array([range(11), [0, 1, 2, 9, 9, 9, 9, 9, 3, 4, 0]]),
        key_segments_BS=np.array([[1] * 10 + [0], [1] * 3 + [0] * 5 + [1, 1, 0]]),
        window=window,
        ordered=False,
    )
    extra = {"soft_cap": 1.5, "sinks_KG": random.randn(kv, group)} if capped else {}
    want = Reference()(query, key, value, seen, scale=0.4, **extra)
    stored = key.transpose(0, 2, 3, 1), value.transpose(0, 2, 1, 3)
    got = attend_cached(query, *stored, seen, scale=0.4, **extra)
    np.testing.assert_allclose(got, want, atol=FLOAT32)
    assert not np.asarray(got)[1, 2].any()


def filtered(logits_V: np.ndarray, sampling: Sampling) -> np.ndarray:
    """The distribution to draw from, by sorting, in float64; no two logits are equal."""
    p = np.exp(logits_V.astype(np.float64) / sampling.temperature)
    order = np.argsort(-p)
    kept = order[: sampling.top_k]
    if sampling.top_p is not None:
        share = p[kept] / p[kept].sum()
        kept = kept[np.cumsum(share) - share < sampling.top_p]
    kept_p = np.zeros_like(p)
    kept_p[kept] = p[kept] / p[kept].sum()
    return kept_p


FILTERS = [
    Sampling(max_new_tokens=1, temperature=0.8),
    Sampling(max_new_tokens=1, temperature=1.3, top_k=6),
    Sampling(max_new_tokens=1, temperature=0.7, top_p=0.7),
    Sampling(max_new_tokens=1, temperature=1.1, top_k=29, top_p=0.9),
    Sampling(max_new_tokens=1, temperature=2.0, top_k=400, top_p=1.0),
]


@pytest.mark.parametrize("sampling", FILTERS, ids=repr)
def test_drawing_follows_the_filtered_distribution_exactly(sampling):
    """Over an even grid of uniform numbers each id is drawn as often as its probability says."""
    num_draws, num_ids = 4000, 301  # more than two blocks of the draw, the last one not full
    logits = 2 * np.random.RandomState(1).randn(num_ids).astype(np.float32)
    weights = kept_weights(jnp.asarray(logits)[None], sampling)
    uniform = (np.arange(num_draws, dtype=np.float32) + 0.5) / num_draws
    drawn = jax.jit(draw)(jnp.broadcast_to(weights, (num_draws, num_ids)), uniform)
    share = np.bincount(np.asarray(drawn), minlength=num_ids) / num_draws
    want = filtered(logits, sampling)
    np.testing.assert_array_equal(np.asarray(weights)[0] > 0, want > 0)
    np.testing.assert_allclose(share, want, atol=2 / num_draws)  # an interval's two ends


def test_no_uniform_number_draws_an_id_of_weight_zero():
    weights = np.zeros((3, 300), np.float32)
    weights[0, [5, 130]] = 1.0, 1e-9
    weights[1, 299] = 1e-30
    weights[2, [0, 128, 256]] = 1 / 3
    for uniform in (0.0, 1 / 3, 0.5, 1 - 2**-23, 1 - 2**-24):
        drawn = np.asarray(draw(jnp.asarray(weights), jnp.full(3, uniform, jnp.float32)))
        assert (weights[np.arange(3), drawn] > 0).all(), uniform


def test_generated_tokens_follow_the_softmax_at_the_temperature():
    """Chi-square over many keys; 4.5 standard deviations, so that a fixed seed cannot fail."""
    rows, sampling = 2000, Sampling(max_new_tokens=1, temperature=1.4, top_p=0.9)
    made = run(prompts([TEXTS[0]] * rows, 7), sampling)
    want = rows * filtered(predictions(0, base())[0], sampling)
    seen = np.bincount(made.tokens_BN[:, 0], minlength=V)
    assert not seen[want == 0].any()
    kept = want > 0
    chi_square, freedom = ((seen - want)[kept] ** 2 / want[kept]).sum(), kept.sum() - 1
    assert abs(chi_square - freedom) < 4.5 * np.sqrt(2 * freedom)


def test_what_cannot_take_effect_is_an_error():
    for wrong, message in (
        ({"temperature": 0.0}, "greedy decoding say None"),
        ({"top_k": 5}, "change nothing in greedy decoding"),
        ({"temperature": 1.0, "top_k": 0}, "top_k=0"),
        ({"temperature": 1.0, "top_p": 1.5}, "top_p=1.5"),
        ({"max_new_tokens": 0}, "max_new_tokens=0"),
    ):
        with pytest.raises(ValueError, match=message):
            Sampling(**({"max_new_tokens": 3} | wrong))
    with pytest.raises(ValueError, match="needs key_B"):
        MODEL.generate(params(), prompts(TEXTS, 7), SAMPLED, ())
    packed = dataclasses.replace(prompts(TEXTS, 7), ids_BZ=np.zeros((3, 2), np.int32))
    with pytest.raises(ValueError, match="up to 2 examples a row"):
        run(packed)
