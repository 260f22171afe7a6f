"""Score-first adaptation: against a slow loop, document by document, and the rules it must never break."""

from __future__ import annotations

import dataclasses
import math

import numpy as np
import pytest
import torch

import eval.adapt
from eval.adapt import DocumentAdapter
from eval.config import TTTConfig
from eval.documents import find_documents
from eval.phases import score_adapting
from eval.plan import document_batches, fixed_windows
from eval.ranks import Ranks
from eval.scores import Scores, UpdateBeforeCommitError
from eval.scoring import TokenArray, score_windows
from model.network.adapters import AdapterSet

LENGTHS = [40, 9, 25, 33, 2, 17, 21, 1, 8, 60]
CONFIG = TTTConfig(
    chunk_tokens=8,
    window_tokens=20,
    batch_documents=4,
    rank=2,
    alpha=8.0,
    sites=("q", "k", "v", "attention", "mlp", "head"),
    learning_rate=0.02,
    beta1=0.5,
    beta2=0.9,
    weight_decay=0.1,
)


def adapt(model, tokens, config=CONFIG, dtype=np.float32, **options) -> np.ndarray:
    scores = Scores(len(tokens) - 1, dtype)
    score_adapting(model, tokens, find_documents(tokens, 1), config, scores, **options)
    if "ranks" not in options and "proceed" not in options:
        scores.coverage.require_complete()
    return scores.nats


def slow_document_nats(model, document: np.ndarray, config: TTTConfig) -> list[float]:
    """Methods 8.5 for one document, written out: no batch, no padding, AdamW by hand."""
    adapters = AdapterSet(
        model.config, 1, sites=config.sites, rank=config.rank, alpha=config.alpha, seed=config.seed
    ).double()
    parameters = list(adapters.parameters())
    first = [torch.zeros_like(p) for p in parameters]
    second = [torch.zeros_like(p) for p in parameters]
    n = len(document)
    num_chunks = math.ceil((n - 1) / config.chunk_tokens)
    nats: list[float] = []
    for k in range(num_chunks):
        e = min((k + 1) * config.chunk_tokens, n - 1)
        start = max(0, e - config.window_tokens)
        logits = model(torch.tensor(document[start:e].astype(np.int64))[None], adapters=adapters)[0]
        log_p = torch.log_softmax(logits, dim=-1)
        losses = torch.stack([-log_p[t - start, int(document[t + 1])] for t in range(k * config.chunk_tokens, e)])
        nats += losses.tolist()
        if k == num_chunks - 1:
            break
        gradients = torch.autograd.grad(losses.mean(), parameters)
        with torch.no_grad():
            for p, g, m, v in zip(parameters, gradients, first, second, strict=True):
                p.mul_(1 - config.learning_rate * config.weight_decay)
                m.mul_(config.beta1).add_(g, alpha=1 - config.beta1)
                v.mul_(config.beta2).addcmul_(g, g, value=1 - config.beta2)
                m_hat = m / (1 - config.beta1 ** (k + 1))
                v_hat = v / (1 - config.beta2 ** (k + 1))
                p.sub_(config.learning_rate * m_hat / (v_hat.sqrt() + config.epsilon))
    return nats


@pytest.mark.parametrize("batch_documents", [1, 4, 64])
def test_batches_equal_a_slow_loop_over_documents(load_model, make_tokens, batch_documents):
    model = load_model(torch.float64)
    tokens = make_tokens(LENGTHS)
    documents = find_documents(tokens, 1)
    expected: list[float] = []
    for start, n in zip(documents.starts, documents.num_targets, strict=True):
        expected += slow_document_nats(model, tokens[start : start + n + 1], CONFIG)
    config = dataclasses.replace(CONFIG, batch_documents=batch_documents)
    found = adapt(model, tokens, config, np.float64)
    np.testing.assert_allclose(found, expected, rtol=1e-7)
    frozen = adapt(model, tokens, config, np.float64, frozen=True)
    assert np.abs(found - frozen).max() > 0.05


def test_b_of_zero_is_the_frozen_model(load_model, make_tokens):
    """With a learning rate of 0, B stays 0 and the adapters must not be felt, to the bit."""
    model = load_model()
    tokens = make_tokens(LENGTHS)
    config = dataclasses.replace(CONFIG, learning_rate=0.0)
    assert (adapt(model, tokens, config) == adapt(model, tokens, config, frozen=True)).all()


