"""Initial weights."""

from __future__ import annotations

import torch

from model.network.gpt import GPT
from model.network.projection import Projection


@torch.no_grad()
def initialize(model: GPT, seed: int) -> None:
    """Fill every parameter; the same seed gives the same values whatever the device or number of ranks.

    Baseline rule: embedding normal with the configured deviation; matrices uniform in ±1/sqrt(inputs); output
    matrices of both branches zero, so that every block starts as the identity; scales 1, residual mix (1, 0), skip
    weights 1.
    """
    generator = torch.Generator().manual_seed(seed)
    config = model.config

    def uniform(shape: torch.Size, bound: float) -> torch.Tensor:
        return torch.empty(shape).uniform_(-bound, bound, generator=generator)

    embedding = torch.empty(model.embedding.weight.shape).normal_(0, config.embedding_init_std, generator=generator)
    model.embedding.weight.copy_(embedding)
    for module in model.modules():
        if isinstance(module, Projection):
            if module.role in ("attn_out", "mlp_down"):
                module.weight.zero_()
            else:
                module.weight.copy_(uniform(module.weight.shape, module.weight.shape[1] ** -0.5))
    for block in model.blocks:
        block.residual_mix[0].fill_(1)
        block.residual_mix[1].fill_(0)
        block.attention_scale.fill_(1)
        block.mlp_scale.fill_(1)
        block.attention.q_gain.fill_(config.qk_gain_init)
    model.skip_weights.fill_(1)
