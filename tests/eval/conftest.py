"""A small random network and token streams with documents, shared by the evaluator's tests."""

from __future__ import annotations

from collections.abc import Callable

import numpy as np
import pytest
import torch

from model.config import ModelConfig
from model.network import gpt
from model.network.initialize import initialize

VOCAB_SIZE = 48
BOS_ID = 1


@pytest.fixture(autouse=True)
def _one_thread():
    before = torch.get_num_threads()
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(before)


@pytest.fixture(scope="session")
def arrays() -> dict[str, np.ndarray]:
    """Weights of a network whose every part matters: the zero-initialized ones are given values."""
    config = small_config()
    model = gpt.GPT(config)
    initialize(model, seed=0)
    generator = np.random.default_rng(0)
    weights = gpt.to_arrays(model)
    return {
        name: (value + generator.normal(0, 0.08, value.shape)).astype(np.float32) for name, value in weights.items()
    }


def small_config() -> ModelConfig:
    return ModelConfig(vocab_size=VOCAB_SIZE, num_layers=3, model_dim=32, num_heads=2, num_kv_heads=1)


@pytest.fixture
def load_model(arrays) -> Callable[..., gpt.GPT]:
    def load(dtype: torch.dtype = torch.float32) -> gpt.GPT:
        model = gpt.load(small_config(), arrays, activation_dtype=dtype)
        return model.requires_grad_(False)

    return load


@pytest.fixture
def make_tokens() -> Callable[..., np.ndarray]:
    """Stream of documents with the given numbers of tokens (BOS included), random words otherwise."""

    def make(lengths: list[int], seed: int = 0, vocab_size: int = VOCAB_SIZE) -> np.ndarray:
        generator = np.random.default_rng(seed)
        parts = []
        for length in lengths:
            words = generator.integers(2, vocab_size, length)
            words[0] = BOS_ID
            parts.append(words)
        return np.concatenate(parts).astype(np.uint16)

    return make
