"""Weights to artifact: who gets which representation, and that packing reads back within the quantizer's error."""

from pathlib import Path

import numpy as np
import pytest

from artifact import reader
from artifact.content import PlainTensor, QuantizedTensor
from artifact.schema import FloatType
from trainer import export
from trainer.quantize.config import QuantizationConfig


def weights() -> dict[str, np.ndarray]:
    rng = np.random.default_rng(3)
    return {
        "embedding.weight": rng.normal(size=(256, 48)).astype(np.float32),
        "blocks.0.attention.q.weight": rng.normal(size=(192, 48)).astype(np.float32),
        "blocks.1.attention.q.weight": rng.normal(size=(192, 48)).astype(np.float32),
        "blocks.0.attention.q_gain": rng.normal(size=4).astype(np.float32),
        "skips.weight": rng.normal(size=(2, 48)).astype(np.float32),
    }


def test_representation_by_role_and_size() -> None:
    tensors = export.quantize(weights(), QuantizationConfig(small_tensor_max_elements=96))
    embedding, matrix = tensors["embedding.weight"], tensors["blocks.0.attention.q.weight"]
    assert isinstance(embedding, QuantizedTensor)
    assert isinstance(matrix, QuantizedTensor)
    assert (embedding.bits, matrix.bits) == (8, 6)
    for name in ("blocks.0.attention.q_gain", "skips.weight"):
        tensor = tensors[name]
        assert isinstance(tensor, PlainTensor)
        assert tensor.float_type == FloatType.FLOAT16
    exact = export.quantize(weights(), QuantizationConfig(small_tensor_dtype="float32"))["skips.weight"]
    assert isinstance(exact, PlainTensor)
    assert np.array_equal(exact.values, weights()["skips.weight"])


def test_pack_reads_back_close(tmp_path: Path) -> None:
    path = tmp_path / "artifact.albatross"
    ledger = export.pack(
        weights(),
        configuration={"preset": "tiny"},
        quantization=QuantizationConfig(),
        tokenizer_sha256="ab" * 32,
        code=b"code",
        path=path,
        max_bytes=100_000,
    )
    artifact = reader.read(path)
    assert artifact.total_bytes == ledger.total_bytes < 40_000
    arrays = artifact.arrays()
    assert set(arrays) == set(weights())
    for name, weight in weights().items():
        assert np.linalg.norm(arrays[name] - weight) < 0.04 * np.linalg.norm(weight)
    assert not np.array_equal(arrays["embedding.weight"], weights()["embedding.weight"])


@pytest.mark.parametrize("value", [np.nan, np.inf, -np.inf])
def test_weights_that_are_not_finite_are_named(value: float) -> None:
    arrays = weights()
    arrays["skips.weight"][1, 2] = value
    with pytest.raises(ValueError, match=r"skips\.weight"):
        export.quantize(arrays, QuantizationConfig())


def test_small_values_beyond_float16_are_named() -> None:
    arrays = {"gain": np.array([1e6], np.float32)}
    with pytest.raises(ValueError, match=r"gain.*float16"):
        export.quantize(arrays, QuantizationConfig())
