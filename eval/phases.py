"""Scoring all documents with adaptation: in one phase, or in phases between which the base weights learn too.

Phased test-time training is methods.md 8.6 on a static plan: which documents a phase scores, and which of them the base
weights then learn from by SGD, are functions of the documents and the settings alone.
"""

from __future__ import annotations

import time
from dataclasses import dataclass

import numpy as np
import numpy.typing as npt

from eval.adapt import AdapterPool, Continue, DocumentScorer
from eval.config import TTTConfig
from eval.documents import Documents
from eval.global_sgd import GlobalSGD, restored_weights
from eval.plan import IntArray, Phase, Span, document_batches, document_phases
from eval.ranks import Ranks
from eval.scores import Scores
from model.network.gpt import GPT


@dataclass
class PhaseRecord:
    """What happened in one phase: which documents were scored, and the SGD that followed."""

    scored_documents: IntArray
    learned_documents: IntArray
    scoring_seconds: float = 0.0
    sgd_seconds: float = 0.0
    sgd_losses_nats: tuple[float, ...] = ()
    sgd_gradient_norms: tuple[float, ...] = ()


def score_adapting(
    model: GPT,
    tokens: npt.NDArray[np.integer],
    documents: Documents,
    config: TTTConfig,
    scores: Scores,
    *,
    ranks: Ranks | None = None,
    proceed: Continue | None = None,
    frozen: bool = False,
    bos_id: int = 1,
) -> list[PhaseRecord]:
    """Scores every document (of this rank's share of the batches) with adapters that learn from its scored chunks.

    `frozen` scores the same windows without adapting anything. `proceed` is asked after every chunk step; a False
    answer stops with what has been committed so far. The model's parameters must not require gradients; they are the
    same afterwards. Raises ValueError if the number of ranks doesn't divide num_lanes.
    """
    ranks = ranks or Ranks()
    if config.num_lanes % ranks.size:
        raise ValueError(f"ttt.num_lanes must be a multiple of the number of processes, {ranks.size}")
    batches = document_batches(documents.num_targets, config.batch_documents)
    scorer = DocumentScorer(model, tokens, documents, config, scores, proceed)
    if config.method != "phased" or frozen:
        phase = Phase(range(len(batches)), np.zeros(0, dtype=np.int64))
        return [_score_phase(scorer, batches, phase, ranks, frozen)[0]]
    records: list[PhaseRecord] = []
    with restored_weights(model):
        for phase in document_phases(batches, config.prefix_documents, config.num_phases):
            record, finished = _score_phase(scorer, batches, phase, ranks, frozen=False)
            records.append(record)
            if not ranks.all_agree(finished):
                break
            if len(phase.learned):
                _learn_documents(scorer, record, ranks, bos_id)
    return records


def _score_phase(
    scorer: DocumentScorer, batches: list[IntArray], phase: Phase, ranks: Ranks, frozen: bool
) -> tuple[PhaseRecord, bool]:
    """Scores the batches of a phase with new adapters; also returns whether this rank was not told to stop."""
    record = PhaseRecord(np.concatenate([batches[index] for index in phase.batches]), phase.learned)
    started = time.monotonic()
    pool = None if frozen else AdapterPool(scorer.model, scorer.config)
    finished = True
    for index in phase.batches:
        if finished and ranks.share.owns(index):
            finished = scorer.score_batch(index, batches[index], pool)
    record.scoring_seconds = time.monotonic() - started
    return record, finished


def _learn_documents(scorer: DocumentScorer, record: PhaseRecord, ranks: Ranks, bos_id: int) -> None:
    """Global SGD over scored documents, one after the other, each with its trailing BOS. A new optimizer each phase."""
    started = time.monotonic()
    scores, documents, config = scorer.scores, scorer.documents, scorer.config.sgd
    scores.exchange_commitments(ranks, 0, len(scores.nats))
    parts: list[npt.NDArray[np.integer]] = []
    for document in record.learned_documents:
        start, num_targets = int(documents.starts[document]), int(documents.num_targets[document])
        scores.permit_update([Span(0, 0, start, num_targets)])
        parts.append(scorer.tokens[start : start + num_targets + 1])
    text = np.concatenate(parts)
    sgd = GlobalSGD(scorer.model, config, ranks)
    num_chunks = -(-(len(text) - 1) // config.chunk_tokens)
    results: list[tuple[float, float]] = []
    for chunk in range(num_chunks - 1):  # the last one is skipped, whole or not
        first = chunk * config.chunk_tokens
        part = text[first : first + config.chunk_tokens + 1]
        rate = sgd.learning_rate(chunk, num_chunks)
        results.extend(sgd.step(part, bos_id, rate) for _ in range(config.num_epochs))
    record.sgd_losses_nats = tuple(loss for loss, _ in results)
    record.sgd_gradient_norms = tuple(norm for _, norm in results)
    record.sgd_seconds = time.monotonic() - started
