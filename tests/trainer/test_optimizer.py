"""The training optimizer: groups, Parallel Muon at any number of ranks, clipping, the finite check."""

import math
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor

from model.config import ModelConfig
from model.network.gpt import GPT
from model.network.initialize import initialize
from model.optimizers.muon import direction, nesterov, step_scale
from model.optimizers.orthogonalize import coefficients
from tests.trainer.processes import on_ranks
from trainer.config import AdamConfig, MuonConfig, TrainingConfig
from trainer.optimizer import TrainingOptimizer, group_parameters
from trainer.ranks import Ranks

CONFIG = ModelConfig(vocab_size=64, num_layers=3, model_dim=32, num_heads=4, num_kv_heads=2)
ALONE = Ranks(0, 1, torch.device("cpu"))
DECAYING = TrainingConfig(
    matrix=MuonConfig(weight_decay=0.1, row_normalize=True, orthogonalization="polar_express"),
    embedding=AdamConfig(weight_decay=0.1),
)


def new_model() -> GPT:
    model = GPT(CONFIG)
    initialize(model, seed=1)
    return model


def set_gradients(model: GPT, seed: int) -> None:
    """Small multiples of 1/4, so that sums and means over a few ranks are exact in any order."""
    generator = torch.Generator().manual_seed(seed)
    for parameter in model.parameters():
        parameter.grad = torch.randint(-8, 9, parameter.shape, generator=generator) / 4


def step(optimizer: TrainingOptimizer, *, multiplier: float = 1.0, loss: float = 2.0) -> Tensor:
    """One step without an engine; returns the status."""
    status = optimizer.reduce_gradients(torch.tensor(loss))
    optimizer.step_matrices(
        learning_rate_multiplier=multiplier,
        momentum=0.9,
        weight_decay=optimizer._config.matrix.weight_decay,
    )
    optimizer.adamw.step()
    return status


def weights(model: GPT) -> dict[str, np.ndarray]:
    return {name: p.detach().numpy().copy() for name, p in model.named_parameters()}


def test_every_parameter_is_in_exactly_one_group() -> None:
    model = new_model()
    groups = group_parameters(model, TrainingConfig())
    grouped = [name for group in groups.values() for name in group]
    assert sorted(grouped) == sorted(name for name, _ in model.named_parameters())
    assert len(groups["matrix"]) == 6 * CONFIG.num_layers
    assert list(groups["embedding"]) == ["embedding.weight"]
    assert all(p.ndim == 2 for p in groups["matrix"].values())


def test_update_of_every_matrix_has_near_equal_singular_values() -> None:
    model = new_model()
    optimizer = TrainingOptimizer(model, TrainingConfig(matrix=MuonConfig(learning_rate=1.0)), ALONE)
    generator = torch.Generator().manual_seed(0)
    before = {name: p.detach().clone() for name, p in model.named_parameters()}
    for parameter in model.parameters():
        gradient = torch.randn(parameter.shape, generator=generator)
        if parameter.ndim == 2:
            # Singular values from 1 down to 1/30, which a plain gradient step would keep.
            u, _, v = torch.linalg.svd(gradient, full_matrices=False)
            gradient = u * torch.logspace(0, -1.5, u.shape[1]) @ v
        parameter.grad = gradient
    step(optimizer)
    for name, parameter in optimizer.groups["matrix"].items():
        values = torch.linalg.svdvals(parameter.detach() - before[name])
        rows, columns = parameter.shape
        scale = max(1.0, rows / columns) ** 0.5
        assert 0.6 * scale < values.min(), name
        assert values.max() < 1.25 * scale, name
    assert optimizer.num_orthogonalized == 6 * CONFIG.num_layers


def three_steps(ranks: Ranks, config: TrainingConfig) -> tuple[dict[str, np.ndarray], dict[str, np.ndarray], int]:
    """Weights, gathered state and matrices orthogonalized after three steps, every rank with its own gradients."""
    model = new_model()
    optimizer = TrainingOptimizer(model, config, ranks)
    for number in range(3):
        set_gradients(model, seed=number)
        for parameter in model.parameters():
            assert parameter.grad is not None
            parameter.grad *= 2 * ranks.size * (ranks.rank + 1) / (ranks.size + 1)  # their mean is the seed's gradient
            parameter.grad /= ranks.size
        step(optimizer)
    state = {name: t.float().numpy() for name, t in optimizer.gather_state().items()}
    return weights(model), state, optimizer.num_orthogonalized


