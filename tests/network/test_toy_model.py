"""The toy model of the methods reference, appendix B.2 and B.3: whole forwards, and test-time training on top."""

import math

import numpy as np
import pytest
import torch

from model.config import HeadGateConfig, LaneConfig, ModelConfig, RecurrenceConfig, SmearConfig
from model.network.adapters import SITES, AdapterSet, LowRankAdapter
from model.network.gpt import GPT, load

CONFIG = ModelConfig(
    vocab_size=13,
    num_layers=11,
    model_dim=64,
    num_heads=2,
    num_kv_heads=1,
    mlp_ratio=2,
    activation="leaky_relu_squared",
    rope_dims=16,
    num_xsa_layers=11,
    ln_scale=True,
    skip_gates=True,
    smear=SmearConfig("token"),
    head_gate=HeadGateConfig("sparse", scale=0.5),
    lanes=LaneConfig("simultaneous", first_layer=8),
    recurrence=RecurrenceConfig(first_layer=3, last_layer=5, num_extra_passes=2),
)
IDS = torch.tensor([[1, 5, 9, 2, 7, 1, 3, 12, 6, 4, 8, 11]])
TARGETS = torch.tensor([[5, 9, 2, 7, 1, 3, 12, 6, 4, 8, 11, 1]])
DOCUMENTS = torch.tensor([0, 5, 12], dtype=torch.int32)


def fill(number: int, shape: tuple[int, ...], centre: float, amplitude: float) -> np.ndarray:
    index = np.arange(math.prod(shape), dtype=np.float64)
    return (centre + amplitude * np.sin(number + 0.37 * ((index * index) % 1009))).reshape(shape)


def toy_weights() -> dict[str, np.ndarray]:
    """Appendix B.2's table."""
    stacked = {
        "attention.q.weight": fill(2, (11, 64, 64), 0, 0.15),
        "attention.k.weight": fill(3, (11, 32, 64), 0, 0.15),
        "attention.v.weight": fill(4, (11, 32, 64), 0, 0.15),
        "attention.out.weight": fill(5, (11, 64, 64), 0, 0.15),
        "mlp.up.weight": fill(6, (11, 128, 64), 0, 0.15),
        "mlp.down.weight": fill(7, (11, 64, 128), 0, 0.1),
        "residual_mix": fill(8, (11, 2, 64), 0.5, 0.2),
        "attention_scale": fill(9, (11, 64), 1, 0.2),
        "mlp_scale": fill(10, (11, 64), 1, 0.2),
        "attention.q_gain": fill(11, (11, 2), 2, 0.5),
        "attention.gate.weight": fill(12, (11, 2, 12), 0, 0.5),
        "lanes.residual": fill(15, (11, 2), 1.1, 0.1),
        "lanes.writes": fill(16, (11, 2, 2), 1, 0.3),
    }
    weights = {
        f"blocks.{layer}.{name}": array[layer]
        for name, array in stacked.items()
        for layer in range(8 if name.startswith("lanes") else 0, 11)
    }
    return weights | {
        "embedding.weight": fill(1, (13, 64), 0, 0.1),
        "skip_weights": fill(13, (8, 64), 1, 0.2),
        "skip_gates": fill(14, (8, 64), 0, 0.5),
        "smear.weight": fill(17, (12,), 0, 1),
        "smear.strength": np.array([0.7]),
    }


@pytest.fixture(scope="module")
def model() -> GPT:
    return load(CONFIG, toy_weights(), activation_dtype=torch.float64).requires_grad_(False)


@pytest.mark.parametrize(
    ("passes", "first", "fourth", "last", "loss", "total"),
    [
        (
            0,
            (-0.307338, 4.745391, 0.554174, -0.225719),
            (-0.397419, -0.685647, 1.413573, 0.264032),
            (0.092542, 0.265921, -0.806980, 0.049493),
            4.314507,
            112.78867,
        ),
        (
            2,
            (-0.272735, 4.755627, 0.479047, -0.214922),
            (-0.392746, -0.686146, 1.491767, 0.232345),
            (0.038437, 0.321798, -0.795238, 0.090563),
            4.302501,
            112.56617,
        ),
    ],
    ids=["recurrence off", "recurrence on"],
)
def test_forward(
    model: GPT,
    passes: int,
    first: tuple[float, ...],
    fourth: tuple[float, ...],
    last: tuple[float, ...],
    loss: float,
    total: float,
) -> None:
    model.set_extra_passes(passes)
    logits = model(IDS, DOCUMENTS)[0]
    model.set_extra_passes(2)
    for position, expected in ((0, first), (5, first), (4, fourth), (11, last)):
        np.testing.assert_allclose(logits[position, :4], expected, atol=2e-6)
    nll = torch.nn.functional.cross_entropy(logits, TARGETS[0])
    assert nll.item() == pytest.approx(loss, abs=2e-6)
    assert logits.abs().sum().item() == pytest.approx(total, abs=5e-5)


