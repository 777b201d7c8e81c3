"""Every family gives the numbers of transformers: logits, gradients, four steps, and files."""

from __future__ import annotations

import functools
import json
import tempfile
from pathlib import Path
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest
from safetensors.numpy import load_file
from scipy.special import logsumexp

from configs import models
from research.core.generation import Sampling
from research.core.layout import Layout
from research.core.records import Batch
from research.core.vocabulary import token_statistics
from research.huggingface.export import save
from research.huggingface.families.known import family_for
from research.huggingface.family import by_name, foreign_value, read_architecture, tensors_of
from research.huggingface.folder import load, open_folder
from research.models.compute import Compute
from research.models.transformer import Transformer
from tests.parity.checkpoints import CASES, config_of, write_checkpoint
from tests.parity.make_oracles import (
    ADAMW,
    ADAMW_EPS,
    NEW_TOKENS,
    NUM_STEPS,
    STORED,
    probe,
    reference,
    rows_of,
    shrink,
)

TINY_PRESETS = (
    models.tiny_llama,
    models.tiny_mistral,
    models.tiny_qwen2,
    models.tiny_qwen3,
    models.tiny_gemma2,
    models.tiny_gemma3,
    models.tiny_phi3,
    models.tiny_smollm3,
    models.tiny_granite,
    models.tiny_olmo2,
    models.tiny_glm4,
    models.tiny_gpt2,
)
CONTINUED = (  # one a family, and what goes by length; compiling a loop is the cost
    "llama_llama3",
    "llama_dynamic",
    "qwen2_windows",
    "qwen3_windows",
    "mistral_window",
    "olmo2_dynamic",
    "gemma2_windows",
    "gemma3_windows",
    "granite",
    "smollm3",
    "phi3_longrope",
    "glm4",
    "gpt2",
)
LOGIT_TOLERANCE = 1e-4  # float32 noise between two summation orders is about 1.3e-5
RELATIVE_TOLERANCE = 1e-4  # of a gradient's or weight's norm, for the same reason
QUICK = {"xla_backend_optimization_level": 0}  # compiling is the cost of these tests
STORIES = Path(__file__).parents[2] / "experiments" / "assets" / "stories260k"


@functools.cache
def stored() -> dict[str, np.ndarray]:
    """The stored answers of all cases."""
    with np.load(STORED) as held:
        return dict(held)


def open_model(folder: Path) -> tuple[Transformer, Any]:
    """Open a folder on one device, in float32."""
    arch = open_folder(folder).architecture
    model = Transformer(arch, Layout().on(jax.devices()[:1]), Compute())
    return model, load(folder, model)


def batch_of(rows: dict[str, np.ndarray]) -> Batch:
    """One example a row, padding in segment 0."""
    return Batch(
        tokens_BT=rows["tokens"].astype(np.int32),
        targets_BT=rows["targets"].astype(np.int32),
        weights_BT=rows["trained"].astype(np.float32),
        positions_BT=rows["positions"].astype(np.int32),
        segments_BT=rows["real"].astype(np.int32),
        ids_BZ=np.arange(len(rows["tokens"]), dtype=np.int32)[:, None],
    )


def mean_loss(model: Transformer, params: Any, batch: Batch) -> tuple[jax.Array, dict]:
    """Mean cross-entropy over trained tokens, as objectives compute it; what it is made of."""
    output = model.apply(params, batch)
    logprob_BT, _ = token_statistics(output, batch.targets_BT)
    total = -jnp.sum(logprob_BT * batch.weights_BT)
    seen = {"logits": output.logits(), "token_losses": -logprob_BT}
    return total / jnp.sum(batch.weights_BT), seen


@functools.cache
def ours(case: str) -> dict[str, Any]:
    """The answers of this project, in the shape of `reference`."""
    with tempfile.TemporaryDirectory() as folder:
        model, params = open_model(write_checkpoint(Path(folder), case))
        family = open_folder(folder).family
    tensors = by_name(tensors_of(family, model.arch, params))
    right, left = rows_of(case, left=False), rows_of(case, left=True)
    left_untrained = left | {"trained": np.zeros_like(left["trained"])}
    both = {name: np.concatenate([right[name], left_untrained[name]]) for name in right}
    seen = jax.tree.map(np.asarray, steps(model, params, batch_of(both)))

    def foreign(kind: str, step: int) -> dict[str, np.ndarray]:
        tree = jax.tree.map(lambda stacked: stacked[step], seen[kind])
        return {name: foreign_value(tree, *parts) for name, parts in tensors.items()}

    return {
        "logits_right": seen["logits"][0][: len(right["real"])][right["real"]],
        "logits_left": seen["logits"][0][len(right["real"]) :][left["real"]],
        "losses": seen["losses"],
        "token_losses": seen["token_losses"][0][: len(right["real"])][right["trained"]],
        "gradients": foreign("gradients", 0),
        "weights": foreign("weights", NUM_STEPS),
    }


