"""`--dry-run`: forecasts against what the same code really counts, measures and writes."""

import json
from pathlib import Path

import numpy as np
import pytest
import torch
from torch._subclasses.fake_tensor import FakeTensorMode

from artifact.content import Content
from artifact.writer import write
from launch.cli import main
from launch.forecast import artifact_bytes, forecast, saved_bytes_per_sequence
from launch.preset import load
from model.network.gpt import GPT
from tests.launch.conftest import SMALL
from trainer.export import quantize
from trainer.quantize.config import QuantizationConfig


def test_parameters_arithmetic_and_published_speed():
    found = forecast(load("naive-baseline"), 8)
    assert found.num_parameters == 17_059_912
    assert sum(found.parameters_by_group.values()) == found.num_parameters
    # Matrix products of nine layers at the mean of 512 positions, and the head: three times the forward pass.
    block = 2 * (2 * 512 * 512 + 2 * 512 * 256 + 2 * 512 * 1024) + 2 * 2 * 512 * 512
    assert found.training_flops_per_token == 3 * (9 * block + 2 * 512 * 1024)
    published = found.speeds[0]
    assert (published.hardware, published.num_steps) == ("8xH100", 13_780)
    assert abs(found.artifact_bytes - 15_863_489) < 0.03 * 15_863_489


def test_an_override_takes_the_published_speed_away():
    preset = load("naive-baseline").with_overrides(["--model.num-layers", "5"])
    assert all("published" not in speed.basis for speed in forecast(preset, 8).speeds)


def test_the_budget_ends_a_run_or_its_steps_do():
    def steps(*overrides: str) -> int:
        return forecast(load("naive-baseline").with_overrides(list(overrides)), 8).speeds[0].num_steps

    assert steps("--training.budget-seconds", "300") == int(300 / 0.04354)
    assert steps("--training.max-steps", "7") == 7
    assert steps("--training.budget-seconds", "0") == 20_000


def test_memory_counts_what_is_kept():
    alone, eight = forecast(load("naive-baseline"), 1).memory, forecast(load("naive-baseline"), 8).memory
    assert alone.weights_bytes == alone.gradients_bytes == 4 * 17_059_912
    assert alone.optimizer_bytes == 4 * 16_515_072 + 8 * (17_059_912 - 16_515_072)
    assert eight.optimizer_bytes == 4 * 16_515_072 // 8 + 8 * (17_059_912 - 16_515_072)
    assert (alone.average_bytes, alone.activations_bytes) == (0, eight.activations_bytes)


def test_saved_activations_are_those_of_a_real_forward_pass():
    """On the CPU, where bfloat16 takes the same path, autograd's graph keeps exactly what was counted."""
    config = load("tiny").with_overrides(SMALL).settings.model
    with FakeTensorMode():
        counted = saved_bytes_per_sequence(GPT(config, torch.bfloat16), 64)
    model = GPT(config, torch.bfloat16)
    own = {parameter.untyped_storage().data_ptr() for parameter in model.parameters()}
    kept: dict[int, torch.UntypedStorage] = {}

    def keep(tensor):
        storage = tensor.untyped_storage()
        if storage.data_ptr() not in own:
            kept[storage.data_ptr()] = storage
        return tensor

    ids = torch.randint(0, config.vocab_size, (1, 64))
    with torch.autograd.graph.saved_tensors_hooks(keep, lambda tensor: tensor):
        model.token_nll(ids, ids).mean()
    assert counted == pytest.approx(sum(storage.nbytes() for storage in kept.values()), rel=0.01)


@pytest.mark.parametrize(
    "settings",
    [
        QuantizationConfig(matrix_bits=6, embedding_bits=8),
        QuantizationConfig(matrix_bits=4, embedding_bits=5, clip_rule="deviations", clip_deviations=4.0),
        QuantizationConfig(matrix_bits=6, clip_rule="deviations", clip_deviations=12.85),
    ],
)
def test_forecast_bytes_are_near_those_of_normal_weights(settings, tmp_path):
    generator = np.random.default_rng(0)
    shapes = {f"blocks.{layer}.mlp.up.weight": (512, 256) for layer in range(3)} | {"embedding.weight": (1024, 256)}
    weights = {name: generator.normal(0, 0.02, shape).astype(np.float32) for name, shape in shapes.items()}
    ledger = write(tmp_path / "a.albatross", Content({}, "0" * 64, quantize(weights, settings)))
    written = sum(row.coded_bytes for row in ledger.rows if row.num_weights)
    expected = artifact_bytes(shapes, settings)
    assert expected["mlp"] + expected["embedding"] == pytest.approx(written, rel=0.03)


def test_dry_run_of_training_prints_and_writes_nothing(capsys, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    assert main(["train", "rank01", "--dry-run", "--num-gpus", "8"]) == 0
    text = capsys.readouterr().out
    for word in ("parameters   35,945,623", "MFLOP", "GiB", "8xH100", "4,94", "cap 16,000,000"):
        assert word in text
    assert main(["train", "tiny", "--dry-run", "--json", "--num-gpus", "2"]) == 0
    found = json.loads(capsys.readouterr().out)
    assert found["artifact_bytes"] == sum(found["artifact_bytes_by_role"].values())
    assert found["memory_bytes"] == sum(found["memory"].values())
    assert list(tmp_path.iterdir()) == []


def test_dry_run_counts_the_hostfile_and_checks_the_data(capsys, refused, data, tmp_path):
    (tmp_path / "hosts").write_text("# two machines\na slots=8\nb slots=8\n")
    assert main(["train", "tiny", "--dry-run", "--json", "--hostfile", str(tmp_path / "hosts")]) == 0
    assert json.loads(capsys.readouterr().out)["num_processes"] == 16
    refused(["train", "tiny", "--dry-run", "--data", data, "--out", tmp_path / "out"], "--model.vocab-size 300")
    refused(["train", "tiny", "--data", data], "required: --out")


def test_dry_run_of_pack_is_the_table_of_pack(capsys, run: Path):
    assert main(["pack", str(run), "--dry-run", "--max-bytes", "1000"]) == 0
    preview = capsys.readouterr().out.splitlines()
    assert not (run / "artifact.albatross").exists()
    assert main(["pack", str(run)]) == 0
    table = capsys.readouterr().out.splitlines()
    assert preview[:-1] == table[:-1]
    assert "cap 1,000 bytes, headroom -" in preview[-1]


@pytest.mark.slow
@pytest.mark.parametrize("name", ["rank01", "rank12", "rank39", "ternary"])
def test_forecast_is_near_the_published_size(name):
    preset = load(name)
    assert forecast(preset, 8).artifact_bytes == pytest.approx(preset.expect.artifact_bytes, rel=0.12)
