"""Architectures by name: published models, and tiny ones of each family for tests.

A name ending in `b` counts billions, `p` is the decimal point. These are shapes, to start from
random weights or to plan with; pretrained weights come in as `Pretrained(folder)`.
"""

from __future__ import annotations

import math

from research.models.activations import ClampedSwiglu, Gelu
from research.models.architecture import Architecture, Latent, Moe
from research.models.moe.sigmoid_top_k import SigmoidTopK
from research.models.moe.softmax_top_k import SoftmaxTopK
from research.models.rope import LinearScaling, Llama3Scaling, LongScaling, Rope, YarnScaling


def llama2_7b() -> Architecture:
    """Llama 2 7B."""
    return _llama2(model_dim=4096, num_layers=32, num_heads=32, ffw_dim=11008)


def llama2_13b() -> Architecture:
    """Llama 2 13B."""
    return _llama2(model_dim=5120, num_layers=40, num_heads=40, ffw_dim=13824)


def llama2_70b() -> Architecture:
    """Llama 2 70B."""
    return _llama2(model_dim=8192, num_layers=80, num_heads=64, num_kv_heads=8, ffw_dim=28672)


def llama3p2_1b() -> Architecture:
    """Llama 3.2 1B."""
    return _llama3(
        factor=32.0,
        model_dim=2048,
        num_layers=16,
        num_heads=32,
        head_dim=64,
        ffw_dim=8192,
        tied_head=True,
    )


def llama3p2_3b() -> Architecture:
    """Llama 3.2 3B."""
    return _llama3(
        factor=32.0,
        model_dim=3072,
        num_layers=28,
        num_heads=24,
        head_dim=128,
        ffw_dim=8192,
        tied_head=True,
    )


def llama3p1_8b() -> Architecture:
    """Llama 3.1 8B."""
    return _llama3(
        factor=8.0,
        model_dim=4096,
        num_layers=32,
        num_heads=32,
        head_dim=128,
        ffw_dim=14336,
        tied_head=False,
    )


def llama3p1_70b() -> Architecture:
    """Llama 3.1 70B."""
    return _llama3(
        factor=8.0,
        model_dim=8192,
        num_layers=80,
        num_heads=64,
        head_dim=128,
        ffw_dim=28672,
        tied_head=False,
    )


def qwen2p5_0p5b() -> Architecture:
    """Qwen2.5 0.5B."""
    return _qwen2p5(model_dim=896, num_layers=24, num_heads=14, num_kv_heads=2, ffw_dim=4864)


def qwen2p5_1p5b() -> Architecture:
    """Qwen2.5 1.5B."""
    return _qwen2p5(model_dim=1536, num_layers=28, num_heads=12, num_kv_heads=2, ffw_dim=8960)


def qwen2p5_3b() -> Architecture:
    """Qwen2.5 3B."""
    return _qwen2p5(model_dim=2048, num_layers=36, num_heads=16, num_kv_heads=2, ffw_dim=11008)


def qwen2p5_7b() -> Architecture:
    """Qwen2.5 7B."""
    return _qwen2p5(
        vocab_size=152064,
        model_dim=3584,
        num_layers=28,
        num_heads=28,
        num_kv_heads=4,
        ffw_dim=18944,
        tied_head=False,
    )


def qwen3_0p6b() -> Architecture:
    """Qwen3 0.6B."""
    return _qwen3(model_dim=1024, num_layers=28, num_heads=16, ffw_dim=3072, tied_head=True)


def qwen3_1p7b() -> Architecture:
    """Qwen3 1.7B."""
    return _qwen3(model_dim=2048, num_layers=28, num_heads=16, ffw_dim=6144, tied_head=True)


def qwen3_4b() -> Architecture:
    """Qwen3 4B."""
    return _qwen3(model_dim=2560, num_layers=36, num_heads=32, ffw_dim=9728, tied_head=True)


def qwen3_8b() -> Architecture:
    """Qwen3 8B."""
    return _qwen3(model_dim=4096, num_layers=36, num_heads=32, ffw_dim=12288, tied_head=False)


