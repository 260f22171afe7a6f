"""Experiment trackers: each switched on by one option, given what metrics.jsonl is given."""

import csv
import importlib.util
import json
import os
import subprocess
import sys
from pathlib import Path

import pytest

from tests.launch.conftest import SMALL
from trainer.trackers import TrackerConfig, events

ROOT = Path(__file__).resolve().parents[2]
SHORT = ["--training.max-steps", "3", "--training.sequence-tokens", "64", "--training.batch-tokens", "256"]
SHORT += ["--training.micro-batch-tokens", "256", "--training.budget-seconds", "0"]


def test_rows_become_events():
    assert events({"step": 3, "train_loss": 2.5, "tokens": 10, "note": "x", "gone": None}) == [
        ("train/loss", 2.5, 3),
        ("train/tokens", 10.0, 3),
    ]
    assert events({"step": 4, "val_loss": 2.0, "val_bpb": 1.0}) == [("val/loss", 2.0, 4), ("val/bpb", 1.0, 4)]


def test_trackers_write_into_the_run_folder():
    assert not TrackerConfig().enabled
    settings = TrackerConfig(tensorboard=True, csv=True, wandb="birds").deepspeed_settings(Path("runs/a"))
    assert settings["tensorboard"]["output_path"] == "runs/a/tensorboard"
    assert settings["csv_monitor"]["output_path"] == "runs/a/csv"
    assert settings["wandb"] == {"enabled": True, "project": "birds", "group": "a"}


def test_a_tracker_that_is_not_installed_is_named_with_its_extra(refused, data, tmp_path, monkeypatch):
    find = importlib.util.find_spec
    missing = ("tensorboard", "wandb")
    monkeypatch.setattr(importlib.util, "find_spec", lambda name, *more: None if name in missing else find(name, *more))
    run = ["train", "tiny", "--data", data, "--out", tmp_path / "run", *SMALL]
    refused([*run, "--wandb", "birds"], "--wandb", "albatross[trackers]")
    refused([*run, "--tensorboard"], "--tensorboard", "albatross[trackers]")
    assert not (tmp_path / "run").exists()


@pytest.mark.slow
def test_csv_files_hold_every_row_of_the_metrics(data, tmp_path):
    run = tmp_path / "run"
    command = [sys.executable, "-m", "launch.cli", "train", "tiny", "--data", data, "--out", run, "--num-gpus", 2]
    command += ["--csv", *SMALL, *SHORT]
    done = subprocess.run(
        [*map(str, command)], cwd=ROOT, env={**os.environ, "OMP_NUM_THREADS": "1"}, capture_output=True, text=True
    )
    assert done.returncode == 0, done.stdout + done.stderr
    rows = [json.loads(line) for line in (run / "metrics.jsonl").read_text().splitlines()]
    for name, key in (("train_loss", "train_loss"), ("val_bpb", "val_bpb")):
        with (run / "csv" / f"{name}.csv").open() as file:
            (_, *lines) = csv.reader(file)
        expected = [(row["step"], row[key]) for row in rows if key in row]
        assert [(int(step), float(value)) for step, value in lines] == expected
    assert len(rows) == 4


@pytest.mark.slow
def test_tensorboard_reads_the_event_files(data, tmp_path):
    accumulator = pytest.importorskip(
        "tensorboard.backend.event_processing.event_accumulator", reason="the extra trackers is not installed"
    )
    run = tmp_path / "run"
    command = [sys.executable, "-m", "launch.cli", "train", "tiny", "--data", data, "--out", run, "--num-gpus", 1]
    command += ["--tensorboard", *SMALL, *SHORT]
    done = subprocess.run([*map(str, command)], cwd=ROOT, capture_output=True, text=True)
    assert done.returncode == 0, done.stdout + done.stderr
    read = accumulator.EventAccumulator(str(run / "tensorboard"))
    read.Reload()
    assert [event.step for event in read.Scalars("train/loss")] == [1, 2, 3]
    assert len(read.Scalars("val/bpb")) == 1
