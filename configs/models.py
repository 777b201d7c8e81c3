"""Architectures by name: published models, and tiny ones of each family for tests.

A name ending in `b` counts billions, `p` is the decimal point. These are shapes, to start from
random weights or to plan with; pretrained weights come in as `Pretrained(folder)`.
"""

from __future__ import annotations

from research.models.architecture import Architecture
from research.models.rope import Llama3Scaling, Rope


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