def mistral_7b() -> Architecture:
    """Mistral 7B v0.1, with its sliding window of 4096."""
    return _mistral(vocab_size=32000, theta=10000.0, window=4096)


def mistral_7b_v0p3() -> Architecture:
    """Mistral 7B v0.3, without a window."""
    return _mistral(vocab_size=32768, theta=1000000.0, window=None)


def mixtral_8x7b() -> Architecture:
    """Mixtral 8x7B v0.1: 46.7B parameters, 12.9B of them active."""
    return Architecture(
        vocab_size=32000,
        model_dim=4096,
        num_layers=32,
        num_heads=32,
        num_kv_heads=8,
        head_dim=128,
        ffw_dim=14336,
        rope=Rope(theta=1000000.0),
        norm_eps=1e-5,
        moe=Moe(num_experts=8, experts_per_token=2, expert_dim=14336, router=SoftmaxTopK()),
        max_positions=32768,
        init_std=0.02,
    )


def qwen3_30b_a3b() -> Architecture:
    """Qwen3 30B-A3B."""
    return _qwen3_moe(model_dim=2048, num_layers=48, num_heads=32, ffw_dim=6144, expert_dim=768)


def qwen3_235b_a22b() -> Architecture:
    """Qwen3 235B-A22B."""
    return _qwen3_moe(model_dim=4096, num_layers=94, num_heads=64, ffw_dim=12288, expert_dim=1536)


def olmoe_1b_7b() -> Architecture:
    """OLMoE 1B-7B (0924): 6.9B parameters, 1.3B of them active."""
    return Architecture(
        vocab_size=50304,
        model_dim=2048,
        num_layers=16,
        num_heads=16,
        num_kv_heads=16,
        head_dim=128,
        ffw_dim=1024,
        norm_eps=1e-5,
        projection_norm=True,
        moe=Moe(
            num_experts=64,
            experts_per_token=8,
            expert_dim=1024,
            router=SoftmaxTopK(normalise=False),
        ),
        init_std=0.02,
    )


def gpt_oss_20b() -> Architecture:
    """GPT-OSS 20B."""
    return _gpt_oss(num_layers=24, num_experts=32)


def gpt_oss_120b() -> Architecture:
    """GPT-OSS 120B."""
    return _gpt_oss(num_layers=36, num_experts=128)


def deepseek_v3() -> Architecture:
    """DeepSeek-V3 and R1: 671B parameters, 37B of them active; without the layer for MTP."""
    scaling = YarnScaling(
        factor=40.0,
        original_max_positions=4096,
        beta_fast=32.0,
        beta_slow=1.0,
        mscale=1.0,
        mscale_all_dim=1.0,
    )
    return Architecture(
        vocab_size=129280,
        model_dim=7168,
        num_layers=61,
        num_heads=128,
        num_kv_heads=128,
        head_dim=192,
        ffw_dim=18432,
        rope=Rope(scaling=scaling, interleaved=True),
        attention_scale=192**-0.5 * scaling.heat(1.0) ** 2,
        latent=Latent(query_rank=1536, kv_rank=512, nope_dim=128, rotary_dim=64, value_dim=128),
        moe=Moe(
            num_experts=256,
            experts_per_token=8,
            expert_dim=2048,
            router=SigmoidTopK(scale=2.5, groups=8, groups_kept=4),
            shared_dim=2048,
            dense_layers=(0, 1, 2),
        ),
        max_positions=163840,
        init_std=0.02,
    )


def glm4p5_air() -> Architecture:
    """GLM-4.5 Air: 106B parameters with its layer for MTP, 12B of them active."""
    return _glm4p5(
        model_dim=4096,
        num_layers=46,
        ffw_dim=10944,
        moe=Moe(
            num_experts=128,
            experts_per_token=8,
            expert_dim=1408,
            router=SigmoidTopK(),
            shared_dim=1408,
            dense_layers=(0,),
        ),
    )


