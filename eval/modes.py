"""Runs one mode over a session and describes the result as a section of the report."""

from __future__ import annotations

import hashlib
import time
from dataclasses import dataclass, field
from typing import Any

import numpy as np
import torch

from eval import provenance
from eval.adapt import Continue
from eval.buckets import documents_tally, length_buckets, running_bpb
from eval.config import EvalConfig, to_dict
from eval.full_weights import score_chunks
from eval.phases import PhaseRecord, score_adapting
from eval.plan import document_batches, fixed_windows, isolated_windows, sliding_windows
from eval.progress import Budget, Progress
from eval.scores import Scores
from eval.scoring import score_windows
from eval.session import Session
from eval.tally import Tally


@dataclass
class Outcome:
    """What one pass over the validation stream gave."""

    scores: Scores
    seconds: float
    plan_sha256: str
    peak_memory_bytes: int = 0
    """Of the process that used most."""
    phases: list[PhaseRecord] = field(default_factory=list)


def run_mode(session: Session, mode: str, budget: Budget, *, compare_frozen: bool = False) -> dict[str, Any]:
    """Scores the validation stream in one mode; returns the report's section.

    All modes score the same targets with the same bytes. If the budget ends first, the section covers what was scored
    until then and says `partial: true`. `compare_frozen` adds to a ttt section the BPB of the same windows without
    adaptation.
    """
    if session.device.type == "cuda":
        torch.cuda.reset_peak_memory_stats(session.device)
    outcome = _score(session, mode, budget, frozen=False)
    outcome.peak_memory_bytes = session.ranks.largest(provenance.peak_memory_bytes(session.device))
    section = _describe(session, mode, outcome)
    if mode == "ttt" and compare_frozen and not section["partial"]:
        frozen = _tally(session, _score(session, mode, budget, frozen=True).scores)
        if frozen.num_tokens == section["num_scored_targets"]:
            section["frozen_bpb"] = frozen.bpb
            section["improvement_over_frozen_bpb"] = frozen.bpb - section["bpb"]
    return section


def _tally(session: Session, scores: Scores) -> Tally:
    return scores.tally(session.ledger.target_bytes)


def _score(session: Session, mode: str, budget: Budget, *, frozen: bool) -> Outcome:
    started = time.monotonic()
    is_double = session.model.activation_dtype == torch.float64
    scores = Scores(session.num_targets, np.float64 if is_double else np.float32)
    bytes_per_target = float(session.ledger.target_bytes.mean(dtype=np.float64))
    label = f"{mode} (frozen)" if frozen else mode
    # A rank knows of its own share only; rank 0 speaks for all.
    progress = Progress(label, session.num_targets / session.ranks.size, bytes_per_target, session.ranks.rank == 0)

    def proceed(num_targets: int, nats: float) -> bool:
        progress.add(num_targets, nats)
        return budget.allows_another()

    outcome = Outcome(scores, 0.0, "")
    if session.ranks.all_agree(not budget.spent):
        if mode == "ttt" and session.eval_config.ttt.method != "full":
            _score_documents(session, outcome, proceed, frozen)
        else:
            _score_windows(session, mode, outcome, proceed, frozen)
    progress.close()
    scores.gather(session.ranks)
    outcome.seconds = time.monotonic() - started
    return outcome


def _score_documents(session: Session, outcome: Outcome, proceed: Continue, frozen: bool) -> None:
    config = session.eval_config.ttt
    lengths = session.documents.num_targets
    batches = document_batches(lengths, config.batch_documents)
    outcome.plan_sha256 = _sha256(*batches)
    outcome.phases = score_adapting(
        session.model,
        session.stream.tokens,
        session.documents,
        config,
        outcome.scores,
        ranks=session.ranks,
        proceed=proceed,
        frozen=frozen,
    )


