"""The layer plan: which block runs when, and which skip it receives, as data computed from the configuration."""

from __future__ import annotations

from dataclasses import dataclass

from model.config import ModelConfig


@dataclass(frozen=True)
class Execution:
    """One run of a block."""

    layer: int
    """Physical layer whose parameters are used."""
    skip: int | None = None
    """Row of the skip weights that scales the stored state mixed in before the block; None: no skip."""
    source: int | None = None
    """Index of the execution whose output is that state."""


@dataclass(frozen=True)
class LayerPlan:
    executions: tuple[Execution, ...]
    num_skips: int


def layer_plan(config: ModelConfig) -> LayerPlan:
    """The order of block executions.

    U-Net: the first `num_layers // 2` executions are the encoder; decoder execution i takes the most recent encoder
    output that none before it took, scaled by skip row i (baseline entry; methods 1.9, ungated form).
    """
    num_encoder = config.num_layers // 2
    num_skips = num_encoder if config.unet_skips else 0
    executions = []
    for index in range(config.num_layers):
        position = index - num_encoder
        takes_skip = 0 <= position < num_skips
        executions.append(Execution(index, position, num_encoder - 1 - position) if takes_skip else Execution(index))
    return LayerPlan(tuple(executions), num_skips)
