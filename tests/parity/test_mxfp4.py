"""MXFP4 weights are the numbers that transformers makes of them, whichever part is read."""

from __future__ import annotations

import dataclasses
import json
from typing import Any

import jax
import numpy as np
import pytest
from safetensors.numpy import load_file, save_file

from research.core.layout import Layout
from research.core.records import Batch
from research.huggingface import mxfp4
from research.huggingface.family import Foreign
from research.huggingface.fields import Fields
from research.huggingface.folder import load, open_folder
from research.models.compute import Compute
from research.models.transformer import Transformer
from tests.laws.bare_model import BareModel, bare_family, bare_folder

SAME_LOGITS = 1e-5  # float32 noise of two layers is about 3e-7
CONFIG = {"quantization_config": {"quant_method": "mxfp4", "modules_to_not_convert": ["lm_head"]}}
SIDES = (("_blocks", "a"), ("_scales", "b"))
EXPERTS, INPUTS, HIDDEN = 2, 96, 64
SHAPES = {
    "layers/ffw/gate_E_D_F": (EXPERTS, INPUTS, HIDDEN),
    "layers/ffw/up_E_D_F": (EXPERTS, INPUTS, HIDDEN),
    "layers/ffw/down_E_F_D": (EXPERTS, HIDDEN, INPUTS),
}
PLACE = "model.layers.{layer}.mlp.experts."
GATE = Foreign(
    PLACE + "gate_up_proj", of=("F", "F"), index=0, stacked=True, conv=True, interleaved=True
)
NAMES = {
    "layers/ffw/gate_E_D_F": GATE,
    "layers/ffw/up_E_D_F": dataclasses.replace(GATE, index=1),
    "layers/ffw/down_E_F_D": Foreign(PLACE + "down_proj", stacked=True, conv=True),
}


LAYOUTS = [
    Layout(),
    Layout(
        axes=(("fsdp", 4), ("tensor", 2)),
        weights=(("D", ("fsdp",)), ("F", ("tensor",))),
        activations=(),
    ),
    Layout(
        axes=(("expert", 2), ("fsdp", 4)),
        weights=(("E", ("expert",)), ("D", ("fsdp",))),
        activations=(),
    ),
]


