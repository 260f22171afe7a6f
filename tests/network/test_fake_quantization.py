"""Fake quantization: the published grids, straight-through gradients, fixed points."""

import numpy as np
import pytest
import torch
from torch import Tensor

from model.network.fake_quantization import (
    FakeQuantization,
    Method,
    binary_codes,
    fake_quantize,
    integer_grid,
    round_to_float8,
    row_scales,
    soft_round,
    ternary_codes,
    weights_to_train_on,
)

# Grids as the entries have them (methods 4.1 and 4.3), by rank.
RANK_33 = FakeQuantization("round", -31, 31, 31, clip_floor=1 / 31)
RANK_31 = FakeQuantization("round", -31, 31, 31, clip_quantile=0.9999984)
RANK_26 = FakeQuantization("round", -32, 31, 31, clip_floor=1.0)
RANK_30 = FakeQuantization("round", -128, 124, 127, code_step=4)
RANK_44 = FakeQuantization("round", -16, 15, 15)


@pytest.fixture
def weight() -> Tensor:
    return 0.2 * torch.randn(6, 256, generator=torch.Generator().manual_seed(0))


def quantized(weight: Tensor, how: FakeQuantization) -> np.ndarray:
    return fake_quantize(weight, how, None, training=True).detach().double().numpy()


def expected_rounding(weight: Tensor, scales: np.ndarray, low: int, high: int) -> np.ndarray:
    return np.clip(np.round(weight.double().numpy() / scales), low, high) * scales


def test_published_grids(weight: Tensor) -> None:
    wide = weight.double().numpy()
    largest = np.abs(wide).max(1, keepdims=True)
    quantile = np.quantile(np.abs(wide), 0.9999984, axis=1, keepdims=True)
    cases = [
        (RANK_33, expected_rounding(weight, np.maximum(largest, 1 / 31) / 31, -31, 31)),
        (RANK_31, expected_rounding(weight, quantile / 31, -31, 31)),
        (RANK_26, expected_rounding(weight, np.maximum(largest / 31, 1 / 31), -32, 31)),
        (RANK_30, np.clip(np.round(np.round(wide / (largest / 127)) / 4) * 4, -128, 124) * largest / 127),
        (RANK_44, expected_rounding(weight, largest / 15, -16, 15)),
    ]
    for how, expected in cases:
        np.testing.assert_allclose(quantized(weight, how), expected, rtol=1e-6, atol=1e-7)


@pytest.mark.parametrize("bits", [5, 6, 8])
def test_number_of_codes(weight: Tensor, bits: int) -> None:
    codes = quantized(weight, integer_grid(bits)) / row_scales(weight, integer_grid(bits)).double().numpy()
    np.testing.assert_allclose(codes, np.round(codes), atol=1e-4)
    assert np.abs(codes).max() == pytest.approx(2 ** (bits - 1) - 1, abs=1e-4)


@pytest.mark.parametrize("how", [RANK_33, RANK_31, FakeQuantization("ternary"), FakeQuantization("float8")])
def test_gradient_passes_straight_through(weight: Tensor, how: FakeQuantization) -> None:
    weight.requires_grad_()
    upstream = torch.randn(weight.shape, generator=torch.Generator().manual_seed(1))
    (fake_quantize(weight, how, None, training=True) * upstream).sum().backward()
    assert weight.grad is not None
    torch.testing.assert_close(weight.grad, upstream, rtol=0, atol=0)


def test_rounding_once_more_changes_nothing(weight: Tensor) -> None:
    for how in (RANK_33, RANK_44, FakeQuantization("float8"), FakeQuantization("binary")):
        once = fake_quantize(weight, how, None, training=True).detach()
        torch.testing.assert_close(fake_quantize(once, how, None, training=True), once, rtol=3e-7, atol=0)


@pytest.mark.parametrize("sharpness", [1.0, 16.0])
def test_soft_rounding(weight: Tensor, sharpness: float) -> None:
    how = integer_grid(6, "soft_round")
    scales = row_scales(weight, how).double().numpy()
    u = np.clip(weight.double().numpy() / scales, -31, 31)
    floor = np.minimum(np.floor(u), 30)
    expected = scales * (floor + 1 / (1 + np.exp(-sharpness * (u - floor - 0.5))))
    alpha = torch.tensor(sharpness)
    np.testing.assert_allclose(soft_round(weight, how, alpha).double().numpy(), expected, rtol=1e-5, atol=1e-6)
    assert torch.equal(fake_quantize(weight, how, alpha, training=False), weight)


