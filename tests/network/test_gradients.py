"""Gradients of every method against finite differences, in float64."""

import re
from collections import defaultdict

import pytest
import torch

from launch.preset import load
from model.config import ModelConfig
from tests.network.reduced import VARIANTS, perturbed_model, reduce_width

PRESETS = {name: reduce_width(load(name).settings.model) for name in ("rank01", "rank08", "rank14", "rank21", "rank23")}
OTHERS = {name: reduce_width(load(name).settings.model) for name in ("rank05", "rank12", "rank31", "ternary", "binary")}
NETWORKS = {**PRESETS, **OTHERS, **VARIANTS}
STEP = 1e-6


@pytest.mark.parametrize("name", NETWORKS)
def test_gradient_along_random_directions(name: str) -> None:
    """For each kind of parameter, over all layers at once: the gradient along one direction, and the loss a small step
    that way and back."""
    config: ModelConfig = NETWORKS[name]
    model = perturbed_model(config, torch.float64)
    generator = torch.Generator().manual_seed(0)
    ids = torch.randint(1, 64, (1, 10), generator=generator)
    targets = torch.randint(1, 64, (1, 10), generator=generator)
    documents = torch.tensor([0, 4, 10], dtype=torch.int32)

    def loss() -> torch.Tensor:
        return model.token_nll(ids, targets, documents).mean()

    loss().backward()
    kinds: dict[str, list[torch.nn.Parameter]] = defaultdict(list)
    for key, parameter in model.named_parameters():
        kinds[re.sub(r"\d+", "*", key)].append(parameter)
    for kind, parameters in kinds.items():
        directions = [torch.randn(p.shape, generator=generator, dtype=torch.float64) for p in parameters]
        slope = sum((p.grad * d).sum().item() for p, d in zip(parameters, directions, strict=True))
        with torch.no_grad():
            torch._foreach_add_(parameters, directions, alpha=STEP)
            above = loss()
            torch._foreach_sub_(parameters, directions, alpha=2 * STEP)
            difference = (above - loss()) / (2 * STEP)
            torch._foreach_add_(parameters, directions, alpha=STEP)
        assert difference.item() == pytest.approx(slope, rel=1e-4, abs=1e-7), kind
