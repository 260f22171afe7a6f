"""ZeRO stage 1, the warm-up, switched phases and hand-overs between numbers of ranks, in whole runs."""

import json
from pathlib import Path

import numpy as np
import pytest
import torch

from tests.trainer.runs import TRAINING, end_of, rows, run, start
from trainer import checkpoint as checkpoints

pytestmark = pytest.mark.slow


def test_zero_1_moves_every_weight_by_the_same_bits_as_zero_0(data: Path, two: Path, tmp_path: Path) -> None:
    """AdamW is elementwise, so cutting its state in two changes nothing; neither does gathering it for a checkpoint."""
    training = {**TRAINING, "zero_stage": 1}
    sharded = run({"data": str(data), "run_dir": str(tmp_path / "one"), "training": training}, num_ranks=2)
    assert rows(sharded) == rows(two)
    for kind in ("weights", "averages", "optimizer"):
        first, second = getattr(end_of(two), kind), getattr(end_of(sharded), kind)
        assert first.keys() == second.keys()
        assert all(torch.equal(first[name], second[name]) for name in first), kind
    for folder in (two, sharded):
        counts = [json.loads((folder / f"orthogonalized_{r}.json").read_text())["orthogonalized"] for r in range(2)]
        assert counts == [20 * 10, 20 * 8]
    held = [
        json.loads((folder / f"orthogonalized_{rank}.json").read_text())["state_bytes"]
        for folder in (two, sharded)
        for rank in range(2)
    ]
    adamw_bytes = sum(t.nbytes for name, t in end_of(two).optimizer.items() if not name.startswith("momentum/"))
    assert held[0] - held[2] == pytest.approx(adamw_bytes / 2, abs=100)  # padding
    assert held[1] - held[3] == pytest.approx(adamw_bytes / 2, abs=100)


