"""Calibration: the Hessians are the sums of what enters each product, the importances those of squared gradients."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
import torch
from torch import Tensor

from model.config import ModelConfig, RecurrenceConfig
from model.network.gpt import GPT
from model.network.projection import Projection
from model.text.shards import TokenStream, write_shard
from trainer.quantize.calibration import collect_hessians, training_batches
from trainer.quantize.config import CalibrationConfig
from trainer.quantize.importance import collect_importances
from trainer.ranks import Ranks

SMALL = {"vocab_size": 48, "num_layers": 4, "model_dim": 16, "num_heads": 2, "num_kv_heads": 1}
CONFIGS = {
    "tied": ModelConfig(**SMALL),
    "recurrent": ModelConfig(**SMALL, recurrence=RecurrenceConfig(first_layer=1, last_layer=2, num_extra_passes=2)),
    "untied_swiglu": ModelConfig(**SMALL, tied_head=False, activation="swiglu"),
    "narrow_fused": ModelConfig(**SMALL, embedding_dim=8, fused_qkv=True),
}


def make_model(config: ModelConfig, seed: int = 0) -> GPT:
    torch.manual_seed(seed)
    model = GPT(config)
    with torch.no_grad():
        for parameter in model.parameters():
            parameter.normal_(std=0.3)
    return model.eval()


def batches(count: int, seed: int = 1) -> list[Tensor]:
    generator = torch.Generator().manual_seed(seed)
    return [torch.randint(48, (2, 12), generator=generator) for _ in range(count)]


def recorded_inputs(model: GPT, ids: list[Tensor]) -> dict[str, np.ndarray]:
    """Every projection's inputs, float64 [tokens of all executions, I], by wrapping their forward."""
    seen: dict[str, list[np.ndarray]] = {}
    for name, module in model.named_modules():
        if isinstance(module, Projection):
            forward = module.forward

            def record(x: Tensor, adapter: object = None, forward=forward, name=name) -> Tensor:
                seen.setdefault(f"{name}.weight", []).append(x.detach().flatten(0, -2).double().numpy())
                return forward(x, adapter)  # type: ignore[no-any-return]

            module.forward = record  # type: ignore[method-assign, assignment]
    with torch.no_grad():
        for batch in ids:
            model(batch)
    return {name: np.concatenate(parts) for name, parts in seen.items()}


@pytest.mark.parametrize("kind", CONFIGS)
def test_hessians_are_sums_over_inputs(kind: str) -> None:
    model, ids = make_model(CONFIGS[kind]), batches(3)
    calibration = collect_hessians(model, ids)
    assert calibration.num_tokens == 3 * 24
    inputs = recorded_inputs(model, ids)
    table = {"embedding.weight"} if CONFIGS[kind].tied_head else set()
    assert calibration.hessians.keys() == inputs.keys() | table
    for name, x in inputs.items():
        hessian = calibration.hessians[name]
        assert hessian.dtype == torch.float32
        np.testing.assert_allclose(hessian.numpy(), x.T @ x, rtol=2e-5, atol=2e-5 * np.square(x).sum())


def test_hessian_of_a_tied_head_is_of_the_state_that_it_reads() -> None:
    model, ids = make_model(CONFIGS["tied"]), batches(1)
    hessian = collect_hessians(model, ids).hessians["embedding.weight"].double().numpy()
    with torch.no_grad():
        logits = model(ids[0]).double().flatten(0, 1).numpy()
    logits = 30 * np.arctanh(logits / 30)  # undo the soft cap
    state = np.linalg.lstsq(model.embedding.weight.detach().double().numpy(), logits.T, rcond=None)[0].T
    np.testing.assert_allclose(hessian, state.T @ state, rtol=1e-3, atol=1e-3)


def test_every_pass_of_the_recurrence_counts() -> None:
    model, ids = make_model(CONFIGS["recurrent"]), batches(1)
    model.set_extra_passes(0)
    calibration = collect_hessians(model, ids)
    assert model.extra_passes == 0
    model.set_extra_passes(2)
    inputs = recorded_inputs(model, ids)
    assert len(inputs["blocks.1.mlp.up.weight"]) == 3 * len(inputs["blocks.0.mlp.up.weight"])
    trace = np.square(inputs["blocks.1.mlp.up.weight"]).sum() / 24
    assert calibration.traces()["blocks.1.mlp.up.weight"] == pytest.approx(trace, rel=1e-4)


def test_matrices_with_one_input_share_one_hessian() -> None:
    hessians = collect_hessians(make_model(CONFIGS["untied_swiglu"]), batches(1)).hessians
    assert hessians["blocks.0.attention.k.weight"] is hessians["blocks.0.attention.q.weight"]
    assert hessians["blocks.0.mlp.gate.weight"] is hessians["blocks.0.mlp.up.weight"]
    assert hessians["blocks.0.mlp.down.weight"] is not hessians["blocks.0.mlp.up.weight"]


