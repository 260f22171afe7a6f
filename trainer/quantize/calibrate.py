"""The calibration that a set of quantization settings asks for."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator
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
        rows = -(-config.allocation.importance_tokens // settings.sequence_tokens // ranks.size)
        few = max(1, rows_per_batch // 4)
        some = list(islice(_split(batches(), few), max(1, -(-rows // few))))
        importances = collect_importances(model, some, ranks, settings.seed)
        calibration = Calibration(calibration.hessians, calibration.num_tokens, importances)
        log(f"calibration: importances of outputs from {sum(b.numel() for b in some) * ranks.size:,} tokens")
    return calibration


def _split(batches: Iterable[Tensor], rows: int) -> Iterator[Tensor]:
    for batch in batches:
        yield from batch.split(rows)


def _rows_per_batch(model: GPT, settings: CalibrationConfig) -> int:
    config = model.config
    per_token = 4 * max(config.vocab_size, 4 * config.mlp_dim)
    rows = _ACTIVATION_BYTES // (per_token * settings.sequence_tokens)
    on_cpu = next(model.parameters()).device == torch.device("cpu")
    return max(1, min(rows, 4 if on_cpu else 32))
