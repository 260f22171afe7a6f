"""BPB by length of document, and BPB as it runs along the stream."""

from __future__ import annotations

from typing import Any

import numpy as np
import numpy.typing as npt

from eval.documents import Documents
from eval.scores import Scores
from eval.tally import Tally

SMALLEST_BUCKET_TOKENS = 64
NUM_RUNNING_POINTS = 128


def documents_tally(
    documents: Documents, scores: Scores, target_bytes: npt.NDArray[np.integer], chosen: npt.NDArray[np.int64]
) -> Tally:
    """The tally of the scored targets of some documents, given by their numbers."""
    num_scored, num_bytes, nats = _document_sums(documents, scores, target_bytes)
    return Tally(float(nats[chosen].sum()), int(num_bytes[chosen].sum()), int(num_scored[chosen].sum()))


def _document_sums(
    documents: Documents, scores: Scores, target_bytes: npt.NDArray[np.integer]
) -> tuple[npt.NDArray[np.int64], npt.NDArray[np.int64], npt.NDArray[np.float64]]:
    """Scored targets, their bytes and their nats, of each document."""
    scored = scores.coverage.scored
    nats = np.add.reduceat(scores.nats.astype(np.float64), documents.starts)
    num_bytes = np.add.reduceat(np.where(scored, target_bytes, 0).astype(np.int64), documents.starts)
    return np.add.reduceat(scored.astype(np.int64), documents.starts), num_bytes, nats


def length_buckets(documents: Documents, scores: Scores, target_bytes: npt.NDArray[np.integer]) -> list[dict[str, Any]]:
    """Tallies of the scored targets, by the number of targets of their document: up to 64, 128, 256, ...

    Each entry holds `max_document_tokens`, `num_documents` (with at least one scored target), `num_targets`,
    `num_bytes`, `val_loss_nats` and `bpb`. Buckets without a scored target are left out.
    """
    num_scored, num_bytes, nats = _document_sums(documents, scores, target_bytes)
    ratio = np.maximum(documents.num_targets / SMALLEST_BUCKET_TOKENS, 1.0)
    exponents = np.ceil(np.log2(ratio)).astype(np.int64)
    buckets: list[dict[str, Any]] = []
    for exponent in np.unique(exponents):
        inside = (exponents == exponent) & (num_scored > 0)
        if not inside.any():
            continue
        tally = Tally(float(nats[inside].sum()), int(num_bytes[inside].sum()), int(num_scored[inside].sum()))
        buckets.append(
            {
                "max_document_tokens": SMALLEST_BUCKET_TOKENS * 2 ** int(exponent),
                "num_documents": int(np.count_nonzero(inside)),
                "num_targets": tally.num_tokens,
                "num_bytes": tally.num_bytes,
                "val_loss_nats": tally.nats_per_token,
                "bpb": tally.bpb,
            }
        )
    return buckets


def running_bpb(
    scores: Scores, target_bytes: npt.NDArray[np.integer], *, num_points: int = NUM_RUNNING_POINTS
) -> list[dict[str, Any]]:
    """Tallies of the stream from its start up to evenly spaced targets: `num_targets`, `num_bytes` and `bpb` of each.

    In stream order, whatever order the targets were scored in, so that two modes can be laid over each other. Targets
    that were not scored count neither as targets nor as bytes. At most `num_points` entries, the last one over all.
    """
    scored = np.flatnonzero(scores.coverage.scored)
    if not scored.size:
        return []
    nats = np.cumsum(scores.nats[scored], dtype=np.float64)
    num_bytes = np.cumsum(target_bytes[scored], dtype=np.int64)
    ends = np.unique(np.linspace(0, scored.size, min(num_points, scored.size) + 1).round().astype(np.int64)[1:])
    tallies = [Tally(float(nats[end - 1]), int(num_bytes[end - 1]), int(end)) for end in ends]
    return [{"num_targets": t.num_tokens, "num_bytes": t.num_bytes, "bpb": t.bpb} for t in tallies if t.num_bytes]
