"""Quantize, write, read: the symbols come back exactly, and the loaded network is the quantized one bit for bit."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch

from artifact import reader
from artifact.content import LowRank, PlainTensor, QuantizedTensor, Tensor
from artifact.dequantize import dequantize
from launch.preset import load, load_all
from model.network import gpt
from model.network.projection import Projection
from tests.network.reduced import VARIANTS, perturbed_model, reduce_width
from trainer import export
from trainer.quantize.calibrate import calibrate
from trainer.quantize.config import AllocationConfig, CalibrationConfig, LowRankConfig, QuantizationConfig
from trainer.quantize.quantizer import Quantizer
from trainer.quantize.tensor_plan import role_of
from trainer.ranks import Ranks

CALIBRATION = CalibrationConfig("generated", num_batches=1, batch_tokens=64, sequence_tokens=16)
# Methods that store tensors in different ways; the other presets under `make test-slow`.
QUICK = ("rank01", "rank42", "rank44", "ternary")


def settings_of(preset: str) -> QuantizationConfig:
    config = load(preset).settings.quantization
    source = "none" if config.calibration.source == "none" else "generated"
    return replace(
        config,
        small_tensor_max_elements=96,
        group_size=8,
        calibration=replace(CALIBRATION, source=source),
        mixed_precision=replace(config.mixed_precision, num_fine=min(config.mixed_precision.num_fine, 8)),
        low_rank=replace(config.low_rank, group_size=16),
    )


def same(written: Tensor, read: Tensor) -> bool:
    if isinstance(written, PlainTensor):
        return isinstance(read, PlainTensor) and np.array_equal(written.values, read.values)
    assert isinstance(read, QuantizedTensor)
    factors = (written.low_rank, read.low_rank)
    if isinstance(factors[0], LowRank) and isinstance(factors[1], LowRank):
        pairs = ((factors[0].left, factors[1].left), (factors[0].right, factors[1].right))
        if not all(same(a, b) for a, b in pairs):
            return False
    elif factors != (None, None):
        return False
    return (
        np.array_equal(written.symbols, read.symbols)
        and np.array_equal(written.scales, read.scales)
        and (written.kind, written.bits) == (read.kind, read.bits)
    )


def check(preset: str, config: QuantizationConfig, path: Path, model: gpt.GPT | None = None) -> dict[str, Tensor]:
    model = model or perturbed_model(reduce_width(load(preset).settings.model))
    arrays = gpt.to_arrays(model)
    calibration = calibrate(model, config, None, Ranks(0, 1, torch.device("cpu")), str)
    tensors = Quantizer(arrays, calibration).quantize(config)
    export.pack(
        arrays,
        configuration={"preset": preset},
        quantization=config,
        tokenizer_sha256="ab" * 32,
        code=b"",
        path=path,
        calibration=calibration,
    )
    artifact = reader.read(path)
    read = artifact.tensors()
    assert read.keys() == tensors.keys()
    for name, tensor in tensors.items():
        assert same(tensor, read[name]), name
    ids = torch.arange(24)[None] % model.config.vocab_size
    with torch.inference_mode():
        in_memory = gpt.load(model.config, {name: dequantize(tensor) for name, tensor in tensors.items()})(ids)
        loaded = gpt.load(model.config, artifact.arrays())(ids)
        original = model(ids)
    assert torch.equal(loaded, in_memory)
    assert not torch.equal(loaded, original)
    return tensors


@pytest.mark.parametrize(
    "preset",
    [pytest.param(p.name, marks=() if p.name in QUICK else pytest.mark.slow) for p in load_all()],
)
def test_presets_come_back_exactly(preset: str, tmp_path: Path) -> None:
    check(preset, settings_of(preset), tmp_path / "x.albatross")


def test_everything_at_once_comes_back_exactly(tmp_path: Path) -> None:
    config = replace(
        settings_of("rank01"),
        scale_dtype="log8",
        allocation=AllocationConfig(enabled=True, price_nats_per_megabyte=10.0),
        low_rank=LowRankConfig(num_tensors=4, rank=2, weighted=True, group_size=16),
    )
    tensors = check("rank01", config, tmp_path / "x.albatross")
    assert sum(isinstance(t, QuantizedTensor) and t.low_rank is not None for t in tensors.values()) == 4


def test_a_table_beside_a_head_of_its_own_is_rounded(tmp_path: Path) -> None:
    config = replace(settings_of("rank01"), allocation=AllocationConfig(enabled=True, refine=False))
    tensors = check("x", config, tmp_path / "x.albatross", perturbed_model(VARIANTS["untied head"]))
    for name in ("head.weight", "embedding.weight"):
        assert isinstance(tensors[name], QuantizedTensor)


@pytest.mark.parametrize("preset", [p.name for p in load_all()])
def test_roles_are_those_of_the_network(preset: str) -> None:
    """The quantizer reads roles off names; the network's modules are the truth."""
    model = gpt.GPT(reduce_width(load(preset).settings.model))
    for name, module in model.named_modules():
        if isinstance(module, Projection):
            role = role_of(f"{name}.weight")
            if module.role in ("q", "k", "v", "qkv", "attn_out"):
                assert role == "attention"
            elif module.role in ("mlp_up", "mlp_gate", "mlp_down"):
                assert role == "mlp"
            else:
                assert role == ("embedding" if module.role == "head" else "side")
    projections = {f"{n}.weight" for n, m in model.named_modules() if isinstance(m, Projection)}
    others = {name: role_of(name) for name, _ in model.named_parameters() if name not in projections}
    assert {name for name, role in others.items() if role in ("attention", "mlp", "side")} == set()
    assert others["embedding.weight"] == "embedding"
    assert all((role == "table") == name.endswith("_embedding.table") for name, role in others.items())
    assert all((role == "gate") == name.endswith("attention.gate.weight") for name, role in others.items())