def glm4p5() -> Architecture:
    """GLM-4.5: 355B parameters with its layer for MTP, 32B of them active."""
    return _glm4p5(
        model_dim=5120,
        num_layers=92,
        ffw_dim=12288,
        query_key_norm=True,
        moe=Moe(
            num_experts=160,
            experts_per_token=8,
            expert_dim=1536,
            router=SigmoidTopK(scale=2.5),
            shared_dim=1536,
            dense_layers=(0, 1, 2),
        ),
    )


def gemma2_2b() -> Architecture:
    """Gemma 2 2B."""
    return _gemma2(model_dim=2304, num_layers=26, num_heads=8, num_kv_heads=4, ffw_dim=9216)


def gemma2_9b() -> Architecture:
    """Gemma 2 9B, as configured on its model page: scores are scaled by 256 ** -0.5."""
    return _gemma2(model_dim=3584, num_layers=42, num_heads=16, num_kv_heads=8, ffw_dim=14336)


def gemma2_27b() -> Architecture:
    """Gemma 2 27B, whose scores are scaled by (model_dim / num_heads) ** -0.5."""
    return _gemma2(
        model_dim=4608,
        num_layers=46,
        num_heads=32,
        num_kv_heads=16,
        head_dim=128,
        ffw_dim=36864,
        attention_scale=144**-0.5,
    )


def gemma3_270m() -> Architecture:
    """Gemma 3 270M."""
    return _gemma3(model_dim=640, num_layers=18, num_heads=4, num_kv_heads=1, ffw_dim=2048)


def gemma3_1b() -> Architecture:
    """Gemma 3 1B."""
    return _gemma3(model_dim=1152, num_layers=26, num_heads=4, num_kv_heads=1, ffw_dim=6912)


def gemma3_4b() -> Architecture:
    """The text model of Gemma 3 4B."""
    return _gemma3_seeing(model_dim=2560, num_layers=34, num_heads=8, num_kv_heads=4, ffw_dim=10240)


def gemma3_12b() -> Architecture:
    """The text model of Gemma 3 12B."""
    return _gemma3_seeing(
        model_dim=3840, num_layers=48, num_heads=16, num_kv_heads=8, ffw_dim=15360
    )


def gemma3_27b() -> Architecture:
    """The text model of Gemma 3 27B, whose scores are scaled by (model_dim / num_heads) ** -0.5."""
    return _gemma3_seeing(
        model_dim=5376,
        num_layers=62,
        num_heads=32,
        num_kv_heads=16,
        head_dim=128,
        ffw_dim=21504,
        attention_scale=168**-0.5,
    )


def phi3_mini() -> Architecture:
    """Phi-3 mini with 4k positions, every layer with a window of 2047."""
    return _phi3(
        vocab_size=32064,
        model_dim=3072,
        num_layers=32,
        num_heads=32,
        num_kv_heads=32,
        ffw_dim=8192,
        windows=(2047,) * 32,
        max_positions=4096,
    )


def phi3_medium() -> Architecture:
    """Phi-3 medium (14B) with 4k positions, every layer with a window of 2047."""
    return _phi3(
        vocab_size=32064,
        model_dim=5120,
        num_layers=40,
        num_heads=40,
        num_kv_heads=10,
        ffw_dim=17920,
        windows=(2047,) * 40,
        max_positions=4096,
    )


def phi4() -> Architecture:
    """Phi-4 (14B)."""
    return _phi3(
        vocab_size=100352,
        model_dim=5120,
        num_layers=40,
        num_heads=40,
        num_kv_heads=10,
        ffw_dim=17920,
        rope=Rope(theta=250000.0),
        max_positions=16384,
    )


def phi4_mini() -> Architecture:
    """Phi-4 mini: longrope over three quarters of each head, and a window that no row fills."""
    scaling = LongScaling(
        short_factors=(1.0,) * 48,
        long_factors=_PHI4_MINI_FACTORS,
        original_max_positions=4096,
        attention_factor=math.sqrt(1 + math.log(32) / math.log(4096)),
    )
    return _phi3(
        vocab_size=200064,
        model_dim=3072,
        num_layers=32,
        num_heads=24,
        num_kv_heads=8,
        ffw_dim=8192,
        rope=Rope(scaling=scaling, fraction=0.75),
        windows=(262144,) * 32,
        tied_head=True,
        max_positions=131072,
    )


