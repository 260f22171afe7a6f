"""Fitting files to a cap, estimates of size, and the allocation of steps by rate and distortion."""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch

from artifact import writer
from artifact.content import Content, QuantizedTensor, Tensor
from artifact.dequantize import dequantize
from artifact.errors import ArtifactError
from trainer import export
from trainer.quantize import allocation, size
from trainer.quantize.calibration import Calibration
from trainer.quantize.config import AllocationConfig, CalibrationConfig, PruningConfig, QuantizationConfig
from trainer.quantize.fit import SLACK_BYTES, fit
from trainer.quantize.importance import Importances
from trainer.quantize.quantizer import Quantizer

SHAPES = {
    "embedding.weight": (256, 64),
    "blocks.0.mlp.up.weight": (256, 64),
    "blocks.1.mlp.up.weight": (256, 64),
    "blocks.0.mlp.down.weight": (64, 256),
    "blocks.1.mlp.down.weight": (64, 256),
    "blocks.0.attention_scale": (64,),
}


def weights(seed: int = 0) -> dict[str, np.ndarray]:
    rng = np.random.default_rng(seed)
    return {
        name: (rng.normal(size=shape) * np.exp(0.5 * rng.normal(size=(shape[0], *([1] * (len(shape) - 1)))))).astype(
            np.float32
        )
        for name, shape in SHAPES.items()
    }


def calibrated(seed: int = 0) -> Calibration:
    rng = np.random.default_rng(seed)
    hessians, importances = {}, {}
    for name, shape in SHAPES.items():
        if len(shape) == 2:
            mix = rng.normal(size=(shape[1], shape[1])) * np.exp(rng.normal(size=shape[1]))
            inputs = rng.normal(size=(4 * shape[1], shape[1])) @ mix
            hessians[name] = torch.from_numpy((inputs.T @ inputs).astype(np.float32))
            importances[name] = torch.from_numpy(np.exp(2 * rng.normal(size=shape[0]) - 12).astype(np.float32))
    return Calibration(hessians, 1000, Importances(importances, torch.full((256,), 1e-6)))


def file_bytes(tensors: Mapping[str, Tensor]) -> int:
    return len(writer.encode(Content({"preset": "x"}, "ab" * 32, tensors, b"code" * 100)))


SETTINGS = {
    "percentile": QuantizationConfig(small_tensor_max_elements=0),
    "deviations": QuantizationConfig(small_tensor_max_elements=0, clip_rule="deviations", scale_dtype="log8"),
    "published_floor": QuantizationConfig(small_tensor_max_elements=0, scale_rule="published"),
    "gptq": QuantizationConfig(
        method="gptq", clip_rule="deviations", small_tensor_max_elements=0, calibration=CalibrationConfig("training")
    ),
    "allocation": QuantizationConfig(
        method="gptq",
        small_tensor_max_elements=0,
        scale_dtype="log8",
        calibration=CalibrationConfig("training"),
        allocation=AllocationConfig(enabled=True, refine=False),
    ),
}


@pytest.mark.parametrize(
    ("settings", "max_bytes"),
    [
        ("percentile", 30_000),
        ("allocation", 41_000),
        *(
            pytest.param(settings, max_bytes, marks=pytest.mark.slow)
            for settings in SETTINGS
            for max_bytes in (20_000, 36_000, 45_000)
        ),
    ],
)
def test_files_land_just_under_the_cap(settings: str, max_bytes: int) -> None:
    lines: list[str] = []
    found = fit(Quantizer(weights(), calibrated()), SETTINGS[settings], max_bytes, file_bytes, lines.append)
    assert max_bytes - SLACK_BYTES <= found.num_bytes <= max_bytes
    assert found.num_bytes == file_bytes(found.tensors)
    assert lines
    assert all("bytes" in line for line in lines)


def test_the_same_input_takes_the_same_path() -> None:
    logs: tuple[list[str], list[str]] = ([], [])
    found = [fit(Quantizer(weights()), SETTINGS["deviations"], 36_000, file_bytes, log.append) for log in logs]
    assert logs[0] == logs[1]
    assert found[0].config == found[1].config


@pytest.mark.slow
def test_the_fitted_settings_give_the_fitted_tensors() -> None:
    found = fit(Quantizer(weights()), SETTINGS["percentile"], 35_000, file_bytes)
    again = Quantizer(weights()).quantize(found.config)
    for name, tensor in found.tensors.items():
        assert np.array_equal(dequantize(tensor), dequantize(again[name]))


@pytest.mark.slow
def test_a_cap_that_cannot_be_filled_or_met() -> None:
    roomy = fit(Quantizer(weights()), SETTINGS["percentile"], 200_000, file_bytes)
    finest = replace(SETTINGS["percentile"], matrix_bits=8)
    assert roomy.num_bytes == file_bytes(Quantizer(weights()).quantize(finest))
    tight = fit(Quantizer(weights()), SETTINGS["percentile"], 1_000, file_bytes)
    assert 1_000 < tight.num_bytes < 10_000


