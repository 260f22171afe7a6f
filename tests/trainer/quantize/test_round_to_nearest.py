"""Round-to-nearest quantization: the published vectors, and what scale-free means."""

from pathlib import Path

import numpy as np
import pytest

from artifact.dequantize import dequantize
from artifact.schema import FloatType
from trainer.quantize import round_to_nearest
from trainer.quantize.config import QuantizationConfig

VECTORS = np.load(Path(__file__).resolve().parents[2] / "vectors" / "round_to_nearest.npz")
WEIGHT = np.random.default_rng(0).normal(size=(64, 256)).astype(np.float32) * np.float32(0.05)


def relative_error(weight: np.ndarray, config: QuantizationConfig, bits: int = 6) -> float:
    tensor = round_to_nearest.quantize(weight, config, bits=bits, deviations=config.clip_deviations)
    return float(np.linalg.norm(dequantize(tensor) - weight) / np.linalg.norm(weight))


def test_published_int8_codes_exactly() -> None:
    config = QuantizationConfig(scale_rule="published")
    tensor = round_to_nearest.quantize(VECTORS["weight"], config, bits=8, deviations=1.0)
    assert np.array_equal(tensor.symbols, VECTORS["int8_rank42/codes"])
    assert np.array_equal(tensor.scales.astype(np.float16), VECTORS["int8_rank42/scales"])


def test_published_gate_codes_exactly() -> None:
    config = QuantizationConfig(clip_rule="maximum")
    tensor = round_to_nearest.quantize(VECTORS["gate_int8/weight"], config, bits=8, deviations=1.0)
    assert np.array_equal(tensor.symbols, VECTORS["gate_int8/codes"])
    assert np.array_equal(tensor.scales.astype(np.float16), VECTORS["gate_int8/scales"])


@pytest.mark.parametrize("clip_rule", ["percentile", "deviations", "maximum"])
def test_scale_free_rules_do_not_see_the_size_of_the_weights(clip_rule: str) -> None:
    config = QuantizationConfig(clip_rule=clip_rule, scale_dtype="float32")  # type: ignore[arg-type]
    plain = round_to_nearest.quantize(WEIGHT, config, bits=6, deviations=12.85)
    scaled = round_to_nearest.quantize(WEIGHT * np.float32(0.0078125), config, bits=6, deviations=12.85)
    assert np.array_equal(plain.symbols, scaled.symbols)


def test_the_published_floor_does() -> None:
    published, scale_free = QuantizationConfig(scale_rule="published"), QuantizationConfig()
    small = WEIGHT * np.float32(0.01)
    assert relative_error(small, published) > 10 * relative_error(WEIGHT, scale_free)
    assert relative_error(small, scale_free) == pytest.approx(relative_error(WEIGHT, scale_free), rel=0.05)


@pytest.mark.parametrize(("bits", "bound"), [(4, 0.15), (6, 0.035), (8, 0.009)])
def test_error_falls_with_bits(bits: int, bound: float) -> None:
    assert bound / 3 < relative_error(WEIGHT, QuantizationConfig(), bits) < bound


@pytest.mark.parametrize("scale_dtype", ["float16", "float32", "bfloat16", "log8"])
def test_stored_scales_are_the_ones_used(scale_dtype: str) -> None:
    config = QuantizationConfig(scale_dtype=scale_dtype)  # type: ignore[arg-type]
    tensor = round_to_nearest.quantize(WEIGHT, config, bits=6, deviations=12.85)
    assert tensor.scale_type == FloatType[scale_dtype.upper()]
    error = np.abs(dequantize(tensor) - WEIGHT)
    inside = np.abs(tensor.symbols) < 31
    assert (error <= tensor.scales[:, None] * 0.5001)[inside].all()


def test_clip_follows_the_deviation_rule() -> None:
    config = QuantizationConfig(clip_rule="deviations", scale_dtype="float32")
    tensor = round_to_nearest.quantize(WEIGHT, config, bits=6, deviations=11.5)
    expected = 11.5 * WEIGHT.astype(np.float64).std(axis=1, ddof=1) / 31
    np.testing.assert_allclose(tensor.scales, expected, rtol=1e-6)


@pytest.mark.parametrize("scale_dtype", ["float16", "log8"])
def test_rows_of_zeros_and_of_tiny_values(scale_dtype: str) -> None:
    weight = np.zeros((3, 8), np.float32)
    weight[1] = 1e-30
    weight[2] = np.linspace(-1, 1, 8)
    config = QuantizationConfig(scale_dtype=scale_dtype)  # type: ignore[arg-type]
    restored = dequantize(round_to_nearest.quantize(weight, config, bits=6, deviations=12.85))
    assert np.isfinite(restored).all()
    np.testing.assert_allclose(restored, weight, atol=0.02)


def test_percentile_interpolates_linearly() -> None:
    weight = np.arange(101, dtype=np.float32)[None]
    config = QuantizationConfig(clip_percentile=0.995, scale_dtype="float32")
    tensor = round_to_nearest.quantize(weight, config, bits=8, deviations=1.0)
    assert tensor.scales[0] == pytest.approx(99.5 / 127, rel=1e-6)
    assert tensor.symbols.max() == 127


@pytest.mark.parametrize(
    ("field", "value"),
    [
        ("matrix_bits", 1),
        ("embedding_bits", 9),
        ("clip_percentile", 99.99984),
        ("clip_rule", "percentil"),
        ("scale_rule", "floor"),
        ("scale_dtype", "int8"),
        ("small_tensor_dtype", "int8"),
        ("small_tensor_max_elements", -1),
        ("clip_deviations", 0.0),
    ],
)
def test_settings_are_checked(field: str, value: object) -> None:
    with pytest.raises(ValueError, match=f"{field}.*accepted"):
        QuantizationConfig(**{field: value})  # type: ignore[arg-type]
