"""The calibration that a set of quantization settings asks for."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator
from dataclasses import replace
from itertools import islice

import torch
from torch import Tensor

from model.network.gpt import GPT
from model.text.shards import TokenStream
from trainer.quantize.calibration import Calibration, collect_hessians, training_batches
from trainer.quantize.config import CalibrationConfig, QuantizationConfig
from trainer.quantize.generation import generated_batches
from trainer.quantize.importance import collect_importances
from trainer.ranks import Ranks

_ACTIVATION_BYTES = 1 << 30
"""Most that one forward's widest activations (the logits, or the hidden units of all layers) may take."""


_CPU_ROW_TOKENS = 512


def calibrate(
    model: GPT,
    config: QuantizationConfig,
    stream: TokenStream | None,
    ranks: Ranks,
    log: Callable[[str], None],
) -> Calibration | None:
    """Hessians, and importances where allocation needs them; None if the settings need no calibration.

    Args:
        stream: training tokens; None will do for generated calibration.

    Raises:
        ValueError: training tokens are needed and missing, or fewer than one row.
    """
    if not config.needs_hessians:
        return None
    settings = config.calibration
    rows_per_batch = _rows_per_batch(model, settings)
    if settings.source == "generated":
        generated = list(generated_batches(model, settings, ranks, log))
        batches: Callable[[], Iterable[Tensor]] = lambda: _split(generated, rows_per_batch)  # noqa: E731
    else:
        if stream is None:
            raise ValueError("calibration.source is training, but there are no training tokens")
        tokens = stream
        batches = lambda: training_batches(tokens, settings, ranks, rows_per_batch)  # noqa: E731
    calibration = collect_hessians(model, batches(), ranks)
    log(f"calibration: Hessians of {len(calibration.hessians)} matrices from {calibration.num_tokens:,} tokens")
    if config.allocation.enabled:
        some = _importance_batches(model, config, batches(), ranks)
        importances = collect_importances(model, some, ranks, settings.seed)
        calibration = replace(calibration, importances=importances)
        log(f"calibration: importances of outputs from {sum(b.numel() for b in some) * ranks.size:,} tokens")
    return calibration


def _importance_batches(
    model: GPT, config: QuantizationConfig, batches: Iterable[Tensor], ranks: Ranks
) -> list[Tensor]:
    """This rank's share of the tokens whose gradients are taken, in batches small enough for a backward pass."""
    row_tokens = config.calibration.sequence_tokens
    rows_at_once = max(1, _rows_per_batch(model, config.calibration) // 4)
    if next(model.parameters()).device == torch.device("cpu"):
        # A backward pass keeps every activation: short rows keep it within a gigabyte.
        row_tokens, rows_at_once = min(row_tokens, _CPU_ROW_TOKENS), 1
    wanted = -(-config.allocation.importance_tokens // (row_tokens * ranks.size))
    whole = (ids[:, : ids.shape[1] // row_tokens * row_tokens].reshape(-1, row_tokens) for ids in batches)
    return list(islice(_split(whole, rows_at_once), -(-wanted // rows_at_once)))


def _split(batches: Iterable[Tensor], rows: int) -> Iterator[Tensor]:
    for batch in batches:
        yield from batch.split(rows)


def _rows_per_batch(model: GPT, settings: CalibrationConfig) -> int:
    config = model.config
    per_token = 4 * max(config.vocab_size, 4 * config.mlp_dim)
    rows = _ACTIVATION_BYTES // (per_token * settings.sequence_tokens)
    on_cpu = next(model.parameters()).device == torch.device("cpu")
    return max(1, min(rows, 4 if on_cpu else 32))
