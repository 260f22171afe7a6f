"""Coverage, the commit guard and the tally; each check is shown to catch a planted fault."""

from __future__ import annotations

import math

import numpy as np
import pytest
import torch

from eval.coverage import Coverage, CoverageError
from eval.plan import Span, WindowPlan, sliding_windows
from eval.scores import Scores, UpdateBeforeCommitError
from eval.scoring import TokenArray, score_windows
from eval.tally import Tally
from model.errors import InputError


def test_coverage_accepts_a_partition_in_any_order():
    coverage = Coverage(10)
    for start, end in [(6, 10), (0, 3), (3, 6)]:
        coverage.mark(start, end)
    coverage.require_complete()
    assert coverage.num_scored == 10


def test_coverage_refuses_a_duplicate():
    coverage = Coverage(10)
    coverage.mark(0, 6)
    with pytest.raises(CoverageError, match="target 5 would be scored a second time"):
        coverage.mark(5, 8)


def test_coverage_refuses_a_gap():
    coverage = Coverage(10)
    coverage.mark(0, 4)
    coverage.mark(5, 10)
    with pytest.raises(CoverageError, match="1 of 10 targets were never scored; the first is 4"):
        coverage.require_complete()


def test_coverage_refuses_targets_outside():
    with pytest.raises(CoverageError, match="outside"):
        Coverage(10).mark(8, 11)


def test_the_public_tail_bug_is_caught(load_model, make_tokens):
    """Ranks 21-31 and 44 accepted sliding windows of any remaining length and re-scored tail targets (8.2)."""
    tokens = make_tokens([50])
    context, stride, num_targets = 16, 4, 49
    starts = np.arange(0, num_targets, stride)
    ends = np.minimum(starts + context, num_targets)
    first_scored = np.where(starts == 0, 0, np.maximum(ends - stride, starts))
    plan = WindowPlan(starts, ends, first_scored)
    with pytest.raises(CoverageError, match="second time"):
        score_windows(load_model(), TokenArray(tokens), plan, Scores(num_targets), 4, "cpu")


def test_the_public_dropped_tail_is_caught(load_model, make_tokens):
    """The ternary entry's evaluator dropped tail tokens: only windows of full length (11.5)."""
    tokens = make_tokens([50])
    plan = sliding_windows(49, 16, 4)
    full = plan.ends - plan.starts == 16
    scores = Scores(49)
    cut = WindowPlan(plan.starts[full], plan.ends[full], plan.first_scored[full])
    score_windows(load_model(), TokenArray(tokens), cut, scores, 4, "cpu")
    with pytest.raises(CoverageError, match="never scored"):
        scores.coverage.require_complete()


def test_update_before_commit_raises():
    scores = Scores(8)
    scores.commit(torch.ones(1, 4), [Span(0, 0, 0, 4)])
    scores.permit_update([Span(0, 0, 0, 4)])
    with pytest.raises(UpdateBeforeCommitError, match=r"targets 2\.\.5"):
        scores.permit_update([Span(0, 0, 2, 4)])


def test_a_committed_loss_cannot_be_changed_afterwards():
    nll = torch.ones(1, 4)
    scores = Scores(4)
    scores.commit(nll, [Span(0, 0, 0, 4)])
    nll.zero_()
    scores.flush()
    assert scores.nats.tolist() == [1, 1, 1, 1]


def test_losses_that_are_not_finite_are_refused():
    scores = Scores(4)
    scores.commit(torch.tensor([[1.0, 2.0, math.nan, 3.0]]), [Span(0, 0, 0, 4)])
    with pytest.raises(InputError, match="loss of target 2 is nan"):
        scores.flush()


def test_tally_is_bits_per_byte():
    tally = Tally()
    tally.add(math.log(2.0) * 30, num_bytes=10, num_tokens=5)
    tally.merge(Tally(math.log(2.0) * 10, 10, 5))
    assert tally.bpb == pytest.approx(2.0, rel=1e-15)
    assert tally.nats_per_token == pytest.approx(4 * math.log(2.0), rel=1e-15)


def test_tally_of_nothing_is_no_number():
    assert math.isnan(Tally().bpb)
    assert math.isnan(Tally().nats_per_token)


def test_sums_are_float64():
    """Ten million losses of 1 + 2^-20 lose the small part in a float32 sum."""
    scores = Scores(1 << 21)
    scores.coverage.mark(0, 1 << 21)
    scores.nats[:] = 1 + 2.0**-20
    assert scores.tally(np.ones(1 << 21, np.uint16)).nats == (1 << 21) * (1 + 2.0**-20)
