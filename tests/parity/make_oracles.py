"""Small random checkpoints of every family, and what transformers computes for them.

    python -m tests.parity.make_oracles        (needs the extra `parity`; rewrites oracles.npz)

Weights come from `RandomState`, whose stream NumPy has frozen, so that only answers are stored.
"""

from __future__ import annotations

import json
import zlib
from pathlib import Path
from typing import Any

import numpy as np
from safetensors.numpy import save_file

STORED = Path(__file__).parent / "oracles.npz"
NUM_ROWS, NUM_POSITIONS = 3, 13
LENGTHS = (13, 9, 4)
FAR = 290  # positions jump by this in the middle of a row, well beyond every original length below
NUM_STEPS = 4
ADAMW = {"lr": 3e-3, "betas": (0.9, 0.95), "weight_decay": 0.1}
ADAMW_EPS = 1e-5  # large enough that gradients which are pure rounding (1e-9) do not become +-lr

CASES: dict[str, dict[str, Any]] = {
    "llama_llama3": {
        "model_type": "llama", "hidden_size": 18, "intermediate_size": 29, "num_hidden_layers": 3,
        "num_attention_heads": 6, "num_key_value_heads": 2, "head_dim": 16, "attention_bias": True,
        "mlp_bias": True, "rms_norm_eps": 1e-5, "rope_theta": 500000.0,
        "tie_word_embeddings": False, "rope_scaling": {
            "rope_type": "llama3", "factor": 8.0, "low_freq_factor": 1.0, "high_freq_factor": 4.0,
            "original_max_position_embeddings": 32,
        },
    },
    "llama_linear": {
        "model_type": "llama", "hidden_size": 24, "intermediate_size": 31, "num_hidden_layers": 2,
        "num_attention_heads": 4, "rms_norm_eps": 1e-6, "rope_theta": 10000,
        "tie_word_embeddings": True, "rope_scaling": {"type": "linear", "factor": 2.5},
    },
    "llama_yarn": {
        "model_type": "llama", "hidden_size": 20, "intermediate_size": 33, "num_hidden_layers": 2,
        "num_attention_heads": 10, "num_key_value_heads": 5, "head_dim": 12, "rms_norm_eps": 1e-5,
        "rope_theta": 10000.0, "tie_word_embeddings": False,
        "rope_scaling": {
            "rope_type": "yarn", "factor": 4.0, "original_max_position_embeddings": 40,
            "mscale": 0.7, "mscale_all_dim": 1.4, "truncate": False,
        },
    },
    "qwen2_windows": {
        "model_type": "qwen2", "hidden_size": 32, "intermediate_size": 27, "num_hidden_layers": 3,
        "num_attention_heads": 4, "num_key_value_heads": 2, "rms_norm_eps": 1e-6,
        "rope_theta": 1000000.0, "tie_word_embeddings": True, "use_sliding_window": True,
        "sliding_window": 4, "max_window_layers": 1,
    },
    "qwen2_yarn": {
        "model_type": "qwen2", "hidden_size": 30, "intermediate_size": 35, "num_hidden_layers": 2,
        "num_attention_heads": 3, "num_key_value_heads": 1, "rms_norm_eps": 1e-6,
        "rope_theta": 1000.0, "tie_word_embeddings": False, "use_sliding_window": False,
        "sliding_window": 4096, "max_window_layers": 2,
        "rope_scaling": {"type": "yarn", "factor": 4.0, "original_max_position_embeddings": 32},
    },
    "qwen3": {
        "model_type": "qwen3", "hidden_size": 22, "intermediate_size": 39, "num_hidden_layers": 3,
        "num_attention_heads": 6, "num_key_value_heads": 3, "head_dim": 10, "rms_norm_eps": 1e-6,
        "rope_theta": 1000000.0, "tie_word_embeddings": False, "attention_bias": False,
        "use_sliding_window": False, "sliding_window": None, "max_window_layers": 3,
    },
    "qwen3_windows": {
        "model_type": "qwen3", "hidden_size": 26, "intermediate_size": 41, "num_hidden_layers": 4,
        "num_attention_heads": 4, "num_key_value_heads": 2, "head_dim": 14, "rms_norm_eps": 1e-6,
        "rope_theta": 10000.0, "tie_word_embeddings": True, "attention_bias": True,
        "use_sliding_window": True, "sliding_window": 3, "max_window_layers": 4,
        "layer_types": ["sliding_attention", "full_attention"] * 2,
        "rope_scaling": {
            "rope_type": "yarn", "factor": 6.0, "original_max_position_embeddings": 24,
            "attention_factor": 1.3, "beta_fast": 16, "beta_slow": 2,
        },
    },
    "mistral_window": {
        "model_type": "mistral", "hidden_size": 28, "intermediate_size": 43, "num_hidden_layers": 3,
        "num_attention_heads": 4, "num_key_value_heads": 2, "head_dim": 8, "rms_norm_eps": 1e-5,
        "rope_theta": 10000.0, "tie_word_embeddings": False, "sliding_window": 5,
    },
}  # fmt: skip
CLASSES = {
    "llama": "LlamaForCausalLM",
    "qwen2": "Qwen2ForCausalLM",
    "qwen3": "Qwen3ForCausalLM",
    "mistral": "MistralForCausalLM",
}
VOCAB_SIZE = 37


