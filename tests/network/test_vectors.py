"""The network reproduces the numbers of three published programs (tests/vectors, made by those programs)."""

import numpy as np
import pytest
import torch

from model.config import (
    HashEmbeddingConfig,
    HeadGateConfig,
    LaneConfig,
    ModelConfig,
    RecurrenceConfig,
    RopeScalingConfig,
    SmearConfig,
    ValueEmbeddingConfig,
)
from model.network.gpt import GPT, load
from model.network.rotary import rotary_tables
from tests.network import published

TINY = {"vocab_size": 64, "model_dim": 32, "num_heads": 4, "num_kv_heads": 2}
CONFIGS = {
    "rank42": ModelConfig(**TINY, num_layers=9),
    "rank23": ModelConfig(
        **TINY,
        num_layers=11,
        mlp_ratio=3,
        activation="leaky_relu_squared",
        rope_dims=4,
        num_xsa_layers=11,
        ln_scale=True,
        smear=SmearConfig("channel"),
        hash_embedding=HashEmbeddingConfig(num_buckets=96, dim=12),
        value_embedding=ValueEmbeddingConfig(layers=(9, 10), dim=8),
    ),
    "rank01": ModelConfig(
        **TINY,
        num_layers=11,
        mlp_ratio=4,
        activation="leaky_relu_squared",
        rope_dims=4,
        qk_gain_init=5,
        num_xsa_layers=11,
        ln_scale=True,
        skip_gates=True,
        smear=SmearConfig("token"),
        head_gate=HeadGateConfig("sparse", scale=0.5),
        lanes=LaneConfig("simultaneous", first_layer=8),
        recurrence=RecurrenceConfig(first_layer=3, last_layer=5, num_extra_passes=2),
    ),
}
PARAMETERS = {"rank42": 67_876, "rank23": 107_248, "rank01": 128_523 - 48}
"""48 of rank 1's are lane scalars of layers that have one lane."""
CASES = [
    ("rank42", "plain"),
    ("rank23", "plain"),
    ("rank01", "plain_rec0"),
    ("rank01", "plain_rec1"),
    ("rank01", "packed_full_rec0"),
    ("rank01", "packed_full_rec1"),
    ("rank01", "packed_max15_rec1"),
]


@pytest.fixture(scope="module")
def vectors() -> dict[str, dict[str, np.ndarray]]:
    return {name: published.read(name) for name in CONFIGS}


@pytest.fixture(scope="module")
def models(vectors: dict[str, dict[str, np.ndarray]]) -> dict[str, GPT]:
    return {name: load(config, published.weights(vectors[name], config)) for name, config in CONFIGS.items()}


@pytest.mark.parametrize("name", CONFIGS)
def test_parameter_count(name: str, models: dict[str, GPT]) -> None:
    assert sum(p.numel() for p in models[name].parameters()) == PARAMETERS[name]


@pytest.mark.parametrize(("name", "case"), CASES)
def test_logits_loss_and_block_0(
    name: str, case: str, models: dict[str, GPT], vectors: dict[str, dict[str, np.ndarray]]
) -> None:
    model, arrays = models[name], vectors[name]
    ids, targets = torch.tensor(arrays["ids"]), torch.tensor(arrays["targets"])
    cu_seqlens = None
    if case.startswith("packed"):
        ids, targets = ids.view(1, -1), targets.view(1, -1)
        cu_seqlens = torch.tensor(arrays[f"cu_seqlens/{case.rsplit('_', 1)[0]}"])
    model.set_extra_passes(2 if case.endswith("rec1") else 0)
    seen: dict[str, torch.Tensor] = {}
    block = model.blocks[0]
    hooks = [
        block.register_forward_hook(lambda _, args, out: seen.update(block0_in=args[0][0], block0_out=out[0][0])),
        block.attention.out.register_forward_hook(lambda _, args, out: seen.update(block0_attn_preproj=args[0])),
    ]
    with torch.no_grad():
        seen["logits"] = model(ids, cu_seqlens)
        nll = model.token_nll(ids, targets, cu_seqlens)
    for hook in hooks:
        hook.remove()
    np.testing.assert_allclose(nll.mean(), arrays[f"loss/{case}"], atol=1e-5, rtol=0)
    compared = {key: value for key, value in seen.items() if f"{key}/{case}" in arrays}
    for key, value in compared.items():
        np.testing.assert_allclose(value.numpy(), arrays[f"{key}/{case}"], atol=2e-4, rtol=0, err_msg=key)
    assert len(compared) == sum(key.endswith(f"/{case}") and not key.startswith("loss") for key in arrays)


def test_rotary_tables_beyond_the_original_length(vectors: dict[str, dict[str, np.ndarray]]) -> None:
    """Rank 23's tables, made for 1024 positions, in a row of 2048."""
    scaling = RopeScalingConfig("ntk", original_tokens=1024, context_tokens=2048)
    positions = [0, 1, 5, 47, 1000, 1023, 1024, 2047]
    for ours, name in zip(rotary_tables(2048, 16, 10_000.0, scaling=scaling), ("cos", "sin"), strict=True):
        np.testing.assert_allclose(ours[positions].numpy(), vectors["rank23"][f"rotary_len2048/{name}"], atol=1e-4)
