"""Orthogonalization and Muon reproduce the published programs' numbers (tests/vectors/optimizers.npz)."""

from pathlib import Path

import numpy as np
import pytest
import torch
from torch import Tensor

from model.optimizers.muon import direction, nesterov, step_scale
from model.optimizers.orthogonalize import Method, coefficients, normalize_rows, orthogonalize

KEYS = ("6x4", "4x6", "8x8")


@pytest.fixture(scope="module")
def vectors() -> dict[str, np.ndarray]:
    with np.load(Path(__file__).parent.parent / "vectors" / "optimizers.npz") as file:
        return dict(file)


def tensor(array: np.ndarray) -> Tensor:
    return torch.from_numpy(array)


@pytest.mark.parametrize("key", KEYS)
@pytest.mark.parametrize(
    ("name", "method", "iterations"),
    [
        ("newton_schulz5", "newton_schulz", 5),
        ("newton_schulz10", "newton_schulz", 10),
        ("polar_express5", "polar_express", 5),
    ],
)
def test_orthogonalize(vectors: dict[str, np.ndarray], key: str, name: str, method: Method, iterations: int) -> None:
    tuples = coefficients(method, iterations)
    exact = orthogonalize(tensor(vectors[f"input/{key}"]), tuples, torch.float64)
    np.testing.assert_allclose(exact.numpy(), vectors[f"{name}_float64/{key}"], atol=1e-9, rtol=0)
    rounded = orthogonalize(tensor(vectors[f"input/{key}"]), tuples)
    # Newton-Schulz associates (c A) A in its program, Polar Express c (A A) as we do: two roundings of one formula,
    # each up to 0.041 from exact.
    tolerance = 0 if method == "polar_express" else 0.09
    np.testing.assert_allclose(rounded.float().numpy(), vectors[f"{name}/{key}"], atol=tolerance, rtol=0)


def test_matrices_of_a_batch_do_not_touch(vectors: dict[str, np.ndarray]) -> None:
    bank = tensor(vectors["input/bank2x6x4"])
    together = orthogonalize(bank, coefficients("polar_express", 5))
    np.testing.assert_array_equal(together.float().numpy(), vectors["polar_express5/bank2x6x4"])


@pytest.mark.parametrize("key", KEYS)
def test_row_normalization(vectors: dict[str, np.ndarray], key: str) -> None:
    rows = normalize_rows(tensor(vectors[f"input/{key}"]).bfloat16())
    np.testing.assert_array_equal(rows.float().numpy(), vectors[f"row_normalize/{key}"])
    both = orthogonalize(rows, coefficients("polar_express", 5))
    np.testing.assert_array_equal(both.float().numpy(), vectors[f"row_normalize_polar_express5/{key}"])


def muon_steps(
    parameter: Tensor, gradients: Tensor, buffer: Tensor, learning_rate: float, decay: float, method: Method, rows: bool
) -> list[Tensor]:
    results = []
    for gradient in gradients:
        update = nesterov(gradient, buffer, 0.95)
        step = direction(update, coefficients(method, 5), row_normalize=rows)
        scale = step_scale(*step.shape[-2:])
        parameter = parameter * (1 - learning_rate * decay) - learning_rate * scale * step.float()
        results.append(parameter)
    return results


@pytest.mark.parametrize("key", ["2x6x4", "2x4x6"])
def test_two_steps_of_rank_1(vectors: dict[str, np.ndarray], key: str) -> None:
    start, gradients = (tensor(vectors[f"muon_step_rank01/{key}/{n}"]) for n in ("param0", "grads"))
    steps = muon_steps(
        start, gradients, torch.zeros_like(start, dtype=torch.bfloat16), 0.02, 0.095, "polar_express", True
    )
    np.testing.assert_allclose(torch.stack(steps).numpy(), vectors[f"muon_step_rank01/{key}/params_after"], atol=5e-3)


@pytest.mark.parametrize("key", ["6x4", "4x6"])
def test_two_steps_of_the_baseline(vectors: dict[str, np.ndarray], key: str) -> None:
    start, gradients = (tensor(vectors[f"muon_step_rank42/{key}/{n}"]) for n in ("param0", "grads"))
    steps = muon_steps(start, gradients, torch.zeros_like(start), 0.04, 0.0, "newton_schulz", False)
    np.testing.assert_allclose(torch.stack(steps).numpy(), vectors[f"muon_step_rank42/{key}/params_after"], atol=5e-3)


def test_singular_values_of_methods_appendix_b() -> None:
    values = torch.tensor([1e-3, 3e-3, 1e-2, 0.03, 0.1, 0.3, 0.6, 0.9, 1.0], dtype=torch.float64)
    expected = {
        "newton_schulz": [0.4705, 1.1104, 0.6989, 1.1223, 0.7121, 1.0796, 0.7229, 0.6820, 0.6964],
        "polar_express": [0.8589, 0.9664, 1.0271, 1.0605, 1.0592, 0.9831, 0.8713, 0.8749, 0.8591],
    }
    for method, wanted in expected.items():
        x = values
        for a, b, c in coefficients(method, 5):  # type: ignore[arg-type]
            x = a * x + b * x**3 + c * x**5
        np.testing.assert_allclose(x.numpy(), wanted, atol=6e-5)


def test_more_polar_express_iterations_than_tuples() -> None:
    with pytest.raises(ValueError, match="at most 5, got 6"):
        coefficients("polar_express", 6)


def test_neomuon_is_row_normalization_and_three_iterations(vectors: dict[str, np.ndarray]) -> None:
    """Methods 3.5, written out in float64: divide rows by their root mean square, three classic iterations."""
    a, b, c = 3.4445, -4.7750, 2.0315
    for key in KEYS:
        update = vectors[f"input/{key}"].astype(np.float64)
        x = update / np.sqrt((update**2).mean(axis=1, keepdims=True))
        x /= np.linalg.norm(x)
        for _ in range(3):
            gram = x @ x.T
            x = a * x + (b * gram + c * gram @ gram) @ x
        got = direction(tensor(update), coefficients("newton_schulz", 3), row_normalize=True, dtype=torch.float64)
        np.testing.assert_allclose(got.numpy(), x, rtol=0, atol=2e-6)


@pytest.mark.parametrize("key", ["2x6x4", "2x4x6"])
def test_steps_of_rank_1_in_place_are_bitwise_its_own(vectors: dict[str, np.ndarray], key: str) -> None:
    """Rounded where the published program rounds (methods 3.2), the step reproduces it on a CPU to the last bit."""
    weights, gradients = (tensor(vectors[f"muon_step_rank01/{key}/{n}"]) for n in ("param0", "grads"))
    weights, buffer = weights.clone(), torch.zeros_like(weights, dtype=torch.bfloat16)
    for gradient, after in zip(gradients, vectors[f"muon_step_rank01/{key}/params_after"], strict=True):
        update = nesterov(gradient, buffer, 0.95)
        step = direction(update, coefficients("polar_express", 5), row_normalize=True)
        weights.mul_(1 - 0.02 * 0.095).add_(step, alpha=-0.02 * step_scale(*step.shape[-2:]))
        np.testing.assert_array_equal(weights.numpy(), after)
