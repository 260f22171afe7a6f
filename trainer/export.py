"""From trained weights to an artifact."""

import os
from collections.abc import Callable, Mapping
from typing import Any

import numpy as np
import numpy.typing as npt

from artifact import writer
from artifact.content import Content, Tensor
from artifact.ledger import Ledger
from trainer.quantize.calibration import Calibration
from trainer.quantize.config import QuantizationConfig
from trainer.quantize.fit import fit as fit_to_cap
from trainer.quantize.pruning import prune_to_fit
from trainer.quantize.quantizer import Quantizer, ignore

Float32 = npt.NDArray[np.float32]


def quantize(
    arrays: Mapping[str, Float32], config: QuantizationConfig, calibration: Calibration | None = None
) -> dict[str, Tensor]:
    """Quantize matrices by their role and store everything else in floating point.

    Raises ValueError naming a tensor with a value that is not finite, or too large for its type; or because the
    settings need calibration.
    """
    return Quantizer(arrays, calibration).quantize(config)


def pack(
    arrays: Mapping[str, Float32],
    *,
    configuration: Mapping[str, Any],
    quantization: QuantizationConfig,
    tokenizer_sha256: str,
    code: bytes,
    path: str | os.PathLike[str],
    max_bytes: int | None = None,
    calibration: Calibration | None = None,
    fit: bool = False,
    log: Callable[[str], None] = ignore,
) -> Ledger:
    """Quantize weights, write the artifact and return its byte ledger.

    Args:
        fit: choose the rate so that the file takes at most `max_bytes` and little less (trainer.quantize.fit). Without
            it, `pruning.selective` still prunes down to `max_bytes`.

    Raises what `artifact.writer.write` raises and, before anything is written, ValueError for weights that are not
    finite, or where calibration is missing.
    """

    def content(tensors: Mapping[str, Tensor]) -> Content:
        return Content(configuration, tokenizer_sha256, tensors, code)

    def file_bytes(tensors: Mapping[str, Tensor]) -> int:
        return len(writer.encode(content(tensors)))

    quantizer = Quantizer(arrays, calibration)
    if fit and max_bytes is not None:
        tensors = fit_to_cap(quantizer, quantization, max_bytes, file_bytes, log).tensors
    else:
        tensors = quantizer.quantize(quantization, log)
        if quantization.pruning.selective and max_bytes is not None:
            tensors = prune_to_fit(tensors, file_bytes, max_bytes)
    return writer.write(path, content(tensors), max_bytes=max_bytes)
