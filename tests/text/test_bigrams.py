"""Bigram counts against a loop."""

from itertools import pairwise
from pathlib import Path

import numpy as np

from model.text import bigrams
from model.text.shards import DataFolder, write_shard


def test_counts(tmp_path: Path, monkeypatch) -> None:
    tokens = np.random.default_rng(0).integers(0, 5, 200).astype(np.uint16)
    write_shard(tmp_path / "x_train_000000.bin", tokens[:70])
    write_shard(tmp_path / "x_train_000001.bin", tokens[70:])
    write_shard(tmp_path / "x_val_000000.bin", tokens)
    stream = DataFolder.open(tmp_path).train
    for limit in (1_000, 120):
        expected = np.zeros((6, 6), np.int64)
        for first, second in pairwise(tokens[: limit + 1]):
            expected[first, second] += 1
        for chunk in (bigrams.CHUNK_TOKENS, 64):
            monkeypatch.setattr(bigrams, "CHUNK_TOKENS", chunk)
            np.testing.assert_array_equal(bigrams.count_bigrams(stream, 6, limit), expected)
        assert expected.sum() == min(199, limit)
