"""Score-first training of all weights over chunks: against a slow loop, and the rules it must never break."""

from __future__ import annotations

import dataclasses
import math

import numpy as np
import pytest
import torch
import torch.nn.functional as F

from eval.config import EvalConfig, SGDConfig, TTTConfig
from eval.documents import find_documents
from eval.full_weights import score_chunks, window_chunks
from eval.phases import score_adapting
from eval.plan import sliding_windows
from eval.scores import Scores, UpdateBeforeCommitError
from eval.scoring import TokenArray, score_windows

SGD = SGDConfig(
    chunk_tokens=32, buffer_tokens=16, sequence_tokens=8, learning_rate=0.5, num_epochs=2, gradient_clip_norm=0.3
)
CONFIG = EvalConfig(context_tokens=12, stride_tokens=4, batch_windows=3, ttt=TTTConfig(method="full", sgd=SGD))


def score(model, tokens, config=CONFIG, dtype=np.float32, **options) -> np.ndarray:
    scores = Scores(len(tokens) - 1, dtype)
    score_chunks(model, tokens, config, scores, **options)
    scores.coverage.require_complete()
    return scores.nats


def slow_nats(model, tokens, config) -> list[float]:
    """Methods 8.4 written out: one window at a time, momentum and clipping by hand. Changes the model."""
    sgd = config.ttt.sgd
    num_targets = len(tokens) - 1
    num_chunks = math.ceil(num_targets / sgd.chunk_tokens)
    parameters = list(model.parameters())
    velocity = [torch.zeros_like(p) for p in parameters]
    ids = torch.tensor(tokens.astype(np.int64))
    nats = [math.nan] * num_targets
    for chunk in range(num_chunks):
        w = 0
        while w == 0 or w + config.context_tokens - config.stride_tokens < num_targets:
            first = 0 if w == 0 else w + config.context_tokens - config.stride_tokens
            if first // sgd.chunk_tokens == chunk:
                end = min(w + config.context_tokens, num_targets)
                losses = F.cross_entropy(model(ids[None, w:end])[0], ids[w + 1 : end + 1], reduction="none")
                nats[first:end] = losses[first - w :].tolist()
            w += config.stride_tokens
        if chunk == num_chunks - 1:
            return nats
        start = chunk * sgd.chunk_tokens
        for _ in range(sgd.num_epochs):
            for p in parameters:
                p.requires_grad_(True)
            rows = range(start, start + sgd.chunk_tokens, sgd.sequence_tokens)
            x = torch.stack([ids[r : r + sgd.sequence_tokens] for r in rows])
            y = torch.stack([ids[r + 1 : r + sgd.sequence_tokens + 1] for r in rows])
            loss = F.cross_entropy(model(x).flatten(0, 1), y.flatten())
            gradients = torch.autograd.grad(loss, parameters)
            norm = torch.sqrt(sum((g * g).sum() for g in gradients))
            rate = sgd.learning_rate / 2 * (1 + math.cos(math.pi * chunk / (num_chunks - 1)))
            with torch.no_grad():
                for p, g, v in zip(parameters, gradients, velocity, strict=True):
                    v.mul_(sgd.momentum).add_(g * min(1.0, sgd.gradient_clip_norm / (norm + 1e-6)))
                    p.sub_(rate * v)
                    p.requires_grad_(False)
    return nats


def test_it_equals_a_slow_loop(load_model, make_tokens):
    tokens = make_tokens([40, 3, 55, 37])
    expected = slow_nats(load_model(torch.float64), tokens, CONFIG)
    found = score(load_model(torch.float64), tokens, dtype=np.float64)
    np.testing.assert_allclose(found, expected, rtol=1e-7)