@functools.partial(jax.jit, static_argnums=0, compiler_options=QUICK)
def steps(model: Transformer, params: Any, batch: Batch) -> dict[str, Any]:
    """What AdamW sees before each step and after the last, stacked; one program, compiled once."""
    b1, b2 = ADAMW["betas"]
    rate, decay = ADAMW["lr"], ADAMW["weight_decay"]
    optimizer = optax.adamw(rate, b1=b1, b2=b2, eps=ADAMW_EPS, weight_decay=decay)
    loss_and_gradient = jax.value_and_grad(lambda p: mean_loss(model, p, batch), has_aux=True)

    def step(carry: tuple, _: None) -> tuple:
        params, state = carry
        (loss, seen), gradients = loss_and_gradient(params)
        updates, state = optimizer.update(gradients, state, params)
        seen |= {"losses": loss, "gradients": gradients, "weights": params}
        return (optax.apply_updates(params, updates), state), seen

    _, seen = jax.lax.scan(step, (params, optimizer.init(params)), None, NUM_STEPS + 1)
    return seen


@pytest.mark.parametrize("case", CASES, scope="module")
def test_logits_equal_the_stored_ones_whichever_side_is_padded(case):
    expected = stored()[f"{case}/logits_right"]  # transformers gives the same on the left
    for side in ("right", "left"):
        difference = np.abs(ours(case)[f"logits_{side}"] - expected).max()
        assert difference < LOGIT_TOLERANCE, side
        assert np.ptp(expected) > 1, "logits near zero would agree by accident"


@pytest.mark.parametrize("case", CASES, scope="module")
def test_the_loss_of_every_token_is_that_of_the_stored_logits(case):
    rows = rows_of(case, left=False)
    logits_MV = stored()[f"{case}/logits_right"].astype(np.float64)
    trained = rows["trained"][rows["real"]]
    expected = (
        logsumexp(logits_MV, axis=1)
        - logits_MV[np.arange(len(logits_MV)), rows["targets"][rows["real"]]]
    )
    np.testing.assert_allclose(
        ours(case)["token_losses"], expected[trained], rtol=0, atol=LOGIT_TOLERANCE
    )


@pytest.mark.parametrize("case", CASES, scope="module")
def test_gradients_and_four_adamw_steps_equal_the_stored_ones(case):
    mine = shrink(ours(case))
    np.testing.assert_allclose(
        mine["losses"], stored()[f"{case}/losses"], rtol=0, atol=LOGIT_TOLERANCE
    )
    for kind in ("gradients", "weights"):
        expected = stored()[f"{case}/{kind}"]
        assert mine[kind].shape == expected.shape
        error = np.abs(mine[kind] - expected).max(axis=1) / expected[:, 0]
        assert error.max() < 10 * RELATIVE_TOLERANCE, kind  # a product with up to 10^3 numbers


@pytest.mark.parametrize("case", CONTINUED, scope="module")
def test_sixteen_tokens_of_greedy_continuation_equal_the_stored_ones(case, tmp_path):
    model, params = open_model(write_checkpoint(tmp_path, case))
    rows = rows_of(case, left=False)
    rows["positions"] = np.arange(rows["real"].shape[1]) * rows["real"]
    sampling = Sampling(max_new_tokens=NEW_TOKENS)

    def made(params: Any, prompts: Batch) -> jax.Array:
        return model.generate(params, prompts, sampling, ()).tokens_BN

    tokens_BN = jax.jit(made, compiler_options=QUICK)(params, batch_of(rows))
    assert stored()[f"{case}/lead"] > LOGIT_TOLERANCE, "a near tie may be broken either way"
    np.testing.assert_array_equal(tokens_BN, stored()[f"{case}/greedy"])


@pytest.mark.parametrize("case", CASES, scope="module")
def test_transformers_agrees_live_on_every_number(case, tmp_path):
    pytest.importorskip("torch")
    theirs, mine = reference(write_checkpoint(tmp_path, case), case), ours(case)
    for name in ("logits_right", "logits_left", "losses"):
        np.testing.assert_allclose(mine[name], theirs[name], rtol=0, atol=LOGIT_TOLERANCE)
    for kind in ("gradients", "weights"):
        assert mine[kind].keys() == theirs[kind].keys()
        for name, expected in theirs[kind].items():
            error = np.linalg.norm(mine[kind][name] - expected) / np.linalg.norm(expected)
            assert error < RELATIVE_TOLERANCE, (kind, name, error)
    if theirs["lead"] > LOGIT_TOLERANCE:
        np.testing.assert_array_equal(theirs["greedy"], stored()[f"{case}/greedy"])
    for name in ("logits_right", "losses", "gradients", "weights"):
        np.testing.assert_allclose(
            shrink(theirs)[name], stored()[f"{case}/{name}"], rtol=1e-3, atol=LOGIT_TOLERANCE
        )


