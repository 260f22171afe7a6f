"""Arithmetic of the network, counted from its configuration."""

from __future__ import annotations

from model.config import ModelConfig
from model.network.plan import layer_plan


def forward_flops_per_token(config: ModelConfig, context_tokens: int) -> float:
    """Floating-point operations (a multiply-add is two) of the matrix products of one token's forward pass.

    Attention counts the mean of `context_tokens / 2` earlier positions that a token of a full causal window sees.
    """
    width, head_width = config.model_dim, config.num_heads * config.head_dim
    projections = 2 * width * head_width + 2 * width * config.kv_dim + 2 * width * config.mlp_dim
    attention = 2 * head_width * context_tokens / 2
    block = 2 * (projections + attention)
    return len(layer_plan(config).executions) * block + 2 * width * config.vocab_size


def training_flops_per_token(config: ModelConfig, context_tokens: int) -> float:
    """Forward and backward: three times the forward pass, nothing recomputed."""
    return 3 * forward_flops_per_token(config, context_tokens)
