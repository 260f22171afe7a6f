"""Low-rank corrections: published codes, the reference's numbers, and what they are for."""

from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch

from artifact.content import LowRank, QuantizedTensor
from artifact.dequantize import dequantize
from trainer import export
from trainer.quantize import low_rank
from trainer.quantize.calibration import Calibration
from trainer.quantize.config import CalibrationConfig, LowRankConfig, QuantizationConfig

VECTORS = np.load(Path(__file__).resolve().parents[2] / "vectors" / "gptq_lqer.npz")


def codes(correction: LowRank) -> tuple[QuantizedTensor, QuantizedTensor]:
    assert isinstance(correction.left, QuantizedTensor)
    assert isinstance(correction.right, QuantizedTensor)
    return correction.left, correction.right


@pytest.mark.parametrize("source", ["lqer", "pipeline"])
def test_published_asymmetric_codes_exactly(source: str) -> None:
    left, right = codes(low_rank.quantize_factors(VECTORS[f"{source}/A"], VECTORS[f"{source}/B"], LowRankConfig()))
    assert np.array_equal(left.symbols, VECTORS[f"{source}/asym/A_codes"])
    assert np.array_equal(right.symbols, VECTORS[f"{source}/asym/B_codes"])
    assert left.scales.astype(np.float16).item() == VECTORS[f"{source}/asym/A_scale"]
    assert np.array_equal(right.scales.astype(np.float16), VECTORS[f"{source}/asym/B_scales"])


def test_published_symmetric_codes_exactly() -> None:
    config = LowRankConfig(grid="symmetric", symmetric_bits=4)
    left, right = codes(low_rank.quantize_factors(VECTORS["lqer/A"], VECTORS["lqer/B"], config))
    assert np.array_equal(left.symbols, VECTORS["lqer/sym4/A_codes"])
    assert np.array_equal(right.symbols, VECTORS["lqer/sym4/B_codes"])
    assert np.array_equal(left.scales.astype(np.float16), VECTORS["lqer/sym4/A_scales"])
    assert np.array_equal(right.scales.astype(np.float16), VECTORS["lqer/sym4/B_scales"])


def test_factors_are_the_published_ones_up_to_sign() -> None:
    left, right = low_rank.factors(VECTORS["lqer/error"], 4)
    np.testing.assert_allclose(np.linalg.norm(left, axis=0), VECTORS["lqer/singular_values"][:4], rtol=1e-5)
    np.testing.assert_allclose(left @ right, VECTORS["lqer/A"] @ VECTORS["lqer/B"], atol=1e-7)


def test_published_pipeline_from_weights_to_dequantized() -> None:
    name = "blocks.0.mlp.up.weight"
    config = QuantizationConfig(
        method="gptq",
        clip_rule="deviations",
        clip_deviations=11.5,
        small_tensor_max_elements=0,
        calibration=CalibrationConfig("training"),
        low_rank=LowRankConfig(num_tensors=1, sign_rule="largest_positive"),
    )
    calibration = Calibration({name: torch.from_numpy(VECTORS["pipeline/hessian"])}, 1)
    tensor = export.quantize({name: VECTORS["pipeline/weight"]}, config, calibration)[name]
    assert isinstance(tensor, QuantizedTensor)
    assert np.array_equal(tensor.symbols, VECTORS["pipeline/codes"])
    plain = replace(tensor, low_rank=None)
    np.testing.assert_allclose(dequantize(plain), VECTORS["pipeline/dequantized_without_lqer"], atol=1e-6)
    np.testing.assert_allclose(VECTORS["pipeline/weight"] - dequantize(plain), VECTORS["pipeline/error"], atol=1e-6)
    # With the published signs of the singular vectors, the codes and the weights are the published ones.
    published = low_rank.quantize_factors(VECTORS["pipeline/A"], VECTORS["pipeline/B"], config.low_rank)
    corrected = dequantize(replace(tensor, low_rank=published))
    np.testing.assert_allclose(corrected, VECTORS["pipeline/dequantized"], atol=1e-6)


def reference_error() -> np.ndarray:
    i, j = np.arange(5)[:, None], np.arange(16)
    return (0.01 * np.sin(1 + 0.37 * ((16 * i + j) ** 2 % 1009))).astype(np.float32)