def test_forward_without_document_mask(model: GPT) -> None:
    logits = model(IDS)[0]
    np.testing.assert_allclose(logits[11, :4], (-0.157872, 0.325840, -0.829838, 0.074208), atol=2e-6)
    assert model.token_nll(IDS, TARGETS).mean().item() == pytest.approx(4.338215, abs=2e-6)


def test_smear_gate(model: GPT) -> None:
    rows = model.embedding(IDS)
    np.testing.assert_allclose(rows[0, 0, :3], (-0.0935210, 0.0970339, 0.0019478), atol=1e-7)
    smeared = model.smear(rows, IDS)[0]
    np.testing.assert_allclose(smeared[1, :2], (0.015154, 0.087723), atol=1e-6)
    np.testing.assert_allclose(smeared[6, :2], (-0.057568, -0.040005), atol=1e-6)
    gate = (smeared[1] - rows[0, 1])[0] / rows[0, 0, 0]
    assert gate.item() == pytest.approx(0.310389, abs=1e-6)
    assert torch.equal(smeared[5], rows[0, 5])  # BOS


def stream() -> list[np.ndarray]:
    """Appendix B.3's documents, each with the BOS that follows it (the last: without)."""
    lengths = [5, 30, 12, 61, 9, 25, 44, 17, 8, 33, 21, 14, 50, 11]
    index = np.arange(sum(lengths))
    tokens = 2 + (7 * index**2 + 3 * index) % 11
    starts = np.cumsum([0, *lengths[:-1]])
    tokens[starts] = 1
    ends = np.minimum(starts + np.array(lengths) + 1, len(tokens))
    return [tokens[start:end] for start, end in zip(starts, ends, strict=True)]


def chunk_sums(model: GPT, tokens: np.ndarray, *, adapts: bool, window: int = 20, chunk: int = 8) -> list[float]:
    """Sum of nats of each chunk of one document, by the loop of section 8.5."""
    adapters = AdapterSet(CONFIG, 1, sites=SITES, rank=2, alpha=8, seed=0).to(torch.float64)
    with torch.no_grad():
        for module in adapters.modules():
            if isinstance(module, LowRankAdapter):
                rows, columns = torch.meshgrid(
                    torch.arange(module.a.shape[1]), torch.arange(module.a.shape[2]), indexing="ij"
                )
                number = 64 * rows + columns
                module.a.copy_((torch.sin(20 + 0.37 * ((number * number) % 1009).double()) / 8)[None])
    optimizer = torch.optim.AdamW(adapters.parameters(), lr=0.01, betas=(0.0, 0.99), eps=1e-10, weight_decay=0.5)
    ids, targets = torch.tensor(tokens[:-1])[None], torch.tensor(tokens[1:])[None]
    sums = []
    for start in range(0, targets.shape[1], chunk):
        end = min(start + chunk, targets.shape[1])
        first = max(0, end - window)
        nll = model.token_nll(ids[:, first:end], targets[:, first:end], adapters=adapters)[:, start - first :]
        sums.append(nll.sum().item())
        if adapts and end < targets.shape[1]:
            optimizer.zero_grad()
            nll.mean().backward()
            optimizer.step()
    return sums


def test_frozen_scores_of_every_document(model: GPT) -> None:
    """Windows of 20, chunks of 8, nothing learned: the sum over all 339 targets."""
    documents = stream()
    assert sum(len(document) for document in documents) == 340 + 13
    total = sum(sum(chunk_sums(model, document, adapts=False)) for document in documents)
    assert total == pytest.approx(1385.025912, abs=2e-4)


def test_adapters_at_every_site(model: GPT) -> None:
    """Document 1 alone, by chunk, adapters at q, k, v, both branches and the head of all 17 executions."""
    expected = (36.124442, 32.409309, 30.482161, 24.964051), (36.124442, 31.052107, 26.395463, 19.319023)
    for adapts, sums in zip((False, True), expected, strict=True):
        np.testing.assert_allclose(chunk_sums(model, stream()[1], adapts=adapts), sums, atol=1e-5)
