"""The baseline network reproduces the numbers of the published program (tests/vectors/rank42)."""

from pathlib import Path

import numpy as np
import pytest
import torch

from model.config import ModelConfig
from model.network.gpt import GPT, load

VECTORS = Path(__file__).parent.parent / "vectors" / "rank42.npz"
CONFIG = ModelConfig(vocab_size=64, num_layers=9, model_dim=32, num_heads=4, num_kv_heads=2)
RENAMED = {
    "attn.c_q.weight": "attention.q.weight",
    "attn.c_k.weight": "attention.k.weight",
    "attn.c_v.weight": "attention.v.weight",
    "attn.proj.weight": "attention.out.weight",
    "attn.q_gain": "attention.q_gain",
    "attn_scale": "attention_scale",
    "mlp.fc.weight": "mlp.up.weight",
    "mlp.proj.weight": "mlp.down.weight",
    "mlp_scale": "mlp_scale",
    "resid_mix": "residual_mix",
}


def our_name(published: str) -> str:
    if published.startswith("blocks."):
        _, layer, rest = published.split(".", 2)
        return f"blocks.{layer}.{RENAMED[rest]}"
    return {"tok_emb.weight": "embedding.weight", "skip_weights": "skip_weights"}[published]


@pytest.fixture(scope="module")
def vectors() -> dict[str, np.ndarray]:
    with np.load(VECTORS) as file:
        return dict(file)


@pytest.fixture(scope="module")
def model(vectors: dict[str, np.ndarray]) -> GPT:
    prefix = "param/"
    return load(CONFIG, {our_name(n[len(prefix) :]): a for n, a in vectors.items() if n.startswith(prefix)})


def test_parameter_count(model: GPT) -> None:
    assert sum(p.numel() for p in model.parameters()) == 67_876


def test_logits_and_loss(model: GPT, vectors: dict[str, np.ndarray]) -> None:
    ids, targets = torch.tensor(vectors["ids"]), torch.tensor(vectors["targets"])
    with torch.no_grad():
        np.testing.assert_allclose(model(ids).numpy(), vectors["logits/plain"], atol=2e-4, rtol=0)
        np.testing.assert_allclose(model.token_nll(ids, targets).mean(), vectors["loss/plain"], atol=1e-5, rtol=0)


def test_block_0(model: GPT, vectors: dict[str, np.ndarray]) -> None:
    seen: dict[str, torch.Tensor] = {}
    block = model.blocks[0]
    block.register_forward_hook(lambda _, args, out: seen.update(block0_in=args[0], block0_out=out))
    block.attention.out.register_forward_hook(lambda _, args, out: seen.update(block0_attn_preproj=args[0]))
    with torch.no_grad():
        model(torch.tensor(vectors["ids"]))
    for name, value in seen.items():
        np.testing.assert_allclose(value.numpy(), vectors[f"{name}/plain"], atol=2e-4, rtol=0, err_msg=name)
    assert len(seen) == 3