def packed(random: np.random.RandomState, shape: tuple[int, int, int], low=100, high=140):
    """Draw blocks and scales of a weight (E, in, out)."""
    experts, inputs, outputs = shape
    groups = (experts, outputs, inputs // mxfp4.GROUP)
    blocks = random.randint(0, 256, (*groups, 16)).astype(np.uint8)
    return blocks, random.randint(low, high, groups).astype(np.uint8)


def by_definition(blocks: np.ndarray, scales: np.ndarray) -> np.ndarray:
    """Decode bit by bit: sign, two bits of exponent (bias 1), one of mantissa; [E, in, out]."""
    codes = np.stack([blocks & 15, blocks >> 4], axis=-1).astype(np.int32)
    exponent, mantissa = (codes >> 1) & 3, (codes & 1) / 2
    size = np.where(exponent == 0, mantissa, (1 + mantissa) * 2.0 ** (exponent - 1))
    value = np.where(codes >> 3, -size, size).reshape(*scales.shape, 32)
    value = value * 2.0 ** (scales.astype(np.float64)[..., None] - 127)
    return value.reshape(*scales.shape[:-1], -1).swapaxes(1, 2).astype(np.float32)


@pytest.mark.parametrize(("low", "high"), [(100, 140), (1, 252)])
def test_every_code_is_the_number_that_the_format_defines(low, high):
    blocks, scales = packed(np.random.RandomState(0), (3, 128, 5), low, high)
    ours = mxfp4.dequantise(blocks, scales).swapaxes(1, 2)
    np.testing.assert_array_equal(ours, by_definition(blocks, scales))


@pytest.mark.parametrize(("low", "high"), [(100, 140), (0, 253)])
def test_transformers_makes_the_same_numbers(low, high):
    torch = pytest.importorskip("torch")
    convert = pytest.importorskip("transformers.integrations.mxfp4").convert_moe_packed_tensors
    blocks, scales = packed(np.random.RandomState(1), (3, 128, 5), low, high)
    theirs = convert(torch.tensor(blocks), torch.tensor(scales)).float().numpy()
    np.testing.assert_array_equal(mxfp4.dequantise(blocks, scales).swapaxes(1, 2), theirs)


@pytest.mark.parametrize("layout", LAYOUTS)
def test_a_packed_checkpoint_is_read_as_the_unpacked_weights(layout, tmp_path):
    """Blocks and scales lie in different files; parts of groups go to different devices."""
    random, blocks, scales = np.random.RandomState(2), {}, {}
    for layer in range(2):
        for name, shape in (("gate_up_proj", (2, 96, 128)), ("down_proj", (2, 64, 96))):
            place = f"model.layers.{layer}.mlp.experts.{name}"
            blocks[place], scales[place] = packed(random, shape)
    save_file({f"{k}_blocks": v for k, v in blocks.items()}, tmp_path / "a.safetensors")
    save_file({f"{k}_scales": v for k, v in scales.items()}, tmp_path / "b.safetensors")
    index = {f"{k}{s}": f"{f}.safetensors" for k in blocks for s, f in SIDES}
    (tmp_path / "model.safetensors.index.json").write_text(json.dumps({"weight_map": index}))
    devices = jax.devices()[:1] if layout == Layout() else jax.devices()
    model: Any = BareModel(2, SHAPES, layout.on(devices))
    read = load(bare_folder(tmp_path, model, bare_family(NAMES), **CONFIG), model)
    ffw = read["layers"]["0"]["ffw"]
    for layer in range(2):
        place = f"model.layers.{layer}.mlp.experts."
        gate_up = by_definition(blocks[place + "gate_up_proj"], scales[place + "gate_up_proj"])
        down = by_definition(blocks[place + "down_proj"], scales[place + "down_proj"])
        np.testing.assert_array_equal(ffw["gate_E_D_F"][layer], gate_up[..., ::2])
        np.testing.assert_array_equal(ffw["up_E_D_F"][layer], gate_up[..., 1::2])
        np.testing.assert_array_equal(ffw["down_E_F_D"][layer], down)


def test_scales_that_do_not_belong_to_their_blocks_are_named(tmp_path):
    blocks, scales = packed(np.random.RandomState(3), (2, 64, 6))
    tensors = {"x.down_proj_blocks": blocks, "x.down_proj_scales": scales[:, :5].copy()}
    save_file(tensors, tmp_path / "model.safetensors")
    model: Any = BareModel(2, SHAPES, Layout().on(jax.devices()[:1]))
    with pytest.raises(ValueError, match=r"x\.down_proj: MXFP4 blocks \(2, 6, 2, 16\) and scales"):
        bare_folder(tmp_path, model, bare_family(NAMES), **CONFIG)


def test_only_mxfp4_is_taken():
    fields = Fields(CONFIG, "config.json")
    mxfp4.take(fields)
    fields.finish()
    mxfp4.take(Fields({}, "config.json"))
    with pytest.raises(ValueError, match=r"'gptq'.*only the MXFP4 of GPT-OSS is read"):
        mxfp4.take(Fields({"quantization_config": {"quant_method": "gptq"}}, "config.json"))
    with pytest.raises(ValueError, match="only the MXFP4 of GPT-OSS is read"):
        Fields(CONFIG, "config.json").finish()


def test_a_packed_gpt_oss_gives_the_logits_of_transformers(tmp_path):
    torch = pytest.importorskip("torch")
    transformers = pytest.importorskip("transformers")
    sizes = {
        "vocab_size": 29, "hidden_size": 64, "intermediate_size": 32, "num_hidden_layers": 2,
        "num_attention_heads": 4, "num_key_value_heads": 2, "head_dim": 16,
        "num_local_experts": 4, "num_experts_per_tok": 2, "max_position_embeddings": 64,
    }  # fmt: skip
    torch.manual_seed(0)
    config = transformers.GptOssConfig(**sizes)
    transformers.AutoModelForCausalLM.from_config(config).save_pretrained(tmp_path)
    file, random = tmp_path / "model.safetensors", np.random.RandomState(4)
    tensors = load_file(file)
    for name in [name for name in tensors if name.endswith("_proj")]:
        shape = tensors.pop(name).shape
        tensors[f"{name}_blocks"], tensors[f"{name}_scales"] = packed(random, shape, 120, 125)
    save_file(tensors, file, metadata={"format": "pt"})
    said = json.loads((tmp_path / "config.json").read_text()) | CONFIG
    (tmp_path / "config.json").write_text(json.dumps(said))
    folder = open_folder(tmp_path)
    model = Transformer(folder.architecture, Layout().on(jax.devices()[:1]), Compute())
    params, tokens = load(folder, model), random.randint(0, 29, (2, 9))
    batch = Batch(
        tokens_BT=tokens,
        targets_BT=tokens,
        weights_BT=np.ones((2, 9), np.float32),
        positions_BT=np.tile(np.arange(9), (2, 1)),
        segments_BT=np.ones((2, 9), np.int32),
        ids_BZ=np.zeros((2, 1), np.int32),
    )
    ours = jax.jit(lambda p: model.apply(p, batch).logits())(params)
    theirs = transformers.AutoModelForCausalLM.from_pretrained(
        tmp_path, quantization_config=transformers.Mxfp4Config(dequantize=True), dtype=torch.float32
    )
    with torch.no_grad():
        expected = theirs.eval()(torch.from_numpy(tokens)).logits.numpy()
    np.testing.assert_allclose(ours, expected, rtol=0, atol=SAME_LOGITS)
