"""The static plan: every target exactly once, tails included, nothing but lengths and settings decides."""

from __future__ import annotations

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from eval.documents import find_documents
from eval.plan import (
    chunk_steps,
    document_batches,
    fixed_windows,
    isolated_windows,
    sliding_windows,
    window_batches,
)
from model.errors import InputError


@given(num_targets=st.integers(1, 300), context=st.integers(1, 40), data=st.data())
def test_sliding_windows_score_each_target_once_with_the_most_context(num_targets, context, data):
    stride = data.draw(st.integers(1, context))
    plan = sliding_windows(num_targets, context, stride)
    scored = np.concatenate([np.arange(a, b) for a, b in zip(plan.first_scored, plan.ends, strict=True)])
    assert scored.tolist() == list(range(num_targets))
    assert (plan.ends - plan.starts <= context).all()
    assert (plan.starts % stride == 0).all()
    assert (plan.ends > plan.first_scored).all()
    # Methods 8.2: windows start at w while w + S - stride < N.
    assert plan.starts.tolist() == [
        0,
        *(w for w in range(stride, num_targets, stride) if w + context - stride < num_targets),
    ]


def test_fixed_windows_are_sliding_windows_of_full_stride():
    plan = fixed_windows(23, 5)
    assert plan.starts.tolist() == [0, 5, 10, 15, 20]
    assert plan.ends.tolist() == [5, 10, 15, 20, 23]
    assert plan.first_scored.tolist() == plan.starts.tolist()


@given(num_targets=st.integers(1, 300), context=st.integers(1, 40), batch=st.integers(1, 7))
def test_batches_cover_the_plan_with_windows_of_one_length(num_targets, context, batch):
    plan = fixed_windows(num_targets, context)
    batches = window_batches(plan, batch)
    assert [i for first, end in batches for i in range(first, end)] == list(range(len(plan)))
    for first, end in batches:
        assert end - first <= batch
        assert len(set((plan.ends - plan.starts)[first:end].tolist())) == 1
        assert len(set((plan.ends - plan.first_scored)[first:end].tolist())) == 1


@given(
    num_targets=st.integers(1, 300),
    context=st.integers(1, 40),
    batch=st.integers(1, 7),
    starts=st.sets(st.integers(0, 300), max_size=30),
)
def test_isolated_windows_hold_one_document_each(num_targets, context, batch, starts):
    plan = isolated_windows(num_targets, context, np.array(sorted(starts), dtype=np.int64))
    windows = list(zip(plan.starts.tolist(), plan.ends.tolist(), strict=True))
    assert sorted(target for start, end in windows for target in range(start, end)) == list(range(num_targets))
    cuts = starts | set(range(0, num_targets, context)) | {0}
    assert {start for start, _ in windows} == {cut for cut in cuts if cut < num_targets}
    assert plan.first_scored.tolist() == plan.starts.tolist()
    batches = window_batches(plan, batch)
    assert [i for first, end in batches for i in range(first, end)] == list(range(len(plan)))
    for first, end in batches:
        lengths = [stop - start for start, stop in windows[first:end]]
        assert min(lengths) >= max(lengths) // 2
        assert max(lengths) * len(lengths) <= batch * max(stop - start for start, stop in windows)


def test_documents_run_to_the_next_bos_inclusive():
    documents = find_documents(np.array([1, 5, 6, 1, 7, 1, 1, 8]), 1)
    assert documents.starts.tolist() == [0, 3, 5, 6]
    assert documents.num_targets.tolist() == [3, 2, 1, 1]


def test_a_bos_at_the_end_is_a_target_and_no_document():
    documents = find_documents(np.array([1, 5, 6, 1]), 1)
    assert documents.starts.tolist() == [0]
    assert documents.num_targets.tolist() == [3]


def test_tokens_before_the_first_bos_belong_to_a_document():
    documents = find_documents(np.array([9, 9, 1, 5]), 1)
    assert documents.starts.tolist() == [0, 2]
    assert documents.num_targets.tolist() == [2, 1]


@pytest.mark.parametrize("tokens", [[], [1], [5, 6, 7]])
def test_streams_without_a_document_are_refused(tokens):
    with pytest.raises(InputError, match="validation stream"):
        find_documents(np.array(tokens, dtype=np.int64), 1)


@given(st.lists(st.integers(0, 20), min_size=2, max_size=60))
def test_documents_partition_the_targets(tokens):
    tokens[0] = 1
    documents = find_documents(np.array(tokens), 1)
    owned = [t for s, n in zip(documents.starts, documents.num_targets, strict=True) for t in range(s, s + n)]
    assert owned == list(range(len(tokens) - 1))


def test_document_batches_are_sorted_by_length_and_start_with_the_longest():
    lengths = np.array([5, 30, 12, 61, 9, 25, 44, 17, 8, 33, 21, 14, 50, 10])
    batches = document_batches(lengths, 4)
    # The batches of methods.md B.3, whose documents end with a trailing BOS.
    assert [lengths[batch].tolist() for batch in batches] == [
        [50, 61],
        [25, 30, 33, 44],
        [12, 14, 17, 21],
        [5, 8, 9, 10],
    ]


def test_equal_lengths_keep_stream_order():
    assert [b.tolist() for b in document_batches(np.array([3, 3, 3, 3, 3]), 2)] == [[4], [2, 3], [0, 1]]


@given(lengths=st.lists(st.integers(1, 90), min_size=1, max_size=6), chunk=st.integers(1, 20), extra=st.integers(0, 30))
def test_chunk_steps_follow_the_definition(lengths, chunk, extra):
    """Against methods.md 8.5, document by document, in plain integer arithmetic."""
    window = chunk + extra
    lengths.sort()
    expected: dict[tuple[int, int], tuple[int, int, int, int, bool]] = {}
    for row, n in enumerate(lengths):
        for k in range(-(-n // chunk)):
            e = min((k + 1) * chunk, n)
            expected[row, k] = (max(0, e - window), e, k * chunk, e, (k + 1) * chunk < n)
    found = {}
    for step in chunk_steps(np.array(lengths), chunk, window):
        assert step.buffer_tokens <= window
        for span in step.spans:
            start, end = int(step.window_starts[span.row]), int(step.window_ends[span.row])
            assert step.first_position + span.column == span.target - start
            assert end - start <= step.buffer_tokens
            stop = span.target + span.length
            key = step.first_row + span.row, step.index
            found[key] = (start, end, span.target, stop, bool(step.trains[span.row]))
        assert min(span.column for span in step.spans) == 0
    assert found == expected


def test_documents_of_a_batch_must_be_in_order_of_length():
    with pytest.raises(ValueError, match="ascending"):
        next(chunk_steps(np.array([5, 3]), 2, 4))
