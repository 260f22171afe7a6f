"""Bytes where they buy most: a quantization step for every row from rate and distortion together.

With an entropy coder behind it, a row quantized with step Δ costs `-C log2 Δ` bits up to a constant, and raises the
loss by `½ g Σ_j d_j Δ²/12`: g the importance of the row's output (trainer.quantize.importance) and d_j what an error in
column j costs after error feedback, the inverse squared diagonal of GPTQ's factor. Where a bit buys equally much
everywhere, `½ g d Δ²/12 = λ / (2 ln 2)`, d the mean of d_j: one price λ for the whole network gives every row its step.
It depends on neither the row's deviation nor its clip.

That holds at rates of a bit or more; `best_multipliers` then corrects each matrix by what it really costs and really
loses.

Shapes: R rows, C columns.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping
from dataclasses import replace

import numpy as np
import numpy.typing as npt
import torch

from artifact.content import QuantizedTensor, Tensor
from artifact.dequantize import dequantize
from trainer.quantize import gptq, size
from trainer.quantize.calibration import Calibration
from trainer.quantize.config import QuantizationConfig
from trainer.quantize.gptq import Factors
from trainer.quantize.importance import Importances

Float32 = npt.NDArray[np.float32]

BITS_PER_MEGABYTE = 8e6
MULTIPLIERS = (0.84, 1.0, 1.19)
"""Of a matrix's steps: a quarter of a bit each way."""
_HEADROOM = 1.04
"""Error feedback and the rounding of scales move codes beyond the row's largest weight."""


def with_input_errors(calibration: Calibration) -> Calibration:
    """The calibration with the token table's Hessian widened by what the table does as the network's input.

    An error e in the row of token t costs `g_t e H eᵀ` at the head and `f_t |e|²` at the input. Both g and f are close
    to proportional to the token's frequency, so that one Hessian `H + c I`, c = Σ f / Σ g, serves all rows.
    """
    name, importances = "embedding.weight", _importances(calibration)
    if name not in calibration.hessians or name not in importances.outputs:
        return calibration
    ratio = float(importances.table_rows.double().sum() / importances.outputs[name].double().sum())
    widened = calibration.hessians[name].clone()
    widened.diagonal().add_(ratio * calibration.num_tokens)
    return replace(calibration, hessians={**calibration.hessians, name: widened})


def row_steps(
    arrays: Mapping[str, Float32], calibration: Calibration, config: QuantizationConfig, factors: Factors
) -> dict[str, Float32]:
    """float32 [R] for every matrix that has a Hessian and importances; never so small that codes of 8 bits would clip.

    Args:
        factors: filled with what GPTQ will need again.
    """
    importances = _importances(calibration).outputs
    price = config.allocation.price_nats_per_megabyte / BITS_PER_MEGABYTE
    steps = {}
    for name, array in arrays.items():
        if name not in calibration.hessians or name not in importances:
            continue
        _, factor = factors.get([name], calibration.hessians, config.gptq)
        cost = float(factor[0].diagonal().double().pow(-2).mean()) / calibration.num_tokens
        weight = _floored(importances[name].double(), name, config) * cost
        best = torch.sqrt(12 * price / (math.log(2) * weight)).float().cpu().numpy()
        steps[name] = np.maximum(best, np.abs(array).max(axis=-1) * np.float32(_HEADROOM / 127))
    return steps


def best_multipliers(
    arrays: Mapping[str, Float32],
    steps: Mapping[str, Float32],
    calibration: Calibration,
    config: QuantizationConfig,
    quantize: Callable[[Mapping[str, Float32]], Mapping[str, Tensor]],
    log: Callable[[str], None],
) -> dict[str, float]:
    """For each matrix the one of MULTIPLIERS, of its steps, for which loss plus price times bytes is least.

    Loss is the Hessian's, with the importances of the outputs; bytes are those of the entropy coder's contexts.

    Args:
        quantize: from steps to tensors.
    """
    price = config.allocation.price_nats_per_megabyte / 1e6
    best: dict[str, tuple[float, float]] = {}
    for multiplier in MULTIPLIERS:
        tensors = quantize({name: values * np.float32(multiplier) for name, values in steps.items()})
        for name in steps:
            tensor = tensors[name]
            assert isinstance(tensor, QuantizedTensor)
            total = loss(name, arrays[name], tensor, calibration) + price * size.symbol_bytes(
                [tensor], calibration.hessians[name].device
            )
            if name not in best or total < best[name][0]:
                best[name] = total, multiplier
    chosen = [multiplier for _, multiplier in best.values()]
    log("steps times " + ", ".join(f"{m}: {chosen.count(m)} matrices" for m in MULTIPLIERS))
    return {name: multiplier for name, (_, multiplier) in best.items()}


def loss(name: str, array: Float32, tensor: QuantizedTensor, calibration: Calibration) -> float:
    """Nats per token that the quantization of one matrix is estimated to cost."""
    hessian = calibration.hessians[name]
    error = torch.from_numpy(dequantize(tensor) - array).to(hessian.device)
    per_row = gptq.output_error(error, hessian).double() / calibration.num_tokens
    return 0.5 * float((per_row * _importances(calibration).outputs[name].double()).sum())


def _floored(importance: torch.Tensor, name: str, config: QuantizationConfig) -> torch.Tensor:
    """Importances of rows, never below a share of their mean: calibration has not seen everything."""
    is_table = name in config.embedding_names
    floor = config.allocation.token_floor if is_table else config.allocation.output_floor
    return importance + floor * importance.mean()


def _importances(calibration: Calibration) -> Importances:
    if calibration.importances is None:
        raise ValueError("allocation needs the importances of outputs beside the Hessians")
    return calibration.importances