def smollm3_3b() -> Architecture:
    """SmolLM3 3B."""
    return Architecture(
        vocab_size=128256,
        model_dim=2048,
        num_layers=36,
        num_heads=16,
        num_kv_heads=4,
        head_dim=128,
        ffw_dim=11008,
        rope=Rope(theta=5000000.0),
        unrotated=tuple(range(3, 36, 4)),
        tied_head=True,
        max_positions=65536,
        init_std=0.02,
    )


def granite3_2b() -> Architecture:
    """Granite 3.3 2B."""
    return _granite3(model_dim=2048, head_dim=64, ffw_dim=8192, divisor=8.0, tied_head=True)


def granite3_8b() -> Architecture:
    """Granite 3.3 8B."""
    return _granite3(model_dim=4096, head_dim=128, ffw_dim=12800, divisor=16.0, tied_head=True)


def olmo2_1b() -> Architecture:
    """OLMo 2 1B."""
    return _olmo2(model_dim=2048, num_layers=16, num_heads=16, num_kv_heads=16, ffw_dim=8192)


def olmo2_7b() -> Architecture:
    """OLMo 2 7B."""
    return _olmo2(model_dim=4096, num_layers=32, num_heads=32, num_kv_heads=32, ffw_dim=11008)


def olmo2_13b() -> Architecture:
    """OLMo 2 13B."""
    return _olmo2(model_dim=5120, num_layers=40, num_heads=40, num_kv_heads=40, ffw_dim=13824)


def glm4_9b() -> Architecture:
    """GLM-4 9B (0414)."""
    return _glm4(
        model_dim=4096,
        num_layers=40,
        num_heads=32,
        num_kv_heads=2,
        ffw_dim=13696,
        qkv_bias=True,
    )


def gpt2() -> Architecture:
    """GPT-2, 124M."""
    return _gpt2(model_dim=768, num_layers=12, num_heads=12)


def gpt2_medium() -> Architecture:
    """GPT-2 medium, 355M."""
    return _gpt2(model_dim=1024, num_layers=24, num_heads=16)


def gpt2_large() -> Architecture:
    """GPT-2 large, 774M."""
    return _gpt2(model_dim=1280, num_layers=36, num_heads=20)


def gpt2_xl() -> Architecture:
    """GPT-2 XL, 1.6B."""
    return _gpt2(model_dim=1600, num_layers=48, num_heads=25)


def tiny_llama() -> Architecture:
    """A llama with every size different, tied, with llama3 scaling."""
    scaling = Llama3Scaling(
        factor=8.0, low_freq_factor=1.0, high_freq_factor=4.0, original_max_positions=32
    )
    return Architecture(
        vocab_size=53,
        model_dim=24,
        num_layers=3,
        num_heads=6,
        num_kv_heads=2,
        head_dim=16,
        ffw_dim=40,
        rope=Rope(theta=10000.0, scaling=scaling),
        tied_head=True,
        max_positions=256,
    )


def tiny_qwen2() -> Architecture:
    """A qwen2 with every size different, biased, whose last layers slide."""
    return Architecture(
        vocab_size=47,
        model_dim=32,
        num_layers=3,
        num_heads=4,
        num_kv_heads=2,
        head_dim=10,
        ffw_dim=48,
        qkv_bias=True,
        windows=(None, 5, 5),
        max_positions=256,
    )


def tiny_qwen3() -> Architecture:
    """A qwen3 with every size different: query and key norms, untied."""
    return Architecture(
        vocab_size=59,
        model_dim=40,
        num_layers=2,
        num_heads=6,
        num_kv_heads=3,
        head_dim=12,
        ffw_dim=56,
        query_key_norm=True,
        max_positions=256,
    )


def tiny_mistral() -> Architecture:
    """A mistral with every size different: one window for all layers."""
    return Architecture(
        vocab_size=61,
        model_dim=48,
        num_layers=4,
        num_heads=8,
        num_kv_heads=2,
        head_dim=14,
        ffw_dim=72,
        windows=(6,) * 4,
        max_positions=256,
    )


