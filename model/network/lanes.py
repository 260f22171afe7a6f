"""Two-lane parallel residuals (methods 1.11).

Shapes: B batch, T time, D width. Lane 0 is attention's, lane 1 the MLP's.
"""

from __future__ import annotations

import torch
from torch import Tensor, nn

from model.config import LaneConfig

Lanes = tuple[Tensor, ...]
"""The residual stream [B, T, D]: one tensor, or two once the lanes have split."""


class LaneWeights(nn.Module):
    """How much each lane keeps of itself, and how much each branch writes to each lane."""

    def __init__(self) -> None:
        super().__init__()
        self.residual = nn.Parameter(torch.empty(2))
        """ρ of attention and of the MLP."""
        self.writes = nn.Parameter(torch.empty(2, 2))
        """Row: attention, MLP; column: lane 0, lane 1."""

    def update(self, lanes: Lanes, attended: Tensor, transformed: Tensor) -> Lanes:
        """`lane0 = ρ_attn lane0 + P_attn[0] A + P_mlp[0] M; lane1 = ρ_mlp lane1 + P_attn[1] A + P_mlp[1] M`."""
        residual, writes = self.residual.to(attended.dtype), self.writes.to(attended.dtype)
        return tuple(
            residual[lane] * lanes[lane] + writes[0, lane] * attended + writes[1, lane] * transformed for lane in (0, 1)
        )

    def write(self, lanes: Lanes, branch: int, output: Tensor) -> Lanes:
        """One branch (0 attention, 1 MLP) writes to both lanes: `lane_i = ρ_branch lane_i + P_branch[i] output`."""
        residual, writes = self.residual.to(output.dtype)[branch], self.writes.to(output.dtype)[branch]
        return tuple(residual * lanes[lane] + writes[lane] * output for lane in (0, 1))


def merge_lanes(lanes: Lanes, config: LaneConfig, weight: Tensor | None) -> Tensor:
    """What the head reads: the lanes' mean, one of them, or `m lane0 + (1-m) lane1` with the learned m = `weight`."""
    if len(lanes) == 1:
        return lanes[0]
    if weight is not None:
        m = weight.to(lanes[0].dtype)
        return m * lanes[0] + (1 - m) * lanes[1]
    if config.merge == "mean":
        return (lanes[0] + lanes[1]) / 2
    return lanes[0] if config.merge == "first" else lanes[1]
