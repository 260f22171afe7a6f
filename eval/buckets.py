"""BPB by length of document."""

from __future__ import annotations

from typing import Any

import numpy as np
import numpy.typing as npt

from eval.documents import Documents
from eval.scores import Scores
from eval.tally import Tally

SMALLEST_BUCKET_TOKENS = 64


def length_buckets(documents: Documents, scores: Scores, target_bytes: npt.NDArray[np.integer]) -> list[dict[str, Any]]:
    """Tallies of the scored targets, by the number of targets of their document: up to 64, 128, 256, ...

    Each entry holds `max_document_tokens`, `num_documents` (with at least one scored target), `num_targets`,
    `num_bytes`, `val_loss_nats` and `bpb`. Buckets without a scored target are left out.
    """
    scored = scores.coverage.scored
    nats = np.add.reduceat(scores.nats.astype(np.float64), documents.starts)
    num_bytes = np.add.reduceat(np.where(scored, target_bytes, 0).astype(np.int64), documents.starts)
    num_scored = np.add.reduceat(scored.astype(np.int64), documents.starts)
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
