"""GPTQ: the published codes, the reference's numbers, brute force, and Hessians that try its patience."""

from pathlib import Path

import numpy as np
import pytest
import torch

from artifact.content import QuantizedTensor
from artifact.dequantize import dequantize
from trainer import export
from trainer.quantize import gptq
from trainer.quantize.calibration import Calibration
from trainer.quantize.config import (
    CalibrationConfig,
    GPTQConfig,
    MixedPrecisionConfig,
    QuantizationConfig,
    RoleQuantization,
)

VECTORS = np.load(Path(__file__).resolve().parents[2] / "vectors" / "gptq_lqer.npz")
NAME = "blocks.0.mlp.up.weight"
TRAINING = CalibrationConfig("training")


def run(weight: np.ndarray, hessian: np.ndarray, name: str = NAME, **settings: object) -> QuantizedTensor:
    defaults: dict[str, object] = {"method": "gptq", "clip_rule": "deviations", "small_tensor_max_elements": 0}
    config = QuantizationConfig(calibration=TRAINING, **{**defaults, **settings})  # type: ignore[arg-type]
    calibration = Calibration({name: torch.from_numpy(hessian)}, 1)
    tensor = export.quantize({name: weight}, config, calibration)[name]
    assert isinstance(tensor, QuantizedTensor)
    return tensor


