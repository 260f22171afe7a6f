"""From trained weights to an artifact."""

import os
from collections.abc import Mapping
from typing import Any

import numpy as np
import numpy.typing as npt

from artifact import floats, writer
from artifact.content import Content, PlainTensor, Tensor
from artifact.ledger import Ledger
from artifact.schema import FloatType
from trainer.quantize import round_to_nearest
from trainer.quantize.config import QuantizationConfig

Float32 = npt.NDArray[np.float32]


def quantize(arrays: Mapping[str, Float32], config: QuantizationConfig) -> dict[str, Tensor]:
    """Quantize matrices by their role and store everything else in floating point.

    Raises ValueError naming a tensor with a value that is not finite, or too large for `small_tensor_dtype`.
    """
    return {name: _quantize_one(name, np.asarray(array, dtype=np.float32), config) for name, array in arrays.items()}


def pack(
    arrays: Mapping[str, Float32],
    *,
    configuration: Mapping[str, Any],
    quantization: QuantizationConfig,
    tokenizer_sha256: str,
    code: bytes,
    path: str | os.PathLike[str],
    max_bytes: int | None = None,
) -> Ledger:
    """Quantize weights, write the artifact and return its byte ledger.

    Raises what `artifact.writer.write` raises and, before anything is written, ValueError for weights that are not
    finite.
    """
    content = Content(configuration, tokenizer_sha256, quantize(arrays, quantization), code)
    return writer.write(path, content, max_bytes=max_bytes)


def _quantize_one(name: str, array: Float32, config: QuantizationConfig) -> Tensor:
    if not np.isfinite(array).all():
        raise ValueError(f"{name} holds a value that is not finite")
    if array.ndim < 2 or array.size <= config.small_tensor_max_elements:
        float_type = FloatType[config.small_tensor_dtype.upper()]
        rounded = floats.round_to(array, float_type)
        if not np.isfinite(rounded).all():
            raise ValueError(f"{name} holds a value too large for small_tensor_dtype {config.small_tensor_dtype}")
        return PlainTensor(rounded, float_type)
    if name in config.embedding_names:
        return round_to_nearest.quantize(
            array, config, bits=config.embedding_bits, deviations=config.embedding_clip_deviations
        )
    return round_to_nearest.quantize(array, config, bits=config.matrix_bits, deviations=config.clip_deviations)
