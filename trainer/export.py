"""From trained weights to an artifact."""

import os
from collections.abc import Mapping
from typing import Any

import numpy as np
import numpy.typing as npt

from artifact import writer
from artifact.content import Content, Tensor
from artifact.ledger import Ledger
from trainer.quantize.calibration import Calibration
from trainer.quantize.config import QuantizationConfig
from trainer.quantize.quantizer import Quantizer

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
) -> Ledger:
    """Quantize weights, write the artifact and return its byte ledger.

    Raises what `artifact.writer.write` raises and, before anything is written, ValueError for weights that are not
    finite.
    """
    content = Content(configuration, tokenizer_sha256, quantize(arrays, quantization, calibration), code)
    return writer.write(path, content, max_bytes=max_bytes)
