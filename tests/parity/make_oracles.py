"""What transformers computes for the small random checkpoints of every family.

    python -m tests.parity.make_oracles [case ...]      (needs the extra `parity`)

Writes oracles.npz; where cases are named, only their answers are made anew.
"""

from __future__ import annotations

import sys
import tempfile
import zlib
from pathlib import Path
from typing import Any

import numpy as np

from tests.parity.checkpoints import CASES, VOCAB_SIZE, config_of, write_checkpoint

STORED = Path(__file__).parent / "oracles.npz"
NUM_ROWS, NUM_POSITIONS = 3, 13
LENGTHS = (13, 9, 4)
FAR = 290  # positions jump by this in the middle of a row, well beyond every original length
NUM_STEPS = 4
NEW_TOKENS = 16
ADAMW = {"lr": 3e-3, "betas": (0.9, 0.95), "weight_decay": 0.1}
ADAMW_EPS = 1e-5  # large enough that gradients which are pure rounding (1e-9) do not become +-lr


def rows_of(case: str, left: bool) -> dict[str, np.ndarray]:
    """Make a padded batch: tokens, positions, whether a token is real, and its target's weight."""
    random = np.random.RandomState(7)
    held = {name: np.zeros((NUM_ROWS, NUM_POSITIONS), np.int64) for name in ("tokens", "positions")}
    held["real"] = np.zeros((NUM_ROWS, NUM_POSITIONS), bool)
    held["targets"], held["trained"] = held["tokens"].copy(), held["real"].copy()
    for row, length in enumerate(LENGTHS):
        tokens = random.randint(3, VOCAB_SIZE, length)
        start = NUM_POSITIONS - length if left else 0
        held["tokens"][row, start : start + length] = tokens
        positions = np.arange(length) + jump_of(case, length) * (np.arange(length) >= length // 2)
        held["positions"][row, start : start + length] = positions
        held["real"][row, start : start + length] = True
        held["targets"][row, start : start + length - 1] = tokens[1:]
        held["trained"][row, start : start + length - 1] = True
    return held


def jump_of(case: str, length: int) -> int:
    """Give by how much positions jump in the middle of a row.

    transformers counts windows in tokens, not positions, and takes the length of the longest row
    for all rows where a rope goes by length: then all rows end at the same position.
    """
    if "window" in case:
        return 0
    scaling = config_of(case).get("rope_scaling") or {}
    by_length = scaling.get("rope_type", scaling.get("type")) in ("dynamic", "longrope", "su")
    return FAR + NUM_POSITIONS - length if by_length else FAR


def probe(name: str, value: np.ndarray) -> np.ndarray:
    """Shrink an array to two numbers: its norm, and its product with a fixed random array."""
    value = np.asarray(value, np.float64)
    random = np.random.RandomState(zlib.crc32(name.encode()) ^ 1).standard_normal(value.shape)
    return np.array([np.linalg.norm(value), np.sum(value * random)])


def reference(folder: Path, case: str) -> dict[str, Any]:
    """Let transformers answer: logits of real tokens, gradients, losses, stepped weights, and a
    greedy continuation with the smallest lead of a token that it took."""
    import torch
    from transformers import AutoModelForCausalLM

    torch.set_num_threads(1)  # in products this small, threads only wait for one another
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

    answers: dict[str, Any] = continue_greedily(model, case)
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


def continue_greedily(model: Any, case: str) -> dict[str, np.ndarray]:
    """Let transformers continue the rows, without a jump in their positions."""
    import torch

    rows = rows_of(case, left=True)
    made = model.generate(
        torch.tensor(rows["tokens"]),
        attention_mask=torch.tensor(rows["real"].astype(np.int64)),
        do_sample=False,
        max_new_tokens=NEW_TOKENS,
        min_new_tokens=NEW_TOKENS,
        eos_token_id=VOCAB_SIZE,
        pad_token_id=0,
        output_logits=True,
        return_dict_in_generate=True,
    )
    best = torch.stack(made.logits, dim=1).topk(2, dim=-1).values
    lead = (best[..., 0] - best[..., 1]).min().item()
    return {"greedy": made.sequences[:, NUM_POSITIONS:].numpy(), "lead": np.float32(lead)}


def shrink(answers: dict[str, Any]) -> dict[str, np.ndarray]:
    """Keep logits, losses and tokens, and two numbers of every gradient and weight.

    Logits do not depend on the side of the padding, so those of one side are kept.
    """
    kept = {name: np.asarray(answers[name]) for name in ("logits_right", "losses")}
    if "greedy" in answers:
        kept |= {"greedy": answers["greedy"].astype(np.int8), "lead": answers["lead"]}
    for kind in ("gradients", "weights"):
        names = sorted(answers[kind])
        kept[kind] = np.stack([probe(name, answers[kind][name]) for name in names])
    return kept


def main() -> None:
    """Write the stored answers of every case, or of those that are named."""
    stored: dict[str, np.ndarray] = {}
    named = sys.argv[1:]
    if named:
        with np.load(STORED) as held:
            stored = {n: v for n, v in held.items() if n.split("/")[0] in CASES.keys() - {*named}}
    for case in named or CASES:
        with tempfile.TemporaryDirectory() as folder:
            answers = reference(write_checkpoint(Path(folder), case), case)
        stored |= {f"{case}/{name}": value for name, value in shrink(answers).items()}
        print(f"{case}: lead {answers['lead']:.4f}, losses {answers['losses'].round(3)}")
    np.savez_compressed(STORED, **{name: stored[name] for name in sorted(stored)})


if __name__ == "__main__":
    main()
