"""Generation continues prompts as transformers does: the same greedy tokens, the same entropies."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import jax
import numpy as np
import pytest
from transformers import AutoTokenizer

from research.core.generation import FullEntropy, Sampling
from research.core.layout import Layout
from research.core.records import Batch
from research.huggingface.folder import load, open_folder
from research.models.compute import Compute
from research.models.transformer import Transformer
from tests.parity.checkpoints import CASES, write_checkpoint

STORIES = Path(__file__).parents[2] / "experiments" / "assets" / "stories260k"
PUBLISHED = (
    ", there was a little girl named Lily. She loved to play outside in the park. One day, she saw "
    "a big, red ball."
)
NEW_TOKENS = 14
LENGTHS = (9, 4, 6)  # the sliding windows of the small checkpoints are passed while generating
ENTROPY_TOLERANCE = 1e-4  # float32 noise of the logits is about 1.3e-5
QUICK = {"xla_backend_optimization_level": 0}  # compiling is the cost of these tests


def prompts_of(rows: list[list[int]]) -> Batch:
    """Pad on the right."""
    shape = (len(rows), max(map(len, rows)))
    held = {name: np.zeros(shape, np.int32) for name in ("tokens", "positions", "segments")}
    for row, ids in enumerate(rows):
        for name, values in (("tokens", ids), ("positions", range(len(ids))), ("segments", 1)):
            held[name][row, : len(ids)] = values
    return Batch(
        tokens_BT=held["tokens"],
        targets_BT=np.zeros(shape, np.int32),
        weights_BT=np.zeros(shape, np.float32),
        positions_BT=held["positions"],
        segments_BT=held["segments"],
        ids_BZ=np.arange(len(rows), dtype=np.int32)[:, None],
    )


def continued(folder: Path, rows: list[list[int]], stop_ids: tuple[int, ...] = ()) -> Any:
    """Let maktab continue the prompts of one folder, greedily."""
    model = Transformer(open_folder(folder).architecture, Layout().on(jax.devices()[:1]), Compute())
    sampling = Sampling(max_new_tokens=NEW_TOKENS)

    def made(params: Any, prompts: Batch) -> Any:
        return model.generate(params, prompts, sampling, stop_ids, None, FullEntropy())

    compiled = jax.jit(made, compiler_options=QUICK)
    return jax.tree.map(np.asarray, compiled(load(folder, model), prompts_of(rows)))


def reference(folder: Path, rows: list[list[int]], stop_id: int | None) -> tuple[Any, Any, Any]:
    """Let transformers do it: (tokens, entropies, smallest lead of a chosen token)."""
    import torch
    from transformers import AutoModelForCausalLM

    model = AutoModelForCausalLM.from_pretrained(folder, dtype=torch.float32)
    width = max(map(len, rows))
    ids, mask = np.zeros((2, len(rows), width), np.int64)
    for row, prompt in enumerate(rows):
        ids[row, width - len(prompt) :], mask[row, width - len(prompt) :] = prompt, 1
    made = model.generate(
        torch.tensor(ids),
        attention_mask=torch.tensor(mask),
        do_sample=False,
        max_new_tokens=NEW_TOKENS,
        eos_token_id=stop_id,
        pad_token_id=0,
        output_logits=True,
        return_dict_in_generate=True,
    )
    logits = torch.stack(made.logits, dim=1).double()
    entropies = torch.distributions.Categorical(logits=logits).entropy().numpy()
    best = logits.topk(2, dim=-1).values
    lead = (best[..., 0] - best[..., 1]).min().item()
    return made.sequences[:, width:].numpy(), entropies, lead


def test_the_small_story_model_goes_on_as_published():
    tokenizer = AutoTokenizer.from_pretrained(STORIES)
    (prompt,) = tokenizer(["Once upon a time"])["input_ids"]
    made = continued(STORIES, [prompt])
    text = tokenizer.decode(made.tokens_BN[0])
    assert PUBLISHED.startswith(text)
    assert len(text) > 3 * NEW_TOKENS / 2


@pytest.mark.parametrize("case", ["llama_llama3", "qwen2_windows"])
def test_transformers_takes_the_same_tokens_at_the_same_entropies(case, tmp_path):
    pytest.importorskip("torch")
    folder = write_checkpoint(tmp_path / case, case)
    random = np.random.RandomState(1)
    rows = [random.randint(3, 20, length).tolist() for length in LENGTHS]
    free, _, _ = reference(folder, rows, None)
    stop_id = int(free[1, 5])
    tokens, entropies, lead = reference(folder, rows, stop_id)
    assert lead > ENTROPY_TOLERANCE  # no near tie: the tokens must be equal
    made = continued(folder, rows, (stop_id,))
    assert made.lengths_B.min() < NEW_TOKENS
    for row, length in enumerate(made.lengths_B):
        np.testing.assert_array_equal(made.tokens_BN[row, :length], tokens[row, :length])
        assert not tokens[row, length:].any()
        np.testing.assert_allclose(
            made.entropy_BN[row, :length], entropies[row, :length], atol=ENTROPY_TOLERANCE, rtol=0
        )
    windows = CASES[case].get("sliding_window")
    assert windows is None or windows < min(LENGTHS) + NEW_TOKENS
