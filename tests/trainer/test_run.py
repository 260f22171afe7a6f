"""Whole runs in real processes: ranks, resume, replay, SIGTERM."""

import json
import signal
import time
from pathlib import Path

import numpy as np
import pytest
import torch

from tests.trainer.runs import TRAINING, rows, run, start
from trainer import checkpoint as checkpoints


@pytest.fixture(scope="module")
def alone(data: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """20 steps on one rank, with a checkpoint after 10."""
    return run({"data": str(data), "run_dir": str(tmp_path_factory.mktemp("alone")), "training": TRAINING})


def test_training_learns_and_reports(alone: Path) -> None:
    losses = rows(alone)
    assert list(losses) == list(range(1, 21))
    assert losses[1] == pytest.approx(np.log(64), abs=0.3)
    assert losses[20] < losses[1] - 0.5
    log = (alone / "log.txt").read_text()
    assert "step:20/20 train_loss:" in log
    assert "val_loss:" in log
    assert "val_bpb:" in log
    assert "step_avg:" in log
    counted = json.loads((alone / "orthogonalized_0.json").read_text())
    assert (counted["orthogonalized"], counted["steps"]) == (20 * 18, 20)


def test_two_ranks_equal_one(data: Path, alone: Path, tmp_path: Path) -> None:
    together = run({"data": str(data), "run_dir": str(tmp_path / "two"), "training": TRAINING}, num_ranks=2)
    one, two = rows(alone), rows(together)
    # Float error of the gradient's mean, seen through bfloat16 Newton-Schulz.
    np.testing.assert_allclose(list(two.values()), list(one.values()), atol=5e-3)
    np.testing.assert_allclose(two[1], one[1], atol=1e-6)
    # Per step 18 matrices: stacks of 6, 6, 3 and 3, cut in two with padding.
    for rank, count in enumerate((10, 8)):
        counted = json.loads((together / f"orthogonalized_{rank}.json").read_text())
        assert (counted["orthogonalized"], counted["steps"]) == (20 * count, 20)
    bpb = [json.loads((folder / "result.json").read_text())["bpb"] for folder in (alone, together)]
    assert bpb[0] == pytest.approx(bpb[1], abs=5e-3)


def test_resumed_run_is_bitwise_the_uninterrupted_one(data: Path, alone: Path, tmp_path: Path) -> None:
    half = alone / "checkpoints" / "step_000010"
    resumed = run({"data": str(data), "run_dir": str(tmp_path / "r"), "training": TRAINING, "resume": str(half)})
    assert rows(resumed) == {step: loss for step, loss in rows(alone).items() if step > 10}
    ends = [checkpoints.load(folder / "checkpoints" / "step_000020") for folder in (alone, resumed)]
    for kind in ("weights", "averages", "optimizer"):
        first, second = (getattr(end, kind) for end in ends)
        assert first.keys() == second.keys()
        assert all(torch.equal(first[name], second[name]) for name in first), kind
    halfway = checkpoints.load(half)
    assert not torch.equal(halfway.weights["embedding.weight"], ends[0].weights["embedding.weight"])


def test_sigterm_saves_and_a_replayed_clock_gives_the_same_run(data: Path, tmp_path: Path) -> None:
    """A wall-clock run is stopped, resumed, and then repeated from its recorded clock."""
    training = {**TRAINING, "max_steps": 4000, "budget_seconds": 4.0, "checkpoint_every_steps": 0}
    job = {"data": str(data), "run_dir": str(tmp_path / "wall"), "training": training}
    (process,) = start(job)
    record = tmp_path / "wall" / "metrics.jsonl"
    deadline = time.monotonic() + 120
    while not (record.is_file() and len(record.read_text().splitlines()) >= 5):
        assert process.poll() is None
        assert time.monotonic() < deadline
        time.sleep(0.02)
    process.send_signal(signal.SIGTERM)
    output = process.communicate(timeout=120)[0].decode()
    assert process.returncode != 0, output
    assert "Preempted" in output, output
    saved, skipped = checkpoints.newest_valid(tmp_path / "wall" / "checkpoints")
    assert saved is not None
    assert not skipped
    run({**job, "resume": str(saved)})
    replayed = run({**job, "run_dir": str(tmp_path / "again"), "replay": str(record)})
    assert rows(replayed) == rows(tmp_path / "wall")
    assert len(rows(replayed)) > 5
    clock = list(rows(replayed, "clock").values())
    assert clock == sorted(clock)
    assert clock[-1] < 1
