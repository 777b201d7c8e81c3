"""What a `config.json` says is read in every style it is written in, or refused by name."""

import json
import re

import jax
import numpy as np
import pytest
from safetensors.numpy import load_file, save_file

from configs import models
from research.core.layout import Layout
from research.core.parts import vary
from research.huggingface.families.known import FAMILIES
from research.huggingface.family import read_architecture, write_architecture
from research.huggingface.folder import load, open_folder
from research.huggingface.rotary import KINDS
from research.models.architecture import Architecture
from research.models.compute import Compute
from research.models.rope import DynamicScaling, LongScaling, Rope
from research.models.transformer import Transformer
from tests.parity.checkpoints import config_of, write_checkpoint

FULL, SLIDING = "full_attention", "sliding_attention"
ORIGINAL = "original_max_position_embeddings"


def read(case: str, **changes) -> Architecture:
    """Read a case's config with some fields changed; None takes a field away."""
    config = config_of(case) | changes
    config = {name: value for name, value in config.items() if value is not None}
    return read_architecture(FAMILIES[config["model_type"]], config, "here")


def test_every_style_of_gemma_3_says_the_same():
    want = read("gemma3_windows")
    assert want.windows == (3, None, 3, None)
    kinds = [SLIDING, FULL] * 2
    nested = {
        FULL: {"rope_type": "linear", "factor": 3.5, "rope_theta": 30.0},
        SLIDING: {"rope_type": "default", "rope_theta": 200.0},
    }
    old = {"rope_theta": None, "rope_local_base_freq": None, "rope_scaling": None}
    assert read("gemma3_windows", sliding_window_pattern=None, layer_types=kinds) == want
    assert read("gemma3_windows", **old, rope_parameters=nested) == want
    assert read("gemma3_windows", _sliding_window_pattern=2, layer_types=kinds) == want
    assert read("gemma3_windows", sliding_window_pattern=None).windows == (3,) * 4
    assert (want.rope, want.local_rope) == (
        Rope(theta=30.0, scaling=want.rope.scaling),
        Rope(theta=200.0),
    )


def test_partial_rotation_is_read_in_both_styles():
    want = read("glm4")
    nested = {"rope_type": "default", "rope_theta": 10000.0, "partial_rotary_factor": 0.5}
    without = {"rope_theta": None, "partial_rotary_factor": None}
    assert read("glm4", **without, rope_parameters=nested) == want
    assert read("glm4", partial_rotary_factor=None) == want, "half is the family's default"
    assert want.rope == Rope(theta=10000.0, fraction=0.5, interleaved=True)
    assert want.rotary_dim == 10


@pytest.mark.parametrize("name", ["su", "yarn", "longrope"])
def test_old_names_of_longrope_are_understood(name):
    settings = config_of("phi3_longrope")["rope_scaling"] | {"type": name}
    assert read("phi3_longrope", rope_scaling=settings) == read("phi3_longrope")
    assert isinstance(read("phi3_longrope").rope.scaling, LongScaling)


def test_smollm3_slides_where_it_has_no_positions():
    arch = read("smollm3", use_sliding_window=True, sliding_window=6)
    assert arch.unrotated == (1, 3)
    assert arch.windows == (None, 6, None, 6)
    listed = read("smollm3", no_rope_layers=[1, 0, 1, 0], no_rope_layer_interval=None)
    assert listed == read("smollm3")


