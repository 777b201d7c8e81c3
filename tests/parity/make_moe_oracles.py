"""What transformers computes for the small random mixture-of-experts checkpoints.

    python -m tests.parity.make_moe_oracles      (needs the extra `parity`; writes moe_oracles.npz)

An expert that one float32 implementation takes and another does not would end every comparison, so
the answers carry by how much the closest choice of any token was made.
"""

from __future__ import annotations

import sys
import tempfile
from pathlib import Path
from typing import Any

import numpy as np

from tests.parity import make_oracles
from tests.parity.make_oracles import ADAMW, ADAMW_EPS, NUM_STEPS, continue_greedily, shrink
from tests.parity.moe_checkpoints import CASES, write_checkpoint

STORED = Path(__file__).parent / "moe_oracles.npz"


def rows_of(case: str, left: bool) -> dict[str, np.ndarray]:
    """Make a padded batch, whose positions jump where no window counts tokens."""
    return make_oracles.rows_of("window" if "window" in case else "qwen3", left)


def reference(folder: Path, case: str) -> dict[str, Any]:
    """Let transformers answer as `make_oracles.reference` does, in the checkpoint's own names, and
    say by which margin the closest choice of experts was made."""
    import torch
    from transformers import AutoModelForCausalLM

    torch.set_num_threads(1)  # products this small wait longer for one another than they take
    model = AutoModelForCausalLM.from_pretrained(
        folder, dtype=torch.float32, attn_implementation="eager", experts_implementation="eager"
    )
    margins = watch_routers(model)

    def forward(rows: dict[str, np.ndarray]) -> Any:
        margins.real = torch.tensor(rows["real"]).reshape(-1)
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

    right, left = rows_of(case, left=False), rows_of(case, left=True)
    margins.real = torch.tensor(left["real"]).reshape(-1)
    answers: dict[str, Any] = continue_greedily(model, "window")
    with torch.no_grad():
        answers["logits_right"] = forward(right).numpy()[right["real"]]
        answers["logits_left"] = forward(left).numpy()[left["real"]]
    answers["token_losses"] = token_losses(answers["logits_right"], right)
    losses = []
    optimizer = torch.optim.AdamW(model.parameters(), eps=ADAMW_EPS, **ADAMW)
    for step in range(NUM_STEPS):
        optimizer.zero_grad()
        loss = loss_of(right)
        loss.backward()
        losses.append(loss.item())
        if step == 0:
            gradients = {n: p.grad.numpy().copy() for n, p in model.named_parameters()}
            answers["gradients"] = as_stored(gradients, case)
        optimizer.step()
    with torch.no_grad():
        losses.append(loss_of(right).item())
    weights = {n: p.detach().numpy() for n, p in model.named_parameters()}
    answers |= {"losses": np.array(losses), "weights": as_stored(weights, case)}
    return answers | {"margin": np.float32(margins.least)}


def token_losses(logits_NV: np.ndarray, rows: dict[str, np.ndarray]) -> np.ndarray:
    """Give the loss of every trained token from the logits of real ones, in float64."""
    trained_N = rows["trained"][rows["real"]]
    logits = logits_NV[trained_N].astype(np.float64)
    targets_N = rows["targets"][rows["trained"]]
    chosen_N = np.take_along_axis(logits, targets_N[:, None], axis=1)[:, 0]
    return np.log(np.exp(logits).sum(axis=1)) - chosen_N


class Margins:
    """The least margin of any choice that was seen, of tokens that are `real`."""

    least = float("inf")
    real: Any = None


def watch_routers(model: Any) -> Margins:
    """Let every router of a model report by how much it made its choices."""
    seen = Margins()

    def watch(module: Any, _: Any, output: Any) -> None:
        margin_M = margin_of(module, output[0].detach().double())
        real = seen.real if seen.real.shape == margin_M.shape else slice(None)
        seen.least = min(seen.least, margin_M[real].min().item())

    for module in model.modules():
        if type(module).__name__.lower().endswith("topkrouter"):
            module.register_forward_hook(watch)
    return seen


def margin_of(module: Any, logits_ME: Any) -> Any:
    """Give each token's margin: between the last expert or group taken and the first that is not.

    In logits, or in corrected scores where those are what is compared.
    """
    correction_E = getattr(module, "e_score_correction_bias", None)
    if correction_E is None:
        return gap(logits_ME, module.top_k)
    scores_ME = logits_ME.sigmoid() + correction_E.double()
    by_group = scores_ME.unflatten(1, (module.num_group, -1))
    closest_M = gap(scores_ME, module.top_k)
    if module.topk_group < module.num_group:
        groups_MG = by_group.topk(2, dim=-1).values.sum(dim=-1)
        open_MG = groups_MG >= groups_MG.topk(module.topk_group, dim=-1).values[:, -1:]
        open_ME = by_group.masked_fill(~open_MG[..., None], float("-inf")).flatten(1)
        closest_M = gap(open_ME, module.top_k).minimum(gap(groups_MG, module.topk_group))
    return closest_M


def gap(scores_ME: Any, count: int) -> Any:
    """Give the difference of the `count`-th largest and the next one."""
    best = scores_ME.topk(count + 1, dim=-1).values
    return best[:, -2] - best[:, -1]


def as_stored(named: dict[str, np.ndarray], case: str) -> dict[str, np.ndarray]:
    """Give parameters under the names, and in the pieces, that a checkpoint holds them in."""
    family = CASES[case]["model_type"]
    if family == "gpt_oss":
        return named
    spelled = ("w1", "w3", "w2") if family == "mixtral" else ("gate_proj", "up_proj", "down_proj")
    found: dict[str, np.ndarray] = {}
    for name, value in named.items():
        place = name.rpartition(".")[0]
        if name.endswith("experts.gate_up_proj"):
            halves = np.split(value, 2, axis=1)
        elif name.endswith("experts.down_proj"):
            halves = [value]
        else:
            found[name] = value
            continue
        names = spelled[:2] if len(halves) == 2 else spelled[2:]
        for kind, half in zip(names, halves, strict=True):
            found |= {f"{place}.{e}.{kind}.weight": kernel for e, kernel in enumerate(half)}
    if family == "mixtral":
        found = {name.replace(".mlp.", ".block_sparse_moe."): v for name, v in found.items()}
    return found


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
        kept = shrink(answers) | {"margin": answers["margin"]}
        stored |= {f"{case}/{name}": value for name, value in kept.items()}
        lead, margin = answers["lead"], answers["margin"]
        print(f"{case}: lead {lead:.4f}, margin {margin:.5f}, losses {answers['losses'].round(3)}")
    np.savez_compressed(STORED, **{name: stored[name] for name in sorted(stored)})


if __name__ == "__main__":
    main()
