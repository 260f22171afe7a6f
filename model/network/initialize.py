"""Initial weights (methods 1.13, 2.9, 2.10)."""

from __future__ import annotations

import math

import numpy as np
import torch
from torch import Tensor, nn

from model.config import ModelConfig
from model.network.block import ExecutionScalars
from model.network.gates import BIASED_INIT, HeadGate
from model.network.gpt import GPT
from model.network.hash_embedding import HashEmbedding
from model.network.projection import Projection
from model.network.smear import ChannelSmear, MeanSmear, TokenSmear
from model.network.value_embedding import ValueEmbedding

NORMAL_STD = 0.02
ZERO_ROLES = ("attn_out", "mlp_down", "head")
"""At zero every block starts as the identity, and an untied head predicts every token alike."""


@torch.no_grad()
def initialize(model: GPT, seed: int, bigram_counts: np.ndarray | None = None) -> None:
    """Fill every parameter; the same seed gives the same values whatever the device or number of ranks.

    Embedding and matrices as `config.initialization` says, output matrices of both branches zero; scales 1, residual
    mix (1, 0) or by phase, skip weights 1, gates and whatever else opens a side path 0 or its configured start.

    Args:
        bigram_counts: [V, V] counts of (token, next token) in the training split, for the spectral embedding.

    Raises:
        ValueError: the spectral embedding without `bigram_counts`, or with counts of another vocabulary.
    """
    draw = _Draw(seed)
    config = model.config
    model.embedding.weight.copy_(_embedding(config, draw, bigram_counts))
    for module in model.modules():
        if isinstance(module, Projection):
            _fill_matrix(module, config, draw)
        elif isinstance(module, HashEmbedding | ValueEmbedding):
            _fill_side_embedding(module, config, draw)
        elif isinstance(module, HeadGate):
            module.weight.copy_(draw.normal(module.weight.shape, config.head_gate.init_std))
            if module.bias is not None:
                module.bias.fill_(BIASED_INIT)
        elif isinstance(module, TokenSmear):
            module.weight.zero_()
            module.strength.zero_()
        elif isinstance(module, ChannelSmear | MeanSmear):
            module.gate.fill_(config.smear.gate_init)
    _fill_scalars(model)


class _Draw:
    """Random numbers on the CPU from one generator."""

    def __init__(self, seed: int) -> None:
        self._generator = torch.Generator().manual_seed(seed)

    def normal(self, shape: torch.Size, std: float) -> Tensor:
        if std == 0:
            return torch.zeros(shape)
        return torch.empty(shape).normal_(0, std, generator=self._generator)

    def uniform(self, shape: torch.Size, bound: float) -> Tensor:
        return torch.empty(shape).uniform_(-bound, bound, generator=self._generator)

    def orthogonal(self, shape: torch.Size) -> Tensor:
        """Rows (or columns, if they are the fewer) of a random rotation: QR of a normal matrix, signs fixed."""
        tall = self.normal(torch.Size((max(shape), min(shape))), 1.0)
        q, r = torch.linalg.qr(tall)
        q = q * r.diagonal().sign()
        return q if shape[0] >= shape[1] else q.T


def _embedding(config: ModelConfig, draw: _Draw, bigram_counts: np.ndarray | None) -> Tensor:
    shape = torch.Size((config.vocab_size, config.embedding_dim or config.model_dim))
    table = draw.normal(shape, config.embedding_init_std)
    if config.initialization.embedding == "overtone":
        return overtone(table)
    if config.initialization.embedding == "spectral":
        if bigram_counts is None or bigram_counts.shape != (config.vocab_size, config.vocab_size):
            raise ValueError(
                f"initialization.embedding spectral: needs bigram counts of shape {(config.vocab_size,) * 2}, "
                f"got {None if bigram_counts is None else bigram_counts.shape}"
            )
        return spectral(torch.as_tensor(bigram_counts), table)
    return table


def overtone(table: Tensor) -> Tensor:
    """The table with its singular values replaced by `S_1 / sqrt(k)`, k from 1 (rank 43; methods 2.9)."""
    u, s, vh = torch.linalg.svd(table, full_matrices=False)
    return (u * (s[0] / torch.arange(1, len(s) + 1).sqrt())) @ vh