def tiny_mixtral() -> Architecture:
    """A mixtral with every size different."""
    return Architecture(
        vocab_size=67,
        model_dim=24,
        num_layers=3,
        num_heads=6,
        num_kv_heads=2,
        head_dim=10,
        ffw_dim=28,
        moe=Moe(num_experts=4, experts_per_token=2, expert_dim=28, router=SoftmaxTopK()),
        max_positions=256,
    )


def tiny_qwen3_moe() -> Architecture:
    """A qwen3_moe with every size different, whose first layer is dense."""
    return Architecture(
        vocab_size=71,
        model_dim=32,
        num_layers=3,
        num_heads=4,
        num_kv_heads=2,
        head_dim=12,
        ffw_dim=44,
        query_key_norm=True,
        moe=Moe(
            num_experts=8,
            experts_per_token=3,
            expert_dim=20,
            router=SoftmaxTopK(),
            dense_layers=(0,),
        ),
        max_positions=256,
    )


def tiny_olmoe() -> Architecture:
    """An olmoe with every size different."""
    return Architecture(
        vocab_size=73,
        model_dim=40,
        num_layers=2,
        num_heads=4,
        num_kv_heads=2,
        head_dim=10,
        ffw_dim=18,
        projection_norm=True,
        qkv_clip=2.5,
        moe=Moe(
            num_experts=9,
            experts_per_token=3,
            expert_dim=18,
            router=SoftmaxTopK(normalise=False),
        ),
        max_positions=256,
    )


def tiny_gpt_oss() -> Architecture:
    """A gpt_oss with every size different; every second layer slides, from the first."""
    return Architecture(
        vocab_size=79,
        model_dim=36,
        num_layers=4,
        num_heads=6,
        num_kv_heads=2,
        head_dim=14,
        ffw_dim=22,
        qkv_bias=True,
        out_bias=True,
        sinks=True,
        activation=ClampedSwiglu(),
        moe=Moe(
            num_experts=5,
            experts_per_token=2,
            expert_dim=22,
            router=SoftmaxTopK(),
            router_bias=True,
            expert_bias=True,
        ),
        windows=(6, None) * 2,
        max_positions=256,
    )


def tiny_deepseek_v3() -> Architecture:
    """A deepseek_v3 with every size different: latents, groups of experts, a dense first layer."""
    return Architecture(
        vocab_size=83,
        model_dim=44,
        num_layers=3,
        num_heads=3,
        num_kv_heads=3,
        head_dim=16,
        ffw_dim=52,
        rope=Rope(interleaved=True),
        latent=Latent(query_rank=26, kv_rank=20, nope_dim=10, rotary_dim=6, value_dim=8),
        moe=Moe(
            num_experts=12,
            experts_per_token=4,
            expert_dim=14,
            router=SigmoidTopK(scale=1.5, groups=4, groups_kept=2),
            shared_dim=28,
            dense_layers=(0,),
        ),
        max_positions=256,
    )


def tiny_glm4_moe() -> Architecture:
    """A glm4_moe with every size different: half of each head rotated, a dense first layer."""
    return Architecture(
        vocab_size=89,
        model_dim=48,
        num_layers=3,
        num_heads=8,
        num_kv_heads=2,
        head_dim=12,
        ffw_dim=54,
        rope=Rope(fraction=0.5),
        query_key_norm=True,
        qkv_bias=True,
        moe=Moe(
            num_experts=6,
            experts_per_token=2,
            expert_dim=16,
            router=SigmoidTopK(scale=2.0),
            shared_dim=16,
            dense_layers=(0,),
        ),
        max_positions=256,
    )


def tiny_gemma2() -> Architecture:
    """A gemma2 with every size different, whose windows and caps a short row meets."""
    return Architecture(
        vocab_size=43,
        model_dim=30,
        num_layers=4,
        num_heads=6,
        num_kv_heads=3,
        head_dim=8,
        ffw_dim=34,
        norm_offset=1.0,
        post_norm=True,
        activation=Gelu(),
        embed_scale=30**0.5,
        attention_scale=5**-0.5,
        attention_cap=2.0,
        logit_cap=3.0,
        tied_head=True,
        windows=(4, None) * 2,
        max_positions=256,
    )


