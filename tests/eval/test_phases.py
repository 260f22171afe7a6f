"""Phased test-time training against the reference numbers of methods.md B.3, on the model of B.2, in float64."""

from __future__ import annotations

import dataclasses

import numpy as np
import pytest
import torch

from eval.adapt import DocumentAdapter
from eval.config import SGDConfig, TTTConfig
from eval.documents import Documents, find_documents
from eval.global_sgd import segment_starts
from eval.phases import score_adapting
from eval.plan import document_batches, document_phases
from eval.scores import Scores, UpdateBeforeCommitError
from model.config import HeadGateConfig, LaneConfig, ModelConfig, RecurrenceConfig, SmearConfig
from model.network import gpt

LAYERS, WIDTH = 11, 64
LENGTHS = [5, 30, 12, 61, 9, 25, 44, 17, 8, 33, 21, 14, 50, 11]
TTT = TTTConfig(
    method="phased",
    chunk_tokens=8,
    window_tokens=20,
    batch_documents=4,
    rank=2,
    alpha=8.0,
    sites=("q", "k", "v", "attention", "mlp", "head"),
    learning_rate=0.01,
    beta1=0.0,
    beta2=0.99,
    weight_decay=0.5,
    warm_start=True,
    prefix_documents=7,
    num_phases=3,
    sgd=SGDConfig(chunk_tokens=40, buffer_tokens=40, sequence_tokens=20, learning_rate=0.05),
)


def toy(number: int, shape: tuple[int, ...], centre: float, amplitude: float) -> np.ndarray:
    index = np.arange(np.prod(shape), dtype=np.int64)
    return (centre + amplitude * np.sin(number + 0.37 * ((index * index) % 1009))).reshape(shape)


def toy_arrays() -> dict[str, np.ndarray]:
    stacked = {
        "attention.q.weight": toy(2, (LAYERS, 64, 64), 0, 0.15),
        "attention.k.weight": toy(3, (LAYERS, 32, 64), 0, 0.15),
        "attention.v.weight": toy(4, (LAYERS, 32, 64), 0, 0.15),
        "attention.out.weight": toy(5, (LAYERS, 64, 64), 0, 0.15),
        "mlp.up.weight": toy(6, (LAYERS, 128, 64), 0, 0.15),
        "mlp.down.weight": toy(7, (LAYERS, 64, 128), 0, 0.1),
        "residual_mix": toy(8, (LAYERS, 2, 64), 0.5, 0.2),
        "attention_scale": toy(9, (LAYERS, 64), 1, 0.2),
        "mlp_scale": toy(10, (LAYERS, 64), 1, 0.2),
        "attention.q_gain": toy(11, (LAYERS, 2), 2, 0.5),
        "attention.gate.weight": toy(12, (LAYERS, 2, 12), 0, 0.5),
        "lanes.residual": toy(15, (LAYERS, 2), 1.1, 0.1),
        "lanes.writes": toy(16, (LAYERS, 2, 2), 1, 0.3),
    }
    arrays = {
        f"blocks.{layer}.{name}": value[layer]
        for name, value in stacked.items()
        for layer in range(LAYERS)
        if layer >= 8 or not name.startswith("lanes.")
    }
    return arrays | {
        "embedding.weight": toy(1, (13, 64), 0, 0.1),
        "skip_weights": toy(13, (8, 64), 1, 0.2),
        "skip_gates": toy(14, (8, 64), 0, 0.5),
        "smear.weight": toy(17, (12,), 0, 1),
        "smear.strength": np.array([0.7]),
    }


@pytest.fixture(scope="module")
def toy_model() -> gpt.GPT:
    config = ModelConfig(
        vocab_size=13,
        num_layers=LAYERS,
        model_dim=WIDTH,
        num_heads=2,
        num_kv_heads=1,
        mlp_ratio=2,
        activation="leaky_relu_squared",
        rope_dims=16,
        num_xsa_layers=LAYERS,
        ln_scale=True,
        skip_gates=True,
        smear=SmearConfig("token"),
        head_gate=HeadGateConfig("sparse", scale=0.5),
        lanes=LaneConfig("simultaneous", first_layer=8),
        recurrence=RecurrenceConfig(first_layer=3, last_layer=5, num_extra_passes=2),
    )
    return gpt.load(config, toy_arrays(), activation_dtype=torch.float64).requires_grad_(False)


@pytest.fixture(autouse=True)
def _toy_a(monkeypatch):
    """Every A as in B.3, in place of random numbers."""
    create = DocumentAdapter.__init__

    def create_with_toy_a(self, *arguments):
        create(self, *arguments)
        n = np.arange(TTT.rank * WIDTH, dtype=np.int64)
        a = torch.tensor(np.sin(20 + 0.37 * ((n * n) % 1009)) / 8).view(1, TTT.rank, WIDTH)
        self._initial_a = [a for _ in self._initial_a]

    monkeypatch.setattr(DocumentAdapter, "__init__", create_with_toy_a)


def toy_tokens() -> tuple[np.ndarray, np.ndarray]:
    index = np.arange(sum(LENGTHS), dtype=np.int64)
    tokens = 2 + (7 * index * index + 3 * index) % 11
    tokens[np.cumsum([0, *LENGTHS[:-1]])] = 1
    return tokens.astype(np.uint16), np.where(tokens == 1, 0, 1 + index % 5)


def score(model, config, **options) -> tuple[Scores, list]:
    tokens, _ = toy_tokens()
    scores = Scores(len(tokens) - 1, np.float64)
    records = score_adapting(model, tokens, find_documents(tokens, 1), config, scores, **options)
    scores.coverage.require_complete()
    return scores, records