def test_the_weights_are_restored_and_really_changed_in_between(load_model, make_tokens):
    model = load_model()
    before = {name: value.clone() for name, value in model.state_dict().items()}
    tokens = make_tokens([40, 3, 55, 37])
    adapted = score(model, tokens)
    assert all(torch.equal(value, before[name]) for name, value in model.state_dict().items())
    frozen = score(model, tokens, frozen=True)
    sliding = Scores(len(tokens) - 1)
    score_windows(model, TokenArray(tokens), sliding_windows(len(tokens) - 1, 12, 4), sliding, 3, "cpu")
    np.testing.assert_allclose(frozen, sliding.nats, rtol=1e-5)
    assert (adapted[:32] == frozen[:32]).all()
    assert np.abs(adapted[32:] - frozen[32:]).max() > 0.05


def test_frozen_blocks_keep_their_weights(load_model, make_tokens, monkeypatch):
    model = load_model()
    before = {name: value.clone() for name, value in model.state_dict().items()}
    seen: dict[str, torch.Tensor] = {}
    step = torch.optim.SGD.step

    def spy(self, *arguments):
        result = step(self, *arguments)
        seen.update({name: value.clone() for name, value in model.state_dict().items()})
        return result

    monkeypatch.setattr(torch.optim.SGD, "step", spy)
    config = dataclasses.replace(
        CONFIG, ttt=dataclasses.replace(CONFIG.ttt, sgd=dataclasses.replace(SGD, frozen_blocks=2))
    )
    score(model, make_tokens([40, 60]), config)
    same = {name for name, value in seen.items() if torch.equal(value, before[name])}
    assert same == {name for name in before if name.startswith(("blocks.0.", "blocks.1."))}


def test_later_tokens_leave_earlier_scores_bit_identical(load_model, make_tokens):
    model = load_model()
    tokens = make_tokens([40, 3, 55, 37])
    original = score(model, tokens)
    for changed in (20, 32, 33, 90):
        other = tokens.copy()
        other[changed:] = np.where(tokens[changed:] == 7, 8, 7)
        again = score(model, other)
        assert (again[: changed - 1] == original[: changed - 1]).all()
        assert (again[changed - 1 :] != original[changed - 1 :]).any()


def test_windows_go_to_the_chunk_of_their_first_scored_target():
    plan = sliding_windows(100, 12, 4)
    chunks = window_chunks(plan, 100, 32)
    assert sum(len(chunk) for chunk in chunks) == len(plan)
    for index, chunk in enumerate(chunks):
        assert (chunk.first_scored // 32 == index).all()
    assert [len(chunk) > 0 for chunk in window_chunks(sliding_windows(100, 80, 4), 100, 32)] == [
        True,
        False,
        True,
        True,
    ]


def test_training_on_the_next_chunk_raises(load_model, make_tokens, monkeypatch):
    """A planted variant that trains on a chunk before it is scored."""
    monkeypatch.setattr("eval.full_weights.window_chunks", lambda *a: window_chunks(*a)[::-1])
    with pytest.raises(UpdateBeforeCommitError):
        score(load_model(), make_tokens([40, 60]))


def test_it_stops_when_told_to(load_model, make_tokens):
    scores = Scores(99)
    answers = iter([True] * 4 + [False])
    score_chunks(load_model(), make_tokens([100]), CONFIG, scores, proceed=lambda count, nats: next(answers))
    assert 0 < scores.coverage.num_scored < 99
    with pytest.raises(StopIteration):
        next(answers)


def test_buffers_of_a_chunk_change_nothing_but_rounding(load_model, make_tokens):
    """A step averages over its buffers; here each buffer is one segment, so both ways see the same contexts."""
    model = load_model(torch.float64)
    stream = make_tokens([90, 150])
    results = []
    for buffer_tokens in (40, 20):
        sgd = SGDConfig(chunk_tokens=40, buffer_tokens=buffer_tokens, sequence_tokens=20, learning_rate=0.05)
        scores = Scores(len(stream) - 1, np.float64)
        config = TTTConfig(method="phased", sgd=sgd, prefix_documents=1, num_phases=1, batch_documents=1)
        records = score_adapting(model, stream, find_documents(stream, 1), config, scores)
        assert len(records[0].sgd_losses_nats) == 3
        results.append(scores.nats)
    np.testing.assert_allclose(results[0], results[1], rtol=1e-9)
