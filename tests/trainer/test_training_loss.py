"""What the engine differentiates."""

import pytest
import torch

from launch.preset import load
from model.config import ModelConfig
from model.network.gpt import GPT
from model.network.initialize import initialize
from trainer.engine import TrainingLoss


@pytest.mark.parametrize("z_loss", [0.0, 1e-2])
def test_loss_and_gradient_with_z_loss(z_loss: float) -> None:
    model = GPT(ModelConfig(vocab_size=64, num_layers=2, model_dim=32, num_heads=4, num_kv_heads=2))
    initialize(model, seed=0)
    ids = torch.arange(2 * 16).view(2, 16) % 61
    targets = (ids * 3 + 1) % 61
    logits = model(ids).double()
    wide = torch.log(torch.exp(logits).sum(-1))
    nll = wide - torch.stack([row[t] for row, t in zip(logits.view(-1, 64), targets.flatten(), strict=True)]).view(
        2, 16
    )
    expected = nll.mean() + z_loss * (wide**2).mean()
    loss = TrainingLoss(model, 16, z_loss)(ids, targets)
    torch.testing.assert_close(loss.double(), expected, rtol=1e-6, atol=1e-6)
    (gradient,) = torch.autograd.grad(loss, [model.embedding.weight])
    (other,) = torch.autograd.grad(expected, [model.embedding.weight])
    torch.testing.assert_close(gradient, other, rtol=1e-4, atol=1e-6)


def test_presets_with_a_z_loss() -> None:
    assert load("ternary").settings.training.z_loss == load("binary").settings.training.z_loss == 1e-4
    assert load("rank42").settings.training.z_loss == 0
