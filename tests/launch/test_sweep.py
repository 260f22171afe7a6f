"""Sweeps: what is run, what is kept, and the table at the end."""

import argparse
import json
import os
import shutil
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest

from launch.sweep import device_places, grid, listed
from model.errors import InputError
from tests.launch.conftest import SMALL

ROOT = Path(__file__).resolve().parents[2]
SHORT = ["--training.sequence-tokens", "64", "--training.batch-tokens", "256", "--training.micro-batch-tokens", "256"]
SHORT += ["--training.budget-seconds", "0"]


def command(data: Path, out: Path, *more: object) -> list[str]:
    words = [sys.executable, "-m", "launch.cli", "sweep", "tiny", "--data", data, "--out", out, *SMALL, *SHORT, *more]
    return [str(word) for word in words]


def run(*words: object) -> subprocess.CompletedProcess:
    environment = {**os.environ, "OMP_NUM_THREADS": "1"}
    return subprocess.run(command(*words), cwd=ROOT, env=environment, capture_output=True, text=True, timeout=400)


def test_grid_is_every_combination():
    choices = grid(["model.num-layers=2,3", "--training.scalar.betas=0.9 0.95,0.8 0.9"])
    assert [" ".join(choice) for choice in choices] == [
        f"--model.num-layers {layers} --training.scalar.betas {betas}"
        for layers in (2, 3)
        for betas in ("0.9 0.95", "0.8 0.9")
    ]
    assert grid([]) == [[]]


def test_list_is_one_choice_a_line(tmp_path):
    path = tmp_path / "choices"
    path.write_text("# two\n--model.num-layers 2\n\n--model.num-layers 3 --quantization.matrix-bits 5\n")
    assert listed(path) == [["--model.num-layers", "2"], ["--model.num-layers", "3", "--quantization.matrix-bits", "5"]]
    path.write_text("# nothing\n")
    with pytest.raises(InputError, match="no line of settings"):
        listed(path)


@pytest.mark.parametrize(
    ("more", "words"),
    [
        (["--grid", "model.num-layer=2"], ["--model.num-layer", "did you mean --model.num-layers?"]),
        (["--grid", "model.num-layers"], ["SECTION.FIELD=VALUE"]),
        (["--grid", "model.num-layers=2,zero"], ["--model.num-layers", "'zero'"]),
        (["--grid", "training.seed=1,2"], ["is set by --seeds"]),
        (["--gpus-per-run", "0"], ["--gpus-per-run", "at least 1"]),
        (["--list", "/nowhere"], ["/nowhere"]),
    ],
)
def test_wrong_choices_are_refused_before_anything_runs(refused, data, tmp_path, more, words):
    refused(["sweep", "tiny", "--data", data, "--out", tmp_path / "out", *more], *words)
    assert not (tmp_path / "out").exists()


@pytest.mark.slow
def test_a_sweep_ends_in_a_table_and_repeats_nothing(data, tmp_path):
    out = tmp_path / "sweep"
    words = [data, out, "--grid", "training.max-steps=1,6", "--seeds", 1, 2]
    done = run(*words)
    assert done.returncode == 0, done.stdout + done.stderr
    results = json.loads((out / "sweep.json").read_text())["results"]
    assert [row["settings"] for row in results] == ["--training.max-steps 6", "--training.max-steps 1"]
    assert [(row["finished"], row["runs"]) for row in results] == [(2, 2), (2, 2)]
    scores = [
        json.loads((Path(folder) / "report.json").read_text())["post_quantization"]["bpb"]
        for folder in results[0]["folders"]
    ]
    assert results[0]["mean_bpb"] == pytest.approx(sum(scores) / 2)
    assert f"{results[0]['mean_bpb']:.6f}" in done.stdout.splitlines()[-2]
    # One run is lost: the same command makes it again, and that one only.
    lost = Path(results[0]["folders"][1])
    kept = {path: path.stat().st_mtime_ns for path in out.glob("*/report.json") if path.parent != lost}
    shutil.rmtree(lost)
    again = run(*words)
    assert again.returncode == 0, again.stdout + again.stderr
    assert again.stdout.count("finished before") == 3
    assert {path: path.stat().st_mtime_ns for path in kept} == kept
    assert json.loads((lost / "report.json").read_text())["post_quantization"]["bpb"] == scores[1]
    other = run(data, out, "--grid", "training.max-steps=1,7", "--seeds", 1, 2)
    assert other.returncode == 2
    assert "holds another sweep" in other.stderr


@pytest.mark.slow
def test_a_stopped_sweep_saves_and_goes_on(data, tmp_path):
    out = tmp_path / "sweep"
    words = command(data, out, "--grid", "training.max-steps=150")
    environment = {**os.environ, "OMP_NUM_THREADS": "1"}
    first = subprocess.Popen(words, cwd=ROOT, env=environment, stdout=subprocess.PIPE, stderr=subprocess.STDOUT)
    metrics = out / "000_seed1337" / "metrics.jsonl"
    limit = time.monotonic() + 200
    while not (metrics.is_file() and metrics.read_text().count("\n") >= 3):
        assert first.poll() is None
        assert time.monotonic() < limit
        time.sleep(0.05)
    first.send_signal(signal.SIGTERM)
    output, _ = first.communicate(timeout=200)
    assert first.returncode == 75, output
    assert list(out.glob("000_seed1337/checkpoints/step_*"))
    again = subprocess.run(words, cwd=ROOT, env=environment, capture_output=True, text=True)
    assert again.returncode == 0, again.stdout + again.stderr
    assert "resumed after step" in (out / "000_seed1337" / "log.txt").read_text()


def test_gpus_are_shared_out_in_equal_places(monkeypatch):
    def places(num_gpus: int | None, gpus_per_run: int) -> list[str | None]:
        return device_places(argparse.Namespace(num_gpus=num_gpus, gpus_per_run=gpus_per_run))

    monkeypatch.setattr("torch.cuda.is_available", lambda: False)
    assert places(None, 2) == [None]  # one run after another, of two processes
    monkeypatch.setattr("torch.cuda.is_available", lambda: True)
    monkeypatch.setattr("torch.cuda.device_count", lambda: 5)
    assert places(None, 1) == ["0", "1", "2", "3", "4"]
    assert places(None, 2) == ["0,1", "2,3"]
    assert places(2, 2) == ["0,1"]
    with pytest.raises(InputError, match="there are 5 GPUs"):
        places(None, 8)


def test_chosen_gpus_are_refused_with_a_number_of_gpus_or_a_hostfile(refused, data, tmp_path):
    run = ["train", "tiny", "--data", data, "--out", tmp_path / "run", *SMALL]
    refused([*run, "--gpus", "0,1", "--num-gpus", "2"], "--gpus: goes with neither")
    refused([*run, "--gpus", "first"], "--gpus: accepts numbers such as 0,1")
