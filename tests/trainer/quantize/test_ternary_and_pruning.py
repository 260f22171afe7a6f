"""Ternary and binary weights, what the network makes of them again, and selective pruning."""

import numpy as np
import pytest
import torch

from artifact.content import QuantizedTensor
from artifact.dequantize import dequantize
from artifact.schema import Kind
from model.network.fake_quantization import FakeQuantization, fake_quantize
from trainer import export
from trainer.quantize import pruning, ternary
from trainer.quantize.config import QuantizationConfig

WEIGHT = np.random.default_rng(0).normal(size=(48, 256)).astype(np.float32) * np.float32(0.03)


def as_the_network_sees(weight: np.ndarray, kind: Kind) -> np.ndarray:
    how = FakeQuantization(method=kind.name.lower(), group_size=128)  # type: ignore[arg-type]
    return fake_quantize(torch.from_numpy(weight), how, None, training=False).numpy()


@pytest.mark.parametrize("kind", [Kind.TERNARY, Kind.BINARY])
def test_codes_and_scales_by_hand(kind: Kind) -> None:
    weight = np.array([[0.9, -0.1, 0.4, -0.6], [2.0, 0.0, -0.0, -2.0]], np.float32)
    tensor = ternary.quantize(weight, kind=kind, group_size=4)
    expected = [[1, 0, 1, -1], [1, 0, 0, -1]] if kind == Kind.TERNARY else [[1, -1, 1, -1], [1, 1, 1, -1]]
    assert tensor.symbols.tolist() == expected
    np.testing.assert_allclose(tensor.scales, [0.5, 1.0], rtol=1e-3)


@pytest.mark.parametrize("kind", [Kind.TERNARY, Kind.BINARY])
@pytest.mark.parametrize("size", [1.0, 1e-2, 30.0])
def test_quantizing_again_changes_nothing(kind: Kind, size: float) -> None:
    weight = WEIGHT * np.float32(size)
    trained = as_the_network_sees(weight, kind)
    plain = ternary.quantize(weight, kind=kind, group_size=128)
    assert np.array_equal(dequantize(plain), trained)
    masters = ternary.quantize(weight, kind=kind, group_size=128, quantized_again=True)
    assert np.array_equal(as_the_network_sees(dequantize(masters), kind), trained)


def test_without_the_fix_ternary_weights_shrink() -> None:
    trained = as_the_network_sees(WEIGHT, Kind.TERNARY)
    plain = ternary.quantize(WEIGHT, kind=Kind.TERNARY, group_size=128)
    shrunk = as_the_network_sees(dequantize(plain), Kind.TERNARY)
    assert np.abs(shrunk).max() < 0.8 * np.abs(trained).max()


def test_groups_must_divide() -> None:
    with pytest.raises(ValueError, match="12288 weights do not divide into groups of 100"):
        ternary.quantize(WEIGHT, kind=Kind.TERNARY, group_size=100)
    config = QuantizationConfig(method="ternary", group_size=100)
    with pytest.raises(ValueError, match=r"blocks\.0\.mlp\.up\.weight.*do not divide"):
        export.quantize({"blocks.0.mlp.up.weight": WEIGHT}, config)


def test_groups_of_zeros() -> None:
    for kind in (Kind.TERNARY, Kind.BINARY):
        tensor = ternary.quantize(np.zeros((2, 128), np.float32), kind=kind, group_size=128)
        assert np.abs(dequantize(tensor)).max() < 1e-6


def test_method_by_settings() -> None:
    for method, kind in (("ternary", Kind.TERNARY), ("binary", Kind.BINARY)):
        config = QuantizationConfig(method=method)  # type: ignore[arg-type]
        tensors = export.quantize({"blocks.0.mlp.up.weight": WEIGHT, "embedding.weight": WEIGHT}, config)
        assert tensors["blocks.0.mlp.up.weight"].kind == kind
        assert tensors["embedding.weight"].kind == Kind.SYMMETRIC


def quantized(names: tuple[str, ...]) -> dict[str, QuantizedTensor]:
    rng = np.random.default_rng(1)
    arrays = {
        name: (rng.normal(size=(32, 64)) * size).astype(np.float32)
        for name, size in zip(names, (1, 3, 0.2), strict=False)
    }
    return export.quantize(arrays, QuantizationConfig(matrix_bits=4, small_tensor_max_elements=0))  # type: ignore[return-value]


NAMES = ("blocks.0.mlp.up.weight", "blocks.1.mlp.up.weight", "embedding.weight")


def test_pruning_takes_ones_of_the_smallest_scales() -> None:
    before = quantized(NAMES)
    total = pruning.num_prunable(before)
    assert total == sum(int((np.abs(before[name].symbols) == 1).sum()) for name in NAMES[:2])
    after = pruning.prune(before, total // 4)
    changed = {name: before[name].symbols != after[name].symbols for name in NAMES}
    assert sum(int(c.sum()) for c in changed.values()) == total // 4
    assert not changed[NAMES[2]].any()
    pruned_scales, kept_scales = [], []
    for name in NAMES[:2]:
        assert (np.abs(before[name].symbols[changed[name]]) == 1).all()
        assert not after[name].symbols[changed[name]].any()
        rows = np.broadcast_to(before[name].scales[:, None], (32, 64))
        ones = np.abs(before[name].symbols) == 1
        pruned_scales.append(rows[changed[name]])
        kept_scales.append(rows[ones & ~changed[name]])
    assert np.concatenate(pruned_scales).max() <= np.concatenate(kept_scales).min()


def test_pruning_to_fit_takes_no_more_than_needed() -> None:
    before = quantized(NAMES)

    def num_nonzeros(tensors: dict[str, QuantizedTensor]) -> int:
        return sum(int(np.count_nonzero(tensor.symbols)) for tensor in tensors.values())

    start = num_nonzeros(before)
    assert num_nonzeros(pruning.prune_to_fit(before, num_nonzeros, start)) == start  # type: ignore[arg-type]
    assert num_nonzeros(pruning.prune_to_fit(before, num_nonzeros, start - 100)) == start - 100  # type: ignore[arg-type]
