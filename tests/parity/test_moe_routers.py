"""Routers and the balance loss against transformers, on the same logits."""

from __future__ import annotations

import jax.numpy as jnp
import numpy as np
import pytest

from research.core.records import RouterStatistics
from research.models.moe.experts import statistics
from research.models.moe.routing import Tokens
from research.models.moe.sigmoid_top_k import SigmoidTopK
from research.models.moe.softmax_top_k import SoftmaxTopK
from research.objectives.balance import HuggingFaceBalance

torch = pytest.importorskip("torch")

M, D, E, A = 60, 6, 8, 3
FLOAT32 = 2e-6  # one softmax or sigmoid, and a quotient, in float32


def drawn(*shape: int) -> np.ndarray:
    return np.random.default_rng(sum(shape)).normal(size=shape).astype(np.float32)


def theirs(family: str, **settings):
    """Give a family's router, with weights of ours, and what it says: (weights, experts) [M, E]."""
    import importlib

    import transformers

    names = {
        "deepseek_v3": ("DeepseekV3", "DeepseekV3TopkRouter"),
        "glm4_moe": ("Glm4Moe", "Glm4MoeTopkRouter"),
        "qwen3_moe": ("Qwen3Moe", "Qwen3MoeTopKRouter"),
        "mixtral": ("Mixtral", "MixtralTopKRouter"),
        "gpt_oss": ("GptOss", "GptOssTopKRouter"),
        "olmoe": ("Olmoe", "OlmoeTopKRouter"),
    }[family]
    config = getattr(transformers, f"{names[0]}Config")(
        hidden_size=D,
        num_experts_per_tok=A,
        **{"num_local_experts" if family in ("mixtral", "gpt_oss") else "num_experts": E}
        | ({"n_routed_experts": E} if family in ("deepseek_v3", "glm4_moe") else {})
        | settings,
    )
    module = importlib.import_module(f"transformers.models.{family}.modeling_{family}")
    router = getattr(module, names[1])(config)
    with torch.no_grad():
        router.weight.copy_(torch.from_numpy(drawn(E, D)))
        if hasattr(router, "e_score_correction_bias"):
            router.e_score_correction_bias.copy_(torch.from_numpy(0.1 * drawn(E)))
        if hasattr(router, "bias"):
            router.bias.copy_(torch.from_numpy(drawn(E)))
        logits, weights, experts = router(torch.from_numpy(drawn(M, D)))
    dense = np.zeros((M, E), np.float32)
    np.put_along_axis(dense, experts.numpy(), weights.float().numpy(), axis=1)
    return logits.float().numpy(), dense


GROUPED = {"n_group": 4, "topk_group": 2, "routed_scaling_factor": 2.5, "norm_topk_prob": True}
CASES = [
    ("mixtral", {}, SoftmaxTopK()),
    ("qwen3_moe", {"norm_topk_prob": True}, SoftmaxTopK()),
    ("olmoe", {"norm_topk_prob": False}, SoftmaxTopK(normalise=False)),
    ("gpt_oss", {}, SoftmaxTopK()),
    ("deepseek_v3", GROUPED, SigmoidTopK(groups=4, groups_kept=2, scale=2.5)),
    ("glm4_moe", GROUPED | {"n_group": 1, "topk_group": 1}, SigmoidTopK(scale=2.5)),
    (
        "deepseek_v3",
        GROUPED | {"norm_topk_prob": False},
        SigmoidTopK(groups=4, groups_kept=2, scale=2.5, normalise=False),
    ),
]


@pytest.mark.parametrize(("family", "settings", "router"), CASES)
def test_routers_choose_and_weigh_as_transformers_does(family, settings, router):
    logits, expected = theirs(family, **settings)
    tokens = Tokens(ids_M=jnp.zeros(M, int), real_M=jnp.ones(M, bool), rows=4)
    correction_E = jnp.asarray(0.1 * drawn(E)) if router.needs_correction else None
    routing = router.route(jnp.asarray(logits), A, tokens, correction_E)
    ours = np.zeros((M, E), np.float32)
    np.put_along_axis(ours, np.asarray(routing.experts_MA), np.asarray(routing.weights_MA), axis=1)
    np.testing.assert_allclose(ours, expected, rtol=FLOAT32, atol=FLOAT32)


def test_the_balance_loss_is_transformers_own_padding_left_out():
    from transformers.models.qwen3_moe.modeling_qwen3_moe import load_balancing_loss_func

    rows, layers = 4, 3
    logits_LME = drawn(layers, M, E)
    mask_BT = (np.arange(M // rows) < np.array([15, 9, 1, 0])[:, None]).astype(np.int64)
    expected = load_balancing_loss_func(
        tuple(torch.from_numpy(logits_ME) for logits_ME in logits_LME),
        E,
        A,
        torch.from_numpy(mask_BT),
    )
    tokens = Tokens(ids_M=jnp.zeros(M, int), real_M=jnp.asarray(mask_BT.reshape(-1) > 0), rows=rows)

    def layer(logits_ME: np.ndarray) -> RouterStatistics:
        routing = SoftmaxTopK().route(jnp.asarray(logits_ME), A, tokens)
        return statistics(jnp.asarray(logits_ME), routing, routing.kept_MA & False, tokens, A / E)

    seen = [layer(logits_ME) for logits_ME in logits_LME]
    stacked = RouterStatistics(
        **{
            name: jnp.stack([getattr(found, name) for found in seen])
            for name in ("load_BE", "probability_BE", "z_B", "entropy_B", "dropped_B", "tokens_B")
        }
    )
    np.testing.assert_allclose(HuggingFaceBalance()(stacked), expected.item(), rtol=FLOAT32)
