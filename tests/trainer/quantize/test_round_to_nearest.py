"""Round-to-nearest quantization: the published vectors, and what scale-free means."""

from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest

from artifact.content import QuantizedTensor
from artifact.dequantize import dequantize
from artifact.schema import FloatType
from trainer import export
from trainer.quantize import round_to_nearest
from trainer.quantize.config import QuantizationConfig, RoleQuantization

VECTORS = np.load(Path(__file__).resolve().parents[2] / "vectors" / "round_to_nearest.npz")
GPTQ_VECTORS = np.load(Path(__file__).resolve().parents[2] / "vectors" / "gptq_lqer.npz")
WEIGHT = np.random.default_rng(0).normal(size=(64, 256)).astype(np.float32) * np.float32(0.05)
NAME = "blocks.0.mlp.up.weight"
GATE = "blocks.0.attention.gate.weight"


def quantize(weight: np.ndarray, config: QuantizationConfig, name: str = NAME) -> QuantizedTensor:
    tensor = export.quantize({name: weight}, replace(config, small_tensor_max_elements=0))[name]
    assert isinstance(tensor, QuantizedTensor)
    return tensor


def relative_error(weight: np.ndarray, config: QuantizationConfig) -> float:
    return float(np.linalg.norm(dequantize(quantize(weight, config)) - weight) / np.linalg.norm(weight))


def test_published_int8_codes_exactly() -> None:
    for vectors in (VECTORS, GPTQ_VECTORS):
        weight = vectors["weight" if "weight" in vectors else "gptq/weight"]
        tensor = quantize(weight, QuantizationConfig(scale_rule="published", matrix_bits=8))
        assert np.array_equal(tensor.symbols, vectors["int8_rank42/codes"])
        assert np.array_equal(tensor.scales.astype(np.float16), vectors["int8_rank42/scales"])


def test_published_percentile_search_exactly() -> None:
    config = QuantizationConfig(scale_rule="floored", clip_rule="search")
    tensor = quantize(GPTQ_VECTORS["gptq/weight"], config)
    assert np.array_equal(tensor.symbols, GPTQ_VECTORS["int6_percentile_rank23/codes"])
    assert np.array_equal(tensor.scales.astype(np.float16), GPTQ_VECTORS["int6_percentile_rank23/scales"])


def test_published_gate_codes_exactly() -> None:
    config = QuantizationConfig(gate=RoleQuantization(method="round"))
    tensor = quantize(VECTORS["gate_int8/weight"], config, GATE)
    assert np.array_equal(tensor.symbols, VECTORS["gate_int8/codes"])
    assert np.array_equal(tensor.scales.astype(np.float16), VECTORS["gate_int8/scales"])


def test_gate_rows_of_the_reference() -> None:
    weight = np.sin(1 + 3 * np.arange(8)[:, None] + np.arange(12)).astype(np.float32)
    tensor = quantize(weight, QuantizationConfig(gate=RoleQuantization(method="round")), GATE)
    assert tensor.symbols[0].tolist() == [107, 115, 18, -96, -122, -35, 83, 126, 52, -69, -127, -68]
    assert tensor.scales[0] == pytest.approx(0.00787354, abs=5e-9)


@pytest.mark.parametrize("clip_rule", ["percentile", "deviations", "maximum", "search"])
def test_scale_free_rules_do_not_see_the_size_of_the_weights(clip_rule: str) -> None:
    config = QuantizationConfig(clip_rule=clip_rule, scale_dtype="float32")  # type: ignore[arg-type]
    plain, scaled = quantize(WEIGHT, config), quantize(WEIGHT * np.float32(0.0078125), config)
    assert np.array_equal(plain.symbols, scaled.symbols)


def test_the_published_floor_does() -> None:
    published, scale_free = QuantizationConfig(scale_rule="published"), QuantizationConfig()
    small = WEIGHT * np.float32(0.01)
    assert relative_error(small, published) > 10 * relative_error(WEIGHT, scale_free)
    assert relative_error(small, scale_free) == pytest.approx(relative_error(WEIGHT, scale_free), rel=0.05)


@pytest.mark.parametrize(("bits", "bound"), [(4, 0.15), (5, 0.075), (6, 0.035), (7, 0.018), (8, 0.009)])
def test_error_falls_with_bits(bits: int, bound: float) -> None:
    assert bound / 3 < relative_error(WEIGHT, QuantizationConfig(matrix_bits=bits)) < bound


@pytest.mark.parametrize("scale_dtype", ["float16", "float32", "bfloat16", "log8"])
def test_stored_scales_are_the_ones_used(scale_dtype: str) -> None:
    tensor = quantize(WEIGHT, QuantizationConfig(scale_dtype=scale_dtype))  # type: ignore[arg-type]
    assert tensor.scale_type == FloatType[scale_dtype.upper()]
    error = np.abs(dequantize(tensor) - WEIGHT)
    inside = np.abs(tensor.symbols) < 31
    assert (error <= tensor.scales[:, None] * 0.5001)[inside].all()


def test_clip_follows_the_deviation_rule() -> None:
    config = QuantizationConfig(clip_rule="deviations", scale_dtype="float32", clip_deviations=11.5)
    expected = 11.5 * WEIGHT.astype(np.float64).std(axis=1, ddof=1) / 31
    np.testing.assert_allclose(quantize(WEIGHT, config).scales, expected, rtol=1e-6)


def test_search_is_no_worse_than_any_of_its_percentiles() -> None:
    heavy = WEIGHT.copy()
    heavy[::2, 7] = 0.5  # half the rows have an outlier of ten standard deviations
    percentiles = (0.9, 0.99, 1.0)
    searched = relative_error(
        heavy, QuantizationConfig(clip_rule="search", matrix_bits=2, search_percentiles=percentiles)
    )
    each = [relative_error(heavy, QuantizationConfig(clip_percentile=p, matrix_bits=2)) for p in percentiles]
    assert searched == pytest.approx(min(each))
    assert searched < each[-1]


