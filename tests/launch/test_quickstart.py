"""`make quickstart`: what it promises on the front page, held against what it leaves behind."""

import json
import math
import os
import subprocess
import sys
from pathlib import Path

import pytest

from launch.run_folder import RunFolder

pytestmark = pytest.mark.slow

ROOT = Path(__file__).resolve().parents[2]
UNIFORM_NATS_PER_TOKEN = math.log(1024)


@pytest.fixture(scope="module")
def finished(tmp_path_factory) -> tuple[RunFolder, str]:
    """The run folder, and what was printed."""
    folder = tmp_path_factory.mktemp("quickstart")
    environment = {**os.environ, "PYTHONPATH": str(ROOT)}
    command = [sys.executable, "-m", "launch.quickstart"]
    done = subprocess.run(command, cwd=folder, env=environment, capture_output=True, text=True)
    assert done.returncode == 0, done.stdout[-3000:] + done.stderr[-3000:]
    return RunFolder(folder / "runs/quickstart"), done.stdout


@pytest.fixture(scope="module")
def report(finished) -> dict:
    return json.loads(finished[0].report.read_text())


def test_two_processes_trained_under_the_launcher(finished):
    assert json.loads(finished[0].environment.read_text())["num_processes"] == 2
    assert "on 2 x cpu" in finished[0].log.read_text()


def test_the_model_learned(report):
    trained = report["pre_quantization"]
    # A unigram model of the tokens is at about 5.6 nats.
    assert trained["val_loss_nats"] < 5.3 < UNIFORM_NATS_PER_TOKEN


def test_quantization_costs_little(report):
    assert abs(report["post_quantization"]["bpb"] - report["pre_quantization"]["bpb"]) < 0.02


def test_test_time_training_helps_and_the_report_says_by_how_much(report, finished):
    plain, adapted = report["post_quantization"], report["post_ttt"]
    assert adapted["bpb"] < plain["bpb"] - 0.02
    assert adapted["improvement_over_plain_bpb"] == pytest.approx(plain["bpb"] - adapted["bpb"])
    assert f"test-time training lowers BPB by {plain['bpb'] - adapted['bpb']:.4f}" in finished[1]


def test_every_mode_scored_every_byte(report):
    modes = ("post_quantization", "post_quantization_sliding", "post_ttt")
    for section in (report[name] for name in modes):
        assert section["ledger"] == "proved"
        assert section["lossless"] is True
        assert not section["partial"]
        assert section["num_scored_targets"] == section["num_targets"] == report["pre_quantization"]["num_targets"]
        assert section["num_bytes"] == report["pre_quantization"]["num_bytes"]


def test_figures_ledger_and_folder_are_printed(finished, report):
    folder, output = finished
    for name in ("pre_quantization", "post_quantization", "post_quantization_sliding", "post_ttt"):
        assert f"{report[name]['bpb']:.4f}" in output
    for row in ("embedding.weight", "blocks.#.mlp.up.weight", "configuration", "code", "container", "total"):
        assert any(line.startswith(row) for line in output.splitlines()), row
    assert "int6 per row" in output
    assert "run folder: runs/quickstart" in output
    assert folder.artifact.stat().st_size < 1_000_000
