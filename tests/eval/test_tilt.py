"""The n-gram tilt: exact counts, a proper distribution, and hints that know nothing of their target."""

from __future__ import annotations

import dataclasses
from collections import Counter, defaultdict

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from eval import tilt
from eval.config import EvalConfig, SGDConfig, TiltConfig, TTTConfig
from eval.full_weights import score_chunks
from eval.scores import Scores
from eval.tilt import NO_HINT, count_followers, find_hints, tilted_nll

TILT = TiltConfig(strength=2.0, orders=(1, 2, 3), confidences=(0.7, 0.6, 0.5), counts=(3, 2, 1))
SGD = SGDConfig(chunk_tokens=32, buffer_tokens=16, sequence_tokens=8, learning_rate=0.1)
CONFIG = EvalConfig(
    context_tokens=12, stride_tokens=4, batch_windows=3, ttt=TTTConfig(method="full", sgd=SGD), tilt=TILT
)


def slow_hints(tokens: list[int], config: TiltConfig) -> list[tuple[int, float]]:
    """One position at a time, dictionaries of counts, each updated after its position."""
    counts = {order: defaultdict(Counter) for order in config.orders}
    leaders: dict[tuple, int] = {}
    hints = []
    for position in range(1, len(tokens)):
        hint = (NO_HINT, 0.0)
        for order, least, count in zip(config.orders, config.confidences, config.counts, strict=True):
            context = tuple(tokens[position - order : position]) if position >= order else None
            seen = sum(counts[order][context].values()) if context else 0
            if seen:
                leader = leaders[context]
                share = counts[order][context][leader] / seen
                if share >= least and seen >= count:
                    hint = (leader, config.strength * share)
        hints.append(hint)
        for order in config.orders:
            if position >= order:
                context = tuple(tokens[position - order : position])
                followers = counts[order][context]
                followers[tokens[position]] += 1
                leader = leaders.get(context)
                if leader is None or followers[tokens[position]] > followers[leader]:
                    leaders[context] = tokens[position]
    return hints


@settings(max_examples=200)
@given(st.lists(st.integers(0, 3), min_size=2, max_size=80))
def test_hints_equal_a_slow_count(tokens):
    hints = find_hints(np.array(tokens, dtype=np.uint16), TILT)
    expected = slow_hints(tokens, TILT)
    assert hints.tokens.tolist() == [token for token, _ in expected]
    assert hints.strengths.tolist() == pytest.approx([strength for _, strength in expected], rel=1e-6)


@given(st.lists(st.integers(0, 2), min_size=10, max_size=60), st.data())
def test_hints_know_earlier_tokens_only(tokens, data):
    changed = data.draw(st.integers(1, len(tokens) - 1))
    other = tokens[:changed] + [(token + 1) % 3 for token in tokens[changed:]]
    before = find_hints(np.array(tokens, dtype=np.uint16), TILT)
    after = find_hints(np.array(other, dtype=np.uint16), TILT)
    # Target changed - 1 is the first changed token; its hint may not know that.
    assert before.tokens[:changed].tolist() == after.tokens[:changed].tolist()
    assert before.strengths[:changed].tolist() == after.strengths[:changed].tolist()


def test_a_stream_shorter_than_the_context_has_no_followers():
    best, share, seen = count_followers(np.array([1, 2, 3]), 5)
    assert best.tolist() == share.tolist() == seen.tolist() == [0, 0]


def test_the_tilted_distribution_sums_to_one():
    generator = torch.Generator().manual_seed(0)
    log_p = torch.log_softmax(torch.randn(1000, 50, generator=generator, dtype=torch.float64) * 3, -1)
    hint = torch.randint(50, (1000,), generator=generator)
    strength = torch.rand(1000, generator=generator, dtype=torch.float64) * 2
    hint_nll = -log_p.gather(1, hint[:, None])[:, 0]
    total = torch.zeros(1000, dtype=torch.float64)
    for token in range(50):
        total += torch.exp(-tilted_nll(-log_p[:, token], hint_nll, hint == token, strength))
    assert float((total - 1).abs().max()) < 1e-12


def score(model, tokens, config=CONFIG) -> np.ndarray:
    scores = Scores(len(tokens) - 1)
    score_chunks(model, tokens, config, scores)
    scores.coverage.require_complete()
    return scores.nats


def test_the_tilt_lowers_the_loss_of_repetitive_text(load_model):
    phrase = np.random.default_rng(3).integers(2, 48, 11)
    tokens = np.concatenate([[1], np.tile(phrase, 12)]).astype(np.uint16)
    plain = dataclasses.replace(CONFIG, tilt=TiltConfig())
    assert score(load_model(), tokens)[40:].mean() < score(load_model(), tokens, plain)[40:].mean() - 1.0


def test_later_tokens_leave_earlier_scores_bit_identical(load_model):
    model = load_model()
    tokens = np.concatenate([[1], np.random.default_rng(0).integers(2, 5, 90)]).astype(np.uint16)
    original = score(model, tokens)
    for changed in (20, 45, 80):
        other = tokens.copy()
        other[changed:] = 2 + (tokens[changed:] - 1) % 3
        assert (score(model, other)[: changed - 1] == original[: changed - 1]).all()


def assert_causal(find) -> None:
    """The check of every hint: none changes when its own target or anything later does."""
    tokens = np.concatenate([[1], np.random.default_rng(0).integers(2, 5, 90)]).astype(np.uint16)
    original = find(tokens, TILT)
    for target in range(20, 90):
        for last in range(2, 5):
            other = tokens.copy()
            other[target + 1] = last
            hints = find(other, TILT)
            assert (hints.tokens[: target + 1] == original.tokens[: target + 1]).all()
            assert (hints.strengths[: target + 1] == original.strengths[: target + 1]).all()


def test_a_gate_on_the_target_is_caught():
    """The public mistake: an expert that speaks only if the token to be predicted belongs to a class (11.5)."""

    def gated(tokens, config):
        hints = find_hints(tokens, config)
        speaks = tokens[1:] % 2 == 0
        return tilt.Hints(np.where(speaks, hints.tokens, NO_HINT), np.where(speaks, hints.strengths, 0))

    assert_causal(find_hints)
    with pytest.raises(AssertionError):
        assert_causal(gated)


def test_the_tilt_needs_the_full_method():
    with pytest.raises(ValueError, match="strength must be 0 unless"):
        EvalConfig(tilt=TILT)
