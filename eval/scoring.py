"""Scoring with frozen weights: fixed windows (plain) and sliding windows.

Shapes: B windows of a batch, T tokens of a window.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Protocol

import numpy as np
import numpy.typing as npt
import torch

from eval.ledger import ByteLedger
from eval.plan import Share, Span, WindowPlan, fixed_windows, isolated_windows, window_batches
from eval.scores import Scores
from eval.tally import Tally
from eval.tilt import NO_HINT, Hints, tilted_nll


class TokenSource(Protocol):
    """A token stream, such as model.text.shards.TokenStream."""

    @property
    def num_tokens(self) -> int: ...

    def read(self, start: int, count: int) -> npt.NDArray[np.uint16]: ...


class TokenArray:
    """A token stream in memory, with the reading interface of model.text.shards.TokenStream."""

    def __init__(self, tokens: npt.NDArray[np.uint16]) -> None:
        self.tokens = tokens

    @property
    def num_tokens(self) -> int:
        return len(self.tokens)

    def read(self, start: int, count: int) -> npt.NDArray[np.uint16]:
        return self.tokens[start : start + count]


class ScoringModel(Protocol):
    """What scoring needs of model.network.gpt.GPT."""

    def token_nll(self, ids: torch.Tensor, targets: torch.Tensor, *, first_position: int = 0) -> torch.Tensor: ...


Continue = Callable[[int, float], bool]
"""Told the number of targets of a finished batch and their nats; returns False to stop before the next batch."""


def score_plain(
    model: ScoringModel,
    stream: TokenSource,
    ledger: ByteLedger,
    context_tokens: int,
    batch_windows: int,
    device: torch.device | str,
    max_targets: int | None = None,
    share: Share | None = None,
    isolate_bos_id: int | None = None,
) -> Tally:
    """Scores the stream in fixed windows with the model as it is, for validation during training.

    `max_targets` cuts the stream to its first targets. With a `share`, the tally holds this rank's batches only; the
    sum of all ranks' tallies is the result. With `isolate_bos_id`, that token begins a document that sees no other.
    """
    num_targets = stream.num_tokens - 1
    if max_targets is not None:
        num_targets = min(num_targets, max_targets)
    scores = Scores(num_targets)
    if isolate_bos_id is None:
        plan = fixed_windows(num_targets, context_tokens)
    else:
        document_starts = np.flatnonzero(stream.read(0, num_targets) == isolate_bos_id).astype(np.int64)
        plan = isolated_windows(num_targets, context_tokens, document_starts)
    score_windows(model, stream, plan, scores, batch_windows, device, share=share)
    if share is None:
        scores.coverage.require_complete()
    return scores.tally(ledger.target_bytes[:num_targets])


def score_windows(
    model: ScoringModel,
    stream: TokenSource,
    plan: WindowPlan,
    scores: Scores,
    batch_windows: int,
    device: torch.device | str,
    *,
    share: Share | None = None,
    proceed: Continue | None = None,
    hints: Hints | None = None,
) -> None:
    """Scores every window of the plan (of this rank's share of it) and commits the losses, tilted if there are hints.

    If the GPU runs out of memory on a batch, the batch is scored in halves, and so are all later ones.
    """
    share = share or Share()
    limit = batch_windows
    for batch_index, (first, end) in enumerate(window_batches(plan, batch_windows)):
        if not share.owns(batch_index):
            continue
        start = first
        while start < end:
            stop = min(start + limit, end)
            try:
                _score_batch(model, stream, plan, start, stop, scores, device, hints)
            except torch.OutOfMemoryError:
                if stop - start == 1:
                    raise
                limit = max(1, (stop - start) // 2)
                torch.cuda.empty_cache()
                print(f"out of GPU memory: scoring {limit} windows at a time from here on", flush=True)
                continue
            start = stop
        nats = scores.flush()
        num_targets = int((plan.ends[first:end] - plan.first_scored[first:end]).sum())
        if proceed is not None and not proceed(num_targets, nats):
            return


def _score_batch(
    model: ScoringModel,
    stream: TokenSource,
    plan: WindowPlan,
    first: int,
    end: int,
    scores: Scores,
    device: torch.device | str,
    hints: Hints | None,
) -> None:
    starts, ends = plan.starts[first:end].tolist(), plan.ends[first:end].tolist()
    num_tokens = max(end - start for start, end in zip(starts, ends, strict=True))
    base = min(starts)
    region = torch.from_numpy(stream.read(base, max(ends) + 1 - base).astype(np.int64))
    windows = torch.zeros(len(starts), num_tokens + 1, dtype=torch.int64)
    for row, (start, stop) in enumerate(zip(starts, ends, strict=True)):
        windows[row, : stop + 1 - start] = region[start - base : stop + 1 - base]
    windows = windows.to(device)
    first_position = int(plan.first_scored[first] - plan.starts[first])
    targets = windows[:, 1 + first_position :]
    spans = _spans(plan, first, end)
    with torch.inference_mode():
        nll = model.token_nll(windows[:, :-1], targets, first_position=first_position)
        if hints is not None:
            tokens, strengths = _lay_out(hints, spans, targets)
            hint_nll = model.token_nll(windows[:, :-1], tokens.clamp(min=0), first_position=first_position)
            nll = tilted_nll(nll, hint_nll, tokens == targets, strengths.to(nll.dtype))
    scores.commit(nll, spans)


def _lay_out(hints: Hints, spans: Sequence[Span], targets: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
    """The hinted tokens and strengths of a batch's targets, shaped like `targets`; no hint outside the spans."""
    tokens = torch.full(targets.shape, NO_HINT, dtype=torch.int64)
    strengths = torch.zeros(targets.shape)
    for span in spans:
        place = span.row, slice(span.column, span.column + span.length)
        part = slice(span.target, span.target + span.length)
        tokens[place] = torch.from_numpy(hints.tokens[part])
        strengths[place] = torch.from_numpy(hints.strengths[part])
    return tokens.to(targets.device), strengths.to(targets.device)


def _spans(plan: WindowPlan, first: int, end: int) -> Sequence[Span]:
    scored, ends = plan.first_scored[first:end].tolist(), plan.ends[first:end].tolist()
    return [Span(row, 0, start, stop - start) for row, (start, stop) in enumerate(zip(scored, ends, strict=True))]
