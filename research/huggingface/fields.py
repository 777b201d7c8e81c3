"""A `config.json` that remembers which fields were read, so that none is ignored in silence."""

from __future__ import annotations

import difflib
from collections.abc import Mapping
from typing import Any

REQUIRED = object()

HARMLESS = frozenset({
    # what the file is, and what wrote it
    "model_type", "architectures", "transformers_version", "torch_dtype", "dtype", "name_or_path",
    "_name_or_path", "_commit_hash", "transformers.js_config", "unsloth_version", "unsloth_fixed",
    "is_llama_config", "tokenizer_class", "model_max_length", "max_sequence_length",
    # how transformers runs it: the same numbers by another path
    "use_cache", "output_attentions", "output_hidden_states", "return_dict", "pretraining_tp",
    "chunk_size_feed_forward", "torchscript", "_attn_implementation",
    "_attn_implementation_autoset", "_flash_attn_2_enabled",
    # losses that balance experts, which an objective chooses here; how experts are spread
    "output_router_logits", "router_aux_loss_coef", "aux_loss_alpha", "seq_aux", "ep_size",
    # heads for other tasks, token ids and settings of generation
    "id2label", "label2id", "num_labels", "problem_type", "finetuning_task", "task_specific_params",
    "bos_token_id", "eos_token_id", "pad_token_id", "sep_token_id", "unk_token_id", "do_sample",
    "temperature", "top_p", "top_k", "max_length", "max_new_tokens", "repetition_penalty",
})  # fmt: skip
"""Fields that never change the arithmetic."""

NEUTRAL: Mapping[str, tuple[Any, str]] = {
    "hidden_act": ("silu", "this feed-forward is gated by silu"),
    "attention_dropout": (0.0, "there is no dropout inside attention; set it to 0.0"),
    "is_encoder_decoder": (False, "only decoders are supported"),
    "add_cross_attention": (False, "only decoders are supported"),
    "partial_rotary_factor": (1.0, "whole heads are rotated"),
    "rope_interleaved": (False, "rotary halves are split, not interleaved"),
    "router_jitter_noise": (0.0, "the router's inputs are not jittered; set it to 0.0"),
    "use_mrope": (False, "multimodal rotary sections are not supported"),
}
"""Fields that change the arithmetic at any value but this one, and why they must have it."""

REMEDIES: Mapping[str, str] = {
    "quantization_config": "the weights are quantised, and only the MXFP4 of GPT-OSS is read; use "
    "the unquantised checkpoint",
    "auto_map": "the model runs code from its repository, which is never executed here; remove the "
    "field if the architecture is the plain one that model_type says",
}


class Fields:
    """The fields of a `config.json`; `take` each that is understood, then `finish`.

    Law: a field that was not taken, is not harmless and is not null is an error that names it.
    """

    def __init__(self, config: Mapping[str, Any], where: str):
        self.where = where
        self._config = config
        self._taken: set[str] = set()
        self._left = {name for name, value in config.items() if value is not None} - HARMLESS
        self._problems: list[str] = []

    def take(self, name: str, default: Any = REQUIRED) -> Any:
        """Give a field's value as the file has it (null is None), or the default of its family.

        Raises:
          ValueError: the field is required and absent.
        """
        self._taken.add(name)
        self._left.discard(name)
        value = self._config.get(name, default)
        if value is REQUIRED or (value is None and default is REQUIRED):
            raise ValueError(f"{self.where} has no {name!r}; it is needed to know the architecture")
        return value

    def expect(self, name: str, *accepted: Any, why: str) -> None:
        """Take a field that may only have one of some values, or be absent or null."""
        value = self.take(name, None)
        if value is not None and value not in accepted:
            expected = " or ".join(map(repr, accepted)) or "null"
            self._problems.append(f"{name}={value!r}, expected {expected}: {why}")

    def finish(self) -> None:
        """Refuse what is left.

        Raises:
          ValueError: naming every field that changes the arithmetic in a way not known here.
        """
        problems = [*self._problems]
        for name in sorted(self._left):
            value = self._config[name]
            if name in NEUTRAL:
                neutral, why = NEUTRAL[name]
                if value != neutral:
                    problems.append(f"{name}={value!r}, expected {neutral!r}: {why}")
            else:
                problems.append(f"{name}={value!r}: {REMEDIES.get(name) or self._advice(name)}")
        if problems:
            raise ValueError(f"{self.where} asks for what is not supported: {'; '.join(problems)}")

    def _advice(self, name: str) -> str:
        known = sorted({*self._taken, *NEUTRAL, *HARMLESS})
        near = difflib.get_close_matches(name, known, n=1, cutoff=0.8)
        hint = f" (did you mean {near[0]!r}?)" if near else ""
        return (
            f"unknown field{hint}, which may change the arithmetic; if it does not, remove it from "
            "the file, or add it to HARMLESS in research/huggingface/fields.py"
        )