def tiny_gemma3() -> Architecture:
    """A gemma3 with every size different: two windows, then a full layer on another base."""
    return Architecture(
        vocab_size=41,
        model_dim=28,
        num_layers=3,
        num_heads=4,
        num_kv_heads=1,
        head_dim=10,
        ffw_dim=36,
        rope=Rope(theta=1000000.0, scaling=LinearScaling(factor=8.0)),
        local_rope=Rope(theta=10000.0),
        norm_offset=1.0,
        post_norm=True,
        query_key_norm=True,
        activation=Gelu(),
        embed_scale=28**0.5,
        tied_head=True,
        windows=(5, 5, None),
        max_positions=256,
    )


def tiny_phi3() -> Architecture:
    """A phi3 with every size different: longrope over a part of each head; ten positions."""
    scaling = LongScaling(
        short_factors=(1.0, 1.1, 1.4),
        long_factors=(1.0, 2.5, 6.0),
        original_max_positions=10,
        attention_factor=1.5,
    )
    return Architecture(
        vocab_size=45,
        model_dim=48,
        num_layers=2,
        num_heads=6,
        num_kv_heads=2,
        head_dim=8,
        ffw_dim=38,
        rope=Rope(scaling=scaling, fraction=0.75),
        max_positions=320,
    )


def tiny_smollm3() -> Architecture:
    """A smollm3 with every size different, whose second layer has no positions."""
    return Architecture(
        vocab_size=49,
        model_dim=30,
        num_layers=4,
        num_heads=3,
        num_kv_heads=1,
        head_dim=10,
        ffw_dim=42,
        unrotated=(1,),
        tied_head=True,
        max_positions=256,
    )


def tiny_granite() -> Architecture:
    """A granite with every size different and every multiplier far from 1."""
    return Architecture(
        vocab_size=51,
        model_dim=36,
        num_layers=3,
        num_heads=4,
        num_kv_heads=2,
        head_dim=12,
        ffw_dim=44,
        attention_scale=0.2,
        embed_scale=3.0,
        residual_scale=0.4,
        logit_scale=0.5,
        max_positions=256,
    )


def tiny_olmo2() -> Architecture:
    """An olmo2 with every size different."""
    return Architecture(
        vocab_size=55,
        model_dim=38,
        num_layers=2,
        num_heads=6,
        num_kv_heads=3,
        head_dim=14,
        ffw_dim=46,
        pre_norm=False,
        post_norm=True,
        projection_norm=True,
        max_positions=256,
    )


def tiny_glm4() -> Architecture:
    """A glm4 with every size different."""
    return Architecture(
        vocab_size=57,
        model_dim=42,
        num_layers=2,
        num_heads=4,
        num_kv_heads=1,
        head_dim=16,
        ffw_dim=50,
        rope=Rope(fraction=0.5, interleaved=True),
        post_norm=True,
        qkv_bias=True,
        max_positions=256,
    )


def tiny_gpt2() -> Architecture:
    """A gpt2 with every size different, and few positions."""
    return _gpt2(
        vocab_size=63, model_dim=44, num_layers=3, num_heads=4, ffw_dim=52, max_positions=32
    )


_PHI4_MINI_FACTORS = (
    1.0, 1.118320672, 1.250641126, 1.398617824, 1.564103225, 1.74916897, 1.956131817, 2.187582649,
    2.446418898, 2.735880826, 3.059592084, 3.421605075, 3.826451687, 4.279200023, 4.785517845,
    5.351743533, 5.984965424, 6.693110555, 7.485043894, 8.370679318, 9.36110372, 10.4687158,
    11.70738129, 13.09260651, 14.64173252, 16.37415215, 18.31155283, 20.47818807, 22.90118105,
    25.61086418, 28.64115884, 32.03, 32.1, 32.13, 32.23, 32.6, 32.61, 32.64, 32.66, 32.7, 32.71,
    32.93, 32.97, 33.28, 33.49, 33.5, 44.16, 47.77,
)  # fmt: skip