def test_rules_by_role() -> None:
    config = QuantizationConfig(
        clip_rule="deviations",
        scale_dtype="float32",
        small_tensor_max_elements=0,
        attention=RoleQuantization(clip_deviations=13.0),
        mlp=RoleQuantization(clip_deviations=11.5, bits=5),
        embedding=RoleQuantization(bits=7, clip_deviations=14.0),
        table=RoleQuantization(method="float"),
    )
    names = ("blocks.3.attention.q.weight", NAME, "embedding.weight", "value_embedding.table")
    tensors = export.quantize(dict.fromkeys(names, WEIGHT), config)
    deviation = WEIGHT.astype(np.float64).std(axis=1, ddof=1)
    for name, clip, largest in zip(names, (13.0, 11.5, 14.0), (31, 15, 63), strict=False):
        np.testing.assert_allclose(tensors[name].scales, clip * deviation / largest, rtol=1e-6)
    assert not isinstance(tensors["value_embedding.table"], QuantizedTensor)


def test_coarse_layers_have_multiples_and_others_do_not() -> None:
    config = QuantizationConfig(matrix_bits=8, coarse_layers=(3,), small_tensor_max_elements=0)
    names = ("blocks.3.mlp.up.weight", "blocks.2.mlp.up.weight")
    tensors = export.quantize(dict.fromkeys(names, WEIGHT), config)
    coarse, fine = (tensors[name].symbols.astype(int) for name in names)
    assert set(np.unique(coarse % 4)) == {0}
    assert set(np.unique(fine % 4)) == {0, 1, 2, 3}
    assert (coarse.min(), coarse.max()) == (-124, 124)
    assert np.abs(coarse - fine)[np.abs(fine) <= 124].max() == 2


def test_lowest_code_is_used_only_if_allowed() -> None:
    weight = np.tile(np.r_[-1.04, np.ones(99)].astype(np.float32), (2, 1))
    for allowed, lowest in ((True, -32), (False, -31)):
        config = QuantizationConfig(lowest_code=allowed, clip_percentile=0.9)
        assert quantize(weight, config).symbols.min() == lowest


@pytest.mark.parametrize("clip_rule", ["percentile", "deviations", "maximum"])
def test_step_factor_changes_the_step_and_not_the_clip(clip_rule: str) -> None:
    plain = QuantizationConfig(clip_rule=clip_rule, scale_dtype="float32")  # type: ignore[arg-type]
    unit = quantize(WEIGHT, plain)
    for factor, bits in ((0.5, 7), (2.1, 5), (1.9, 6), (0.26, 8)):
        tensor = quantize(WEIGHT, replace(plain, step_factor=factor))
        np.testing.assert_allclose(tensor.scales, factor * unit.scales, rtol=1e-6)
        assert tensor.bits == bits
        reach = np.abs(tensor.symbols.astype(int)).max() * factor
        assert reach == pytest.approx(np.abs(unit.symbols.astype(int)).max(), abs=1 + factor)
    smallest = quantize(WEIGHT, replace(plain, step_factor=0.01))
    np.testing.assert_allclose(smallest.scales, 31 / 127 * unit.scales, rtol=1e-6)


def test_magnitude_pruning_zeroes_the_smallest() -> None:
    pruned = round_to_nearest.zero_smallest(WEIGHT, 0.03)
    num_zeros = int(0.03 * WEIGHT.size)
    assert (pruned == 0).sum() == num_zeros
    assert np.abs(WEIGHT[pruned == 0]).max() < np.abs(WEIGHT[pruned != 0]).min()
    assert np.array_equal(pruned[pruned != 0], WEIGHT[pruned != 0])


@pytest.mark.parametrize("scale_dtype", ["float16", "log8"])
def test_rows_of_zeros_constants_and_tiny_values(scale_dtype: str) -> None:
    weight = np.zeros((4, 8), np.float32)
    weight[1] = 1e-30
    weight[2] = np.linspace(-1, 1, 8)
    weight[3] = 0.25
    for clip_rule in ("percentile", "deviations", "maximum", "search"):
        config = QuantizationConfig(scale_dtype=scale_dtype, clip_rule=clip_rule)  # type: ignore[arg-type]
        restored = dequantize(quantize(weight, config))
        assert np.isfinite(restored).all()
        np.testing.assert_allclose(restored, weight, atol=0.15 if clip_rule == "deviations" else 0.02)


def test_percentile_interpolates_linearly() -> None:
    weight = np.arange(101, dtype=np.float32)[None]
    tensor = quantize(weight, QuantizationConfig(clip_percentile=0.995, scale_dtype="float32", matrix_bits=8))
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
        ("method", "awq"),
        ("search_percentiles", ()),
        ("search_percentiles", (99.9,)),
        ("hessian_clip_strength", -0.1),
        ("group_size", 0),
        ("coarse_code_step", 0),
    ],
)
def test_settings_are_checked(field: str, value: object) -> None:
    with pytest.raises(ValueError, match=f"{field}.*accepted"):
        QuantizationConfig(**{field: value})  # type: ignore[arg-type]


def test_methods_with_hessians_need_a_source_of_calibration() -> None:
    with pytest.raises(ValueError, match=r"calibration\.source is none"):
        QuantizationConfig(method="gptq")
    with pytest.raises(ValueError, match=r"calibration\.source is none"):
        QuantizationConfig(embedding=RoleQuantization(method="gptq"))
