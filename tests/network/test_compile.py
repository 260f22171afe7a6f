"""The forward compiles whole, and each number of recurrence passes is a graph of its own, compiled once."""

from dataclasses import replace

import pytest
import torch
from torch._dynamo.testing import CompileCounter

from launch.preset import load_all
from model.config import HeadGateConfig, LaneConfig, ModelConfig, RecurrenceConfig, SmearConfig, ValueEmbeddingConfig
from tests.network.reduced import TINY, VARIANTS, perturbed_model, reduce_width

SMALL = replace(
    TINY,
    num_xsa_layers=4,
    ln_scale=True,
    skip_gates=True,
    smear=SmearConfig("token"),
    head_gate=HeadGateConfig("sparse"),
    value_embedding=ValueEmbeddingConfig((3,), dim=8),
    lanes=LaneConfig("simultaneous", first_layer=3),
    recurrence=RecurrenceConfig(1, 1, num_extra_passes=1, untied_mlp=True, per_execution_scalars=True),
)
PRESETS = {preset.name: reduce_width(preset.settings.model) for preset in load_all()}


def test_one_whole_graph_for_each_number_of_passes() -> None:
    check(SMALL)


@pytest.mark.slow
@pytest.mark.parametrize("config", [*PRESETS.values(), *VARIANTS.values()], ids=[*PRESETS, *VARIANTS])
def test_every_network_compiles_whole(config: ModelConfig) -> None:
    check(config)


def check(config: ModelConfig) -> None:
    torch._dynamo.reset()
    model = perturbed_model(config)
    counter = CompileCounter()
    compiled = torch.compile(model.token_nll, backend=counter, fullgraph=True, dynamic=False)
    ids = torch.randint(1, 64, (1, 16), generator=torch.Generator().manual_seed(0))
    documents = torch.tensor([0, 5, 16], dtype=torch.int32)
    passes = sorted({0, model.extra_passes})
    for number in passes * 3:
        model.set_extra_passes(number)
        torch.testing.assert_close(compiled(ids, ids, documents), model.token_nll(ids, ids, documents))
    assert counter.frame_count == len(passes)
    torch._dynamo.reset()