def _llama2(
    *, model_dim: int, num_heads: int, num_kv_heads: int | None = None, **sizes
) -> Architecture:
    return Architecture(
        vocab_size=32000,
        model_dim=model_dim,
        num_heads=num_heads,
        num_kv_heads=num_kv_heads or num_heads,
        head_dim=model_dim // num_heads,
        norm_eps=1e-5,
        max_positions=4096,
        init_std=0.02,
        **sizes,
    )


def _gemma2(*, model_dim: int, num_layers: int, head_dim: int = 256, **sizes) -> Architecture:
    return Architecture(
        vocab_size=256000,
        model_dim=model_dim,
        num_layers=num_layers,
        head_dim=head_dim,
        norm_offset=1.0,
        post_norm=True,
        activation=Gelu(),
        embed_scale=model_dim**0.5,
        attention_cap=50.0,
        logit_cap=30.0,
        tied_head=True,
        windows=tuple(None if layer % 2 else 4096 for layer in range(num_layers)),
        max_positions=8192,
        init_std=0.02,
        **sizes,
    )


def _gemma3_seeing(**sizes) -> Architecture:
    """What the sizes with a vision tower have in common: longer contexts, 64 more tokens."""
    return _gemma3(
        vocab_size=262208,
        rope=Rope(theta=1000000.0, scaling=LinearScaling(factor=8.0)),
        window=1024,
        max_positions=131072,
        **sizes,
    )


def _gemma3(
    *,
    model_dim: int,
    num_layers: int,
    vocab_size: int = 262144,
    head_dim: int = 256,
    rope: Rope | None = None,
    window: int = 512,
    max_positions: int = 32768,
    **sizes,
) -> Architecture:
    return Architecture(
        vocab_size=vocab_size,
        model_dim=model_dim,
        num_layers=num_layers,
        head_dim=head_dim,
        rope=rope or Rope(theta=1000000.0),
        local_rope=Rope(theta=10000.0),
        norm_offset=1.0,
        post_norm=True,
        query_key_norm=True,
        activation=Gelu(),
        embed_scale=model_dim**0.5,
        tied_head=True,
        windows=tuple(window if (layer + 1) % 6 else None for layer in range(num_layers)),
        max_positions=max_positions,
        init_std=0.02,
        **sizes,
    )


def _phi3(*, model_dim: int, num_heads: int, **sizes) -> Architecture:
    return Architecture(
        model_dim=model_dim,
        num_heads=num_heads,
        head_dim=model_dim // num_heads,
        norm_eps=1e-5,
        init_std=0.02,
        **sizes,
    )


def _granite3(*, head_dim: int, divisor: float, **sizes) -> Architecture:
    """Scores are divided by the head width, not by its root."""
    return Architecture(
        vocab_size=49159,
        num_layers=40,
        num_heads=32,
        num_kv_heads=8,
        head_dim=head_dim,
        rope=Rope(theta=10000000.0),
        norm_eps=1e-5,
        attention_scale=1 / head_dim,
        embed_scale=12.0,
        residual_scale=0.22,
        logit_scale=1 / divisor,
        max_positions=131072,
        init_std=0.02,
        **sizes,
    )


def _olmo2(**sizes) -> Architecture:
    return Architecture(
        vocab_size=100352,
        head_dim=128,
        rope=Rope(theta=500000.0),
        pre_norm=False,
        post_norm=True,
        projection_norm=True,
        max_positions=4096,
        init_std=0.02,
        **sizes,
    )


def _glm4(**sizes) -> Architecture:
    return Architecture(
        vocab_size=151552,
        head_dim=128,
        rope=Rope(theta=10000.0, fraction=0.5, interleaved=True),
        norm_eps=1e-5,
        post_norm=True,
        max_positions=32768,
        init_std=0.02,
        **sizes,
    )


