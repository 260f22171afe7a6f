"""Presets at a width that a test can afford: all their layers and methods, few channels."""

from dataclasses import replace

import torch

from model.config import HashEmbeddingConfig, HeadGateConfig, LaneConfig, ModelConfig, RecurrenceConfig
from model.network.gpt import GPT
from model.network.initialize import initialize

VOCAB_SIZE = 64


def reduce_width(config: ModelConfig) -> ModelConfig:
    """The configuration with 64 tokens, width 32, 4 heads of 8, 2 key/value heads and small tables."""
    return replace(
        config,
        vocab_size=VOCAB_SIZE,
        model_dim=32,
        num_heads=4,
        num_kv_heads=2,
        rope_dims=4 if config.rope_dims else 0,
        embedding_dim=24 if config.embedding_dim else 0,
        hash_embedding=replace(
            config.hash_embedding, num_buckets=96 if config.hash_embedding.num_buckets else 0, dim=12
        ),
        value_embedding=replace(config.value_embedding, dim=8),
    )


def perturbed_model(config: ModelConfig, dtype: torch.dtype = torch.float32, seed: int = 0) -> GPT:
    """A network in which every path is open: no matrix is zero, and scalars are off their starts.

    At the start output matrices and many gates are zero, so a wrong path could hide.
    """
    model = GPT(config, dtype)
    initialize(model, seed)
    generator = torch.Generator().manual_seed(seed + 1)
    with torch.no_grad():
        for parameter in model.parameters():
            matrix = parameter.dim() == 2 and parameter.shape[0] > 2
            scale = parameter.shape[-1] ** -0.5 if matrix else 0.2
            parameter.add_(scale * torch.randn(parameter.shape, generator=generator))
    return model.to(torch.float64 if dtype == torch.float64 else torch.float32).eval()


TINY = ModelConfig(vocab_size=VOCAB_SIZE, num_layers=4, model_dim=32, num_heads=4, num_kv_heads=2)

VARIANTS = {
    "value residual": replace(TINY, value_residual=True, attention_free_layers=(0,)),
    "untied head": replace(TINY, tied_head=False, head_bias=True),
    "narrow table, untied head": replace(TINY, embedding_dim=24, tied_head=False),
    "window": replace(TINY, attention_window=3),
    "trigram": replace(TINY, hash_embedding=HashEmbeddingConfig(num_buckets=96, dim=32, trigram=True)),
    "biased gate": replace(TINY, head_gate=HeadGateConfig("biased")),
    "output gate on the query": replace(TINY, head_gate=HeadGateConfig("output", source="query")),
    "SwiGLU": replace(TINY, activation="swiglu", logit_softcap=0.0),
    "fused projections, normed outputs": replace(TINY, fused_qkv=True, output_norm=True),
    "universal transformer": replace(
        TINY, num_layers=3, recurrence=RecurrenceConfig(0, 2, num_extra_passes=3, iteration_embedding=True)
    ),
    "first lane": replace(TINY, lanes=LaneConfig("sequential", first_layer=1, merge="first")),
    "second lane": replace(TINY, lanes=LaneConfig("simultaneous", first_layer=2, merge="second")),
    "partial XSA": replace(TINY, num_xsa_layers=2, rope_dims=4),
    "no skips": replace(TINY, unet_skips=False),
}
"""Methods, and combinations, that no preset has."""
