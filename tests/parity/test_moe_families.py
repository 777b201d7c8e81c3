"""Every mixture-of-experts family gives the numbers of transformers, and takes the same experts."""

from __future__ import annotations

import dataclasses
import functools
import json
import tempfile
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from safetensors.numpy import load_file, save_file

from research.core.generation import Sampling
from research.core.parts import vary
from research.core.records import Batch
from research.core.vocabulary import token_statistics
from research.huggingface.export import save
from research.huggingface.family import (
    Tensor,
    by_name,
    foreign_value,
    read_architecture,
    tensors_of,
)
from research.huggingface.folder import load, open_folder
from research.models.transformer import Transformer
from tests.parity.make_moe_oracles import STORED, reference, rows_of, watch_routers
from tests.parity.make_oracles import ADAMW, ADAMW_EPS, NEW_TOKENS, NUM_STEPS, shrink
from tests.parity.moe_checkpoints import CASES, config_of, write_checkpoint, write_packed_checkpoint
from tests.parity.test_families import (
    LOGIT_TOLERANCE,
    QUICK,
    RELATIVE_TOLERANCE,
    batch_of,
    open_model,
)

ROUNDING = 1e-7  # the norm of a gradient that is zero by the law, and rounding in fact
MARGIN = 1e-3  # by which every expert was chosen; float32 noise of a router's scores is 1e-5
CORRECTION = "e_score_correction_bias"  # a buffer in transformers: it has no gradient, and no step


def cases(*later: str) -> list[Any]:
    """All cases, some of them only in the slow run."""
    return [pytest.param(c, marks=pytest.mark.slow) if c in later else c for c in CASES]


COMPILED = cases("deepseek_v3_direct")
DECODED = cases("mixtral", "qwen3_moe_window", "olmoe", "deepseek_v3_direct", "glm4_moe")
"""At once with sinks and windows, and with latents; the others attend as dense families do."""


@functools.cache
def stored() -> dict[str, np.ndarray]:
    """The stored answers of all cases."""
    with np.load(STORED) as held:
        return dict(held)


@functools.cache
def opened(case: str) -> tuple[Transformer, Any, Mapping[str, list[Tensor]]]:
    """The model of a case, its parameters, and where they lie in the checkpoint."""
    with tempfile.TemporaryDirectory() as place:
        folder = write_checkpoint(Path(place), case)
        model, params = open_model(folder)
        family = open_folder(folder).family
    return model, params, by_name(tensors_of(family, model.arch, params))


@functools.cache
def ours(case: str) -> dict[str, Any]:
    """The answers of this project, in the shape of `reference`."""
    model, params, tensors = opened(case)
    right, left = rows_of(case, left=False), rows_of(case, left=True)
    left_untrained = left | {"trained": np.zeros_like(left["trained"])}
    both = {name: np.concatenate([right[name], left_untrained[name]]) for name in right}
    walk = functools.partial(look, model, batch=batch_of(both))
    params = jax.tree.map(np.array, params)
    seen, losses = walk(params), []
    answers = {
        "logits_right": seen["logits"][: len(right["real"])][right["real"]],
        "logits_left": seen["logits"][len(right["real"]) :][left["real"]],
        "token_losses": -seen["logprob"][: len(right["real"])][right["trained"]],
        "gradients": as_foreign(seen["gradients"], tensors),
    }
    state = jax.tree.map(lambda leaf: np.zeros((2, *leaf.shape), np.float32), params)
    for count in range(1, NUM_STEPS + 1):
        losses.append(seen["losses"])
        jax.tree_util.tree_map_with_path(
            functools.partial(step_in_place, count), params, state, seen["gradients"]
        )
        seen = walk(params)
    losses.append(seen["losses"])
    return answers | {"losses": np.array(losses), "weights": as_foreign(params, tensors)}


