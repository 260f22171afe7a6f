"""The static plan: which window or document is scored in which batch, with which other ones.

Everything here is a pure function of lengths and configuration, and never of timing or of the number of processes:
batches are fixed globally and then shared out. Nothing is dropped at a tail.
"""

from __future__ import annotations

import itertools
from collections.abc import Iterator
from dataclasses import dataclass
from typing import NamedTuple

import numpy as np
import numpy.typing as npt

IntArray = npt.NDArray[np.int64]


class Span(NamedTuple):
    """`length` targets from `target` on, whose losses stand in `row` of a tensor of losses from `column` on."""

    row: int
    column: int
    target: int
    length: int


@dataclass(frozen=True)
class Share:
    """This process's part of the batches: those whose number is `rank` modulo `world_size`."""

    rank: int = 0
    world_size: int = 1

    def __post_init__(self) -> None:
        if not 0 <= self.rank < self.world_size:
            raise ValueError(f"rank must be in [0, {self.world_size}), not {self.rank}")

    def owns(self, batch_index: int) -> bool:
        return batch_index % self.world_size == self.rank


@dataclass(frozen=True)
class WindowPlan:
    """Windows of a token stream, in the order of scoring; int64 arrays of one entry per window.

    starts, ends: window w reads tokens starts[w] .. ends[w] - 1 and predicts tokens starts[w] + 1 .. ends[w], which are
        targets starts[w] .. ends[w] - 1.
    first_scored: targets first_scored[w] .. ends[w] - 1 are scored; the ones before are context.
    ragged: windows have many lengths, in descending order, and are batched with padding.
    """

    starts: IntArray
    ends: IntArray
    first_scored: IntArray
    ragged: bool = False

    def __len__(self) -> int:
        return len(self.starts)


