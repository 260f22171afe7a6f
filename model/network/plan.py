"""The layer plan: which block runs when, with which scalars, and which skip it receives, as data computed from the
configuration. The forward walks it and decides nothing itself."""

from __future__ import annotations

from dataclasses import dataclass

from model.config import ModelConfig


@dataclass(frozen=True)
class Execution:
    """One run of a block."""

    layer: int
    """Physical layer whose matrices are used."""
    skip: int | None = None
    """Row of the skip weights that scales the stored state mixed in before the block; None: no skip."""
    source: int | None = None
    """Index of the execution whose output is that state."""
    scalars: int = 0
    """Whose scales, mix and gain apply: the layer, or the position where scalars go by execution. Also the index that
    LN scale counts from 0."""
    exclusive: bool = False
    """Exclusive self attention."""
    value_embedding: int | None = None
    """Index of the value embedding's layer scale; None: none here."""
    untied_mlp: int | None = None
    """Index of the MLP of an extra pass; None: the layer's own."""
    iteration: int | None = None
    """Pass whose iteration embedding is added before the block; None: none here."""
    in_lanes: bool = False
    """Reads and writes two lanes."""


@dataclass(frozen=True)
class LayerPlan:
    executions: tuple[Execution, ...]
    num_skips: int


def execution_order(config: ModelConfig, num_extra_passes: int) -> list[tuple[int, int]]:
    """(layer, pass) of every block execution: the layers before the repeated segment, the segment once for each pass,
    the rest (1.10)."""
    recurrence = config.recurrence
    if not num_extra_passes:
        return [(layer, 0) for layer in range(config.num_layers)]
    segment = range(recurrence.first_layer, recurrence.last_layer + 1)
    before = [(layer, 0) for layer in range(recurrence.first_layer)]
    repeated = [(layer, number) for number in range(num_extra_passes + 1) for layer in segment]
    after = [(layer, 0) for layer in range(recurrence.last_layer + 1, config.num_layers)]
    return before + repeated + after


def layer_plan(config: ModelConfig, num_extra_passes: int | None = None) -> LayerPlan:
    """The order of block executions with the first `num_extra_passes` extra passes of the recurrence (None: all).

    U-Net (1.9): the first half of the executions, rounded down, is the encoder; decoder execution i takes the most
    recent encoder output that none before it took, scaled by skip row i. So the rows belong to decoder positions and
    serve other layers once recurrence is on.

    Raises:
        ValueError: more passes than the configuration has.
    """
    recurrence = config.recurrence
    if num_extra_passes is None:
        num_extra_passes = recurrence.num_extra_passes
    if not 0 <= num_extra_passes <= recurrence.num_extra_passes:
        raise ValueError(
            f"num_extra_passes: accepts 0 to recurrence.num_extra_passes={recurrence.num_extra_passes}, "
            f"got {num_extra_passes}"
        )
    order = execution_order(config, num_extra_passes)
    num_encoder = len(order) // 2
    num_skips = num_encoder if config.unet_skips else 0
    if config.max_skips:
        num_skips = min(num_skips, config.max_skips)
    segment_layers = recurrence.last_layer - recurrence.first_layer + 1
    total = config.num_executions if recurrence.per_execution_scalars else config.num_layers
    executions = []
    for index, (layer, number) in enumerate(order):
        position = index - num_encoder
        takes_skip = 0 <= position < num_skips
        scalars = index if recurrence.per_execution_scalars else layer
        begins_pass = recurrence.iteration_embedding and layer == recurrence.first_layer
        untied = recurrence.untied_mlp and number > 0
        with_values = config.value_embedding.layers
        executions.append(
            Execution(
                layer=layer,
                skip=position if takes_skip else None,
                source=num_encoder - 1 - position if takes_skip else None,
                scalars=scalars,
                exclusive=scalars >= total - config.num_xsa_layers,
                value_embedding=with_values.index(scalars) if scalars in with_values else None,
                untied_mlp=(number - 1) * segment_layers + layer - recurrence.first_layer if untied else None,
                iteration=number if begins_pass else None,
                in_lanes=has_lanes(config, layer),
            )
        )
    return LayerPlan(tuple(executions), num_skips)


def has_lanes(config: ModelConfig, layer: int) -> bool:
    """Whether a layer reads and writes two lanes."""
    return config.lanes.kind not in ("none", "single_stream") and layer >= config.lanes.first_layer