def _gpt2(
    *,
    model_dim: int,
    num_heads: int,
    vocab_size: int = 50257,
    ffw_dim: int | None = None,
    max_positions: int = 1024,
    **sizes,
) -> Architecture:
    return Architecture(
        vocab_size=vocab_size,
        model_dim=model_dim,
        num_heads=num_heads,
        num_kv_heads=num_heads,
        head_dim=model_dim // num_heads,
        ffw_dim=ffw_dim or 4 * model_dim,
        rope=None,
        learned_positions=True,
        norm_eps=1e-5,
        layer_norm=True,
        qkv_bias=True,
        out_bias=True,
        ffw_bias=True,
        activation=Gelu(),
        ffw_gated=False,
        tied_head=True,
        max_positions=max_positions,
        init_std=0.02,
        **sizes,
    )


def _llama3(*, factor: float, **sizes) -> Architecture:
    scaling = Llama3Scaling(
        factor=factor, low_freq_factor=1.0, high_freq_factor=4.0, original_max_positions=8192
    )
    return Architecture(
        vocab_size=128256,
        num_kv_heads=8,
        rope=Rope(theta=500000.0, scaling=scaling),
        norm_eps=1e-5,
        max_positions=131072,
        init_std=0.02,
        **sizes,
    )


def _qwen2p5(
    *, num_heads: int, model_dim: int, vocab_size: int = 151936, tied_head: bool = True, **sizes
) -> Architecture:
    return Architecture(
        vocab_size=vocab_size,
        model_dim=model_dim,
        num_heads=num_heads,
        head_dim=model_dim // num_heads,
        rope=Rope(theta=1000000.0),
        qkv_bias=True,
        tied_head=tied_head,
        max_positions=32768,
        init_std=0.02,
        **sizes,
    )


def _qwen3(**sizes) -> Architecture:
    return Architecture(
        vocab_size=151936,
        num_kv_heads=8,
        head_dim=128,
        rope=Rope(theta=1000000.0),
        query_key_norm=True,
        max_positions=40960,
        init_std=0.02,
        **sizes,
    )


def _mistral(*, vocab_size: int, theta: float, window: int | None) -> Architecture:
    num_layers = 32
    return Architecture(
        vocab_size=vocab_size,
        model_dim=4096,
        num_layers=num_layers,
        num_heads=32,
        num_kv_heads=8,
        head_dim=128,
        ffw_dim=14336,
        rope=Rope(theta=theta),
        norm_eps=1e-5,
        windows=() if window is None else (window,) * num_layers,
        max_positions=32768,
        init_std=0.02,
    )


def _qwen3_moe(*, expert_dim: int, **sizes) -> Architecture:
    return Architecture(
        vocab_size=151936,
        num_kv_heads=4,
        head_dim=128,
        rope=Rope(theta=1000000.0),
        query_key_norm=True,
        moe=Moe(num_experts=128, experts_per_token=8, expert_dim=expert_dim, router=SoftmaxTopK()),
        max_positions=40960,
        init_std=0.02,
        **sizes,
    )


def _gpt_oss(*, num_layers: int, num_experts: int) -> Architecture:
    scaling = YarnScaling(
        factor=32.0, original_max_positions=4096, beta_fast=32.0, beta_slow=1.0, truncate=False
    )
    return Architecture(
        vocab_size=201088,
        model_dim=2880,
        num_layers=num_layers,
        num_heads=64,
        num_kv_heads=8,
        head_dim=64,
        ffw_dim=2880,
        rope=Rope(theta=150000.0, scaling=scaling),
        norm_eps=1e-5,
        qkv_bias=True,
        out_bias=True,
        sinks=True,
        activation=ClampedSwiglu(),
        moe=Moe(
            num_experts=num_experts,
            experts_per_token=4,
            expert_dim=2880,
            router=SoftmaxTopK(),
            router_bias=True,
            expert_bias=True,
        ),
        windows=(128, None) * (num_layers // 2),
        max_positions=131072,
        init_std=0.02,
    )


def _glm4p5(**sizes) -> Architecture:
    return Architecture(
        vocab_size=151552,
        num_heads=96,
        num_kv_heads=8,
        head_dim=128,
        rope=Rope(theta=1000000.0, fraction=0.5),
        norm_eps=1e-5,
        qkv_bias=True,
        max_positions=131072,
        init_std=0.02,
        **sizes,
    )
