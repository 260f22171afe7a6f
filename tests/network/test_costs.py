"""Full width, on the meta device: every preset's forward, and the arithmetic that its benchmark reports."""

import pytest
import torch
from torch.utils.flop_counter import FlopCounterMode

from benchmarks.presets import activation_bytes_per_token, forward_flops_per_token
from launch.preset import Preset, load, load_all
from model.network.gpt import GPT

PRESETS = load_all()


def check(preset: Preset, num_tokens: int = 16) -> None:
    config = preset.settings.model
    with torch.device("meta"), FlopCounterMode(display=False) as counter:
        logits = GPT(config)(torch.zeros(1, num_tokens, dtype=torch.int64))
    assert logits.shape == (1, num_tokens, config.vocab_size)
    # The counter sees whole attention matrices; a causal row needs half of them and the diagonal. Head gates, a few
    # hundred weights a layer, count as vectors here.
    model_layers = [e for e in GPT(config).plan.executions if e.layer not in config.attention_free_layers]
    unseen = 4 * len(model_layers) * config.model_dim * (num_tokens - (num_tokens + 1) / 2)
    expected = num_tokens * (forward_flops_per_token(config, num_tokens) + unseen)
    assert counter.get_total_flops() == pytest.approx(expected, rel=2e-3)


def test_forward_at_full_width() -> None:
    check(load("tiny"))


@pytest.mark.slow
@pytest.mark.parametrize("preset", PRESETS, ids=[preset.name for preset in PRESETS])
def test_every_forward_at_full_width(preset: Preset) -> None:
    check(preset)


def test_published_arithmetic() -> None:
    """Rank 1's program was measured at about 430 MFLOP a token, forward and backward, with recurrence on."""
    flops = 3 * forward_flops_per_token(load("rank01").settings.model, 2048)
    assert flops == pytest.approx(430e6, rel=0.03)


def test_attention_window_saves_arithmetic() -> None:
    from dataclasses import replace

    config = load("tiny").settings.model
    full = forward_flops_per_token(config, 64)
    windowed = forward_flops_per_token(replace(config, attention_window=8), 64)
    keys = sum(min(time + 1, 8) for time in range(64)) / 64
    assert full - windowed == pytest.approx(4 * config.num_layers * config.model_dim * (32.5 - keys))


def test_activation_memory_grows_with_passes() -> None:
    from dataclasses import replace

    config = load("rank18").settings.model
    once = replace(config, recurrence=replace(config.recurrence, num_extra_passes=0))
    assert activation_bytes_per_token(config, 64) > activation_bytes_per_token(once, 64)