def test_frozen_windows_of_a_whole_document_are_plain_scoring(load_model, make_tokens):
    model = load_model(torch.float64)
    tokens = make_tokens([64])
    config = dataclasses.replace(CONFIG, chunk_tokens=16, window_tokens=64)
    scores = Scores(63, np.float64)
    score_windows(model, TokenArray(tokens), fixed_windows(63, 64), scores, 1, "cpu")
    np.testing.assert_allclose(adapt(model, tokens, config, np.float64, frozen=True), scores.nats, rtol=1e-12)


@pytest.mark.parametrize("warm_start", [False, True])
def test_later_tokens_leave_earlier_scores_bit_identical(load_model, make_tokens, warm_start):
    """Within a document nothing before the change moves; other documents don't move unless A is warm."""
    model = load_model()
    tokens = make_tokens(LENGTHS)
    config = dataclasses.replace(CONFIG, warm_start=warm_start)
    documents = find_documents(tokens, 1)
    original = adapt(model, tokens, config)
    for document in (0, 3, 9):
        start, n = int(documents.starts[document]), int(documents.num_targets[document])
        for offset in (7, 8, 9, n - 3):
            changed = tokens.copy()
            position = start + offset
            changed[position : start + n] = 2 + (changed[position : start + n] - 1) % 40
            again = adapt(model, changed, config)
            assert (again[start : position - 1] == original[start : position - 1]).all()
            assert (again[position - 1 : start + n] != original[position - 1 : start + n]).any()
            if not warm_start:
                outside = np.r_[0:start, start + n : len(original)]
                assert (again[outside] == original[outside]).all()


def test_documents_scored_later_may_be_noise(load_model, make_tokens):
    """Replacing every document of a later batch by noise leaves the scores of all earlier batches identical."""
    model = load_model()
    tokens = make_tokens(LENGTHS)
    documents = find_documents(tokens, 1)
    config = dataclasses.replace(CONFIG, warm_start=True)
    original = adapt(model, tokens, config)
    batches = document_batches(documents.num_targets, config.batch_documents)
    noise = tokens.copy()
    for document in np.concatenate(batches[1:]):
        start, n = int(documents.starts[document]), int(documents.num_targets[document])
        noise[start + 1 : start + n] = make_tokens([n + 1], seed=5)[1:n]
    again = adapt(model, noise, config)
    for document in batches[0]:
        part = slice(int(documents.starts[document]), int(documents.starts[document] + documents.num_targets[document]))
        # The last target is the next document's BOS; its token is the same in both streams.
        assert (again[part] == original[part]).all()
    assert (again != original).any()


def test_an_update_before_the_commit_raises(load_model, make_tokens, monkeypatch):
    """A planted variant that learns first and scores afterwards cannot run."""
    model = load_model()
    tokens = make_tokens(LENGTHS)

    class Hasty(DocumentAdapter):
        def step(self, ids, targets, step, spans, scores):
            scores.permit_update([span for span in spans if step.trains[span.row]])
            super().step(ids, targets, step, spans, scores)

    monkeypatch.setattr(eval.adapt, "DocumentAdapter", Hasty)
    with pytest.raises(UpdateBeforeCommitError):
        adapt(model, tokens)