def as_foreign(tree: Any, tensors: Mapping[str, list[Tensor]]) -> dict[str, np.ndarray]:
    """Give what is learnt under the names of the checkpoint."""
    learnt = {name: parts for name, parts in tensors.items() if CORRECTION not in name}
    return {name: foreign_value(tree, *parts) for name, parts in learnt.items()}


def look(model: Transformer, params: Any, batch: Batch) -> dict[str, Any]:
    """What training sees at some weights, on the host."""
    return jax.tree.map(np.asarray, _look(model, params, batch))


@functools.partial(jax.jit, static_argnums=0, compiler_options=QUICK)
def _look(model: Transformer, params: Any, batch: Batch) -> dict[str, Any]:
    def loss_of(params: Any) -> tuple[jax.Array, Any]:
        output = model.apply(params, batch)
        logprob_BT, _ = token_statistics(output, batch.targets_BT)
        loss = -jnp.sum(logprob_BT * batch.weights_BT) / jnp.sum(batch.weights_BT)
        return loss, {"logits": output.logits(), "logprob": logprob_BT}

    (loss, seen), gradients = jax.value_and_grad(loss_of, has_aux=True)(params)
    return seen | {"losses": loss, "gradients": gradients}


def step_in_place(
    count: int, path: tuple, weight: np.ndarray, state: np.ndarray, gradient: np.ndarray
) -> None:
    """Take the `count`-th step of AdamW (arXiv 1711.05101, algorithm 2) with one leaf."""
    if "correction" in path[-1].key:
        return
    b1, b2 = ADAMW["betas"]
    mean, square = state
    mean += (1 - b1) * (gradient - mean)
    square += (1 - b2) * (gradient**2 - square)
    root = np.sqrt(square / (1 - b2**count)) + ADAMW_EPS
    weight *= 1 - ADAMW["lr"] * ADAMW["weight_decay"]
    weight -= ADAMW["lr"] * (mean / (1 - b1**count) / root)


@functools.cache
def continued(case: str) -> np.ndarray:
    """What the model goes on with, greedily, after each row without a jump in its positions."""
    model, params, _ = opened(case)
    rows = rows_of(case, left=False)
    rows["positions"] = np.arange(rows["real"].shape[1]) * rows["real"]

    def made(params: Any, prompts: Batch) -> jax.Array:
        return model.generate(params, prompts, Sampling(max_new_tokens=NEW_TOKENS), ()).tokens_BN

    return np.asarray(jax.jit(made, compiler_options=QUICK)(params, batch_of(rows)))


def far(mine: np.ndarray, theirs: np.ndarray) -> float:
    """The difference of two tensors, of the norm of theirs; an idle expert's gradient is zero."""
    return float(np.linalg.norm(mine - theirs) / max(np.linalg.norm(theirs), ROUNDING))


@pytest.mark.parametrize("case", CASES)
def test_no_token_was_near_a_tie_between_experts_or_words(case):
    assert stored()[f"{case}/margin"] > MARGIN
    assert stored()[f"{case}/lead"] > LOGIT_TOLERANCE


@pytest.mark.parametrize("case", COMPILED)
def test_logits_equal_the_stored_ones_whichever_side_is_padded(case):
    expected = stored()[f"{case}/logits_right"]  # transformers gives the same on the left
    for side in ("right", "left"):
        difference = np.abs(ours(case)[f"logits_{side}"] - expected).max()
        assert difference < LOGIT_TOLERANCE, side
        assert np.ptp(expected) > 1, "logits near zero would agree by accident"


