"""Decoding token by token gives the logits of the whole forward, for every network."""

from __future__ import annotations

import pytest
import torch

from launch.preset import load_all
from model.config import ModelConfig
from model.network.decoding import History, can_decode
from tests.network.reduced import VARIANTS, perturbed_model, reduce_width

PRESETS = {preset.name: reduce_width(preset.settings.model) for preset in load_all()}
# Presets whose networks differ in what decoding has to get right; the others under `make test-slow`.
QUICK = ("rank01", "rank21", "rank23", "rank42")
SLOW = [
    pytest.param(config, id=name, marks=() if name in QUICK else pytest.mark.slow)
    for name, config in {**PRESETS, **VARIANTS}.items()
]


@pytest.mark.parametrize("config", SLOW)
def test_next_logits_are_those_of_the_forward(config: ModelConfig) -> None:
    if not can_decode(config):
        pytest.skip("its mean smear looks at every earlier position")
    model = perturbed_model(config, torch.float64)
    ids = torch.randint(config.vocab_size, (2, 9), generator=torch.Generator().manual_seed(0))
    ids[0, 4] = 1  # a document begins within the row
    with torch.no_grad():
        whole = model(ids)
        history = History(9)
        for length in range(1, 10):
            logits = model.next_logits(ids[:, :length], history)
            torch.testing.assert_close(logits, whole[:, length - 1], rtol=1e-9, atol=1e-9)


def test_histories_that_do_not_fit() -> None:
    model = perturbed_model(PRESETS["rank42"])
    ids = torch.zeros(1, 4, dtype=torch.int64)
    with torch.no_grad():
        with pytest.raises(ValueError, match="history of 0 tokens for the logits after 4"):
            model.next_logits(ids, History(8))
        full = History(1)
        model.next_logits(ids[:, :1], full)
        with pytest.raises(ValueError, match="history of 1 tokens is full"):
            model.next_logits(ids[:, :2], full)


def test_networks_with_a_mean_smear_cannot_decode() -> None:
    assert not can_decode(PRESETS["binary"])
    assert can_decode(PRESETS["ternary"])