def _score_windows(session: Session, mode: str, outcome: Outcome, proceed: Continue, frozen: bool) -> None:
    config = session.eval_config
    if mode != "plain":
        plan = sliding_windows(session.num_targets, config.context_tokens, config.stride_tokens)
    elif config.isolate_documents:
        plan = isolated_windows(session.num_targets, config.context_tokens, session.documents.starts)
    else:
        plan = fixed_windows(session.num_targets, config.context_tokens)
    outcome.plan_sha256 = _sha256(plan.starts, plan.ends, plan.first_scored)
    if mode == "ttt":
        tokens = session.stream.tokens
        score_chunks(session.model, tokens, config, outcome.scores, ranks=session.ranks, proceed=proceed, frozen=frozen)
    else:
        score_windows(
            session.model,
            session.stream,
            plan,
            outcome.scores,
            config.batch_windows,
            session.device,
            share=session.ranks.share,
            proceed=proceed,
        )


def _sha256(*arrays: np.ndarray[Any, np.dtype[np.int64]]) -> str:
    digest = hashlib.sha256()
    for array in arrays:
        digest.update(len(array).to_bytes(8, "little"))
        digest.update(array.astype("<i8").tobytes())
    return digest.hexdigest()


def _describe(session: Session, mode: str, outcome: Outcome) -> dict[str, Any]:
    scores, seconds = outcome.scores, outcome.seconds
    tally = _tally(session, scores)
    partial = tally.num_tokens < session.num_targets
    if not partial:
        scores.coverage.require_complete()
    ledger = session.ledger
    section: dict[str, Any] = {
        "mode": mode,
        "bpb": tally.bpb,
        "val_loss_nats": tally.nats_per_token,
        "num_targets": session.num_targets,
        "num_scored_targets": tally.num_tokens,
        "num_bytes": tally.num_bytes,
        "num_documents": len(session.documents),
        "partial": partial,
        "ledger": "proved" if ledger.proved else "unproved",
        "lossless": ledger.lossless,
        "changed_bytes": ledger.num_changed_bytes,
        "uncredited_bytes": ledger.num_uncredited_bytes,
        "seconds": seconds,
        "tokens_per_second": tally.num_tokens / seconds,
        "peak_memory_bytes": outcome.peak_memory_bytes,
        "length_buckets": length_buckets(session.documents, scores, ledger.target_bytes),
        "phases": [_describe_phase(session, scores, record) for record in outcome.phases],
        "plan_sha256": outcome.plan_sha256,
        "running_bpb": running_bpb(scores, ledger.target_bytes),
        "settings": _settings(session.eval_config, mode),
        "activation_dtype": str(session.model.activation_dtype).removeprefix("torch."),
        "seed": session.eval_config.ttt.seed if mode == "ttt" else None,
        "num_processes": session.ranks.size,
        "hardware": provenance.hardware(session.device),
        "software": provenance.software(),
        **session.identity,
    }
    if ledger.reason:
        section["ledger_reason"] = ledger.reason
    return section


def _describe_phase(session: Session, scores: Scores, record: PhaseRecord) -> dict[str, Any]:
    """The phase's documents scored so far, and the SGD after it."""
    tally = documents_tally(session.documents, scores, session.ledger.target_bytes, record.scored_documents)
    return {
        "num_documents": len(record.scored_documents),
        "num_targets": tally.num_tokens,
        "num_bytes": tally.num_bytes,
        "val_loss_nats": tally.nats_per_token,
        "bpb": tally.bpb,
        "seconds": record.scoring_seconds,
        "num_learned_documents": len(record.learned_documents),
        "sgd_seconds": record.sgd_seconds,
        "sgd_losses_nats": list(record.sgd_losses_nats),
        "sgd_gradient_norms": list(record.sgd_gradient_norms),
    }


def _settings(config: EvalConfig, mode: str) -> dict[str, Any]:
    """The settings that the mode depends on."""
    values = to_dict(config)
    if mode == "ttt":
        settings = dict(values["ttt"])
        if config.ttt.method == "full":
            settings |= {name: values[name] for name in ("context_tokens", "stride_tokens", "batch_windows", "tilt")}
        return settings
    names = ["context_tokens", "batch_windows", "stride_tokens" if mode == "sliding" else "isolate_documents"]
    return {name: values[name] for name in names}