def reference_steps() -> dict[str, np.ndarray]:
    """Three steps of one matrix after the other, without stacks, from the formulas of model/optimizers."""
    model = new_model()
    buffers = {n: torch.zeros_like(p) for n, p in model.named_parameters()}
    tuples = coefficients("polar_express", 5)
    result = {}
    for number in range(3):
        set_gradients(model, seed=number)
        for name, parameter in group_parameters(model, DECAYING)["matrix"].items():
            assert parameter.grad is not None
            update = nesterov(parameter.grad, buffers[name], 0.9)
            with torch.no_grad():
                parameter.mul_(1 - 0.04 * 0.1)
                change = direction(update, tuples, row_normalize=True).float()
                parameter.sub_(0.04 * step_scale(*parameter.shape) * change)
            result[name] = parameter.detach().numpy()
    return result


@pytest.mark.parametrize("size", [2, 3, 5])
def test_parallel_muon_equals_the_unsharded_one(size: int) -> None:
    """Stacks of 6 and 3 matrices over 2, 3 and 5 ranks: even, uneven, and with ranks that own only padding."""
    ((alone, state, count),) = on_ranks(1, three_steps, DECAYING)
    for name, expected in reference_steps().items():
        np.testing.assert_allclose(alone[name], expected, atol=1e-6, err_msg=name)
    results = on_ranks(size, three_steps, DECAYING)
    for got, _, _ in results:
        for name in alone:
            # The same sums in the same order, except for gradients that are not exact thirds and fifths.
            np.testing.assert_allclose(got[name], alone[name], atol=2e-3, err_msg=name)
            np.testing.assert_array_equal(got[name], results[0][0][name], err_msg=name)
    assert sum(result[2] for result in results) == count == 3 * 18
    shared_state = results[0][1]
    assert shared_state.keys() == state.keys()
    for name in state:
        np.testing.assert_allclose(shared_state[name], state[name], atol=1e-5, err_msg=name)
    assert all(not result[1] for result in results[1:])


def test_parallel_muon_in_bfloat16_as_published() -> None:
    """Gradients that travel and momentum that rests in bfloat16; these gradients are exact in it, so are their sums."""
    matrix = MuonConfig(weight_decay=0.1, momentum_dtype="bfloat16", reduction_dtype="bfloat16")
    ((alone, state, _),) = on_ranks(1, three_steps, TrainingConfig(matrix=matrix))
    for got, shared_state, _ in on_ranks(2, three_steps, TrainingConfig(matrix=matrix)):
        for name in alone:
            np.testing.assert_allclose(got[name], alone[name], atol=2e-2, err_msg=name)
        for name in shared_state:
            np.testing.assert_allclose(shared_state[name], state[name], rtol=2e-2, atol=2e-2, err_msg=name)


def one_step_from(ranks: Ranks, saved: dict[str, Tensor], config: TrainingConfig) -> tuple[dict[str, np.ndarray], int]:
    model = new_model()
    optimizer = TrainingOptimizer(model, config, ranks)
    optimizer.load_state(saved, num_steps=5)
    set_gradients(model, seed=9)
    step(optimizer)
    return weights(model), sum(t.numel() for t in optimizer.muon.state_tensors())


@pytest.mark.parametrize("size", [2, 3, 5])
def test_state_is_shared_out_anew_over_another_number_of_ranks(size: int) -> None:
    saved = {name: torch.from_numpy(value) for name, value in on_ranks(2, three_steps, DECAYING)[0][1].items()}
    ((alone, whole),) = on_ranks(1, one_step_from, saved, DECAYING)
    fresh = {name: torch.zeros_like(value) for name, value in saved.items()}
    ((forgetful, _),) = on_ranks(1, one_step_from, fresh, DECAYING)
    results = on_ranks(size, one_step_from, saved, DECAYING)
    for got, _ in results:
        for name in alone:
            np.testing.assert_allclose(got[name], alone[name], atol=1e-4, err_msg=name)
    name = "blocks.1.mlp.up.weight"
    assert np.abs(forgetful[name] - alone[name]).max() > 1e-2, "momentum makes no difference: the test shows nothing"
    padded = sum(rows * columns * size * math.ceil(count / size) for rows, columns, count in _stacks())
    assert sum(part for _, part in results) == padded
    assert whole == sum(rows * columns * count for rows, columns, count in _stacks())


def _stacks() -> list[tuple[int, int, int]]:
    return [(32, 32, 6), (16, 32, 6), (64, 32, 3), (32, 64, 3)]


