"""Scoring with frozen weights, against a slow loop in float64, and its causality."""

from __future__ import annotations

import numpy as np
import pytest
import torch

from eval.ledger import ByteLedger
from eval.plan import Share, fixed_windows, isolated_windows, sliding_windows
from eval.scores import Scores
from eval.scoring import TokenArray, score_plain, score_windows
from eval.tally import Tally


def score(model, tokens, context, stride, batch=3, dtype=np.float32) -> np.ndarray:
    scores = Scores(len(tokens) - 1, dtype)
    plan = sliding_windows(len(tokens) - 1, context, stride)
    score_windows(model, TokenArray(tokens), plan, scores, batch, "cpu")
    scores.coverage.require_complete()
    return scores.nats


def slow_nats(model, tokens, context, stride) -> list[float]:
    """Each target from its own forward over its own context, one at a time."""
    nats = []
    for target in range(len(tokens) - 1):
        if target < context:
            start = target - target % context if stride == context else 0
        else:
            start = -(-(target - context + 1) // stride) * stride
        logits = model(torch.tensor(tokens[start : target + 1].astype(np.int64))[None])
        log_p = torch.log_softmax(logits[0, -1], dim=-1)
        nats.append(-float(log_p[int(tokens[target + 1])]))
    return nats


@pytest.mark.parametrize(("context", "stride"), [(16, 16), (16, 4), (16, 5), (10, 1), (200, 7)])
def test_scores_equal_a_slow_loop_in_float64(load_model, make_tokens, context, stride):
    model = load_model(torch.float64)
    tokens = make_tokens([40, 3, 25, 7])
    expected = slow_nats(model, tokens, context, stride)
    np.testing.assert_allclose(score(model, tokens, context, stride, dtype=np.float64), expected, rtol=1e-11)


def test_sliding_with_full_stride_is_plain(load_model, make_tokens):
    model = load_model()
    tokens = make_tokens([40, 3, 25, 7])
    scores = Scores(len(tokens) - 1)
    score_windows(model, TokenArray(tokens), fixed_windows(len(tokens) - 1, 16), scores, 3, "cpu")
    assert (score(model, tokens, 16, 16) == scores.nats).all()


@pytest.mark.parametrize("stride", [16, 4])
def test_later_tokens_leave_earlier_scores_bit_identical(load_model, make_tokens, stride):
    model = load_model()
    tokens = make_tokens([40, 30, 25])
    original = score(model, tokens, 16, stride)
    for changed in (20, 45, 90):
        other = tokens.copy()
        other[changed:] = np.where(tokens[changed:] == 7, 8, 7)
        again = score(model, other, 16, stride)
        assert (again[: changed - 1] == original[: changed - 1]).all()
        assert (again[changed - 1 :] != original[changed - 1 :]).any()


def test_isolated_documents_equal_document_masked_attention(load_model, make_tokens):
    """Against the network's own document mask over fixed windows, one packed row each."""
    model = load_model(torch.float64)
    tokens = make_tokens([40, 3, 25, 1, 7])
    expected: list[float] = []
    for start in range(0, len(tokens) - 1, 16):
        window = torch.tensor(tokens[start : start + 17].astype(np.int64))[None]
        cuts = sorted({0, *(window[0, :-1] == 1).nonzero().flatten().tolist()})
        cu_seqlens = torch.tensor([*cuts, window.shape[1] - 1], dtype=torch.int32)
        expected += model.token_nll(window[:, :-1], window[:, 1:], cu_seqlens=cu_seqlens)[0].tolist()
    num_targets = len(tokens) - 1
    scores = Scores(num_targets, np.float64)
    plan = isolated_windows(num_targets, 16, np.flatnonzero(tokens == 1))
    score_windows(model, TokenArray(tokens), plan, scores, 3, "cpu")
    scores.coverage.require_complete()
    np.testing.assert_allclose(scores.nats, expected, rtol=1e-7)  # rotary tables are float32
    ledger = ByteLedger(np.ones(len(tokens), np.uint16), proved=False, lossless=None)
    tally = score_plain(model, TokenArray(tokens), ledger, 16, 3, "cpu", isolate_bos_id=1)
    assert tally.nats == pytest.approx(sum(expected), rel=1e-6)
    assert np.abs(score(model, tokens, 16, 16, dtype=np.float64) - scores.nats).max() > 0.05


def test_score_plain_sums_nats_and_bytes(load_model, make_tokens):
    model = load_model()
    tokens = make_tokens([40, 3, 25, 7])
    token_bytes = np.arange(len(tokens), dtype=np.uint16) % 5
    ledger = ByteLedger(token_bytes, proved=False, lossless=None)
    tally = score_plain(model, TokenArray(tokens), ledger, 16, 3, "cpu")
    expected = score(model, tokens, 16, 16).sum(dtype=np.float64)
    assert tally.nats == expected
    assert tally.num_bytes == int(token_bytes[1:].sum())
    assert tally.num_tokens == len(tokens) - 1


def test_score_plain_of_the_first_targets(load_model, make_tokens):
    tokens = make_tokens([40, 35])
    ledger = ByteLedger(np.ones(len(tokens), np.uint16), proved=False, lossless=None)
    tally = score_plain(load_model(), TokenArray(tokens), ledger, 16, 3, "cpu", max_targets=21)
    assert tally.num_tokens == tally.num_bytes == 21
    assert tally.nats == pytest.approx(score(load_model(), tokens[:22], 16, 16).sum(dtype=np.float64), rel=1e-6)


@pytest.mark.parametrize("world_size", [2, 4, 9])
def test_the_shares_of_all_ranks_add_up(load_model, make_tokens, world_size):
    model = load_model()
    tokens = make_tokens([40, 3, 25, 7, 60])
    ledger = ByteLedger(np.ones(len(tokens), np.uint16), proved=False, lossless=None)
    whole = score_plain(model, TokenArray(tokens), ledger, 8, 3, "cpu")
    total = Tally()
    for rank in range(world_size):
        total.merge(score_plain(model, TokenArray(tokens), ledger, 8, 3, "cpu", share=Share(rank, world_size)))
    assert total.num_tokens == whole.num_tokens
    assert total.nats == pytest.approx(whole.nats, rel=1e-12)


def test_running_out_of_gpu_memory_halves_the_batch(load_model, make_tokens, capsys):
    model = load_model()
    tokens = make_tokens([100])

    class Crowded:
        def token_nll(self, ids, targets, *, first_position):
            if len(ids) > 2:
                raise torch.OutOfMemoryError("CUDA out of memory")
            return model.token_nll(ids, targets, first_position=first_position)

    assert score(Crowded(), tokens, 10, 10, batch=8) == pytest.approx(score(model, tokens, 10, 10), rel=1e-6)
    assert "scoring 2 windows at a time" in capsys.readouterr().out


def test_scoring_stops_when_told_to(load_model, make_tokens):
    tokens = make_tokens([100])
    scores = Scores(99)
    answers = iter([True, False])
    plan = fixed_windows(99, 10)
    score_windows(load_model(), TokenArray(tokens), plan, scores, 2, "cpu", proceed=lambda n, nats: next(answers))
    assert scores.coverage.num_scored == 40
    assert scores.coverage.scored[:40].all()