@pytest.fixture(scope="module")
def two(data: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """20 steps on two ranks at stage 0, with a checkpoint after 10."""
    job = {"data": str(data), "run_dir": str(tmp_path_factory.mktemp("two")), "training": TRAINING}
    return run(job, num_ranks=2)


@pytest.mark.parametrize(("num_ranks", "zero_stage"), [(2, 0), (2, 1), (3, 1), (1, 0)])
def test_a_checkpoint_of_two_ranks_goes_on_anywhere(
    data: Path, two: Path, tmp_path: Path, num_ranks: int, zero_stage: int
) -> None:
    training = {**TRAINING, "zero_stage": zero_stage, "batch_tokens": 192 if num_ranks == 3 else 256}
    half = two / "checkpoints" / "step_000010"
    job = {"data": str(data), "run_dir": str(tmp_path / "r"), "training": training, "resume": str(half)}
    resumed = rows(run(job, num_ranks))
    original = {step: loss for step, loss in rows(two).items() if step > 10}
    if num_ranks == 2:
        assert resumed == original
    elif num_ranks == 1:
        np.testing.assert_allclose(list(resumed.values()), list(original.values()), atol=5e-3)
    else:  # another batch, so other losses: what counts is that training goes on from there
        assert max(resumed.values()) < rows(two)[9]


@pytest.mark.parametrize("zero_stage", [0, 1])
def test_warm_up_leaves_no_trace(data: Path, two: Path, tmp_path: Path, zero_stage: int) -> None:
    """Steps rehearsed before the clock: weights, both kinds of momentum on every rank, counters and random state."""
    training = {**TRAINING, "zero_stage": zero_stage}
    job = {"data": str(data), "run_dir": str(tmp_path / "w"), "training": training, "warm_up": True}
    warmed = run(job, num_ranks=2)
    assert "warm-up of 1 phases" in (warmed / "log.txt").read_text()
    assert rows(warmed) == rows(two)
    first, second = end_of(two), end_of(warmed)
    for kind in ("weights", "averages", "optimizer"):
        mine, theirs = getattr(first, kind), getattr(second, kind)
        assert all(torch.equal(mine[name], theirs[name]) for name in mine), kind
    assert all(torch.equal(a, b) for a, b in zip(first.random, second.random, strict=True))


SWITCHED = {
    "model": {"num_layers": 4, "recurrence": {"first_layer": 1, "last_layer": 2, "num_extra_passes": 1}},
    "training": {
        **TRAINING,
        "average_horizon": 0.0,
        "swa_every_steps": 2,
        "swa_below_learning_rate": 0.5,
        "recurrence_start_fractions": [0.3],
        "qat": {
            "attention": {"method": "noise"},
            "mlp": {"method": "soft_round"},
            "embedding": {"method": "float8"},
            "start_below_learning_rate": 0.9,
            "soft_round_steps": 8,
        },
        "matrix": {"weight_decay": 0.05, "weight_decay_taper_start": 0.4, "momentum_dtype": "bfloat16"},
    },
}


@pytest.fixture(scope="module")
def switched(data: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """One rank: recurrence at step 7, quantization (with noise) at step 12, SWA after that; a checkpoint after 10."""
    return run({"data": str(data), "run_dir": str(tmp_path_factory.mktemp("switched")), **SWITCHED})


def test_phases_are_switched_and_resumed_to_the_bit(data: Path, switched: Path, tmp_path: Path) -> None:
    log = (switched / "log.txt").read_text()
    assert "step 7, phase: 1 extra passes, weights as they are" in log
    assert "step 12, phase: 1 extra passes, weights fake-quantized" in log
    half = switched / "checkpoints" / "step_000010"
    resumed = run({"data": str(data), "run_dir": str(tmp_path / "r"), "resume": str(half), **SWITCHED})
    assert rows(resumed) == {step: loss for step, loss in rows(switched).items() if step > 10}
    for kind in ("weights", "averages", "optimizer"):
        first, second = getattr(end_of(switched), kind), getattr(end_of(resumed), kind)
        assert first.keys() == second.keys()
        assert all(torch.equal(first[name], second[name]) for name in first), kind
    assert checkpoints.load(half).averages is None  # SWA had not begun


def test_every_phase_is_rehearsed_without_a_trace(data: Path, switched: Path, tmp_path: Path) -> None:
    warmed = run({"data": str(data), "run_dir": str(tmp_path / "w"), "warm_up": True, **SWITCHED})
    assert "warm-up of 4 phases" in (warmed / "log.txt").read_text()
    assert rows(warmed) == rows(switched)


def test_noise_does_not_depend_on_the_number_of_ranks(data: Path, switched: Path, tmp_path: Path) -> None:
    together = run({"data": str(data), "run_dir": str(tmp_path / "two"), **SWITCHED}, num_ranks=2)
    np.testing.assert_allclose(list(rows(together).values()), list(rows(switched).values()), atol=5e-3)


def test_a_loss_that_is_not_finite_stops_every_rank(data: Path, tmp_path: Path) -> None:
    """A learning rate that overflows: the failing step is named, its weights are never saved."""
    training = {**TRAINING, "embedding": {"learning_rate": 1e30}, "checkpoint_every_steps": 1}
    job = {"data": str(data), "run_dir": str(tmp_path / "nan"), "training": training}
    processes = start(job, num_ranks=2)
    outputs = [p.communicate(timeout=240)[0].decode() for p in processes]
    assert all(p.returncode != 0 for p in processes)
    named = [line for line in outputs[0].splitlines() if "NonFiniteGradient: step" in line]
    assert len(named) == 1, outputs[0]
    assert "samples, the first at token" in named[0]
    assert all("NonFiniteGradient: step" in output for output in outputs)
    saved = end_of(tmp_path / "nan")
    assert all(torch.isfinite(t).all() for t in saved.weights.values())


@pytest.mark.parametrize(
    ("content", "named"),
    [
        ({"optimizer": {"type": "Adam"}}, "optimizer: may not be set; training.matrix"),
        ({"zero_optimization": {"stage": 1}}, "zero_optimization.stage is 1, but training.zero_stage is 0"),
    ],
)
def test_a_deepspeed_file_that_asks_too_much(data: Path, tmp_path: Path, content: object, named: str) -> None:
    file = tmp_path / "ds.json"
    file.write_text(json.dumps(content))
    training = {**TRAINING, "deepspeed_config": str(file)}
    (process,) = start({"data": str(data), "run_dir": str(tmp_path / "x"), "training": training})
    output = process.communicate(timeout=240)[0].decode()
    assert process.returncode != 0
    assert named in output
