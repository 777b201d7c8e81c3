"""Architectures by name: published models, and tiny ones of each family for tests.

A name ending in `b` counts billions, `p` is the decimal point. These are shapes, to start from
random weights or to plan with; pretrained weights come in as `Pretrained(folder)`.
"""

from __future__ import annotations

from research.models.activations import ClampedSwiglu
from research.models.architecture import Architecture, Latent, Moe
from research.models.moe.sigmoid_top_k import SigmoidTopK
from research.models.moe.softmax_top_k import SoftmaxTopK
from research.models.rope import Llama3Scaling, Rope, YarnScaling


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
