"""How many bytes tensors will take in an artifact, without coding them.

Symbols are counted in the contexts that the entropy coder will use, running magnitudes along the lines that were coded
before (artifact.codecs.rans); the estimate is the entropy of those counts.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence

import numpy as np
import torch

from artifact.content import PlainTensor, QuantizedTensor, Tensor, matrix_shape, symbol_range
from artifact.floats import NUM_BYTES
from artifact.grouping import group_tensors
from artifact.schema import Kind

_NUM_CONTEXTS = 16
_PRIOR_LINES = 4
# Measured on trained networks: what zstd leaves of float16 scales and vectors, and of one-byte ones.
_LEFT_OF_FLOATS = 0.85
_TABLE_BYTES = 60


def estimate_bytes(tensors: Mapping[str, Tensor], device: torch.device | str = "cpu") -> int:
    """Bytes of all groups' streams."""
    total = 0.0
    for group in group_tensors(tensors):
        quantized = [tensor for tensor in group.tensors if isinstance(tensor, QuantizedTensor)]
        for tensor in group.tensors:
            if isinstance(tensor, PlainTensor):
                assert tensor.float_type is not None
                total += _LEFT_OF_FLOATS * tensor.values.size * NUM_BYTES[tensor.float_type]
            else:
                total += _LEFT_OF_FLOATS * tensor.scales.size * NUM_BYTES[tensor.scale_type]
        if quantized:
            total += symbol_bytes(quantized, device)
    return round(total)


def symbol_bytes(tensors: Sequence[QuantizedTensor], device: torch.device | str = "cpu") -> float:
    """Bytes of the symbols of one group: tensors of one shape and encoding."""
    if not tensors[0].symbols.size:
        return 0.0
    low, high = (0, 1) if tensors[0].kind == Kind.BINARY else symbol_range(tensors[0].kind, tensors[0].bits)
    stack = np.stack([tensor.symbols.reshape(matrix_shape(tensor.shape)) for tensor in tensors])
    symbols = torch.from_numpy(stack).to(device).int()
    if tensors[0].kind == Kind.BINARY:
        symbols = (symbols > 0).int()
    by_rows = symbols.permute(1, 0, 2).flatten(1)
    by_columns = symbols.permute(2, 0, 1).flatten(1)
    return min(_lines_bytes(lines, low, high - low + 1) for lines in (by_rows, by_columns))


def _lines_bytes(symbols: torch.Tensor, low: int, alphabet: int) -> float:
    """Symbols [lines, positions], each in the context of the mean magnitude at its position on the lines before."""
    magnitudes = (symbols - (low + alphabet // 2)).abs().float()
    before = magnitudes.cumsum(dim=0) - magnitudes
    counts = torch.arange(len(symbols), device=symbols.device, dtype=torch.float32)[:, None] + _PRIOR_LINES
    means = (before + _PRIOR_LINES * magnitudes.mean()) / counts
    num_contexts = max(1, min(_NUM_CONTEXTS, symbols.numel() // 20_000))
    sample = means.flatten()[:: max(1, means.numel() // 100_000)]
    thresholds = torch.quantile(sample, torch.arange(1, num_contexts, device=sample.device) / num_contexts)
    contexts = torch.bucketize(means, thresholds)
    index = (contexts * alphabet + (symbols - low)).flatten()
    table = torch.bincount(index, minlength=num_contexts * alphabet).view(num_contexts, alphabet).double()
    totals = table.sum(dim=1, keepdim=True)
    bits = -(table * torch.log2((table / totals.clamp_min(1)).clamp_min(1e-300))).sum()
    return float(bits) / 8 + num_contexts * _TABLE_BYTES
