"""The named architectures are the published ones, and can be said in their family's config."""

from __future__ import annotations

import jax
import pytest

from configs import models
from research.core.layout import Layout
from research.huggingface.families.known import family_for
from research.models.compute import Compute
from research.models.transformer import Transformer, parameter_count

# As the model pages state them; a tied head counts once (the file of Qwen3 0.6B stores it twice).
PUBLISHED = {
    models.llama3p2_1b: ("llama", 1_235_814_400),
    models.llama3p2_3b: ("llama", 3_212_749_824),
    models.llama3p1_8b: ("llama", 8_030_261_248),
    models.qwen2p5_0p5b: ("qwen2", 494_032_768),
    models.qwen2p5_1p5b: ("qwen2", 1_543_714_304),
    models.qwen2p5_3b: ("qwen2", 3_085_938_688),
    models.qwen2p5_7b: ("qwen2", 7_615_616_512),
    models.qwen3_0p6b: ("qwen3", 596_049_920),
    models.qwen3_1p7b: ("qwen3", 1_720_574_976),
    models.qwen3_4b: ("qwen3", 4_022_468_096),
    models.qwen3_8b: ("qwen3", 8_190_735_360),
    models.mistral_7b: ("mistral", 7_241_732_096),
    models.mistral_7b_v0p3: ("llama", 7_248_023_552),  # without a window the two are one
}


@pytest.mark.parametrize("preset", PUBLISHED, ids=lambda preset: preset.__name__)
def test_a_preset_has_the_published_number_of_parameters(preset):
    family, count = PUBLISHED[preset]
    model = Transformer(preset(), Layout().on(jax.devices()[:1]), Compute())
    assert parameter_count(model.abstract()) == count
    assert family_for(preset()).model_type == family


def test_a_tiny_preset_of_each_family_is_of_that_family():
    tiny = (models.tiny_llama, models.tiny_qwen2, models.tiny_qwen3, models.tiny_mistral)
    assert [family_for(preset()).model_type for preset in tiny] == [
        "llama",
        "qwen2",
        "qwen3",
        "mistral",
    ]