def spectral(counts: Tensor, table: Tensor) -> Tensor:
    """The table of the table's shape [V, E] and standard deviation whose rows are tokens' coordinates in the leading
    singular vectors, times the roots of their values, of the positive pointwise mutual information of adjacent tokens
    (Levy & Goldberg 2014). Dimensions beyond the matrix's rank keep the given table's values.

    The projection on the leading directions is a randomized SVD that starts from `table`, so the same table gives the
    same result.
    """
    counts = counts.double()
    joint = counts / counts.sum()
    expected = joint.sum(1, keepdim=True) * joint.sum(0, keepdim=True)
    information = torch.where(joint > 0, (joint / expected.clamp_min(1e-300)).clamp_min(1e-300).log(), 0.0).clamp_min(0)
    basis = torch.linalg.qr(information @ table.double())[0]
    for _ in range(4):
        basis = torch.linalg.qr(information @ (information.T @ basis))[0]
    left, values, _ = torch.linalg.svd(basis.T @ information, full_matrices=False)
    leading = values.numel() and int((values > values[0] * 1e-9).sum())
    coordinates = (basis @ left) * values.sqrt()
    result = table.clone()
    scale = table.std() / coordinates[:, :leading].std().clamp_min(1e-30)
    result[:, :leading] = (coordinates[:, :leading] * scale).to(table.dtype)
    return result


def _fill_matrix(module: Projection, config: ModelConfig, draw: _Draw) -> None:
    kind, shape = config.initialization.matrices, module.weight.shape
    in_narrow_table = module.role in ("embedding_in", "embedding_out")
    zero_hash = module.role == "hash_projection" and config.hash_embedding.projection_init == "zero"
    if module.role in ZERO_ROLES or zero_hash:
        module.weight.zero_()
    elif kind == "orthogonal":
        module.weight.copy_(draw.orthogonal(shape))
    elif kind == "normal" and not in_narrow_table:
        module.weight.copy_(draw.normal(shape, NORMAL_STD))
    else:
        module.weight.copy_(draw.uniform(shape, shape[1] ** -0.5))
    if config.initialization.scale_side_projections and module.role in ("hash_projection", "value_projection"):
        module.weight.mul_(1 / math.sqrt(2 * config.num_layers))


def _fill_side_embedding(module: HashEmbedding | ValueEmbedding, config: ModelConfig, draw: _Draw) -> None:
    settings = config.hash_embedding if isinstance(module, HashEmbedding) else config.value_embedding
    module.table.copy_(draw.normal(module.table.shape, settings.table_init_std))
    if module.scale is not None:
        module.scale.fill_(settings.scale_init)
    if isinstance(module, ValueEmbedding):
        module.layer_scales.fill_(1)


def _fill_scalars(model: GPT) -> None:
    config = model.config
    by_execution = config.recurrence.per_execution_scalars
    owners: list[nn.Module] = list(model.execution_scalars if by_execution else model.blocks)
    for position, owner in enumerate(owners):
        keep = 1.0
        if config.initialization.residual_mix == "phase" and len(owners) > 1:
            keep = 1 / (1 + math.exp(-3 * (position / (len(owners) - 1) - 0.5)))
        assert isinstance(owner, ExecutionScalars) or hasattr(owner, "scalars")
        scalars = owner.scalars()
        scalars.residual_mix[0].fill_(keep)
        scalars.residual_mix[1].fill_(1 - keep)
        scalars.mlp_scale.fill_(1)
        if scalars.attention_scale is not None and scalars.q_gain is not None:
            scalars.attention_scale.fill_(1)
            scalars.q_gain.fill_(config.qk_gain_init)
    for block in model.blocks:
        if block.lanes is not None:
            block.lanes.residual.fill_(config.lanes.residual_init)
            block.lanes.writes.fill_(1)
        if block.has_attention and block.attention.value_mix is not None:
            block.attention.value_mix.fill_(0.5)
    starts = {"skip_weights": 1.0, "skip_gates": 0.0, "lane_merge": 0.5, "head_bias": 0.0, "iteration_embedding": 0.0}
    for name, parameter in model.named_parameters(recurse=False):
        parameter.fill_(starts[name])