def config_of(case: str) -> dict[str, Any]:
    """Give the config of a case in the style of transformers 4."""
    held = CASES[case]
    return {
        "architectures": [CLASSES[held["model_type"]]],
        "vocab_size": VOCAB_SIZE,
        "max_position_embeddings": 512,
        "hidden_act": "silu",
        "initializer_range": 0.02,
        "bos_token_id": 1,
        "eos_token_id": 2,
        "torch_dtype": "float32",
        **held,
    }


def shapes_of(config: dict[str, Any]) -> dict[str, tuple[int, ...]]:
    """Spell out the tensors of a checkpoint: on purpose without the tables under test."""
    d, f, h = config["hidden_size"], config["intermediate_size"], config["num_attention_heads"]
    kv, width = config.get("num_key_value_heads", h), config.get("head_dim", d // h)
    family = config["model_type"]
    qkv_bias = family == "qwen2" or config.get("attention_bias", False)
    out_bias = family != "qwen2" and config.get("attention_bias", False)
    linear = {
        "self_attn.q_proj": (h * width, d, qkv_bias),
        "self_attn.k_proj": (kv * width, d, qkv_bias),
        "self_attn.v_proj": (kv * width, d, qkv_bias),
        "self_attn.o_proj": (d, h * width, out_bias),
        "mlp.gate_proj": (f, d, config.get("mlp_bias", False)),
        "mlp.up_proj": (f, d, config.get("mlp_bias", False)),
        "mlp.down_proj": (d, f, config.get("mlp_bias", False)),
    }
    shapes: dict[str, tuple[int, ...]] = {"model.embed_tokens.weight": (config["vocab_size"], d)}
    for layer in range(config["num_hidden_layers"]):
        place = f"model.layers.{layer}."
        for name, (num_out, num_in, biased) in linear.items():
            shapes[f"{place}{name}.weight"] = (num_out, num_in)
            if biased:
                shapes[f"{place}{name}.bias"] = (num_out,)
        if family == "qwen3":
            shapes[f"{place}self_attn.q_norm.weight"] = (width,)
            shapes[f"{place}self_attn.k_norm.weight"] = (width,)
        shapes[f"{place}input_layernorm.weight"] = (d,)
        shapes[f"{place}post_attention_layernorm.weight"] = (d,)
    shapes["model.norm.weight"] = (d,)
    if not config["tie_word_embeddings"]:
        shapes["lm_head.weight"] = (config["vocab_size"], d)
    return shapes


def random_weights(config: dict[str, Any]) -> dict[str, np.ndarray]:
    """Draw every tensor, each from a stream of its own name."""
    drawn = {}
    for name, shape in shapes_of(config).items():
        value = np.random.RandomState(zlib.crc32(name.encode())).standard_normal(shape)
        if "norm" in name:
            value = 1 + 0.2 * value
        elif len(shape) == 2:
            value = value / shape[1] ** 0.5 if "embed" not in name else 0.5 * value
        else:
            value = 0.2 * value
        drawn[name] = value.astype(np.float32)
    return drawn


def write_checkpoint(folder: Path, case: str) -> Path:
    """Write a case as a Hugging Face folder."""
    folder.mkdir(parents=True, exist_ok=True)
    config = config_of(case)
    (folder / "config.json").write_text(json.dumps(config))
    save_file(random_weights(config), folder / "model.safetensors", metadata={"format": "pt"})
    return folder


def rows_of(case: str, left: bool) -> dict[str, np.ndarray]:
    """Make a padded batch: tokens, positions, whether a token is real, and its target's weight."""
    random = np.random.RandomState(7)
    held = {name: np.zeros((NUM_ROWS, NUM_POSITIONS), np.int64) for name in ("tokens", "positions")}
    held["real"] = np.zeros((NUM_ROWS, NUM_POSITIONS), bool)
    held["targets"], held["trained"] = held["tokens"].copy(), held["real"].copy()
    jump = 0 if "window" in case else FAR
    for row, length in enumerate(LENGTHS):
        tokens = random.randint(3, VOCAB_SIZE, length)
        start = NUM_POSITIONS - length if left else 0
        held["tokens"][row, start : start + length] = tokens
        positions = np.arange(length) + jump * (np.arange(length) >= length // 2)
        held["positions"][row, start : start + length] = positions
        held["real"][row, start : start + length] = True
        held["targets"][row, start : start + length - 1] = tokens[1:]
        held["trained"][row, start : start + length - 1] = True
    return held


def probe(name: str, value: np.ndarray) -> np.ndarray:
    """Shrink an array to two numbers: its norm, and its product with a fixed random array."""
    value = np.asarray(value, np.float64)
    random = np.random.RandomState(zlib.crc32(name.encode()) ^ 1).standard_normal(value.shape)
    return np.array([np.linalg.norm(value), np.sum(value * random)])


def reference(folder: Path, case: str) -> dict[str, Any]:
    """Let transformers answer: logits of real tokens, gradients, losses and stepped weights."""
    import torch
    from transformers import AutoModelForCausalLM

    model = AutoModelForCausalLM.from_pretrained(
        folder, dtype=torch.float32, attn_implementation="eager"
    )

    def forward(rows: dict[str, np.ndarray]) -> Any:
        return model(
            input_ids=torch.tensor(rows["tokens"]),
            attention_mask=torch.tensor(rows["real"].astype(np.int64)),
            position_ids=torch.tensor(rows["positions"]),
        ).logits

    def loss_of(rows: dict[str, np.ndarray]) -> Any:
        trained = torch.tensor(rows["trained"])
        return torch.nn.functional.cross_entropy(
            forward(rows)[trained], torch.tensor(rows["targets"])[trained]
        )

    answers: dict[str, Any] = {}
    for side in ("right", "left"):
        rows = rows_of(case, side == "left")
        with torch.no_grad():
            answers[f"logits_{side}"] = forward(rows).numpy()[rows["real"]]
    rows, losses = rows_of(case, left=False), []
    optimizer = torch.optim.AdamW(model.parameters(), eps=ADAMW_EPS, **ADAMW)
    for step in range(NUM_STEPS):
        optimizer.zero_grad()
        loss = loss_of(rows)
        loss.backward()
        losses.append(loss.item())
        if step == 0:
            answers["gradients"] = {n: p.grad.numpy().copy() for n, p in model.named_parameters()}
        optimizer.step()
    losses.append(loss_of(rows).item())
    answers["losses"] = np.array(losses)
    answers["weights"] = {n: p.detach().numpy() for n, p in model.named_parameters()}
    return answers


def shrink(answers: dict[str, Any]) -> dict[str, np.ndarray]:
    """Keep logits and losses, and two numbers of every gradient and weight."""
    kept = {name: np.asarray(answers[name]) for name in ("logits_right", "logits_left", "losses")}
    for kind in ("gradients", "weights"):
        names = sorted(answers[kind])
        kept[kind] = np.stack([probe(name, answers[kind][name]) for name in names])
    return kept


def main() -> None:
    """Write the stored answers of every case."""
    import tempfile

    stored = {}
    for case in CASES:
        with tempfile.TemporaryDirectory() as folder:
            answers = reference(write_checkpoint(Path(folder), case), case)
        stored |= {f"{case}/{name}": value for name, value in shrink(answers).items()}
    np.savez_compressed(STORED, **stored)


if __name__ == "__main__":
    main()
