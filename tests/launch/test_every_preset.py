"""Every preset, at reduced width, through the command line: 20 steps of training, pack, evaluate as it says."""

import json
import math
from pathlib import Path
from typing import Any

import pytest

from launch import train
from launch.cli import main
from launch.preset import Preset, load, load_all
from tests.launch.conftest import VOCAB_SIZE

PRESETS = [preset for preset in load_all() if preset.rank is not None or preset.name in ("ternary", "binary")]
UNDER_THE_LAUNCHER = ("rank01", "rank14", "rank21", "rank29", "rank42", "ternary")
"""Six that differ in optimizer, averaging, recurrence, quantization and evaluation."""
NUM_STEPS = 20


def reductions(preset: Preset) -> dict[str, Any]:
    """Overrides that make a preset fit a small data folder and a test's patience, and leave its methods alone."""
    settings = preset.settings
    model, training, ttt = settings.model, settings.training, settings.eval.ttt
    values: dict[str, Any] = {
        "model.vocab-size": VOCAB_SIZE,
        "model.model-dim": 32,
        "model.num-heads": 4,
        "model.num-kv-heads": 2,
        "model.rope-dims": 4 if model.rope_dims else 0,
        "model.embedding-dim": 24 if model.embedding_dim else 0,
        "model.hash-embedding.num-buckets": 96 if model.hash_embedding.num_buckets else 0,
        "model.value-embedding.dim": 8,
        "training.max-steps": NUM_STEPS,
        "training.sequence-tokens": 64,
        "training.packed-row-tokens": 128 if training.data_order == "packed" else 0,
        "training.batch-tokens": 256,
        "training.micro-batch-tokens": 128,
        "training.budget-seconds": 0,
        "training.reserve-seconds": 0,
        "training.validate-every-steps": 0,
        "training.qat.attention.group-size": 32,
        "training.qat.mlp.group-size": 32,
        "quantization.group-size": 32,
        "quantization.small-tensor-max-elements": 512,
        "quantization.calibration.num-batches": 1,
        "quantization.calibration.batch-tokens": 128,
        "quantization.calibration.sequence-tokens": 64,
        "eval.context-tokens": 64,
        "eval.stride-tokens": 32,
        "eval.ttt.chunk-tokens": 16,
        "eval.ttt.window-tokens": 64,
        "eval.ttt.batch-documents": 4,
        "eval.ttt.rank": 2,
        "eval.ttt.prefix-documents": 6,
        "eval.ttt.sgd.chunk-tokens": 128,
        "eval.ttt.sgd.buffer-tokens": 64,
        "eval.ttt.sgd.sequence-tokens": 64,
    }
    if training.recurrence_start_steps:
        values["training.recurrence-start-steps"] = NUM_STEPS // 2
    if training.warmdown_steps:
        values["training.warmdown-steps"] = NUM_STEPS // 2
    if training.swa_every_steps:
        values["training.swa-every-steps"] = 2
    if ttt.method == "lora" and settings.eval.mode != "ttt":
        values["eval.ttt.rank"] = 1
    return values


def overrides(preset: Preset) -> list[str]:
    return [word for name, value in reductions(preset).items() for word in (f"--{name}", str(value))]


def pack_and_evaluate(run: Path, data: Path, preset: Preset) -> None:
    """Packs the run, evaluates the file in the preset's own mode, and checks what both say."""
    report = run / "report.json"
    assert main(["pack", str(run)]) == 0
    assert main(["evaluate", str(run / "artifact.albatross"), "--data", str(data), "--report", str(report)]) == 0
    sections = json.loads(report.read_text())
    mode = preset.settings.eval.mode
    wanted = {"plain": "post_quantization", "sliding": "post_quantization_sliding", "ttt": "post_ttt"}[mode]
    before, after = sections["pre_quantization"], sections[wanted]
    assert before["num_steps"] == NUM_STEPS
    assert before["preset"] == after["preset"] == preset.id
    uniform = math.log(VOCAB_SIZE)
    # 20 steps learn something or, at the largest rates, at least nothing absurd.
    assert 0 < before["train_loss_nats"] < uniform + 2
    assert math.isfinite(before["bpb"])
    assert after["num_scored_targets"] == after["num_targets"] == before["num_targets"]
    assert 0 < after["bpb"] < 12


@pytest.mark.slow
@pytest.mark.parametrize("preset", PRESETS, ids=[preset.name for preset in PRESETS])
def test_train_pack_evaluate(preset: Preset, prepared_data: Path, tmp_path: Path) -> None:
    run = tmp_path / "run"
    arguments = [preset.name, "--data", str(prepared_data), "--out", str(run), *overrides(preset)]
    assert train.main(arguments) == 0
    pack_and_evaluate(run, prepared_data, preset)


@pytest.mark.slow
@pytest.mark.parametrize("name", UNDER_THE_LAUNCHER)
def test_train_under_the_deepspeed_launcher(name: str, prepared_data: Path, tmp_path: Path) -> None:
    """The same in two processes, started by the command that a user types."""
    preset, run = load(name), tmp_path / "run"
    data = ["--data", str(prepared_data), "--out", str(run)]
    assert main(["train", name, *data, "--num-gpus", "2", *overrides(preset)]) == 0
    assert main(["train", name, *data, "--num-gpus", "2", *overrides(preset)]) == 2  # the folder is taken
    pack_and_evaluate(run, prepared_data, preset)


@pytest.mark.slow
@pytest.mark.parametrize(
    "option",
    [
        ["--model.initialization.embedding", "spectral"],
        ["--training.embedding-dtype", "bfloat16"],
        ["--model.value-residual", "True"],
        ["--model.activation", "swiglu"],
        ["--model.tied-head", "False"],
    ],
    ids=lambda option: option[0].rpartition(".")[2],
)
def test_options_that_no_preset_uses(option: list[str], prepared_data: Path, tmp_path: Path) -> None:
    preset, run = load("rank42"), tmp_path / "run"
    arguments = ["rank42", "--data", str(prepared_data), "--out", str(run), *overrides(preset), *option]
    assert train.main(arguments) == 0
    pack_and_evaluate(run, prepared_data, preset)


@pytest.mark.parametrize("name", ["rank42"])
def test_reductions_are_overrides_that_exist(name: str) -> None:
    settings = load(name).with_overrides(overrides(load(name))).settings
    assert settings.model.model_dim == 32
    assert settings.training.max_steps == NUM_STEPS
