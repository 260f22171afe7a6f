"""Runs one mode over a session and describes the result as a section of the report."""

from __future__ import annotations

import hashlib
import time
from collections.abc import Callable
from typing import Any

import numpy as np
import torch

from eval import provenance
from eval.buckets import length_buckets
from eval.config import EvalConfig, to_dict
from eval.phases import score_adapting
from eval.plan import document_batches, fixed_windows, sliding_windows
from eval.progress import Budget, Progress
from eval.scores import Scores
from eval.scoring import score_windows
from eval.session import Session
from eval.tally import Tally


def run_mode(session: Session, mode: str, budget: Budget, *, compare_frozen: bool = False) -> dict[str, Any]:
    """Scores the validation stream in one mode; returns the report's section.

    All modes score the same targets with the same bytes. If the budget ends first, the section covers what was scored
    until then and says `partial: true`. `compare_frozen` adds to a ttt section the BPB of the same windows without
    adaptation.
    """
    if session.device.type == "cuda":
        torch.cuda.reset_peak_memory_stats(session.device)
    started = time.monotonic()
    scores, plan_sha256 = _score(session, mode, budget, frozen=False)
    seconds = time.monotonic() - started
    section = _describe(session, mode, scores, seconds)
    section["plan_sha256"] = plan_sha256
    if mode == "ttt" and compare_frozen and not section["partial"]:
        frozen_scores, _ = _score(session, mode, budget, frozen=True)
        frozen = _tally(session, frozen_scores)
        if frozen.num_tokens == section["num_scored_targets"]:
            section["frozen_bpb"] = frozen.bpb
            section["improvement_over_frozen_bpb"] = frozen.bpb - section["bpb"]
    return section


def _tally(session: Session, scores: Scores) -> Tally:
    return scores.tally(session.ledger.target_bytes)


def _score(session: Session, mode: str, budget: Budget, *, frozen: bool) -> tuple[Scores, str]:
    config = session.eval_config
    scores = Scores(session.num_targets)
    bytes_per_target = float(session.ledger.target_bytes.mean(dtype=np.float64))
    progress = Progress(f"{mode} (frozen)" if frozen else mode, session.num_targets, bytes_per_target)

    def proceed(num_targets: int, nats: float) -> bool:
        progress.add(num_targets, nats)
        return budget.allows_another()

    if budget.spent:
        digest = ""
    elif mode == "ttt":
        digest = _score_documents(session, scores, proceed, frozen)
    else:
        digest = _score_windows(session, config, mode, scores, proceed)
    progress.close()
    return scores, digest


def _score_documents(session: Session, scores: Scores, proceed: Callable[[int, float], bool], frozen: bool) -> str:
    config = session.eval_config.ttt
    score_adapting(
        session.model, session.stream.tokens, session.documents, config, scores, proceed=proceed, frozen=frozen
    )
    return _sha256(*document_batches(session.documents.num_targets, config.batch_documents))


def _score_windows(
    session: Session, config: EvalConfig, mode: str, scores: Scores, proceed: Callable[[int, float], bool]
) -> str:
    if mode == "plain":
        plan = fixed_windows(session.num_targets, config.context_tokens)
    else:
        plan = sliding_windows(session.num_targets, config.context_tokens, config.stride_tokens)
    score_windows(session.model, session.stream, plan, scores, config.batch_windows, session.device, proceed=proceed)
    return _sha256(plan.starts, plan.ends, plan.first_scored)


def _sha256(*arrays: np.ndarray[Any, np.dtype[np.int64]]) -> str:
    digest = hashlib.sha256()
    for array in arrays:
        digest.update(len(array).to_bytes(8, "little"))
        digest.update(array.astype("<i8").tobytes())
    return digest.hexdigest()


def _describe(session: Session, mode: str, scores: Scores, seconds: float) -> dict[str, Any]:
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
        "legal": True,
        "ledger": "proved" if ledger.proved else "unproved",
        "lossless": ledger.lossless,
        "changed_bytes": ledger.num_changed_bytes,
        "uncredited_bytes": ledger.num_uncredited_bytes,
        "seconds": seconds,
        "tokens_per_second": tally.num_tokens / seconds,
        "peak_memory_bytes": provenance.peak_memory_bytes(session.device),
        "length_buckets": length_buckets(session.documents, scores, ledger.target_bytes),
        "settings": _settings(session.eval_config, mode),
        "activation_dtype": str(session.model.activation_dtype).removeprefix("torch."),
        "seed": session.eval_config.ttt.seed if mode == "ttt" else None,
        "hardware": provenance.hardware(session.device),
        "software": provenance.software(),
        **session.identity,
    }
    if ledger.reason:
        section["ledger_reason"] = ledger.reason
    return section


def _settings(config: EvalConfig, mode: str) -> dict[str, Any]:
    """The settings that the mode depends on."""
    values = to_dict(config)
    if mode == "ttt":
        return dict(values["ttt"])
    names = ["context_tokens", "batch_windows"] + (["stride_tokens"] if mode == "sliding" else [])
    return {name: values[name] for name in names}