def correlated(rows: int, columns: int, seed: int = 0) -> tuple[np.ndarray, np.ndarray]:
    """A weight matrix and the Hessian of strongly correlated inputs."""
    rng = np.random.default_rng(seed)
    weight = rng.normal(size=(rows, columns)).astype(np.float32)
    inputs = rng.normal(size=(4 * columns, columns // 2)) @ rng.normal(size=(columns // 2, columns))
    inputs += 0.3 * rng.normal(size=inputs.shape)
    return weight, (inputs.T @ inputs).astype(np.float32)


def output_error(weight: np.ndarray, tensor: QuantizedTensor, hessian: np.ndarray) -> float:
    error = (dequantize(tensor) - weight).astype(np.float64)
    return float(np.einsum("ri,ij,rj->", error, hessian.astype(np.float64), error))


@pytest.mark.parametrize(
    ("key", "deviations", "bits", "block_size", "hessian"),
    [
        ("sigmas11.5_range31", 11.5, 6, 128, "hessian"),
        ("sigmas11.5_range31_block4", 11.5, 6, 4, "hessian"),
        ("sigmas14_range63", 14.0, 7, 128, "hessian"),
        ("sigmas1.5_range31", 1.5, 6, 128, "hessian"),
        ("dead_column5_sigmas11.5_range31", 11.5, 6, 128, "hessian_dead_column5"),
    ],
)
def test_published_codes_exactly(key: str, deviations: float, bits: int, block_size: int, hessian: str) -> None:
    tensor = run(
        VECTORS["gptq/weight"],
        VECTORS[f"gptq/{hessian}"],
        matrix_bits=bits,
        clip_deviations=deviations,
        gptq=GPTQConfig(block_size=block_size),
    )
    assert np.array_equal(tensor.symbols, VECTORS[f"gptq/{key}/codes"])
    assert np.array_equal(tensor.scales.astype(np.float16), VECTORS[f"gptq/{key}/scales"])


def test_published_percentile_search_exactly() -> None:
    tensor = run(
        VECTORS["gptq/weight"],
        VECTORS["gptq/hessian"],
        clip_rule="search",
        scale_rule="floored",
        gptq=GPTQConfig(search_criterion="weights"),
    )
    assert np.array_equal(tensor.symbols, VECTORS["gptq_rank23/codes"])
    assert np.array_equal(tensor.scales.astype(np.float16), VECTORS["gptq_rank23/scales"])


def reference_problem() -> tuple[np.ndarray, np.ndarray]:
    i, j, t = np.arange(4)[:, None], np.arange(6), np.arange(8)[:, None]
    weight = 0.1 * np.sin(1 + 1.7 * i + 2.3 * j)
    inputs = (np.cos(0.3 + 0.9 * t + 0.5 * j**2) + 0.5 * np.sin(1.1 * t)) * (1 + 0.3 * j)
    inputs[:, 4] = 0
    return weight.astype(np.float32), (inputs.T @ inputs).astype(np.float32)


@pytest.mark.parametrize("block_size", [4, 128])
def test_numbers_of_the_reference(block_size: int) -> None:
    weight, hessian = reference_problem()
    order, _ = gptq.column_order_and_factor(torch.from_numpy(hessian)[None], GPTQConfig())
    assert order[0].tolist() == [5, 3, 1, 0, 2, 4]
    tensor = run(weight, hessian, matrix_bits=4, clip_deviations=4.0, gptq=GPTQConfig(block_size=block_size))
    np.testing.assert_allclose(tensor.scales, [0.04129028, 0.04562378, 0.04348755, 0.04339600], atol=5e-9)
    expected = [[4, -2, -1, 2, 0, 0], [0, -1, 2, 0, 0, 2], [-3, 1, 2, -2, 0, 0], [-1, 2, -2, 1, 0, -2]]
    assert tensor.symbols.tolist() == expected
    assert output_error(weight, tensor, hessian) == pytest.approx(0.00579, abs=5e-6)
    rounded = run(weight, hessian, matrix_bits=4, clip_deviations=4.0, method="round")
    assert output_error(weight, rounded, hessian) == pytest.approx(0.05847, abs=5e-6)
    assert np.square(dequantize(tensor) - weight).mean() == pytest.approx(1.62e-3, rel=5e-3)
    assert np.square(dequantize(rounded) - weight).mean() == pytest.approx(1.19e-4, rel=5e-3)


def brute_force(weight: np.ndarray, hessian: np.ndarray, steps: np.ndarray, damping: float) -> np.ndarray:
    """After each column, the best real values of all later ones by a direct least-squares solution."""
    damped = hessian.astype(np.float64) + damping * np.diag(hessian).mean() * np.eye(len(hessian))
    order = np.argsort(-np.diag(hessian), kind="stable")
    codes = np.zeros(weight.shape, np.int8)
    for row, step in enumerate(steps):
        current = weight[row].astype(np.float64)
        error = np.zeros(len(order))
        for position, column in enumerate(order):
            codes[row, column] = np.clip(np.rint(current[column] / step), -31, 31)
            error[order[: position + 1]] = (codes[row] * step - weight[row])[order[: position + 1]]
            done, rest = order[: position + 1], order[position + 1 :]
            if len(rest):
                shift = np.linalg.solve(damped[np.ix_(rest, rest)], damped[np.ix_(rest, done)] @ error[done])
                current[rest] = weight[row, rest] - shift
    return codes


@pytest.mark.parametrize(("seed", "block_size"), [(0, 128), (1, 3), (2, 1)])
def test_updates_equal_the_least_squares_solution(seed: int, block_size: int) -> None:
    weight, hessian = correlated(5, 10, seed)
    tensor = run(weight, hessian, clip_deviations=11.5, gptq=GPTQConfig(block_size=block_size))
    assert np.array_equal(tensor.symbols, brute_force(weight, hessian, tensor.scales.astype(np.float64), 0.01))


def test_factor_is_the_cholesky_factor_of_the_inverse() -> None:
    _, hessian = correlated(2, 24)
    order, factor = gptq.column_order_and_factor(torch.from_numpy(hessian)[None], GPTQConfig(damping=0.02))
    permutation = order[0].numpy()
    damped = hessian.astype(np.float64) + 0.02 * np.diag(hessian).mean() * np.eye(24)
    inverse = np.linalg.inv(damped[np.ix_(permutation, permutation)])
    upper = factor[0].numpy().astype(np.float64)
    np.testing.assert_allclose(upper.T @ upper, inverse, rtol=1e-4, atol=1e-6 * np.abs(inverse).max())
    assert np.array_equal(upper, np.triu(upper))


@pytest.mark.parametrize("bits", [3, 4, 6])
def test_beats_rounding_on_correlated_inputs(bits: int) -> None:
    weight, hessian = correlated(32, 48)
    settings = {"matrix_bits": bits, "clip_rule": "maximum"}
    rounded = output_error(weight, run(weight, hessian, method="round", **settings), hessian)
    feedback = output_error(weight, run(weight, hessian, **settings), hessian)
    searched = output_error(weight, run(weight, hessian, **{**settings, "clip_rule": "search"}), hessian)
    assert feedback < 0.6 * rounded
    assert searched <= feedback


def test_batches_equal_single_matrices() -> None:
    problems = [correlated(6, 12, seed) for seed in range(3)]
    names = [f"blocks.{n}.mlp.up.weight" for n in range(3)]
    config = QuantizationConfig(
        method="gptq", clip_rule="deviations", small_tensor_max_elements=0, calibration=TRAINING
    )
    calibration = Calibration({n: torch.from_numpy(h) for n, (_, h) in zip(names, problems, strict=True)}, 1)
    together = export.quantize({n: w for n, (w, _) in zip(names, problems, strict=True)}, config, calibration)
    for name, (weight, hessian) in zip(names, problems, strict=True):
        assert np.array_equal(together[name].symbols, run(weight, hessian).symbols)


def test_embedding_with_the_heads_hessian() -> None:
    weight, hessian = correlated(40, 16)
    tensor = run(weight, hessian, "embedding.weight", embedding_bits=7, embedding_clip_deviations=14.0)
    rounded = run(
        weight, hessian, "embedding.weight", embedding_bits=7, embedding_clip_deviations=14.0,
        embedding=RoleQuantization(method="round"),
    )  # fmt: skip
    assert tensor.bits == 7
    assert np.array_equal(tensor.scales, rounded.scales)
    assert output_error(weight, tensor, hessian) < output_error(weight, rounded, hessian)


def test_hessian_aware_clip_follows_the_rows_importance() -> None:
    weight, hessian = correlated(16, 24)
    plain = run(weight, hessian, clip_deviations=12.85, scale_dtype="float32")
    aware = run(weight, hessian, clip_deviations=12.85, scale_dtype="float32", hessian_clip_strength=0.175)
    kappa = np.diag(hessian) / np.diag(hessian).mean()
    importance = (np.abs(weight) * kappa).mean(axis=1)
    expected = 1 + 0.175 * (importance / importance.mean() - 1)
    np.testing.assert_allclose(aware.scales / plain.scales, expected, rtol=1e-5)
    assert np.ptp(expected) > 0.01


def test_mixed_precision_ranks_by_trace() -> None:
    weight, hessian = correlated(16, 24)
    names = [f"blocks.{n}.mlp.up.weight" for n in range(4)]
    factors = (1.0, 4.0, 2.0, 3.0)
    config = QuantizationConfig(
        method="gptq",
        small_tensor_max_elements=0,
        calibration=TRAINING,
        mixed_precision=MixedPrecisionConfig(num_fine=2, coarse_bits=5, always_fine_layers=(0,)),
    )
    calibration = Calibration({name: torch.from_numpy(hessian * f) for name, f in zip(names, factors, strict=True)}, 1)
    tensors = export.quantize(dict.fromkeys(names, weight), config, calibration)
    assert [tensors[name].bits for name in names] == [6, 6, 5, 5]


def test_near_singular_hessian_is_damped_until_it_factors() -> None:
    rng = np.random.default_rng(0)
    weight = rng.normal(size=(8, 32)).astype(np.float32)
    inputs = rng.normal(size=(4, 32))
    rank_four = (inputs.T @ inputs).astype(np.float32)
    for damping in (0.01, 0.0):
        tensor = run(weight, rank_four, gptq=GPTQConfig(damping=damping))
        rounded = run(weight, rank_four, method="round")
        assert output_error(weight, tensor, rank_four) < 0.2 * output_error(weight, rounded, rank_four)


def test_hessian_of_zeros_rounds_to_zero_codes() -> None:
    weight = np.random.default_rng(0).normal(size=(4, 8)).astype(np.float32)
    assert not run(weight, np.zeros((8, 8), np.float32)).symbols.any()


def test_constant_rows_and_rows_of_zeros() -> None:
    weight, hessian = correlated(4, 16)
    weight[1], weight[2] = 0.5, 0
    restored = dequantize(run(weight, hessian, clip_rule="maximum"))
    assert np.isfinite(restored).all()
    assert not restored[2].any()
    np.testing.assert_allclose(restored[1], 0.5, atol=0.05)


@pytest.mark.parametrize("value", [np.nan, np.inf])
def test_broken_hessians_and_weights_are_named(value: float) -> None:
    weight, hessian = correlated(4, 16)
    hessian[3, 4] = value
    with pytest.raises(ValueError, match=rf"Hessian of {NAME}.*not finite"):
        run(weight, hessian)
    weight[2, 1] = value
    with pytest.raises(ValueError, match=rf"^{NAME} holds a value that is not finite"):
        run(weight, hessian)


def test_indefinite_hessians_are_named() -> None:
    weight, _ = correlated(4, 16)
    hessian = np.diag(np.r_[np.ones(15), -1e9]).astype(np.float32)
    with pytest.raises(ValueError, match=rf"Hessian of {NAME} is not positive semi-definite"):
        run(weight, hessian)


def test_missing_calibration_is_named() -> None:
    config = QuantizationConfig(method="gptq", small_tensor_max_elements=0, calibration=TRAINING)
    weight, _ = correlated(4, 16)
    with pytest.raises(ValueError, match="need calibration"):
        export.quantize({NAME: weight}, config)
    with pytest.raises(ValueError, match=rf"{NAME} has no calibration Hessian"):
        export.quantize({NAME: weight}, config, Calibration({}, 1))