def test_the_model_is_the_one_of_b2(toy_model):
    ids = torch.tensor([[1, 5, 9, 2, 7, 1, 3, 12, 6, 4, 8, 11]])
    logits = toy_model(ids, cu_seqlens=torch.tensor([0, 5, 12], dtype=torch.int32))[0]
    assert float(logits.abs().sum()) == pytest.approx(112.56617, abs=6e-6)


def test_without_adaptation(toy_model):
    scores, _ = score(toy_model, TTT, frozen=True)
    assert scores.nats.sum() == pytest.approx(1385.025912, abs=6e-7)


def test_one_document_alone(toy_model):
    tokens, token_bytes = toy_tokens()
    document = tokens[5:36]
    for frozen, expected in (
        (True, [36.124442, 32.409309, 30.482161, 24.964051]),
        (False, [36.124442, 31.052107, 26.395463, 19.319023]),
    ):
        scores = Scores(30, np.float64)
        documents = Documents(np.array([0]), np.array([30]))
        config = dataclasses.replace(TTT, method="lora")
        score_adapting(toy_model, document, documents, config, scores, frozen=frozen)
        assert np.add.reduceat(scores.nats, [0, 8, 16, 24]) == pytest.approx(expected, abs=6e-7)
    assert scores.tally(token_bytes[6:36]).num_bytes == 89


def test_three_phases(toy_model):
    before = {name: value.clone() for name, value in toy_model.state_dict().items()}
    scores, records = score(toy_model, TTT)
    tokens, token_bytes = toy_tokens()
    documents = find_documents(tokens, 1)
    lengths = documents.num_targets + 1
    per_document = np.add.reduceat(scores.nats, documents.starts)
    phases = [per_document[record.scored_documents].sum() for record in records]
    assert np.cumsum(phases) == pytest.approx([354.672431, 783.199140, 978.968529, 1068.936648], abs=6e-7)
    tally = scores.tally(token_bytes[1:])
    assert (tally.num_tokens, tally.num_bytes) == (339, 980)
    assert tally.bpb == pytest.approx(1.573622, abs=6e-7)
    assert tally.nats_per_token == pytest.approx(3.153205, abs=6e-7)
    assert [lengths[record.scored_documents].tolist() for record in records] == [
        [51, 62],
        [26, 31, 34, 45],
        [13, 15, 18, 22],
        [6, 9, 10, 11],
    ]
    assert [lengths[record.learned_documents].tolist() for record in records] == [
        [51, 62],
        [26, 31, 34, 45],
        [13, 15, 18, 22, 26, 31, 34],
        [],
    ]
    losses = [loss for record in records for loss in record.sgd_losses_nats]
    norms = [norm for record in records for norm in record.sgd_gradient_norms]
    expected_losses = [4.102452, 3.708985, 3.600258, 3.314161, 2.970424, 2.981817, 2.746600, 2.570293]
    expected_norms = [5.059525, 4.570441, 4.365049, 4.179948, 3.688795, 3.364382, 3.094459, 3.022100]
    assert losses == pytest.approx(expected_losses, abs=6e-7)
    assert norms == pytest.approx(expected_norms, abs=6e-7)
    assert all(torch.equal(value, before[name]) for name, value in toy_model.state_dict().items())


def test_learning_from_documents_that_are_not_scored_raises(toy_model, monkeypatch):
    """A planted variant that learns from the longest documents of all, scored or not."""
    phases = document_phases

    def cheat(batches, prefix_documents, num_phases):
        planned = phases(batches, prefix_documents, num_phases)
        return [dataclasses.replace(planned[0], learned=batches[1]), *planned[1:]]

    monkeypatch.setattr("eval.phases.document_phases", cheat)
    with pytest.raises(UpdateBeforeCommitError):
        score(toy_model, TTT)


def test_unscored_documents_may_be_noise(toy_model):
    """Changing documents of later batches leaves every score of earlier phases bit-identical."""
    tokens, _ = toy_tokens()
    documents = find_documents(tokens, 1)
    original, records = score(toy_model, TTT)
    noise = tokens.copy()
    for document in records[-1].scored_documents:
        start, n = int(documents.starts[document]), int(documents.num_targets[document])
        noise[start + 1 : start + n] = 2 + (noise[start + 1 : start + n] + 3) % 11
    scores = Scores(len(tokens) - 1, np.float64)
    score_adapting(toy_model, noise, documents, TTT, scores)
    for record in records[:-1]:
        for document in record.scored_documents:
            part = slice(documents.starts[document], documents.starts[document] + documents.num_targets[document])
            assert (scores.nats[part] == original.nats[part]).all()
    assert (scores.nats != original.nats).any()


def test_the_published_boundaries():
    """50,000 documents in batches of 64: rank 1's boundaries, each reached by the end of a batch (8.6)."""
    batches = document_batches(np.arange(1, 50_001), 64)
    phases = document_phases(batches, 2500, 3)
    assert [len(phase.learned) for phase in phases] == [833, 1666, 2500, 0]
    scored = np.cumsum([sum(len(batches[i]) for i in phase.batches) for phase in phases])
    assert scored.tolist() == [16 + 13 * 64, 16 + 26 * 64, 16 + 39 * 64, 50_000]
    first = phases[0].learned
    assert (np.diff(first) > 0).all()
    assert first[0] == 50_000 - (16 + 13 * 64)


def test_segments_begin_at_documents_and_at_the_cap():
    assert segment_starts(np.array([5, 1, 6, 6, 6, 6, 6, 1]), 1, 3) == [0, 1, 4, 7]
    assert segment_starts(np.array([1, 6, 6, 6, 6]), None, 2) == [0, 2, 4]
