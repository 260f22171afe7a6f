"""Run folders with everything that a report draws: a packed network, its scores, and metrics of some steps."""

import json
import shutil
from pathlib import Path

import pytest

from launch.cli import main

NUM_STEPS = 50


def write_metrics(path: Path, *, slower: float = 1.0) -> None:
    """metrics.jsonl as the trainer writes it; step 20 twice, as after a resume."""
    rows = []
    for step in [*range(1, 21), *range(20, NUM_STEPS + 1)]:
        milliseconds = 1000 + 25.0 * slower * step
        rows.append(
            {
                "step": step,
                "train_loss": 3 + 4 / step,
                "clock": step / NUM_STEPS,
                "learning_rate_multiplier": 1 - step / NUM_STEPS,
                "momentum": 0.9,
                "gradient_norm": 0.5,
                "tokens": 512 * step,
                "train_time_ms": milliseconds,
            }
        )
        if step % 10 == 0:
            rows.append({"step": step, "val_loss": 3.0, "val_bpb": 1 + 2 / step, "train_time_ms": milliseconds})
    path.write_text("".join(json.dumps(row) + "\n" for row in rows))


@pytest.fixture(scope="session")
def scored_run(trained_run, prepared_data, tmp_path_factory) -> Path:
    """A packed and evaluated run."""
    folder = Path(shutil.copytree(trained_run, tmp_path_factory.mktemp("scored") / "first"))
    write_metrics(folder / "metrics.jsonl")
    artifact = folder / "artifact.albatross"
    assert main(["pack", str(folder)]) == 0
    evaluate = ["evaluate", artifact, "--data", prepared_data, "--report", folder / "report.json"]
    assert main([*map(str, evaluate), "--mode", "plain", "sliding", "ttt"]) == 0
    return folder


@pytest.fixture
def first(scored_run, tmp_path) -> Path:
    """A copy of the run that a test may change."""
    return Path(shutil.copytree(scored_run, tmp_path / "first"))


@pytest.fixture
def second(scored_run, tmp_path) -> Path:
    """The same but for its seed, its speed and its scores, which are 0.01 BPB (some nats) better."""
    folder = Path(shutil.copytree(scored_run, tmp_path / "second"))
    write_metrics(folder / "metrics.jsonl", slower=2.0)
    config = (folder / "config.toml").read_text()
    assert "seed = 1337" in config
    (folder / "config.toml").write_text(config.replace("seed = 1337", "seed = 7", 1))
    report = json.loads((folder / "report.json").read_text())
    for section in report.values():
        if isinstance(section, dict):
            section["bpb"] -= 0.01
            section["val_loss_nats"] -= 0.01
    (folder / "report.json").write_text(json.dumps(report))
    return folder
