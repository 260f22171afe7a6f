"""The training optimizer: every parameter in one group, Newton-Schulz on every matrix, clipping."""

import pytest
import torch

from model.config import ModelConfig
from model.network.gpt import GPT
from model.network.initialize import initialize
from trainer.config import MuonConfig, TrainingConfig
from trainer.gradients import clip_gradients
from trainer.optimizer import TrainingOptimizer, group_parameters
from trainer.ranks import Ranks

CONFIG = ModelConfig(vocab_size=64, num_layers=3, model_dim=32, num_heads=4, num_kv_heads=2)
ALONE = Ranks(0, 1, torch.device("cpu"))


@pytest.fixture
def model() -> GPT:
    model = GPT(CONFIG)
    initialize(model, seed=1)
    return model


def test_every_parameter_is_in_exactly_one_group(model: GPT) -> None:
    groups = group_parameters(model)
    grouped = [name for group in groups.values() for name in group]
    assert sorted(grouped) == sorted(name for name, _ in model.named_parameters())
    assert len(groups["matrix"]) == 6 * CONFIG.num_layers
    assert list(groups["embedding"]) == ["embedding.weight"]
    assert all(p.ndim == 2 for p in groups["matrix"].values())


def test_update_of_every_matrix_has_near_equal_singular_values(model: GPT) -> None:
    optimizer = TrainingOptimizer(model, TrainingConfig(matrix=MuonConfig(learning_rate=1.0)), ALONE)
    generator = torch.Generator().manual_seed(0)
    before = {name: p.detach().clone() for name, p in model.named_parameters()}
    for parameter in model.parameters():
        gradient = torch.randn(parameter.shape, generator=generator)
        if parameter.ndim == 2:
            # Singular values from 1 down to 1/30, which a plain gradient step would keep.
            u, _, v = torch.linalg.svd(gradient, full_matrices=False)
            gradient = u * torch.logspace(0, -1.5, u.shape[1]) @ v
        parameter.grad = gradient
    optimizer.step()
    for name, parameter in optimizer.groups["matrix"].items():
        values = torch.linalg.svdvals(parameter.detach() - before[name])
        rows, columns = parameter.shape
        scale = max(1.0, rows / columns) ** 0.5
        assert 0.6 * scale < values.min() < values.max() < 1.25 * scale, name
    assert optimizer.num_orthogonalized == 6 * CONFIG.num_layers


def test_shares_of_two_ranks_are_disjoint_and_complete(model: GPT) -> None:
    """What rank r contributes to the sum over ranks; the sum itself runs in the two-process test."""
    counts = []
    for rank in range(2):
        optimizer = TrainingOptimizer(model, TrainingConfig(), _Lonely(rank, 2, torch.device("cpu")))
        for parameter in model.parameters():
            parameter.grad = torch.ones_like(parameter)
        optimizer.step()
        counts.append(optimizer.num_orthogonalized)
    assert counts == [9, 9]


class _Lonely(Ranks):
    """A rank whose partners contribute nothing."""

    def sum(self, tensor: torch.Tensor) -> None:
        pass


def test_clipping_is_by_the_global_norm(model: GPT) -> None:
    parameters = list(model.parameters())
    for parameter in parameters:
        parameter.grad = torch.full_like(parameter, 0.5)
    count = sum(p.numel() for p in parameters)
    norm = clip_gradients(parameters, max_norm=3.0)
    assert norm.item() == pytest.approx(0.5 * count**0.5, rel=1e-5)
    clipped = torch.cat([p.grad.flatten() for p in parameters if p.grad is not None])
    assert clipped.norm().item() == pytest.approx(3.0, rel=1e-4)
    unchanged = clip_gradients(parameters, max_norm=100.0)
    assert unchanged.item() == pytest.approx(3.0, rel=1e-4)
    assert clipped.norm().item() == pytest.approx(3.0, rel=1e-4)