def test_soft_rounding_tends_to_rounding_and_has_its_own_gradient(weight: Tensor) -> None:
    how = integer_grid(6, "soft_round")
    hard = fake_quantize(weight, integer_grid(6), None, training=True)
    u = (weight / row_scales(weight, how)).frac().abs()
    clear = (u - 0.5).abs() > 0.05
    torch.testing.assert_close(soft_round(weight, how, torch.tensor(2000.0))[clear], hard[clear], rtol=1e-4, atol=1e-6)
    wide = weight.double().requires_grad_()
    fixed = row_scales(wide.detach(), how)
    inside = (wide.detach() / fixed).abs() < 30.9
    small = 1e-6 * fixed.expand_as(wide)
    alpha = torch.tensor(4.0, dtype=torch.float64)
    soft_round(wide, how, alpha).sum().backward()
    assert wide.grad is not None
    # Rows keep their largest value, hence their scale, under the small changes.
    changed = soft_round((wide + torch.where(inside, small, 0)).detach(), how, alpha) - soft_round(wide, how, alpha)
    torch.testing.assert_close((changed / small)[inside], wide.grad[inside], rtol=1e-3, atol=1e-4)


def test_noise_is_one_step_wide_and_training_only(weight: Tensor) -> None:
    how = FakeQuantization("noise", -127, 127, 127)
    torch.manual_seed(0)
    noise = (fake_quantize(weight, how, None, training=True) - weight) / row_scales(weight, how)
    assert noise.abs().max() <= 0.5 + 1e-4
    assert noise.max() > 0.45
    assert noise.min() < -0.45
    assert noise.var().item() == pytest.approx(1 / 12, rel=0.1)
    assert fake_quantize(weight, how, None, training=False) is weight


def test_ternary_by_hand() -> None:
    weight = torch.tensor([[0.5, -0.25, 0.1, -0.75], [1.0, 1.0, -1.0, 0.0]])
    codes, scales = ternary_codes(weight, 4)
    assert codes.tolist() == [[1, -1, 0, -1], [1, 1, -1, 0]]
    np.testing.assert_allclose(scales.flatten().numpy(), [0.4, 0.75], rtol=1e-3)
    signs, _ = binary_codes(weight, 4)
    assert signs.tolist() == [[1, -1, 1, -1], [1, 1, -1, 1]]


@pytest.mark.parametrize("groups", [32, 128, 256])
def test_ternary_shrinkage_fix_is_a_fixed_point(weight: Tensor, groups: int) -> None:
    codes, scales = ternary_codes(weight, groups)
    assert 0.2 < (codes == 0).float().mean() < 0.5
    again, same_scales = ternary_codes(weights_to_train_on(codes, scales).view_as(weight), groups)
    assert torch.equal(again, codes)
    assert torch.equal(same_scales, scales)
    shrunk = ternary_codes((codes * scales).view_as(weight), groups)[1]
    assert (shrunk < 0.9 * scales).all(), "without the fix scales shrink, or this test shows nothing"


def test_ternary_group_of_zeros() -> None:
    codes, scales = ternary_codes(torch.zeros(1, 128), 128)
    assert torch.equal(codes, torch.zeros(1, 128))
    assert torch.isfinite(scales).all()
    assert torch.equal(weights_to_train_on(codes, scales), torch.zeros(1, 128))


def test_float8_values_and_clamp() -> None:
    got = round_to_float8(torch.tensor([0.1, 1.0625, 1.1875, -500.0, 1e-9]))
    assert got.tolist() == [0.1015625, 1.0, 1.25, -448.0, 0.0]


@pytest.mark.parametrize(
    ("changes", "named"),
    [({"method": "int6"}, "method"), ({"max_code": 200}, "max_code"), ({"clip_quantile": 0.1}, "clip_quantile")],
)
def test_configuration_errors_name_the_field(changes: dict[str, object], named: str) -> None:
    with pytest.raises(ValueError, match=named):
        FakeQuantization(**changes)  # type: ignore[arg-type]


@pytest.mark.parametrize("method", ["round", "soft_round", "ternary", "binary", "float8"])
def test_compiles_without_graph_breaks(weight: Tensor, method: Method) -> None:
    how = FakeQuantization(method)
    alpha = torch.tensor(3.0)
    compiled = torch.compile(fake_quantize, backend="eager", fullgraph=True)
    torch.testing.assert_close(
        compiled(weight, how, alpha, True), fake_quantize(weight, how, alpha, True), rtol=0, atol=0
    )