def test_numbers_of_the_reference() -> None:
    error = reference_error()
    config = LowRankConfig(sign_rule="largest_positive")
    found = low_rank.correct(error, config)
    left, right = codes(found)
    assert left.scales[0] == pytest.approx(0.0196991, abs=2e-5)
    assert left.symbols.tolist() == [[1, 0, 0, 1], [0, 1, 0, 0], [0, -1, 1, 0], [-1, 0, -1, 0], [1, 0, 0, -1]]
    assert right.scales.tolist() == pytest.approx([0.0819092], abs=6e-5)
    assert right.symbols[0].tolist() == [-1, 5, 2, -4, -1, -3, 3, 1, 2, -3, 0, 5, 2, 4, -4, 4]
    assert np.linalg.norm(error) == pytest.approx(0.064952, abs=1e-6)
    assert np.linalg.norm(error - low_rank.product(found)) == pytest.approx(0.032003, abs=5e-6)
    a, b = low_rank.factors(error, 4)
    flipped = low_rank.quantize_factors(-a, -b, config)
    assert np.linalg.norm(error - low_rank.product(flipped)) == pytest.approx(0.032953, abs=5e-6)
    assert np.linalg.norm(error - a @ b) == pytest.approx(0.018127, abs=1e-6)


def test_best_signs_are_no_worse_than_any_rule() -> None:
    for seed in range(3):
        error = np.random.default_rng(seed).normal(size=(24, 64)).astype(np.float32)
        residuals = {
            rule: np.linalg.norm(error - low_rank.product(low_rank.correct(error, LowRankConfig(sign_rule=rule))))  # type: ignore[arg-type]
            for rule in ("best", "largest_positive")
        }
        assert residuals["best"] <= residuals["largest_positive"] < np.linalg.norm(error)


def test_right_factors_that_do_not_divide_into_groups_are_symmetric() -> None:
    error = np.random.default_rng(0).normal(size=(6, 10)).astype(np.float32)
    left, right = codes(low_rank.correct(error, LowRankConfig(rank=2)))
    assert (left.bits, right.bits, left.group_size, right.group_size) == (4, 4, 0, 0)


def test_the_tensors_with_the_largest_errors_are_corrected() -> None:
    rng = np.random.default_rng(0)
    arrays = {
        f"blocks.{n}.mlp.up.weight": rng.normal(size=(64, 64)).astype(np.float32) * np.float32(size)
        for n, size in enumerate((1.0, 3.0, 0.5, 2.0))
    }
    config = QuantizationConfig(matrix_bits=4, small_tensor_max_elements=0, low_rank=LowRankConfig(num_tensors=2))
    tensors = export.quantize(arrays, config)
    assert [tensor.low_rank is not None for tensor in tensors.values()] == [False, True, False, True]
    for name, tensor in tensors.items():
        if tensor.low_rank is not None:
            without = np.linalg.norm(dequantize(replace(tensor, low_rank=None)) - arrays[name])
            assert np.linalg.norm(dequantize(tensor) - arrays[name]) < without


def test_weighted_factors_follow_the_inputs() -> None:
    rng = np.random.default_rng(0)
    error = rng.normal(size=(32, 64)).astype(np.float32)
    weights = np.geomspace(0.01, 1, 64).astype(np.float32)
    residual = {}
    for key, column_weights in (("plain", None), ("weighted", weights)):
        left, right = low_rank.factors(error, 4, column_weights)
        residual[key] = np.linalg.norm((error - left @ right) * weights)
    assert residual["weighted"] < 0.98 * residual["plain"]


def test_an_error_of_zeros_is_corrected_by_zeros() -> None:
    found = low_rank.correct(np.zeros((4, 64), np.float32), LowRankConfig(rank=2))
    assert not low_rank.product(found).any()


@pytest.mark.parametrize(
    ("field", "value"),
    [("rank", 0), ("grid", "log"), ("left_bits", 1), ("group_size", 0), ("num_tensors", -1), ("sign_rule", "random")],
)
def test_settings_are_checked(field: str, value: object) -> None:
    with pytest.raises(ValueError, match=rf"low_rank\.{field}.*accepted"):
        LowRankConfig(**{field: value})  # type: ignore[arg-type]
