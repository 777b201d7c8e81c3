"""What mixture-of-experts families share: names of experts, and the routing of DeepSeek-V3."""

from __future__ import annotations

from typing import Any

from research.huggingface.family import Foreign
from research.huggingface.fields import Fields
from research.models.architecture import Architecture, Moe
from research.models.moe.sigmoid_top_k import SigmoidTopK

ROUTER = "model.layers.{layer}.mlp.gate.weight"
GATE_UP = "model.layers.{layer}.mlp.experts.gate_up_proj"
NAMES = {
    "layers/ffw/router_D_E": ROUTER,
    "layers/ffw/gate_E_D_F": "model.layers.{layer}.mlp.experts.{expert}.gate_proj.weight",
    "layers/ffw/up_E_D_F": "model.layers.{layer}.mlp.experts.{expert}.up_proj.weight",
    "layers/ffw/down_E_F_D": "model.layers.{layer}.mlp.experts.{expert}.down_proj.weight",
}
"""A tensor an expert, as most families keep them."""
PARAMETERS = {
    "layers/ffw/gate_E_D_F": Foreign(GATE_UP, of=("F", "F"), stacked=True),
    "layers/ffw/up_E_D_F": Foreign(GATE_UP, of=("F", "F"), index=1, stacked=True),
    "layers/ffw/down_E_F_D": Foreign("model.layers.{layer}.mlp.experts.down_proj", stacked=True),
    "layers/ffw/router_D_E": ROUTER,
}
"""As all families but GPT-OSS have them in memory."""
SIGMOID_NAMES = NAMES | {
    "layers/ffw/router_correction_E": "model.layers.{layer}.mlp.gate.e_score_correction_bias",
    "layers/ffw/shared/gate_D_F": "model.layers.{layer}.mlp.shared_experts.gate_proj.weight",
    "layers/ffw/shared/up_D_F": "model.layers.{layer}.mlp.shared_experts.up_proj.weight",
    "layers/ffw/shared/down_F_D": "model.layers.{layer}.mlp.shared_experts.down_proj.weight",
}
"""With the selection bias and the shared expert of DeepSeek-V3 and GLM-4-MoE."""
NEXT_TOKEN_LAYERS = ("model.layers.{num_layers}.*",)
"""Where those two store the module that predicts a token further on, which is not read."""


def of(arch: Architecture) -> Moe:
    """Give the experts of an architecture.

    Raises:
      ValueError: it has none.
    """
    if arch.moe is None:
        raise ValueError(
            "moe: None cannot be said in a mixture-of-experts config.json; choose a dense family"
        )
    return arch.moe


def normalises(moe: Moe) -> bool:
    """Whether the weights of the chosen experts add up to one."""
    return bool(getattr(moe.router, "normalise", True))


def read_sigmoid(fields: Fields, num_layers: int) -> Moe:
    """Read the experts of DeepSeek-V3 and GLM-4-MoE."""
    fields.expect("scoring_func", "sigmoid", why="this router scores by sigmoids")
    fields.expect("topk_method", "noaux_tc", why="this router's choice is corrected by a bias")
    fields.expect("moe_layer_freq", 1, why="every layer after the dense ones has experts")
    fields.take("num_nextn_predict_layers", None)  # the module for further tokens is not read
    width = fields.take("moe_intermediate_size")
    return Moe(
        num_experts=fields.take("n_routed_experts"),
        experts_per_token=fields.take("num_experts_per_tok", 8),
        expert_dim=width,
        router=SigmoidTopK(
            normalise=bool(fields.take("norm_topk_prob", True)),
            scale=float(fields.take("routed_scaling_factor")),
            groups=fields.take("n_group"),
            groups_kept=fields.take("topk_group"),
        ),
        shared_dim=width * (fields.take("n_shared_experts", 1) or 0),
        dense_layers=tuple(range(min(fields.take("first_k_dense_replace"), num_layers))),
    )


def write_sigmoid(arch: Architecture) -> dict[str, Any]:
    """Write what `read_sigmoid` reads; the file will hold no module for further tokens.

    Raises:
      ValueError: the architecture has no experts.
    """
    moe = of(arch)
    router = moe.router if isinstance(moe.router, SigmoidTopK) else SigmoidTopK()
    return {
        "moe_intermediate_size": moe.expert_dim,
        "n_routed_experts": moe.num_experts,
        "n_shared_experts": moe.shared_dim // moe.expert_dim,
        "num_experts_per_tok": moe.experts_per_token,
        "first_k_dense_replace": len(moe.dense_layers),
        "norm_topk_prob": router.normalise,
        "routed_scaling_factor": router.scale,
        "n_group": router.groups,
        "topk_group": router.groups_kept,
        "num_nextn_predict_layers": 0,
    }
