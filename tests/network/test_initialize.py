"""Initial weights: what each rule promises (1.13, 2.9, 2.10)."""

from dataclasses import replace

import numpy as np
import pytest
import torch

from launch.preset import load
from model.config import HashEmbeddingConfig, InitializationConfig, ModelConfig
from model.network.gpt import GPT
from model.network.initialize import initialize, overtone, spectral
from tests.network.reduced import TINY, reduce_width


def initialized(config: ModelConfig, seed: int = 0, **arguments: np.ndarray) -> GPT:
    model = GPT(config)
    initialize(model, seed, **arguments)
    return model


def test_same_seed_same_weights() -> None:
    config = reduce_width(load("rank23").settings.model)
    first, again, other = initialized(config), initialized(config), initialized(config, seed=1)
    for (name, a), b in zip(first.named_parameters(), again.parameters(), strict=True):
        assert torch.equal(a, b), name
    assert not torch.equal(first.embedding.weight, other.embedding.weight)


def test_orthogonal() -> None:
    block = initialized(replace(TINY, initialization=InitializationConfig("orthogonal"))).blocks[1]
    for matrix in (block.attention.q.weight, block.attention.k.weight, block.mlp.up.weight):
        rows, columns = matrix.shape
        gram = matrix @ matrix.T if rows <= columns else matrix.T @ matrix
        torch.testing.assert_close(gram, torch.eye(min(rows, columns)), atol=1e-5, rtol=0)


@pytest.mark.parametrize("matrices", ["uniform", "orthogonal", "normal"])
def test_branches_start_at_zero(matrices: str) -> None:
    config = replace(TINY, initialization=InitializationConfig(matrices))  # type: ignore[arg-type]
    for block in initialized(config).blocks:
        assert not block.attention.out.weight.any()
        assert not block.mlp.down.weight.any()


def test_uniform_and_normal_spread() -> None:
    uniform = initialized(TINY).blocks[0].mlp.up.weight
    assert uniform.abs().max() <= 32**-0.5
    assert uniform.std().item() == pytest.approx(32**-0.5 / 3**0.5, rel=0.05)
    normal = initialized(replace(TINY, initialization=InitializationConfig("normal"))).blocks[0].mlp.up.weight
    assert normal.std().item() == pytest.approx(0.02, rel=0.05)


def test_hash_branch_can_learn() -> None:
    """One of table and projection is not zero at the start: with both at zero no gradient would ever arrive (2.1)."""
    for name in ("rank23", "rank31", "rank44"):
        model = initialized(reduce_width(load(name).settings.model))
        ids = torch.randint(1, 64, (2, 12), generator=torch.Generator().manual_seed(0))
        model.blocks[-1].mlp.down.weight.data.normal_(0, 0.1)  # the head alone sees too little of an embedding's scale
        model.token_nll(ids, ids).mean().backward()
        gradients = model.hash_embedding.table.grad, model.hash_embedding.projection.weight.grad
        assert any(gradient.any() for gradient in gradients), name
    with pytest.raises(ValueError, match="never learns"):
        HashEmbeddingConfig(num_buckets=10, projection_init="zero")


def test_side_projections_are_scaled_in_the_older_entries() -> None:
    scaled, plain = (initialized(reduce_width(load(name).settings.model)) for name in ("rank25", "rank24"))
    for model, norm in ((scaled, 22**-0.5), (plain, 1)):
        for module in (model.hash_embedding, model.value_embedding):
            singular = torch.linalg.svdvals(module.projection.weight)
            torch.testing.assert_close(singular, torch.full_like(singular, norm), atol=1e-5, rtol=0)


def test_overtone_spectrum() -> None:
    table = torch.randn(64, 32, generator=torch.Generator().manual_seed(0)) * 0.005
    largest = torch.linalg.svdvals(table)[0]
    spectrum = torch.linalg.svdvals(overtone(table))
    torch.testing.assert_close(spectrum, largest / torch.arange(1, 33).sqrt(), atol=1e-6, rtol=1e-4)
    torch.testing.assert_close(
        initialized(reduce_width(load("rank43").settings.model)).embedding.weight.shape, (64, 32)
    )


def test_phase_mix() -> None:
    model = initialized(reduce_width(load("rank43").settings.model))
    for layer, block in enumerate(model.blocks):
        share = 1 / (1 + np.exp(-3 * (layer / 9 - 0.5)))
        np.testing.assert_allclose(block.residual_mix[0].detach(), share, rtol=1e-6)
        np.testing.assert_allclose(block.residual_mix[1].detach(), 1 - share, rtol=1e-6)


def test_spectral_embedding_follows_the_counts() -> None:
    """Two groups of tokens that only follow members of their own: rows of a group point the same way, rows of
    different groups don't."""
    group = torch.arange(64) % 2
    counts = (group[:, None] == group[None, :]).double() * 10
    config = replace(TINY, initialization=InitializationConfig(embedding="spectral"))
    model = initialized(config, bigram_counts=counts.numpy())
    drawn = initialized(TINY).embedding.weight
    table = spectral(counts, drawn)
    assert torch.equal(model.embedding.weight, table)
    leading = torch.nn.functional.normalize(table[:, :2].double(), dim=1)
    similarity = leading @ leading.T
    assert similarity[group[:, None] == group[None, :]].min() > 0.99
    assert similarity[group[:, None] != group[None, :]].max() < 0.1
    assert table[:, :2].std().item() == pytest.approx(drawn.std().item(), rel=1e-3)
    assert torch.equal(table[:, 2:], drawn[:, 2:])


def test_spectral_embedding_needs_counts() -> None:
    config = replace(TINY, initialization=InitializationConfig(embedding="spectral"))
    with pytest.raises(ValueError, match="bigram counts of shape"):
        initialized(config)
    with pytest.raises(ValueError, match="bigram counts of shape"):
        initialized(config, bigram_counts=np.ones((3, 3)))


def test_every_parameter_is_filled() -> None:
    """None is left as it was allocated."""
    for name in ("rank01", "rank14", "rank21", "rank25", "rank31", "binary"):
        model = GPT(reduce_width(load(name).settings.model))
        for parameter in model.parameters():
            torch.nn.init.constant_(parameter, float("nan"))
        initialize(model, 0)
        assert all(parameter.isfinite().all() for parameter in model.parameters()), name