@pytest.mark.parametrize(("key", "shape"), [("2x6x4", (6, 4)), ("2x4x6", (4, 6))])
def test_steps_of_rank_1_to_the_bit(key: str, shape: tuple[int, int]) -> None:
    """The published optimizer's own numbers through all of ParallelMuon (momentum in bfloat16, decay, row norms)."""
    from trainer.parallel_muon import ParallelMuon

    with np.load(Path(__file__).parent.parent / "vectors" / "optimizers.npz") as file:
        start, gradients, after = (file[f"muon_step_rank01/{key}/{n}"] for n in ("param0", "grads", "params_after"))
    matrices = {str(i): torch.nn.Parameter(torch.from_numpy(start[i].copy())) for i in range(2)}
    config = MuonConfig(orthogonalization="polar_express", row_normalize=True, momentum_dtype="bfloat16")
    muon = ParallelMuon(matrices, config, ALONE, compile=False)
    one = torch.ones((), dtype=torch.float64)
    for step_gradients, expected in zip(gradients, after, strict=True):
        for i, parameter in enumerate(matrices.values()):
            parameter.grad = torch.from_numpy(step_gradients[i].copy())
        with torch.no_grad():
            muon.start_reduction()
            muon.finish_reduction()
            muon.step(learning_rate=0.02, momentum=0.95, weight_decay=0.095, enabled=one)
        for i, parameter in enumerate(matrices.values()):
            assert parameter.shape == shape
            np.testing.assert_array_equal(parameter.detach().numpy(), expected[i])


def clipped(ranks: Ranks, scope: str, max_norm: float) -> tuple[float, float]:
    """(norm reported, norm of the averaged gradient that the optimizers got)."""
    model = new_model()
    config = TrainingConfig(gradient_clip_norm=max_norm, gradient_clip_scope=scope)  # type: ignore[arg-type]
    optimizer = TrainingOptimizer(model, config, ranks)
    for parameter in model.parameters():
        parameter.grad = torch.full_like(parameter, 0.5 if ranks.rank == 0 else -2.0)
    status = optimizer.reduce_gradients(torch.tensor(1.0))
    others = sum(float(p.grad.double().square().sum()) for p in optimizer._others.values() if p.grad is not None)
    matrices = torch.tensor(sum(float(s.gradients.double().square().sum()) for s in optimizer.muon._stacks))
    ranks.sum(matrices)
    return float(status[1]), math.sqrt(others + float(matrices))


def test_clipping_is_by_the_global_norm() -> None:
    count = sum(p.numel() for p in new_model().parameters())
    for size, each in ((1, 0.5), (2, 0.75)):
        for norm, left in on_ranks(size, clipped, "global", 3.0):
            assert norm == pytest.approx(each * count**0.5, rel=1e-5)
            assert left == pytest.approx(3.0, rel=1e-4)
    ((norm, left),) = on_ranks(1, clipped, "global", 1000.0)
    assert left == pytest.approx(norm, rel=1e-5)


def test_clipping_each_rank_before_the_reduction_is_something_else() -> None:
    """Both ranks clip to norm 3 and point in opposite directions: their mean vanishes, which it does not otherwise."""
    for norm, left in on_ranks(2, clipped, "per_rank_before_reduction", 3.0):
        assert norm == pytest.approx(0, abs=1e-3)
        assert left == pytest.approx(0, abs=1e-3)


def survives(ranks: Ranks, where: str) -> dict[str, Any]:
    """Step 2 has one bad number on the last rank alone; step 3 is healthy again."""
    model = new_model()
    optimizer = TrainingOptimizer(model, DECAYING, ranks)
    finite, kept = [], []
    for number in range(3):
        set_gradients(model, seed=number)
        loss = 2.0
        if number == 1 and ranks.rank == ranks.size - 1:
            if where == "loss":
                loss = math.nan
            else:
                gradient = dict(model.named_parameters())[where].grad
                assert gradient is not None
                gradient.view(-1)[-1] = math.inf
        before = weights(model)
        status = step(optimizer, loss=loss)
        finite.append(float(status[2]))
        kept.append(all(np.array_equal(before[name], value) for name, value in weights(model).items()))
    return {"finite": finite, "kept": kept}


@pytest.mark.parametrize("size", [1, 3])
@pytest.mark.parametrize("where", ["loss", "blocks.2.mlp.down.weight", "embedding.weight", "skip_weights"])
def test_one_bad_number_on_one_rank_stops_every_weight_on_all(size: int, where: str) -> None:
    for result in on_ranks(size, survives, where):
        assert result == {"finite": [1, 0, 0], "kept": [False, True, True]}


def test_configuration_without_decay_and_clipping_still_steps() -> None:
    model = new_model()
    optimizer = TrainingOptimizer(model, TrainingConfig(), ALONE)
    set_gradients(model, seed=0)
    before = weights(model)
    status = step(optimizer)
    assert float(status[0]) == 2.0
    assert all(not np.array_equal(before[name], value) for name, value in weights(model).items())