def sliding_windows(num_targets: int, context_tokens: int, stride_tokens: int) -> WindowPlan:
    """Windows at 0, stride, 2 stride, ... (methods.md 8.2), each target scored once with the most context.

    Window 0 scores all its targets, later ones only the last `stride_tokens`. A window is accepted while it still adds
    a target (w + context - stride < num_targets), so no tail target is scored twice, as public evaluators did.
    """
    if not 1 <= stride_tokens <= context_tokens:
        raise ValueError(f"stride_tokens must be in [1, {context_tokens}], not {stride_tokens}")
    overlap = context_tokens - stride_tokens
    num_windows = max(1, -(-(num_targets - overlap) // stride_tokens))
    starts = np.arange(num_windows, dtype=np.int64) * stride_tokens
    ends = np.minimum(starts + context_tokens, num_targets)
    first_scored = starts + overlap
    first_scored[0] = 0
    return WindowPlan(starts, ends, first_scored)


def fixed_windows(num_targets: int, context_tokens: int) -> WindowPlan:
    """Consecutive windows of `context_tokens`; the last one may be shorter, and every target is scored."""
    return sliding_windows(num_targets, context_tokens, context_tokens)


def isolated_windows(num_targets: int, context_tokens: int, document_starts: IntArray) -> WindowPlan:
    """The windows of `fixed_windows`, cut again where a document starts, so that none sees another document.

    This is document-masked attention over fixed windows (methods.md 8.1). `document_starts` are token positions.
    Longest windows first; equal lengths keep stream order.
    """
    inside = document_starts[(document_starts > 0) & (document_starts < num_targets)]
    starts = np.union1d(np.arange(0, num_targets, context_tokens), inside).astype(np.int64)
    ends = np.append(starts[1:], num_targets)
    order = np.argsort(starts - ends, kind="stable")
    return WindowPlan(starts[order], ends[order], starts[order], ragged=True)


def window_batches(plan: WindowPlan, batch_windows: int) -> list[tuple[int, int]]:
    """Cuts a plan into batches [first, end) of at most `batch_windows` consecutive windows of one shape.

    Windows of one shape have the same length and score the same number of targets. The batches of a ragged plan hold
    windows down to half the length of their longest, and more of them where they are shorter.
    """
    if plan.ragged:
        return _ragged_batches(plan, batch_windows)
    changes = (np.diff(plan.ends - plan.starts) != 0) | (np.diff(plan.ends - plan.first_scored) != 0)
    cuts = [0, *(np.flatnonzero(changes) + 1).tolist(), len(plan)]
    batches: list[tuple[int, int]] = []
    for run_start, run_end in itertools.pairwise(cuts):
        firsts = range(run_start, run_end, batch_windows)
        batches.extend((first, min(first + batch_windows, run_end)) for first in firsts)
    return batches


def _ragged_batches(plan: WindowPlan, batch_windows: int) -> list[tuple[int, int]]:
    lengths = plan.ends - plan.starts
    batch_tokens = batch_windows * int(lengths[0])
    batches: list[tuple[int, int]] = []
    first = 0
    while first < len(plan):
        longest = int(lengths[first])
        too_short = int(np.searchsorted(-lengths, -(longest // 2), side="right"))
        end = max(first + 1, min(first + batch_tokens // longest, too_short))
        batches.append((first, end))
        first = end
    return batches


def document_batches(num_targets: IntArray, batch_documents: int) -> list[IntArray]:
    """Groups documents of similar length: batches of document numbers, each ascending by length.

    Documents are sorted by length (stable: ties keep stream order) and cut every `batch_documents`; the batch of the
    longest documents comes first, so that it doesn't end up alone at the end of a parallel run (methods.md 8.6).
    """
    order = np.argsort(num_targets, kind="stable").astype(np.int64)
    batches = [order[first : first + batch_documents] for first in range(0, len(order), batch_documents)]
    return batches[::-1]


@dataclass(frozen=True)
class Phase:
    """Batches scored with the same base weights, and what those weights learn afterwards.

    batches: numbers of the batches.
    learned: numbers of the documents that global SGD then learns from, ascending by length; empty for the last phase.
    """

    batches: range
    learned: IntArray


def document_phases(batches: list[IntArray], prefix_documents: int, num_phases: int) -> list[Phase]:
    """Cuts document batches into phases (methods.md 8.6, on a static plan).

    Phase k of n ends after the batch with which at least floor(prefix k/n) documents are scored in all; the base
    weights then learn from that many of the scored documents, the shortest of them. What follows is the last phase. No
    phase ends with the last batch, because nothing would use the weights.
    """
    ascending = {int(document): place for place, document in enumerate(np.concatenate(batches[::-1]))}
    scored: list[int] = []
    phases: list[Phase] = []
    first = 0
    for index, batch in enumerate(batches[:-1]):
        scored.extend(batch.tolist())
        boundary = prefix_documents * (len(phases) + 1) // num_phases
        if len(phases) < num_phases and len(scored) >= boundary:
            learned = sorted(scored, key=ascending.__getitem__)[:boundary]
            phases.append(Phase(range(first, index + 1), np.array(learned, dtype=np.int64)))
            first = index + 1
    phases.append(Phase(range(first, len(batches)), np.zeros(0, dtype=np.int64)))
    return phases


@dataclass(frozen=True)
class ChunkStep:
    """One step of score-first adaptation on a batch of documents (methods.md 8.5). Arrays have one entry per row.

    index: chunk number k, the same for all rows.
    first_row: rows before it have ended; they are left out of the forward and of the arrays below.
    window_starts, window_ends: row b reads tokens window_starts[b] .. window_ends[b] - 1 of *its document*, from
        column 0 of the buffer on.
    buffer_tokens: width of the buffer, the longest window.
    first_position: columns before it are context in every row; losses are computed from it on.
    spans: where the scored targets' losses stand among those computed, one span per row; targets count from the start
        of the document.
    trains: rows whose document has a later chunk, so that this chunk may be trained on.
    """

    index: int
    first_row: int
    window_starts: IntArray
    window_ends: IntArray
    buffer_tokens: int
    first_position: int
    spans: tuple[Span, ...]
    trains: npt.NDArray[np.bool_]


def chunk_steps(num_targets: IntArray, chunk_tokens: int, window_tokens: int) -> Iterator[ChunkStep]:
    """The steps of one batch of documents with these numbers of targets, in ascending order.

    Chunk k of a document with n targets covers targets [k c, e), e = min((k + 1) c, n), and reads tokens
    [max(0, e - window_tokens), e). The last chunk of each document, however short, is scored and never trained on.
    Raises ValueError if the documents aren't in ascending order of length.
    """
    num_targets = np.asarray(num_targets, dtype=np.int64)
    if bool((np.diff(num_targets) < 0).any()):
        raise ValueError("documents of a batch must be in ascending order of length")
    num_chunks = -(-num_targets // chunk_tokens)
    for index in range(int(num_chunks[-1])):
        first_row = int(np.searchsorted(num_chunks, index, side="right"))
        first = index * chunk_tokens
        ends = np.minimum(first + chunk_tokens, num_targets[first_row:])
        starts = np.maximum(0, ends - window_tokens)
        columns = first - starts
        first_position = int(columns.min())
        spans = tuple(
            Span(row, column - first_position, first, length)
            for row, (column, length) in enumerate(zip(columns.tolist(), (ends - first).tolist(), strict=True))
        )
        trains = index < num_chunks[first_row:] - 1
        yield ChunkStep(index, first_row, starts, ends, int((ends - starts).max()), first_position, spans, trains)
