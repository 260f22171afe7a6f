"""Training through the real command line and the deepspeed launcher, on CPU processes."""

import json
import os
import resource
import signal
import subprocess
import sys
import time
from collections.abc import Callable
from hashlib import sha256
from pathlib import Path

import pytest

from launch.cli import main
from launch.preset import load_file
from tests.launch.conftest import SMALL

pytestmark = pytest.mark.slow

ROOT = Path(__file__).resolve().parents[2]
SHORT = [*SMALL, "--training.sequence-tokens", "64", "--training.batch-tokens", "512"]
SHORT += ["--training.micro-batch-tokens", "256", "--training.budget-seconds", "0"]


def albatross(*arguments: object, **options: object) -> subprocess.Popen:
    command = [sys.executable, "-m", "launch.cli", *map(str, arguments)]
    environment = {**os.environ, "OMP_NUM_THREADS": "1"}
    return subprocess.Popen(
        command, cwd=ROOT, env=environment, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True, **options
    )


def finish(process: subprocess.Popen) -> tuple[int, str]:
    output, _ = process.communicate(timeout=180)
    return process.returncode, output


def steps_done(run: Path) -> int:
    metrics = run / "metrics.jsonl"
    lines = metrics.read_text().splitlines() if metrics.exists() else []
    return max((json.loads(line)["step"] for line in lines if "clock" in line), default=0)


def wait_until(condition: Callable[[], bool], process: subprocess.Popen) -> None:
    limit = time.monotonic() + 120
    while not condition():
        assert process.poll() is None, process.communicate()[0]
        assert time.monotonic() < limit
        time.sleep(0.1)


def test_two_processes_from_the_command_line_to_an_artifact(data, tmp_path):
    run = tmp_path / "run"
    limits = ["--training.max-steps", "6"]
    code, output = finish(albatross("train", "tiny", "--data", data, "--out", run, "--num-gpus", 2, *SHORT, *limits))
    assert code == 0, output
    assert "on 2 x cpu" in output
    assert "step:6/6 train_loss:" in output
    assert "num_layers = 2" in output  # the resolved configuration is printed
    assert load_file(run / "config.toml").settings.model.num_layers == 2
    environment = json.loads((run / "environment.json").read_text())
    assert environment["num_processes"] == 2
    assert environment["data"]["lossless"] is True
    shards = environment["data"]["shard_sha256"]
    assert shards == {path.name: sha256(path.read_bytes()).hexdigest() for path in data.glob("*.bin")}
    assert steps_done(run) == 6
    assert "val_bpb:" in (run / "log.txt").read_text()
    trained = json.loads((run / "report.json").read_text())["pre_quantization"]
    assert trained["num_steps"] == 6
    assert trained["ledger"] == "proved"

    assert main(["pack", str(run)]) == 0
    artifact = str(run / "artifact.albatross")
    assert main(["evaluate", artifact, "--data", str(data), "--report", str(run / "report.json")]) == 0
    report = json.loads((run / "report.json").read_text())
    assert report["pre_quantization"] == trained
    assert report["post_quantization"]["num_targets"] == trained["num_targets"]
    # Six bits a weight cost something, but not much: the artifact holds this network and no other.
    assert abs(report["post_quantization"]["bpb"] - trained["bpb"]) < 0.05


def test_the_launcher_runs_the_file_from_a_checkout(data, tmp_path):
    run = tmp_path / "run"
    command = [sys.executable, "-m", "deepspeed.launcher.runner", "--num_gpus", "1", "--master_port", "29655"]
    command += ["launch/train.py", "tiny", "--data", data, "--out", run, *SHORT, "--training.max-steps", "2"]
    environment = {name: value for name, value in os.environ.items() if name != "PYTHONPATH"}
    subprocess.run([str(word) for word in command], cwd=ROOT, env=environment, check=True, timeout=180)
    assert steps_done(run) == 2


def test_an_error_found_by_the_ranks_is_said_once(data, tmp_path):
    command = [sys.executable, "-m", "deepspeed.launcher.runner", "--num_gpus", "2", "--master_port", "29656"]
    command += ["launch/train.py", "tiny", "--data", data, "--out", tmp_path / "run"]
    done = subprocess.run([str(word) for word in command], cwd=ROOT, capture_output=True, text=True, timeout=180)
    marked = [line for line in done.stderr.splitlines() if line.startswith("albatross: error: ")]
    assert done.returncode == 2
    assert len(marked) == 1
    assert "--model.vocab-size 300" in marked[0]
    assert "Traceback" not in done.stderr
    assert not (tmp_path / "run").exists()


def test_sigterm_saves_and_exits_75_and_the_run_goes_on(data, tmp_path):
    run = tmp_path / "run"
    arguments = ["train", "tiny", "--data", data, "--out", run, "--num-gpus", 2, *SHORT]
    arguments += ["--training.max-steps", 100_000]
    process = albatross(*arguments)
    wait_until(lambda: steps_done(run) >= 3, process)
    process.send_signal(signal.SIGTERM)
    code, output = finish(process)
    assert code == 75, output
    assert "--resume auto" in output
    assert "Traceback" not in output
    saved = sorted(run.glob("checkpoints/step_*"))
    assert len(saved) == 1
    stopped_at = int(saved[0].name.removeprefix("step_"))
    assert stopped_at >= 3

    # A full disk while the next checkpoint is written: one line, exit code 2, the previous checkpoint intact.
    def limit_file_size() -> None:
        resource.setrlimit(resource.RLIMIT_FSIZE, (100_000, 100_000))

    before = {path.name: path.read_bytes() for path in saved[0].iterdir()}
    process = albatross(*arguments, "--resume", "auto", preexec_fn=limit_file_size)
    wait_until(lambda: steps_done(run) >= stopped_at + 3, process)
    process.send_signal(signal.SIGTERM)
    code, output = finish(process)
    assert code == 2, output
    assert f"albatross: error: {run}: File too large" in output
    assert "Traceback" not in output
    assert f"resumed after step {stopped_at}" in output
    assert [path.name for path in (run / "checkpoints").iterdir()] == [saved[0].name]
    assert {path.name: path.read_bytes() for path in saved[0].iterdir()} == before


def test_too_little_data_leaves_no_run_folder(data, tmp_path):
    run = tmp_path / "run"
    long = [*SMALL, "--training.sequence-tokens", "65536", "--training.batch-tokens", "65536"]
    long += ["--training.micro-batch-tokens", "65536"]
    code, output = finish(albatross("train", "tiny", "--data", data, "--out", run, "--num-gpus", 1, *long))
    assert code == 2, output
    assert len([line for line in output.splitlines() if line.startswith("albatross: error: ")]) == 1
    assert "Traceback" not in output
    assert not run.exists()
