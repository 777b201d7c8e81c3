"""Make `peft_oracles/`: adapters that PEFT wrote, with the logits that PEFT gives.

Run `python -m tests.parity.make_peft_oracles` in an environment with torch and peft; the tests that
read the files need neither.
"""

from __future__ import annotations

import shutil
from pathlib import Path
from typing import Any

import numpy as np
import torch
from peft import LoraConfig, get_peft_model
from transformers import LlamaConfig, LlamaForCausalLM

HERE = Path(__file__).parent / "peft_oracles"
TOKENS = np.random.default_rng(0).integers(0, 29, (2, 9))
SIZES = {
    "vocab_size": 29,
    "hidden_size": 12,
    "intermediate_size": 20,
    "num_hidden_layers": 2,
    "num_attention_heads": 6,
    "num_key_value_heads": 2,
    "head_dim": 4,
    "max_position_embeddings": 64,
    "initializer_range": 0.15,
}
CASES: dict[str, tuple[bool, dict[str, Any]]] = {
    "query_value_rslora": (
        False,
        {"r": 5, "lora_alpha": 10, "target_modules": ["q_proj", "v_proj"], "use_rslora": True},
    ),
    "all_linear_patterns": (
        False,
        {
            "r": 4,
            "lora_alpha": 6,
            "lora_dropout": 0.1,
            "target_modules": "all-linear",
            "rank_pattern": {"q_proj": 3, "layers.1.mlp.down_proj": 2},
            "alpha_pattern": {"k_proj": 2.5, "layers.0.mlp.up_proj": 7},
        },
    ),
    "embedding_and_head": (
        False,
        {"r": 3, "lora_alpha": 6, "target_modules": ["embed_tokens", "lm_head", "down_proj"]},
    ),
    "second_layer_only": (
        False,
        {"r": 3, "lora_alpha": 3, "target_modules": ["up_proj"], "layers_to_transform": [1]},
    ),
    "tied_together": (
        True,
        {
            "r": 3,
            "lora_alpha": 6,
            "target_modules": ["embed_tokens", "o_proj"],
            "ensure_weight_tying": True,
        },
    ),
    "tied_apart": (True, {"r": 3, "lora_alpha": 6, "target_modules": ["embed_tokens", "lm_head"]}),
}


def base(tied: bool) -> LlamaForCausalLM:
    """Make the tiny model that all adapters adapt."""
    torch.manual_seed(0)
    return LlamaForCausalLM(LlamaConfig(tie_word_embeddings=tied, **SIZES)).eval()


def adapt(tied: bool, settings: dict[str, Any]) -> Any:
    """Adapt it with PEFT, factors filled with noise."""
    model = get_peft_model(base(tied), LoraConfig(task_type="CAUSAL_LM", **settings)).eval()
    torch.manual_seed(1)
    for parameter in model.parameters():
        if parameter.requires_grad:
            torch.nn.init.normal_(parameter, std=0.3)
    return model


def main() -> None:
    """Write everything anew."""
    shutil.rmtree(HERE, ignore_errors=True)
    logits = {}
    for tied in (False, True):
        base(tied).save_pretrained(HERE / f"base_{'tied' if tied else 'untied'}")
    for name, (tied, settings) in CASES.items():
        model = adapt(tied, settings)
        model.save_pretrained(HERE / name)
        (HERE / name / "README.md").unlink()
        with torch.no_grad():
            logits[name] = model(torch.from_numpy(TOKENS)).logits.numpy()
    for file in HERE.glob("*/generation_config.json"):
        file.unlink()
    np.savez(HERE / "logits.npz", **logits)


if __name__ == "__main__":
    main()