class OneOfTwo(Ranks):
    """Rank 0 of two whose sums get what the other rank's calls got, recorded before."""

    def __init__(self, other: list[Tensor] | None = None) -> None:
        super().__init__(0, 2, torch.device("cpu"))
        object.__setattr__(self, "calls", [])
        object.__setattr__(self, "other", other)

    def sum(self, tensor: Tensor) -> None:
        self.calls.append(tensor.clone())  # type: ignore[attr-defined]
        if self.other is not None:  # type: ignore[attr-defined]
            tensor += self.other[len(self.calls) - 1]  # type: ignore[attr-defined]


def test_sums_go_over_ranks() -> None:
    model, ids = make_model(CONFIGS["tied"]), batches(4)
    second = OneOfTwo()
    collect_hessians(model, ids[2:], second)
    together = collect_hessians(model, ids[:2], OneOfTwo(second.calls))  # type: ignore[attr-defined]
    alone = collect_hessians(model, ids)
    assert together.num_tokens == alone.num_tokens
    for name, hessian in alone.hessians.items():
        torch.testing.assert_close(together.hessians[name], hessian, rtol=1e-4, atol=1e-3)


def test_hooks_and_parameters_are_left_as_they_were() -> None:
    model = make_model(CONFIGS["tied"])
    collect_hessians(model, batches(1))
    collect_importances(model, batches(1))
    assert not any(module._forward_hooks or module._forward_pre_hooks for module in model.modules())
    assert "_hidden" not in vars(model)
    assert all(parameter.requires_grad and parameter.grad is None for parameter in model.parameters())


def test_rows_are_shared_out_over_ranks(tmp_path: Path) -> None:
    write_shard(tmp_path / "x_train_000000.bin", np.arange(1000, dtype=np.uint16))
    stream = TokenStream([tmp_path / "x_train_000000.bin"])
    config = CalibrationConfig("training", num_batches=3, batch_tokens=64, sequence_tokens=32)
    ranks = [Ranks(rank, 2, torch.device("cpu")) for rank in range(2)]
    shares = [torch.cat(list(training_batches(stream, config, r, rows_per_batch=2))) for r in ranks]
    rows = sorted(row.tolist() for share in shares for row in share)
    assert rows == [list(range(32 * n, 32 * n + 32)) for n in range(6)]
    long = CalibrationConfig("training", batch_tokens=2048, sequence_tokens=2048)
    with pytest.raises(ValueError, match="1000 training tokens are fewer than one row of 2048"):
        next(training_batches(stream, long, ranks[0]))


def test_no_batches_is_an_error() -> None:
    model = make_model(CONFIGS["tied"])
    with pytest.raises(ValueError, match="no batches"):
        collect_hessians(model, [])
    with pytest.raises(ValueError, match="no batches"):
        collect_importances(model, [])


def test_importances_are_mean_squared_gradients() -> None:
    """Against the exact Fisher information: gradients of every possible target, weighted by its probability."""
    model = make_model(ModelConfig(vocab_size=6, num_layers=2, model_dim=8, num_heads=2, num_kv_heads=1))
    ids = torch.randint(6, (1, 4), generator=torch.Generator().manual_seed(3))
    measured = collect_importances(model, [ids.expand(512, -1)] * 16)
    name = "blocks.1.mlp.up"
    outputs: list[Tensor] = []
    handle = model.get_submodule(name).register_forward_hook(lambda _m, _i, out: outputs.append(out))
    logits = model(ids)
    handle.remove()
    log_probabilities = logits.log_softmax(-1)[0]
    exact = torch.zeros(outputs[0].shape[-1])
    for position in range(4):
        for target in range(6):
            gradient = torch.autograd.grad(log_probabilities[position, target], outputs[0], retain_graph=True)[0]
            exact += log_probabilities[position, target].exp().detach() * gradient[0].square().sum(dim=0)
    torch.testing.assert_close(measured.outputs[f"{name}.weight"], exact / 4, rtol=0.1, atol=1e-3 * float(exact.max()))
    p = logits[0].softmax(-1)
    slope = 1 - (logits[0] / 30).square()
    expected = (p * (1 - p) * slope.square()).mean(dim=0)
    torch.testing.assert_close(measured.outputs["embedding.weight"], expected.detach())
    share = measured.table_rows / measured.table_rows.sum()
    torch.testing.assert_close(share, p.mean(dim=0).detach(), rtol=1e-4, atol=1e-6)
