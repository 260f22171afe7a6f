"""Orders of execution and skip pairings, as the methods reference lists them (1.9, 1.10)."""

import pytest

from launch.preset import load
from model.config import ModelConfig, RecurrenceConfig
from model.network.plan import LayerPlan, layer_plan


def order(plan: LayerPlan) -> list[int]:
    return [execution.layer for execution in plan.executions]


def pairing(plan: LayerPlan) -> list[tuple[int, int]]:
    """(layer, layer whose output it receives) of the executions that take a skip."""
    executions = plan.executions
    return [(e.layer, executions[e.source].layer) for e in executions if e.source is not None]


def config_of(name: str) -> ModelConfig:
    return load(name).settings.model


def test_rank_1() -> None:
    on, off = layer_plan(config_of("rank01")), layer_plan(config_of("rank01"), 0)
    assert order(on) == [0, 1, 2, 3, 4, 5, 3, 4, 5, 3, 4, 5, 6, 7, 8, 9, 10]
    assert pairing(on) == [(5, 4), (3, 3), (4, 5), (5, 4), (6, 3), (7, 2), (8, 1), (9, 0)]
    assert [e.source for e in on.executions if e.skip is not None] == [7, 6, 5, 4, 3, 2, 1, 0]
    assert [e.skip for e in on.executions if e.skip is not None] == list(range(8))
    assert order(off) == list(range(11))
    assert pairing(off) == [(5, 4), (6, 3), (7, 2), (8, 1), (9, 0)]
    assert [e.layer for e in on.executions if e.in_lanes] == [8, 9, 10]


def test_two_passes_more_of_layers_4_and_5() -> None:
    """Rank 17; rank 16 adds the passes one by one."""
    config = config_of("rank17")
    assert order(layer_plan(config)) == [0, 1, 2, 3, 4, 5, 4, 5, 4, 5, 6, 7, 8, 9, 10]
    assert order(layer_plan(config_of("rank16"), 1)) == [0, 1, 2, 3, 4, 5, 4, 5, 6, 7, 8, 9, 10]
    assert pairing(layer_plan(config))[:3] == [(5, 4), (4, 5), (5, 4)]


def test_rank_18_drops_the_first_output() -> None:
    plan = layer_plan(config_of("rank18"))
    assert order(plan) == [0, 1, 2, 3, 4, 5, 4, 5, 6, 7, 8, 9, 10]
    assert pairing(plan) == [(4, 5), (5, 4), (6, 3), (7, 2), (8, 1)]


def test_rank_21_goes_by_position() -> None:
    on, off = layer_plan(config_of("rank21")), layer_plan(config_of("rank21"), 0)
    assert [e.scalars for e in on.executions] == list(range(13))
    assert [e.scalars for e in off.executions] == list(range(11))
    assert [index for index, e in enumerate(on.executions) if e.exclusive] == list(range(2, 13))
    assert [e.layer for e in on.executions if e.value_embedding is not None] == [7, 8]
    assert [e.layer for e in off.executions if e.value_embedding is not None] == [9, 10]
    assert [(e.layer, e.untied_mlp) for e in on.executions if e.untied_mlp is not None] == [(4, 0), (5, 1)]
    assert all(e.untied_mlp is None for e in off.executions)


def test_baseline_pairs_last_in_first_out() -> None:
    assert pairing(layer_plan(ModelConfig())) == [(4, 3), (5, 2), (6, 1), (7, 0)]
    assert pairing(layer_plan(ModelConfig(num_layers=10))) == [(5, 4), (6, 3), (7, 2), (8, 1), (9, 0)]
    assert pairing(layer_plan(ModelConfig(unet_skips=False))) == []


def test_universal_transformer() -> None:
    """3 blocks, 4 times, an iteration embedding where each pass begins (2.6)."""
    recurrence = RecurrenceConfig(0, 2, num_extra_passes=3, iteration_embedding=True)
    plan = layer_plan(ModelConfig(num_layers=3, recurrence=recurrence))
    assert order(plan) == [0, 1, 2] * 4
    assert [e.iteration for e in plan.executions] == [0, None, None, 1, None, None, 2, None, None, 3, None, None]


@pytest.mark.parametrize("passes", [-1, 3])
def test_passes_out_of_range(passes: int) -> None:
    with pytest.raises(ValueError, match="num_extra_passes"):
        layer_plan(config_of("rank01"), passes)