@pytest.mark.slow
@pytest.mark.parametrize(
    ("case", "change"),
    [
        ("mixtral", {"moe.router.normalise": False}),
        ("mixtral", {"moe.experts_per_token": 1}),
        ("qwen3_moe_window", {"windows": ()}),
        ("olmoe", {"qkv_clip": None}),
        ("olmoe", {"moe.router.normalise": True}),
        ("gpt_oss_window", {"windows": (None, 3, None, 3)}),
        ("gpt_oss_window", {"activation.limit": 7.0}),
        ("gpt_oss_window", {"activation.alpha": 1.0}),
        ("gpt_oss_window", {"rope.scaling.truncate": True}),
        ("deepseek_v3", {"attention_scale": None}),
        ("deepseek_v3", {"latent.norm_eps": 1e-3}),
        ("deepseek_v3", {"rope.interleaved": False}),
        ("deepseek_v3", {"rope.scaling.mscale": 1.3}),
        ("deepseek_v3", {"moe.router.groups_kept": 4}),
        ("deepseek_v3", {"moe.router.scale": 1.0}),
        ("glm4_moe", {"rope.fraction": 1.0}),
        ("glm4_moe", {"moe.router.normalise": False}),
    ],
    ids=str,
)
def test_a_case_sees_every_detail_of_its_family(case, change):
    model, params, _ = opened(case)
    changed = dataclasses.replace(model, arch=vary(model.arch, change))
    rows = rows_of(case, left=False)
    forward = jax.jit(lambda p, b: changed.apply(p, b).logits(), compiler_options=QUICK)
    logits_BTV = np.asarray(forward(params, batch_of(rows)))[rows["real"]]
    assert np.abs(logits_BTV - stored()[f"{case}/logits_right"]).max() > 3 * LOGIT_TOLERANCE


@pytest.mark.parametrize("case", COMPILED)
def test_gradients_and_four_adamw_steps_equal_the_stored_ones(case):
    mine = shrink(ours(case))
    np.testing.assert_allclose(
        mine["losses"], stored()[f"{case}/losses"], rtol=0, atol=LOGIT_TOLERANCE
    )
    for kind in ("gradients", "weights"):
        expected = stored()[f"{case}/{kind}"]
        assert mine[kind].shape == expected.shape
        error = np.abs(mine[kind] - expected).max(axis=1) / np.maximum(expected[:, 0], ROUNDING)
        assert error.max() < 10 * RELATIVE_TOLERANCE, kind  # a product with up to 10^3 numbers


@pytest.mark.parametrize("case", DECODED)
def test_sixteen_tokens_of_greedy_continuation_equal_the_stored_ones(case):
    np.testing.assert_array_equal(continued(case), stored()[f"{case}/greedy"])


@pytest.mark.parametrize("case", COMPILED)
def test_transformers_agrees_live_on_every_number(case, tmp_path):
    pytest.importorskip("torch")
    theirs, mine = reference(write_checkpoint(tmp_path, case), case), ours(case)
    assert theirs["margin"] > MARGIN
    for name in ("logits_right", "logits_left", "token_losses", "losses"):
        np.testing.assert_allclose(mine[name], theirs[name], rtol=0, atol=LOGIT_TOLERANCE)
    for kind in ("gradients", "weights"):
        assert mine[kind].keys() == theirs[kind].keys()
        for name, expected in theirs[kind].items():
            assert far(mine[kind][name], expected) < RELATIVE_TOLERANCE, (kind, name)
    np.testing.assert_array_equal(theirs["greedy"], stored()[f"{case}/greedy"])
    for name in ("logits_right", "losses", "gradients", "weights"):
        np.testing.assert_allclose(
            shrink(theirs)[name], stored()[f"{case}/{name}"], rtol=1e-3, atol=LOGIT_TOLERANCE
        )


