"""A small random network and token streams with documents, shared by the evaluator's tests."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
import torch

from artifact import writer
from artifact.content import Content, PlainTensor
from launch.data.prepare import prepare
from model.config import ModelConfig
from model.network import gpt
from model.network.initialize import initialize
from model.text.tokenizer import Tokenizer

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


TINY_VOCAB_SIZE = 300
TINY_MODEL = {"vocab_size": TINY_VOCAB_SIZE, "num_layers": 2, "model_dim": 32, "num_heads": 2, "num_kv_heads": 1}
TINY_EVAL = {
    "context_tokens": 32,
    "stride_tokens": 8,
    "batch_windows": 16,
    "ttt": {"chunk_tokens": 16, "window_tokens": 32, "batch_documents": 4, "rank": 2, "learning_rate": 0.02},
}


@pytest.fixture(scope="session")
def write_artifact() -> Callable[..., None]:
    """Writes an artifact with random weights; keyword arguments replace entries of its configuration."""

    def write(path: Path, tokenizer_sha256: str, **changes) -> None:
        model = gpt.GPT(ModelConfig(**TINY_MODEL))
        initialize(model, seed=1)
        generator = np.random.default_rng(1)  # the initial network ignores context: its output matrices are zero
        tensors = {
            name: PlainTensor((value + generator.normal(0, 0.05, value.shape)).astype(np.float16))
            for name, value in gpt.to_arrays(model).items()
        }
        configuration = {"preset": "test", "model": TINY_MODEL, "eval": TINY_EVAL} | changes
        writer.write(path, Content(configuration, tokenizer_sha256, tensors, b"code"))

    return write


@pytest.fixture(scope="session")
def evaluation_folder(tmp_path_factory, write_artifact) -> Path:
    """data/ and a.albatross: repetitive documents, so that even random weights adapt to them."""
    root = tmp_path_factory.mktemp("evaluation")
    words = ["abc", "abd", "bcd", "bca", "cab", "dab", "add", "bad", "cad", "dad"]
    generator = np.random.default_rng(0)
    documents = [" ".join(generator.choice(words, int(n))) + "é\n" for n in generator.integers(2, 90, 40)]
    lines = [json.dumps({"text": text}) for text in documents]
    (root / "train.jsonl").write_text("\n".join(lines[15:]) + "\n")
    (root / "val.jsonl").write_text("\n".join(lines[:15]) + "\n")
    tokenizer = f"train:{TINY_VOCAB_SIZE}"
    prepare(root / "train.jsonl", tokenizer, root / "data", val_input=root / "val.jsonl", num_workers=1, quiet=True)
    write_artifact(root / "a.albatross", Tokenizer.load(root / "data" / "tokenizer.model").sha256)
    return root
