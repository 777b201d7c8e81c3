"""The families that are read and written: a new one is its own file and one line here."""

from __future__ import annotations

from research.huggingface.families import (
    deepseek_v3,
    gemma2,
    gemma3,
    glm4,
    glm4_moe,
    gpt2,
    gpt_oss,
    granite,
    llama,
    mistral,
    mixtral,
    olmo2,
    olmoe,
    phi3,
    qwen2,
    qwen3,
    qwen3_moe,
    smollm3,
)
from research.huggingface.family import Family, write_architecture
from research.models.architecture import Architecture

FAMILIES = {
    family.model_type: family
    for family in (
        llama.FAMILY,
        mistral.FAMILY,
        qwen2.FAMILY,
        qwen3.FAMILY,
        gemma2.FAMILY,
        gemma3.FAMILY,
        phi3.FAMILY,
        smollm3.FAMILY,
        granite.FAMILY,
        olmo2.FAMILY,
        glm4.FAMILY,
        gpt2.FAMILY,
        mixtral.FAMILY,
        qwen3_moe.FAMILY,
        olmoe.FAMILY,
        gpt_oss.FAMILY,
        deepseek_v3.FAMILY,
        glm4_moe.FAMILY,
    )
}
"""By what `config.json` calls them; the order in which `family_for` tries them."""


def family_named(model_type: str | None, where: str) -> Family:
    """Give the family that a `config.json` names.

    Raises:
      ValueError: it is not supported.
    """
    if model_type not in FAMILIES:
        text = f"{model_type}_text"
        hint = f"; of {model_type} the text model alone is, as {text}" if text in FAMILIES else ""
        raise ValueError(
            f"{where}: model_type={model_type!r} is not supported{hint}; supported are "
            f"{', '.join(sorted(FAMILIES))}"
        )
    return FAMILIES[model_type]


def family_for(arch: Architecture) -> Family:
    """Give the first family whose `config.json` can say this architecture.

    Raises:
      ValueError: none can; the error says what the nearest would lose.
    """
    lost = []
    for family in FAMILIES.values():
        try:
            write_architecture(family, arch)
        except ValueError as error:
            lost.append(str(error))
        else:
            return family
    lost.sort(key=lambda said: ("cannot say" not in said, len(said)))  # another kind comes last
    nearest = " | ".join(lost[:2])
    raise ValueError(f"no supported family can hold this architecture; the nearest: {nearest}")