def test_every_update_asks_the_guard_first(load_model, make_tokens, monkeypatch):
    """No optimizer step happens without the guard having seen exactly the targets with a gradient."""
    events: list[object] = []
    permit = Scores.permit_update
    monkeypatch.setattr(Scores, "permit_update", lambda self, spans: (events.append("permit"), permit(self, spans)))
    step = torch.optim.AdamW.step
    monkeypatch.setattr(torch.optim.AdamW, "step", lambda self, *a: (events.append("step"), step(self, *a))[1])
    adapt(load_model(), make_tokens(LENGTHS))
    assert events.count("step") > 5
    assert events == ["permit", "step"] * (len(events) // 2)


def test_the_last_chunk_is_never_trained_on(load_model, make_tokens, monkeypatch):
    learned: list[tuple[int, int]] = []
    permit = Scores.permit_update

    def record(self, spans):
        learned.extend((span.target, span.target + span.length) for span in spans)
        permit(self, spans)

    monkeypatch.setattr(Scores, "permit_update", record)
    tokens = make_tokens(LENGTHS)
    adapt(load_model(), tokens)
    documents = find_documents(tokens, 1)
    expected = {
        (int(s + k * 8), int(s + k * 8 + 8))
        for s, n in zip(documents.starts, documents.num_targets, strict=True)
        for k in range(math.ceil(n / 8) - 1)
    }
    assert set(learned) == expected
    assert len(learned) == len(expected)


def test_adaptation_lowers_the_loss_of_repetitive_text(load_model):
    model = load_model()
    phrase = np.random.default_rng(3).integers(2, 48, 11)
    tokens = np.concatenate([[1], np.tile(phrase, 30)]).astype(np.uint16)
    config = dataclasses.replace(CONFIG, chunk_tokens=16, window_tokens=48, rank=4, beta1=0.9, weight_decay=0.0)
    adapted, frozen = adapt(model, tokens, config), adapt(model, tokens, config, frozen=True)
    assert (adapted[:16] == frozen[:16]).all()
    assert adapted[-100:].mean() < 0.6 * frozen[-100:].mean()


def test_the_distribution_sums_to_one_before_and_after_adaptation(load_model, make_tokens):
    model = load_model()
    tokens = make_tokens([500])
    adapter = DocumentAdapter(model, CONFIG, 1)
    adapter.begin()
    ids = torch.tensor(tokens[:500].astype(np.int64))[None]
    positions = np.random.default_rng(0).integers(0, 500, 1000)
    for learned in (False, True):
        if learned:
            generator = torch.Generator().manual_seed(0)
            for parameter in adapter.adapters.parameters():
                parameter.data.add_(torch.randn(parameter.shape, generator=generator), alpha=0.1)
        total = torch.zeros(1, 500, dtype=torch.float64)
        for token in range(model.config.vocab_size):
            nll = model.token_nll(ids, torch.full_like(ids, token), adapters=adapter.adapters)
            total += torch.exp(-nll.detach().double())
        assert np.abs(total[0].numpy()[positions] - 1).max() < 1e-5


def test_the_base_weights_stay_as_they_are(load_model, make_tokens):
    model = load_model()
    before = {name: value.clone() for name, value in model.state_dict().items()}
    adapt(model, make_tokens(LENGTHS))
    assert all(torch.equal(value, before[name]) for name, value in model.state_dict().items())


@pytest.mark.parametrize("world_size", [2, 4])
def test_shares_of_all_ranks_are_the_whole(load_model, make_tokens, world_size):
    model = load_model()
    tokens = make_tokens(LENGTHS)
    parts = [adapt(model, tokens, ranks=Ranks(rank, world_size)) for rank in range(world_size)]
    assert (np.sum(parts, axis=0) == adapt(model, tokens)).all()


def test_adaptation_stops_when_told_to(load_model, make_tokens):
    tokens = make_tokens(LENGTHS)
    scores = Scores(len(tokens) - 1)
    answers = iter([True, True, False])
    score_adapting(
        load_model(), tokens, find_documents(tokens, 1), CONFIG, scores, proceed=lambda count, nats: next(answers)
    )
    assert scores.coverage.num_scored == 3 * 2 * 8  # the first batch holds the two longest documents


@pytest.mark.parametrize("fails_in", ["forward", "backward"])
def test_running_out_of_gpu_memory_halves_the_documents(load_model, make_tokens, monkeypatch, capsys, fails_in):
    """In the forward nothing is committed yet; in the backward everything is, and must not be committed again."""
    tokens = make_tokens(LENGTHS)
    expected = adapt(load_model(torch.float64), tokens, dtype=np.float64)
    forward, gradients = DocumentAdapter._forward, DocumentAdapter._add_gradients

    def crowded_forward(self, ids, *arguments):
        if fails_in == "forward" and len(ids) > 2:
            raise torch.OutOfMemoryError("CUDA out of memory")
        return forward(self, ids, *arguments)

    def crowded_gradients(self, nll, *arguments):
        if fails_in == "backward" and len(nll) > 2:
            raise torch.OutOfMemoryError("CUDA out of memory")
        gradients(self, nll, *arguments)

    monkeypatch.setattr(DocumentAdapter, "_forward", crowded_forward)
    monkeypatch.setattr(DocumentAdapter, "_add_gradients", crowded_gradients)
    found = adapt(load_model(torch.float64), tokens, dtype=np.float64)
    np.testing.assert_allclose(found, expected, rtol=1e-9)
    assert "adapting 2 documents at a time" in capsys.readouterr().out
