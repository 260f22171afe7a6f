"""Schedules, clock and averaging against closed forms and slow references."""

import json
from pathlib import Path

import numpy as np
import pytest
import torch

from model.errors import InputError
from trainer import clock as clock_module
from trainer.averaging import WeightAverage
from trainer.clock import Clock, recorded_clock
from trainer.config import MuonConfig, TrainingConfig
from trainer.schedule import learning_rate_multiplier, momentum


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
    with pytest.raises(InputError, match="no such file"):
        recorded_clock(tmp_path / "nowhere.jsonl")


def test_average_against_float64_reference() -> None:
    generator = torch.Generator().manual_seed(3)
    parameter = torch.nn.Parameter(torch.randn(5, generator=generator))
    average = WeightAverage({"w": parameter}, horizon=0.1)
    expected = parameter.detach().double()
    clock = np.sort(np.random.default_rng(0).random(50))
    for advance in np.diff(clock, prepend=0.0):
        with torch.no_grad():
            parameter.copy_(torch.randn(5, generator=generator))
        average.update(float(advance))
        decay = np.exp(-advance / 0.1)
        expected = decay * expected + (1 - decay) * parameter.detach().double()
    torch.testing.assert_close(average.tensors["w"].double(), expected, rtol=1e-6, atol=1e-6)
    live = parameter.detach().clone()
    with average.applied():
        torch.testing.assert_close(parameter.detach(), average.tensors["w"], rtol=0, atol=0)
    torch.testing.assert_close(parameter.detach(), live, rtol=0, atol=0)


@pytest.mark.parametrize(
    ("changes", "named"),
    [
        ({"sequence_tokens": 0}, "training.sequence_tokens"),
        ({"batch_tokens": 1000}, "training.batch_tokens: accepts a multiple of sequence_tokens=1024"),
        ({"micro_batch_tokens": 512}, "training.micro_batch_tokens"),
        ({"warmdown_fraction": 0.5, "warmdown_steps": 3}, "training.warmdown_fraction"),
        ({"reserve_seconds": 600.0}, "training.reserve_seconds"),
        ({"keep_checkpoints": 0}, "training.keep_checkpoints"),
    ],
)
def test_configuration_errors_name_the_field(changes: dict[str, float], named: str) -> None:
    with pytest.raises(ValueError, match=named):
        TrainingConfig(**changes)  # type: ignore[arg-type]
