"""A transformer block: residual mix, attention branch, MLP branch, in one stream or two lanes.

Shapes: B batch, T time, D width, H query heads, C width of all value heads.
"""

from __future__ import annotations

from typing import NamedTuple

import torch
from torch import Tensor, nn

from model.config import ModelConfig
from model.network.adapters import ExecutionAdapters
from model.network.attention import Attention, AttentionCall
from model.network.lanes import Lanes, LaneWeights
from model.network.mlp import MLP
from model.network.norm import rms_norm
from model.network.plan import has_lanes
from model.network.sequence import SequenceLayout
from model.network.smear import MeanSmear


class Scalars(NamedTuple):
    """The vectors of a block. Attention's are None where there is none."""

    residual_mix: Tensor
    """[2, D]"""
    mlp_scale: Tensor
    """[D]"""
    attention_scale: Tensor | None
    """[D]"""
    q_gain: Tensor | None
    """[H]"""


class ExecutionScalars(nn.Module):
    """The vectors of one execution, where they go by execution and not by layer (rank 21)."""

    def __init__(self, config: ModelConfig, has_attention: bool) -> None:
        super().__init__()
        self.residual_mix = nn.Parameter(torch.empty(2, config.model_dim))
        self.mlp_scale = nn.Parameter(torch.empty(config.model_dim))
        self.attention_scale = nn.Parameter(torch.empty(config.model_dim)) if has_attention else None
        self.q_gain = nn.Parameter(torch.empty(config.num_heads)) if has_attention else None

    def scalars(self) -> Scalars:
        return Scalars(self.residual_mix, self.mlp_scale, self.attention_scale, self.q_gain)


class BlockCall(NamedTuple):
    """What differs between the executions of one block."""

    scalars: Scalars
    ln_scale: float
    """Factor on both normalized branch inputs."""
    exclusive: bool
    extra_value: Tensor | None
    first_value: Tensor | None
    mlp: MLP | None
    """An untied MLP in place of the block's own."""
    adapters: ExecutionAdapters


class Block(nn.Module):
    """`u = m₀ ⊙ x + m₁ ⊙ x0;  y = u + a ⊙ Attention(c rms(u));  out = y + b ⊙ MLP(c rms(y))` (methods 1.4).

    Single stream (GPT-J): the MLP reads u too. Lanes (1.11): attention reads the mix of lane 0, the MLP reads lane 1.
    """

    def __init__(self, config: ModelConfig, layer: int) -> None:
        super().__init__()
        self.config = config
        self.has_attention = layer not in config.attention_free_layers
        self.parallel = config.lanes.kind if layer >= config.lanes.first_layer else "none"
        if not config.recurrence.per_execution_scalars:
            self.residual_mix = nn.Parameter(torch.empty(2, config.model_dim))
            self.mlp_scale = nn.Parameter(torch.empty(config.model_dim))
            if self.has_attention:
                self.attention_scale = nn.Parameter(torch.empty(config.model_dim))
        if self.has_attention:
            mixes_values = config.value_residual and layer != first_attention_layer(config)
            self.attention = Attention(config, mixes_values=mixes_values)
        self.mlp = MLP(config)
        writes_both = has_lanes(config, layer) and self.parallel != "uncoupled"
        self.lanes = LaneWeights() if writes_both else None
        self.smear = MeanSmear(config.model_dim) if config.smear.kind == "mean" else None

    def scalars(self) -> Scalars:
        """The block's own vectors."""
        if not self.has_attention:
            return Scalars(self.residual_mix, self.mlp_scale, None, None)
        return Scalars(self.residual_mix, self.mlp_scale, self.attention_scale, self.attention.q_gain)

    def forward(self, lanes: Lanes, x0: Tensor, layout: SequenceLayout, call: BlockCall) -> tuple[Lanes, Tensor | None]:
        """lanes, and x0, the stream as it entered block 0, [B, T, D] -> (lanes, attention's values [B, T, C])."""
        u = self._mix(lanes[0], x0, call)
        attended, values = self._attend(u, layout, call)
        if self.parallel == "simultaneous":
            assert self.lanes is not None
            lanes = self.lanes.update(lanes, attended, self._transform(lanes[1], call))
        elif self.parallel == "sequential":
            assert self.lanes is not None
            lanes = self.lanes.write(lanes, 0, attended)
            lanes = self.lanes.write(lanes, 1, self._transform(self._mix(lanes[1], x0, call), call))
        elif self.parallel == "uncoupled":
            lanes = (u + attended, lanes[1] + self._transform(lanes[1], call))
        elif self.parallel == "single_stream":
            lanes = (u + attended + self._transform(u, call),)
        else:
            y = u if attended is None else u + attended
            lanes = (y + self._transform(y, call),)
        if self.smear is not None:
            lanes = tuple(self.smear(lane, layout) for lane in lanes)
        return lanes, values

    def _mix(self, x: Tensor, x0: Tensor, call: BlockCall) -> Tensor:
        mix = call.scalars.residual_mix.to(x.dtype)
        return mix[0] * x + mix[1] * x0

    def _attend(self, u: Tensor, layout: SequenceLayout, call: BlockCall) -> tuple[Tensor | None, Tensor | None]:
        """The scaled attention branch and its values; None without attention."""
        scale, gain = call.scalars.attention_scale, call.scalars.q_gain
        if scale is None or gain is None:
            return None, None
        attention_call = AttentionCall(gain, call.exclusive, call.extra_value, call.first_value, call.adapters)
        attended, values = self.attention(self._normalize(u, call), layout, attention_call)
        return scale.to(u.dtype) * attended, values

    def _transform(self, x: Tensor, call: BlockCall) -> Tensor:
        """The scaled MLP branch."""
        mlp = self.mlp if call.mlp is None else call.mlp
        return call.scalars.mlp_scale.to(x.dtype) * mlp(self._normalize(x, call), call.adapters)

    def _normalize(self, x: Tensor, call: BlockCall) -> Tensor:
        normalized = rms_norm(x, self.config.norm_epsilon)
        return normalized * call.ln_scale if self.config.ln_scale else normalized


def first_attention_layer(config: ModelConfig) -> int:
    """The first layer that has attention; num_layers if none has."""
    layers = (layer for layer in range(config.num_layers) if layer not in config.attention_free_layers)
    return next(layers, config.num_layers)
