"""Train the base model's tokenizer: `python experiments/edco/tokenizer.py`, once.

Byte-level BPE of 8,192 pieces over the texts of the base's own sources, in the order of the files.
"""

from __future__ import annotations

import json
import sys
from collections.abc import Iterator
from pathlib import Path

from tokenizers import Tokenizer, decoders, models, pre_tokenizers, trainers

from launch.experiment_file import load_module

HERE = Path(__file__).resolve().parent
FOLDER = HERE.parent / "assets" / "edco_base"
PIECES = 8192
END = "<|end|>"


def texts() -> Iterator[str]:
    """Give the texts of every source of the base, once each."""
    for weighted in load_module(HERE / "base.py").sources():
        rows = weighted.source.open()
        for index in range(len(rows)):
            yield rows[index]["text"]


def main() -> None:
    """Train, and write a Hugging Face tokenizer folder."""
    tokenizer = Tokenizer(models.BPE())
    # Digits one by one: numbers are then spelled alike whatever they stand in.
    tokenizer.pre_tokenizer = pre_tokenizers.Sequence(
        [pre_tokenizers.Digits(individual_digits=True), pre_tokenizers.ByteLevel(False)]
    )
    tokenizer.decoder = decoders.ByteLevel()
    trainer = trainers.BpeTrainer(
        vocab_size=PIECES,
        special_tokens=[END],
        initial_alphabet=pre_tokenizers.ByteLevel.alphabet(),
        show_progress=sys.stderr.isatty(),
    )
    tokenizer.train_from_iterator(texts(), trainer)
    FOLDER.mkdir(parents=True, exist_ok=True)
    tokenizer.save(str(FOLDER / "tokenizer.json"))
    settings = {
        "tokenizer_class": "PreTrainedTokenizerFast",
        "eos_token": END,
        "clean_up_tokenization_spaces": False,
        "model_max_length": 1024,
    }
    (FOLDER / "tokenizer_config.json").write_text(json.dumps(settings, indent=2) + "\n")


if __name__ == "__main__":
    main()