@pytest.mark.parametrize("case", CASES, scope="module")
def test_write_back_loads_in_transformers_with_the_same_logits(case, tmp_path):
    torch = pytest.importorskip("torch")
    from transformers import AutoModelForCausalLM

    source = write_checkpoint(tmp_path / "source", case)
    model, params = open_model(source)
    written = save(tmp_path / "written", model, params, source=source, max_shard_bytes=9_000)
    assert len(list(written.glob("*.safetensors"))) > 1
    loaded, info = AutoModelForCausalLM.from_pretrained(written, output_loading_info=True)
    assert not any(info[key] for key in ("missing_keys", "unexpected_keys", "mismatched_keys"))
    first = AutoModelForCausalLM.from_pretrained(source)
    rows = rows_of(case, left=False)
    inputs = {
        "input_ids": torch.tensor(rows["tokens"]),
        "position_ids": torch.tensor(rows["positions"]),
        "attention_mask": torch.tensor(rows["real"].astype(np.int64)),
    }
    with torch.no_grad():
        assert torch.equal(loaded(**inputs).logits, first(**inputs).logits)


@pytest.mark.parametrize("preset", TINY_PRESETS, ids=lambda preset: preset.__name__)
def test_a_fresh_model_of_every_family_opens_in_transformers(preset, tmp_path):
    pytest.importorskip("torch")
    from transformers import AutoModelForCausalLM

    model = Transformer(preset(), Layout().on(jax.devices()[:1]), Compute())
    params = jax.tree.map(lambda leaf: np.full(leaf.shape, 0.1, np.float32), model.abstract())
    folder = save(tmp_path / "fresh", model, params)
    loaded, info = AutoModelForCausalLM.from_pretrained(folder, output_loading_info=True)
    assert not any(info[key] for key in ("missing_keys", "unexpected_keys", "mismatched_keys"))
    assert loaded.config.model_type == family_for(preset()).model_type
    assert all((value == np.float32(0.1)).all() for value in loaded.parameters())


@pytest.mark.parametrize("case", CASES, scope="module")
def test_write_back_is_bit_for_bit_what_was_read(case, tmp_path):
    source = write_checkpoint(tmp_path / "source", case)
    model, params = open_model(source)
    written = save(tmp_path / "written", model, params, source=source)
    old = load_file(source / "model.safetensors")
    new = load_file(written / "model.safetensors")
    assert old.keys() == new.keys()
    assert all(np.array_equal(old[name], new[name]) for name in old)
    assert open_folder(written).architecture == model.arch


@pytest.mark.parametrize("case", CASES, scope="module")
def test_configs_of_transformers_4_and_5_read_alike(case, tmp_path):
    from transformers import AutoConfig

    folder = write_checkpoint(tmp_path / "old", case)
    opened = open_folder(folder)
    AutoConfig.from_pretrained(folder).save_pretrained(tmp_path / "new")
    new = json.loads((tmp_path / "new" / "config.json").read_text())
    assert ("rope_parameters" in new) == ("rope_theta" in config_of(case))
    assert new["architectures"] == config_of(case)["architectures"]
    assert read_architecture(opened.family, new, "new") == opened.architecture


def test_stories260k_gives_its_golden_logits():
    model, params = open_model(STORIES)
    with np.load(STORIES / "golden.npz") as golden:
        tokens_BT, expected_TV = golden["input_ids"][None], golden["logits"]
    length = tokens_BT.shape[1]
    rows = {
        "tokens": tokens_BT,
        "targets": tokens_BT,
        "trained": np.zeros((1, length)),
        "positions": np.arange(length)[None],
        "real": np.ones((1, length)),
    }
    logits_BTV = jax.jit(lambda p: model.apply(p, batch_of(rows)).logits())(params)
    assert np.abs(logits_BTV[0] - expected_TV).max() < LOGIT_TOLERANCE


def test_probes_see_a_single_changed_number():
    value = np.random.RandomState(0).standard_normal((5, 7))
    changed = value.copy()
    changed[2, 3] += 0.01 * np.linalg.norm(value)
    difference = np.abs(probe("x", value) - probe("x", changed)).max() / np.linalg.norm(value)
    assert difference > 10 * RELATIVE_TOLERANCE
