"""Every average against a float64 reference written down directly."""

import json

import numpy as np
import pytest
import torch

from trainer.averaging import WeightAverage, weight_average
from trainer.config import TrainingConfig

NUM_STEPS = 60


@pytest.fixture(scope="module")
def visited() -> np.ndarray:
    """Weights after 0 (the initial ones), 1, ... steps, float32."""
    return np.random.default_rng(3).standard_normal((NUM_STEPS + 1, 5)).astype(np.float32)


CLOCK = np.concatenate([[0], np.sort(np.random.default_rng(0).random(NUM_STEPS))])
MULTIPLIERS = np.linspace(1, 0, NUM_STEPS)


def averaged(config: TrainingConfig, visited: np.ndarray, resume_at: int | None = None) -> np.ndarray | None:
    """What WeightAverage makes of the visited weights, optionally handed over to a second one half-way."""
    parameter = torch.nn.Parameter(torch.from_numpy(visited[0].copy()))
    average = WeightAverage({"w": parameter}, config)
    for step in range(1, NUM_STEPS + 1):
        with torch.no_grad():
            parameter.copy_(torch.from_numpy(visited[step]))
        advance = float(CLOCK[step] - CLOCK[step - 1])
        average.update(step=step, clock_advance=advance, learning_rate_multiplier=float(MULTIPLIERS[step - 1]))
        if step == resume_at:
            saved = None if average.tensors is None else {n: t.clone() for n, t in average.tensors.items()}
            counters = json.loads(json.dumps(average.counters()))
            average = WeightAverage({"w": parameter}, config)
            average.restore(saved, counters)
    return None if average.tensors is None else average.tensors["w"].numpy()


def moving_average(visited: np.ndarray, decays: np.ndarray, *, corrected: bool) -> np.ndarray:
    """The weighted mean, weights from their definition: step i has (1 - δ_i) Π_{j > i} δ_j, the start Π δ."""
    wide = visited.astype(np.float64)
    later = np.concatenate([np.cumprod(decays[::-1])[::-1][1:], [1.0]])
    weights = (1 - decays) * later
    total = (weights[:, None] * wide[1:]).sum(0)
    return total / weights.sum() if corrected else total + np.prod(decays) * wide[0]


@pytest.mark.parametrize("corrected", [False, True])
@pytest.mark.parametrize("decay", [0.9965, 0.997, 0.5])
def test_fixed_decay(visited: np.ndarray, decay: float, corrected: bool) -> None:
    got = averaged(TrainingConfig(average_decay=decay, average_bias_correction=corrected), visited)
    expected = moving_average(visited, np.full(NUM_STEPS, decay), corrected=corrected)
    np.testing.assert_allclose(got, expected, rtol=2e-6, atol=2e-6)


@pytest.mark.parametrize("corrected", [False, True])
def test_decay_sized_to_the_run(visited: np.ndarray, corrected: bool) -> None:
    got = averaged(TrainingConfig(average_horizon=0.1, average_bias_correction=corrected), visited)
    expected = moving_average(visited, np.exp(-np.diff(CLOCK) / 0.1), corrected=corrected)
    np.testing.assert_allclose(got, expected, rtol=2e-6, atol=2e-6)


def test_bias_correction_forgets_the_initial_weights(visited: np.ndarray) -> None:
    other = visited.copy()
    other[0] += 100
    config = TrainingConfig(average_decay=0.997, average_bias_correction=True)
    np.testing.assert_array_equal(averaged(config, visited), averaged(config, other))


def test_bias_correction_before_the_clock_moves() -> None:
    parameter = torch.nn.Parameter(torch.ones(2))
    average = WeightAverage({"w": parameter}, TrainingConfig(average_horizon=0.1, average_bias_correction=True))
    average.update(step=1, clock_advance=0.0, learning_rate_multiplier=1.0)
    assert average.tensors is not None
    assert torch.equal(average.tensors["w"], torch.ones(2))


@pytest.mark.parametrize(("every", "below"), [(5, 0.5), (7, 0.4), (1, 1.0)])
def test_swa_is_the_mean_of_its_window(visited: np.ndarray, every: int, below: float) -> None:
    got = averaged(TrainingConfig(swa_every_steps=every, swa_below_learning_rate=below), visited)
    taken = [s for s in range(1, NUM_STEPS + 1) if s % every == 0 and MULTIPLIERS[s - 1] < below]
    assert len(taken) >= 3
    np.testing.assert_allclose(got, visited[taken].astype(np.float64).mean(0), rtol=2e-6, atol=2e-6)


def test_swa_that_never_began_leaves_the_live_weights(visited: np.ndarray) -> None:
    config = TrainingConfig(swa_every_steps=1000)
    assert averaged(config, visited) is None
    parameter = torch.nn.Parameter(torch.ones(2))
    average = WeightAverage({"w": parameter}, config)
    with torch.no_grad():
        parameter.fill_(3)
    with average.applied():
        assert torch.equal(parameter.detach(), torch.full((2,), 3.0))


@pytest.mark.parametrize(
    "config",
    [
        TrainingConfig(average_horizon=0.1),
        TrainingConfig(average_decay=0.9, average_bias_correction=True),
        TrainingConfig(swa_every_steps=5),
    ],
)
@pytest.mark.parametrize("resume_at", [10, 43])
def test_resumed_average_is_bitwise_the_same(visited: np.ndarray, config: TrainingConfig, resume_at: int) -> None:
    np.testing.assert_array_equal(averaged(config, visited, resume_at), averaged(config, visited))


def test_applied_stands_in_and_goes() -> None:
    parameter = torch.nn.Parameter(torch.zeros(3))
    average = weight_average({"w": parameter}, TrainingConfig(average_decay=0.5))
    assert average is not None
    with torch.no_grad():
        parameter.fill_(1)
    average.update(step=1, clock_advance=0.1, learning_rate_multiplier=1.0)
    with average.applied():
        assert torch.equal(parameter.detach(), torch.full((3,), 0.5))
    assert torch.equal(parameter.detach(), torch.ones(3))
    assert weight_average({"w": parameter}, TrainingConfig()) is None
