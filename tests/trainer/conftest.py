"""Data that the trainer's tests share."""

from pathlib import Path

import numpy as np
import pytest

from model.text.shards import write_shard


@pytest.fixture(scope="session")
def data(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Text with structure to learn: a noisy cycle through the vocabulary, in documents."""
    folder = tmp_path_factory.mktemp("data")
    rng = np.random.default_rng(0)
    for split, length in (("train", 9_000), ("val", 1_000)):
        tokens = 2 + (np.arange(length) * 7 + rng.integers(0, 3, length)) % 62
        tokens[::100] = 1
        write_shard(folder / f"toy_{split}_000000.bin", tokens.astype(np.uint16))
        if split == "val":
            write_shard(folder / "toy_val_bytes_000000.bin", np.where(tokens == 1, 0, 3).astype(np.uint16))
    return folder