@pytest.mark.parametrize("case", CASES)
def test_write_back_loads_in_transformers_with_the_same_logits(case, tmp_path):
    torch = pytest.importorskip("torch")
    from transformers import AutoModelForCausalLM

    source = write_checkpoint(tmp_path / "source", case)
    model, params = open_model(source)
    written = save(tmp_path / "written", model, params, source=source, max_shard_bytes=20_000)
    assert len(list(written.glob("*.safetensors"))) > 1
    loaded, info = AutoModelForCausalLM.from_pretrained(
        written, output_loading_info=True, experts_implementation="eager"
    )
    assert not any(info[key] for key in ("missing_keys", "unexpected_keys", "mismatched_keys"))
    first = AutoModelForCausalLM.from_pretrained(source, experts_implementation="eager")
    rows = rows_of(case, left=False)
    inputs = {
        "input_ids": torch.tensor(rows["tokens"]),
        "position_ids": torch.tensor(rows["positions"]),
        "attention_mask": torch.tensor(rows["real"].astype(np.int64)),
    }
    with torch.no_grad():
        assert torch.equal(loaded(**inputs).logits, first(**inputs).logits)


@pytest.mark.parametrize("case", CASES)
def test_write_back_is_bit_for_bit_what_was_read(case, tmp_path):
    source = write_checkpoint(tmp_path / "source", case)
    model, params = open_model(source)
    written = save(tmp_path / "written", model, params, source=source)
    old = load_file(source / "model.safetensors")
    new = load_file(written / "model.safetensors")
    assert old.keys() == new.keys()
    assert all(np.array_equal(old[name], new[name]) for name in old)
    assert open_folder(written).architecture == model.arch


@pytest.mark.parametrize("case", CASES)
def test_a_folder_that_holds_what_transformers_has_in_memory_reads_the_same(case, tmp_path):
    pytest.importorskip("torch")
    from transformers import AutoModelForCausalLM

    source = write_checkpoint(tmp_path, case)
    model, params = open_model(source)
    held = AutoModelForCausalLM.from_pretrained(source).state_dict()
    assert any(name.endswith("experts.gate_up_proj") for name in held)
    save_file({name: value.numpy() for name, value in held.items()}, source / "model.safetensors")
    jax.tree.map(np.testing.assert_array_equal, load(source, model), params)


@pytest.mark.parametrize("case", CASES)
def test_configs_of_transformers_4_and_5_read_alike(case, tmp_path):
    from transformers import AutoConfig

    folder = write_checkpoint(tmp_path / "old", case)
    opened = open_folder(folder)
    AutoConfig.from_pretrained(folder).save_pretrained(tmp_path / "new")
    new = json.loads((tmp_path / "new" / "config.json").read_text())
    assert "rope_parameters" in new
    assert "rope_theta" in config_of(case)
    assert read_architecture(opened.family, new, "new") == opened.architecture


def test_packed_experts_give_the_logits_of_transformers_and_are_written_plainly(tmp_path):
    torch = pytest.importorskip("torch")
    from transformers import AutoModelForCausalLM, Mxfp4Config

    source = write_packed_checkpoint(tmp_path / "source")
    model, params = open_model(source)
    rows = rows_of("gpt_oss_window", left=False)
    forward = jax.jit(lambda p, b: model.apply(p, b).logits(), compiler_options=QUICK)
    mine_BTV = np.asarray(forward(params, batch_of(rows)))
    theirs = AutoModelForCausalLM.from_pretrained(
        source,
        dtype=torch.float32,
        attn_implementation="eager",
        experts_implementation="eager",
        quantization_config=Mxfp4Config(dequantize=True),
    )
    margins = watch_routers(theirs)
    margins.real = torch.tensor(rows["real"]).reshape(-1)
    with torch.no_grad():
        logits_BTV = theirs(
            input_ids=torch.tensor(rows["tokens"]),
            position_ids=torch.tensor(rows["positions"]),
            attention_mask=torch.tensor(rows["real"].astype(np.int64)),
        ).logits.numpy()
    expected = logits_BTV[rows["real"]]
    assert np.abs(mine_BTV[rows["real"]] - expected).max() < LOGIT_TOLERANCE
    assert np.ptp(expected) > 1
    assert margins.least > MARGIN
    written = open_folder(save(tmp_path / "written", model, params, source=source))
    assert "quantization_config" not in written.config
    assert written.architecture == model.arch
    jax.tree.map(np.testing.assert_array_equal, load(written, model), params)