@pytest.mark.parametrize(
    ("case", "changes", "said"),
    [
        ("gemma3_windows", {"attn_logit_softcapping": 50.0}, "attn_logit_softcapping=50.0"),
        ("gemma2_windows", {"use_bidirectional_attention": True}, "use_bidirectional_attention"),
        ("gemma2_windows", {"hidden_activation": "relu"}, "hidden_activation='relu'"),
        ("gemma2_windows", {"layer_types": [FULL, "chunked_attention", FULL]}, "layer_types"),
        ("gemma3_windows", {"rope_scaling": None, "rope_parameters": {"x": {}}}, "rope_parameters"),
        ("smollm3", {"no_rope_layers": [1, 0]}, "no_rope_layers has 2 entries"),
        ("phi3_longrope", {"resid_pdrop": 0.1}, "resid_pdrop=0.1"),
        ("phi3_longrope", {"auto_map": {"AutoModel": "other.Net"}}, "AutoModel='other.Net'"),
        ("phi3_partial", {"rope_scaling": {"type": "linear", "factor": 2}}, "LinearScaling"),
        ("phi3_partial", {"lm_head_bias": True}, "lm_head_bias=True"),
        ("gpt2", {"scale_attn_by_inverse_layer_idx": True}, "scale_attn_by_inverse_layer_idx"),
        ("llama_dynamic", {"partial_rotary_factor": 0.5}, "partial_rotary_factor"),
        (
            "llama_dynamic",
            {"rope_scaling": {"type": "dynamic", "factor": 2, ORIGINAL: 9}},
            f"{ORIGINAL}=9",
        ),
        ("olmo2_dynamic", {"clip_qkv": 8.0}, "clip_qkv"),
        ("granite", {"embedding_multiplyer": 8.0}, "did you mean 'embedding_multiplier'"),
    ],
)
def test_what_would_change_the_arithmetic_unseen_is_refused_by_name(case, changes, said):
    with pytest.raises(ValueError, match=re.escape(said)):
        read(case, **changes)


def test_a_wrong_number_of_long_factors_is_refused():
    with pytest.raises(ValueError, match=r"\[3, 3\] factors; expected 2"):
        vary(models.tiny_phi3(), {"rope.fraction": 0.5})


@pytest.mark.parametrize("kind", KINDS, ids=lambda kind: KINDS[kind])
def test_every_scaling_is_written_and_read_back(kind):
    longest, factors = 96, (1.0, 1.5, 2.0, 3.0)
    given = {
        "factor": 4.0,
        "low_freq_factor": 1.0,
        "high_freq_factor": 4.0,
        "original_max_positions": longest if kind is DynamicScaling else 24,
        "short_factors": factors,
        "long_factors": factors[::-1],
        "attention_factor": 1.25,
    }
    scaling = kind(**{name: given[name] for name in kind.__dataclass_fields__ if name in given})
    changes = {"head_dim": 8, "max_positions": longest, "rope": Rope(scaling=scaling)}
    for family in ("llama", "phi3") if kind is LongScaling else ("llama",):
        arch = vary(models.tiny_phi3(), changes)
        config = json.loads(json.dumps(write_architecture(FAMILIES[family], arch)))
        assert read_architecture(FAMILIES[family], config, "here") == arch


@pytest.mark.parametrize("divisor", [3.0, 8.0, 16.0, 49.0, 0.3])
def test_divisors_of_logits_come_back_as_they_were(divisor):
    arch = read("granite", logits_scaling=divisor)
    assert write_architecture(FAMILIES["granite"], arch)["logits_scaling"] == divisor


@pytest.mark.parametrize("tied", [True, False])
def test_gpt2_is_read_under_the_names_of_its_publisher_too(tmp_path, tied):
    folder = write_checkpoint(tmp_path, "gpt2")
    config = json.loads((folder / "config.json").read_text())
    (folder / "config.json").write_text(json.dumps(config | {"tie_word_embeddings": tied}))
    tensors = load_file(folder / "model.safetensors")
    head = {} if tied else {"lm_head.weight": tensors["transformer.wte.weight"] + 1}
    save_file(tensors | head, folder / "model.safetensors")
    opened = open_folder(folder)
    model = Transformer(opened.architecture, Layout().on(jax.devices()[:1]), Compute())
    want = load(opened, model)
    bare = {name.removeprefix("transformer."): value for name, value in tensors.items()}
    masks = {f"h.{layer}.attn.bias": np.ones((1, 1, 4, 4), np.float32) for layer in range(3)}
    save_file(bare | masks | head, folder / "model.safetensors")
    jax.tree.map(np.testing.assert_array_equal, load(folder, model), want)
