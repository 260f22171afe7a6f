"""Schedules and clock against closed forms."""

import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from model.errors import InputError
from trainer import clock as clock_module
from trainer.clock import Clock, recorded_clock
from trainer.config import MuonConfig, QATConfig, TrainingConfig
from trainer.schedule import (
    learning_rate_multiplier,
    momentum,
    recurrence_stage,
    soft_round_sharpness,
    weight_decay,
)


def test_warmdown_by_fraction_with_floor() -> None:
    config = TrainingConfig(warmdown_fraction=0.85, min_learning_rate=0.10)
    got = [learning_rate_multiplier(config, 7, f) for f in (0.0, 0.15, 0.575, 0.915, 0.99, 1.0)]
    np.testing.assert_allclose(got, [1, 1, 0.5, 0.1, 0.1, 0.1])


def test_warmdown_by_steps_uses_the_mean_pace() -> None:
    config = TrainingConfig(warmdown_steps=100)
    # 300 steps took half the run: 100 steps are 1/6 of it, so the warm-down starts at 5/6.
    assert learning_rate_multiplier(config, 300, 0.5) == 1
    assert learning_rate_multiplier(config, 540, 0.9) == pytest.approx(0.1 / (100 / 600))
    assert learning_rate_multiplier(config, 0, 0.0) == 1


def test_momentum_warmup() -> None:
    config = MuonConfig(momentum=0.97, momentum_start=0.92, momentum_warmup_steps=1500)
    np.testing.assert_allclose([momentum(config, s) for s in (0, 750, 1500, 9999)], [0.92, 0.945, 0.97, 0.97])


def test_clock_counts_only_while_running(monkeypatch: pytest.MonkeyPatch) -> None:
    now = [100.0]
    monkeypatch.setattr(clock_module.time, "perf_counter", lambda: now[0])
    clock = Clock(TrainingConfig(max_steps=1000, budget_seconds=50, reserve_seconds=10), elapsed_seconds=4.0)
    now[0] += 7
    assert clock.fraction(0) == pytest.approx(0.1)
    clock.start()
    now[0] += 6
    assert clock.fraction(1) == pytest.approx(0.25)
    clock.stop()
    now[0] += 100
    assert clock.fraction(1) == pytest.approx(0.25)
    assert clock.fraction(900) == pytest.approx(0.9)  # whichever budget is used up more
    clock.start()
    now[0] += 100
    assert clock.fraction(2) == 1.0


def test_replayed_clock(tmp_path: Path) -> None:
    rows = [
        {"step": 1, "clock": 0.0},
        {"step": 2, "clock": 0.3},
        {"step": 2, "val_bpb": 1.0},
        {"step": 2, "clock": 0.4},
    ]
    record = tmp_path / "metrics.jsonl"
    record.write_text("".join(json.dumps(row) + "\n" for row in rows))
    clock = Clock(TrainingConfig(), replay=recorded_clock(record))
    assert [clock.fraction(step) for step in range(4)] == [0.0, 0.4, 1.0, 1.0]
    record.write_text(json.dumps(rows[1]) + "\n")
    with pytest.raises(InputError, match="missing"):
        recorded_clock(record)
    record.write_text(json.dumps(rows[0]) + '\n{"step": 2, "clo')
    with pytest.raises(InputError, match="line 2 is not JSON"):
        recorded_clock(record)
    with pytest.raises(InputError, match="no such file"):
        recorded_clock(tmp_path / "nowhere.jsonl")


def test_weight_decay_taper_of_rank_7() -> None:
    config = MuonConfig(weight_decay=0.1, weight_decay_taper_start=0.7, weight_decay_taper_final=0.5)
    got = [weight_decay(config, f) for f in (0.0, 0.7, 0.85, 1.0)]
    np.testing.assert_allclose(got, [0.1, 0.1, 0.075, 0.05])
    assert weight_decay(MuonConfig(weight_decay=0.1), 1.0) == 0.1


def test_recurrence_by_clock_and_by_step() -> None:
    progressive = TrainingConfig(recurrence_start_fractions=(0.5, 0.65))
    assert [recurrence_stage(progressive, 0, f) for f in (0.0, 0.4999, 0.5, 0.64, 0.65, 1.0)] == [0, 0, 1, 1, 2, 2]
    by_step = TrainingConfig(recurrence_start_steps=(3000,))
    assert [recurrence_stage(by_step, s, 0.9) for s in (0, 2999, 3000)] == [0, 0, 1]
    assert recurrence_stage(TrainingConfig(), 0, 0.0) is None


def test_soft_rounding_sharpens_over_500_steps() -> None:
    np.testing.assert_allclose([soft_round_sharpness(QATConfig(), s) for s in (0, 250, 500, 900)], [1, 8.5, 16, 16])


@pytest.mark.parametrize(
    ("changes", "named"),
    [
        ({"sequence_tokens": 0}, "training.sequence_tokens"),
        ({"batch_tokens": 1000}, "training.batch_tokens: accepts a multiple of sequence_tokens=1024"),
        ({"micro_batch_tokens": 512}, "training.micro_batch_tokens"),
        ({"warmdown_fraction": 0.5, "warmdown_steps": 3}, "training.warmdown_fraction"),
        ({"reserve_seconds": 600.0}, "training.reserve_seconds"),
        ({"keep_checkpoints": 0}, "training.keep_checkpoints"),
        ({"average_decay": 0.9, "average_horizon": 0.1}, "training.average_decay: accepts 0 when"),
        ({"average_bias_correction": True}, "training.average_bias_correction"),
        ({"swa_every_steps": 50, "average_decay": 0.9}, "training.swa_every_steps"),
        ({"recurrence_start_fractions": (0.6, 0.5)}, "training.recurrence_start_fractions"),
        ({"recurrence_start_fractions": (0.6,), "recurrence_start_steps": (10,)}, "training.recurrence_start_steps"),
        ({"zero_stage": 2}, "training.zero_stage"),
    ],
)
def test_configuration_errors_name_the_field(changes: dict[str, Any], named: str) -> None:
    with pytest.raises(ValueError, match=named):
        TrainingConfig(**changes)
