"""The ternary and binary presets at reduced size: train, quantize for the artifact, load, and quantize once more."""

import dataclasses

import numpy as np
import pytest
import torch

from artifact.dequantize import dequantize
from launch.preset import load
from model.network import gpt
from model.network.fake_quantization import binary_codes, ternary_codes, weights_to_train_on
from model.network.gpt import GPT
from model.network.initialize import initialize
from tests.trainer.processes import on_ranks
from trainer import export
from trainer.optimizer import TrainingOptimizer
from trainer.phases import Phases
from trainer.ranks import Ranks

IDS = torch.arange(4 * 32).view(4, 32) * 7 % 61
TARGETS = (IDS + 7) % 61
SMALL = {
    "vocab_size": 61,
    "num_layers": 2,
    "model_dim": 128,
    "num_heads": 4,
    "num_kv_heads": 2,
    "embedding_dim": 64,
}


def trained(ranks: Ranks, name: str) -> tuple[list[float], dict[str, np.ndarray], np.ndarray]:
    """(losses, master weights, logits as training sees them) after a few steps."""
    settings = load(name).settings
    model = GPT(dataclasses.replace(settings.model, **SMALL))
    initialize(model, seed=0)
    optimizer = TrainingOptimizer(model, settings.training, ranks)
    phases = Phases(model, settings.training)
    losses = []
    for step in range(8):
        phases.advance(step, step / 8, 1.0)
        loss = model.token_nll(IDS, TARGETS).mean()
        loss.backward()
        optimizer.reduce_gradients(loss.detach())
        optimizer.step_matrices(learning_rate_multiplier=1.0, momentum=0.9, weight_decay=0.0)
        optimizer.adamw.step()
        model.zero_grad()
        losses.append(loss.item())
    model.eval()
    return losses, gpt.to_arrays(model), model(IDS).detach().numpy()


@pytest.mark.parametrize("name", ["ternary", "binary"])
def test_what_was_trained_is_what_is_packed_and_what_is_loaded(name: str) -> None:
    settings = load(name).settings
    ((losses, masters, logits),) = on_ranks(1, trained, name)
    assert losses[-1] < losses[0] - 0.5
    quantization = dataclasses.replace(settings.quantization, small_tensor_max_elements=1000)
    packed = export.quantize(masters, quantization)
    stored = {key: dequantize(tensor) for key, tensor in packed.items()}
    for key, values in stored.items():
        if key.startswith("blocks.") and key.endswith("weight") and masters[key].ndim == 2:
            levels = np.unique(np.abs(values.reshape(-1, 128)) / np.abs(values.reshape(-1, 128)).max(1, keepdims=True))
            assert set(levels) == ({0.0, 1.0} if name == "ternary" else {1.0}), key
            assert not np.array_equal(values, masters[key])
    config = dataclasses.replace(settings.model, **SMALL)
    loaded = gpt.load(config, stored)
    # The rest of the difference is vectors stored in float16.
    np.testing.assert_allclose(loaded(IDS).detach().numpy(), logits, atol=2e-2)
    plain = gpt.load(config, masters)
    assert np.abs(plain(IDS).detach().numpy() - logits).max() > 0.2, "the masters alone would do: shows nothing"
    # Masters made of the stored codes go through the quantizer of training unchanged.
    for key, values in masters.items():
        if key.startswith("blocks.") and key.endswith("weight") and values.ndim == 2:
            codes, scales = (ternary_codes if name == "ternary" else binary_codes)(torch.from_numpy(values), 128)
            stored[key] = weights_to_train_on(codes, scales).view(values.shape).numpy()
    again = gpt.load(config, stored)
    Phases(again, settings.training).advance(0, 0.0, 1.0)
    np.testing.assert_allclose(again(IDS).detach().numpy(), loaded(IDS).detach().numpy(), atol=1e-6)