@pytest.mark.slow
def test_selective_pruning_comes_under_the_cap(tmp_path: Path) -> None:
    def pack(config: QuantizationConfig, max_bytes: int) -> int:
        return export.pack(
            weights(),
            configuration={"preset": "x"},
            quantization=config,
            tokenizer_sha256="ab" * 32,
            code=b"code" * 100,
            path=tmp_path / "x.albatross",
            max_bytes=max_bytes,
        ).total_bytes

    plain = replace(SETTINGS["percentile"], matrix_bits=3)
    total = pack(plain, 100_000)
    with pytest.raises(ArtifactError, match="more than the cap"):
        pack(plain, total - 300)
    selective = replace(plain, pruning=PruningConfig(selective=True))
    assert pack(selective, 100_000) == total
    assert total - 1500 < pack(selective, total - 300) <= total - 300


@pytest.mark.parametrize("settings", ["percentile", "deviations", "allocation"])
def test_estimates_are_close(settings: str) -> None:
    tensors = Quantizer(weights(), calibrated()).quantize(SETTINGS[settings])
    assert size.estimate_bytes(tensors) == pytest.approx(file_bytes(tensors), rel=0.06)


def test_estimate_of_known_entropy() -> None:
    symbols = np.random.default_rng(0).choice([-1, 0, 1], p=[0.25, 0.5, 0.25], size=(512, 512)).astype(np.int8)
    tensor = QuantizedTensor(symbols=symbols, scales=np.ones(512, np.float32), bits=4)
    assert size.symbol_bytes([tensor]) == pytest.approx(1.5 * 512 * 512 / 8, rel=0.03)
    # Rows of different deviation: a coder with contexts sees them, an entropy over all symbols does not.
    scaled = np.random.default_rng(1).normal(size=(512, 512)) * np.repeat([1.0, 8.0], 256)
    mixed = QuantizedTensor(symbols=np.rint(scaled).astype(np.int8), scales=np.ones(512, np.float32), bits=8)
    ideal = 0.5 * sum(math.log2(sigma * math.sqrt(2 * math.pi * math.e)) for sigma in (1, 8)) * 512 * 512 / 8
    assert size.symbol_bytes([mixed]) == pytest.approx(ideal, rel=0.03)


def predicted_loss(tensors: Mapping[str, Tensor], calibration: Calibration) -> float:
    arrays = weights()
    return sum(
        allocation.loss(name, arrays[name], tensor, calibration)
        for name, tensor in tensors.items()
        if isinstance(tensor, QuantizedTensor) and name in calibration.hessians
    )


def test_allocation_loses_less_in_the_same_bytes() -> None:
    calibration = calibrated()
    quantizer = Quantizer(weights(), calibration)
    by_deviation = fit(quantizer, SETTINGS["gptq"], 40_000, file_bytes)
    allocated = fit(quantizer, SETTINGS["allocation"], by_deviation.num_bytes, file_bytes)
    assert allocated.num_bytes <= by_deviation.num_bytes
    assert predicted_loss(allocated.tensors, calibration) < 0.7 * predicted_loss(by_deviation.tensors, calibration)


def test_refined_steps_cost_no_more() -> None:
    calibration = allocation.with_input_errors(calibrated())
    plain = SETTINGS["allocation"]
    refined = replace(plain, allocation=replace(plain.allocation, refine=True))
    totals = {}
    for key, config in (("plain", plain), ("refined", refined)):
        tensors = Quantizer(weights(), calibration).quantize(config)
        price = config.allocation.price_nats_per_megabyte / 1e6
        rate = sum(size.symbol_bytes([t]) for n, t in tensors.items() if n in calibration.hessians)  # type: ignore[list-item]
        totals[key] = predicted_loss(tensors, calibration) + price * rate
    assert totals["refined"] <= totals["plain"] * 1.0001


def test_steps_follow_the_importance_of_their_rows() -> None:
    calibration = calibrated()
    config = replace(
        SETTINGS["allocation"],
        allocation=AllocationConfig(True, price_nats_per_megabyte=1.0, output_floor=0.0, token_floor=0.0),
    )
    steps = allocation.row_steps(weights(), calibration, config, allocation.Factors())
    name = "blocks.0.mlp.up.weight"
    assert calibration.importances is not None
    importance = calibration.importances.outputs[name].numpy()
    free = steps[name] > np.abs(weights()[name]).max(axis=1) * 1.05 / 127
    assert free.sum() > 100
    products = steps[name][free] ** 2 * importance[free]
    np.testing.assert_allclose(products, products[0], rtol=1e-4)
    dearer = replace(config, allocation=replace(config.allocation, price_nats_per_megabyte=4.0))
    again = allocation.row_steps(weights(), calibration, dearer, allocation.Factors())
    np.testing.assert_allclose(again[name][free], 2 * steps[name][free], rtol=1e-5)


def test_allocation_needs_importances() -> None:
    calibration = replace(calibrated(), importances=None)
    with pytest.raises(ValueError, match="needs the importances"):
        Quantizer(weights(), calibration).quantize(SETTINGS["allocation"])
