"""Storage types of floating-point numbers."""

import numpy as np
import pytest

from artifact import floats
from artifact.errors import ArtifactError
from artifact.schema import FloatType

VALUE_TYPES = [FloatType.FLOAT32, FloatType.FLOAT16, FloatType.BFLOAT16, FloatType.FLOAT8_E4M3]


def all_values(float_type: FloatType) -> np.ndarray:
    """Every finite value of a type (a sample for float32)."""
    if float_type == FloatType.FLOAT8_E4M3:
        codes = np.arange(256, dtype=np.uint8)
        return floats.from_planes(codes[codes & 127 != 127], float_type)
    if float_type == FloatType.FLOAT32:
        values = np.random.default_rng(0).integers(0, 1 << 32, 5000, dtype=np.uint32).view(np.float32)
    elif float_type == FloatType.FLOAT16:
        values = np.arange(1 << 16, dtype=np.uint16).view(np.float16).astype(np.float32)
    else:
        values = (np.arange(1 << 16, dtype=np.uint32) << 16).view(np.float32)
    return values[np.isfinite(values)]


@pytest.mark.parametrize("float_type", VALUE_TYPES)
def test_every_value_survives(float_type: FloatType) -> None:
    values = all_values(float_type)
    planes = floats.to_planes(values, float_type)
    assert planes.size == values.size * floats.NUM_BYTES[float_type]
    assert floats.from_planes(planes, float_type).tobytes() == values.tobytes()
    assert np.array_equal(floats.round_to(values, float_type), values)


@pytest.mark.parametrize("float_type", [FloatType.FLOAT16, FloatType.BFLOAT16, FloatType.FLOAT8_E4M3])
def test_rounding_takes_the_nearest_and_on_ties_the_even_one(float_type: FloatType) -> None:
    grid = np.unique(all_values(float_type))
    grid = grid[np.abs(grid) <= 448]
    low, high = grid[:-1].astype(np.float64), grid[1:].astype(np.float64)
    for fraction, nearest in ((0.25, grid[:-1]), (0.75, grid[1:])):
        between = (low + (high - low) * fraction).astype(np.float32)
        exact = between.astype(np.float64) - low == (high - low) * fraction
        assert np.array_equal(floats.round_to(between, float_type)[exact], nearest[exact])
    middle = ((low + high) / 2).astype(np.float32)
    exact = middle.astype(np.float64) * 2 == low + high
    rounded = floats.round_to(middle, float_type)
    num_bytes = floats.NUM_BYTES[float_type]
    lowest = floats.to_planes(rounded, float_type).reshape(num_bytes, -1)[0]
    assert exact.sum() > 100
    assert not (lowest[exact] & 1).any()


def test_float8_saturates_and_knows_its_values() -> None:
    assert floats.round_to(np.array([1e6, -460.0], np.float32), FloatType.FLOAT8_E4M3).tolist() == [448.0, -448.0]
    table = floats.FLOAT8_E4M3_TABLE
    # From the OCP 8-bit floating point specification: smallest subnormal, largest subnormal, one, largest.
    assert [table[1], table[7], table[0x38], table[0x7E]] == [2**-9, 0.875 * 2**-6, 1.0, 448.0]
    assert np.isnan(table[0x7F])


def test_float16_overflow_is_infinite_and_cannot_be_stored() -> None:
    rounded = floats.round_to(np.array([1e6], np.float32), FloatType.FLOAT16)
    assert np.isinf(rounded).all()
    with pytest.raises(ArtifactError, match="not finite"):
        floats.to_planes(rounded, FloatType.FLOAT16)


@pytest.mark.parametrize("exponent", [floats.LOG8_MIN_EXPONENT, -14, 0, floats.LOG8_MAX_EXPONENT])
def test_log8_steps_evenly_over_sixteen_octaves(exponent: int) -> None:
    table = floats.log8_table(exponent).astype(np.float64)
    assert np.isfinite(table).all()
    np.testing.assert_allclose(np.log2(table), exponent + np.arange(256) / 16, rtol=0, atol=1e-6)
    codes = np.arange(256, dtype=np.uint8)
    assert np.array_equal(floats.to_planes(floats.log8_table(exponent), FloatType.LOG8, exponent), codes)


def test_log8_rounds_to_the_nearest_in_the_logarithm() -> None:
    values = np.exp(np.random.default_rng(1).uniform(-6, -1, 1000)).astype(np.float32)
    rounded = floats.round_to(values, FloatType.LOG8, -12)
    assert np.abs(np.log2(rounded / values)).max() <= 1 / 32 + 1e-6
    far = floats.round_to(np.array([1e-30, 1e30], np.float32), FloatType.LOG8, -12)
    assert far.tolist() == [2.0**-12, floats.log8_table(-12)[255]]
