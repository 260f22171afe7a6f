"""From trained weights to stored tensors: each by its plan, GPTQ in batches, then low-rank corrections."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, replace
from functools import partial

import numpy as np
import numpy.typing as npt
import torch

from artifact import floats
from artifact.content import PlainTensor, QuantizedTensor, Tensor
from artifact.dequantize import dequantize
from artifact.grouping import split_name
from artifact.schema import FloatType, Kind
from trainer.quantize import allocation, gptq, low_rank, round_to_nearest, ternary
from trainer.quantize.calibration import Calibration
from trainer.quantize.config import INTEGER_METHODS, QuantizationConfig
from trainer.quantize.gptq import Factors
from trainer.quantize.scales import row_clips, row_importance, steps_from_clips, store_scales
from trainer.quantize.tensor_plan import TensorPlan, make_plans, with_all_codes

Float32 = npt.NDArray[np.float32]


def ignore(message: str) -> None:
    """A log that keeps nothing."""


class Quantizer:
    """Quantizes one set of weights, again and again with other settings: what does not depend on them is kept.

    Args:
        arrays: by parameter name.
        calibration: needed for settings with `needs_hessians`.

    Raises:
        ValueError: a tensor holds a value that is not finite; the message names it.
    """

    def __init__(self, arrays: Mapping[str, Float32], calibration: Calibration | None = None) -> None:
        self.arrays = {name: np.asarray(array, dtype=np.float32) for name, array in arrays.items()}
        for name, array in self.arrays.items():
            if not np.isfinite(array).all():
                raise ValueError(f"{name} holds a value that is not finite")
        self.calibration = calibration
        self._widened: Calibration | None = None
        self._factors = Factors()
        self._multipliers: dict[str, float] | None = None
        """Of allocation: found with the first settings and kept, since they hardly change with the price."""

    @property
    def device(self) -> torch.device:
        """Where the calibration lies, and the work is done."""
        hessians = {} if self.calibration is None else self.calibration.hessians
        return next((hessian.device for hessian in hessians.values()), torch.device("cpu"))

    def quantize(self, config: QuantizationConfig, log: Callable[[str], None] = ignore) -> dict[str, Tensor]:
        """Every tensor as the artifact will hold it.

        Raises:
            ValueError: calibration is missing, a Hessian is broken, or a value is too large for its type; the message
                names the tensor.
        """
        if config.needs_hessians and self.calibration is None:
            raise ValueError("these quantization settings need calibration")
        if not config.allocation.enabled:
            return self._run(config, self.calibration, {})
        if self._widened is None:
            assert self.calibration is not None
            self._widened = allocation.with_input_errors(self.calibration)
        return self._allocate(config, self._widened, log)

    def _allocate(
        self, config: QuantizationConfig, calibration: Calibration, log: Callable[[str], None]
    ) -> dict[str, Tensor]:
        plans = self._plans(config, calibration)
        integers = {name: array for name, array in self.arrays.items() if plans[name].method in INTEGER_METHODS}
        steps = allocation.row_steps(integers, calibration, config, self._factors)
        if config.allocation.refine:
            if self._multipliers is None:
                quantize = partial(self._run, config, calibration)
                self._multipliers = allocation.best_multipliers(self.arrays, steps, calibration, config, quantize, log)
            steps = {name: values * np.float32(self._multipliers[name]) for name, values in steps.items()}
        return self._run(config, calibration, steps)

    def _plans(self, config: QuantizationConfig, calibration: Calibration | None) -> dict[str, TensorPlan]:
        shapes = {name: array.shape for name, array in self.arrays.items()}
        return make_plans(shapes, config, calibration.traces() if calibration is not None else None)

    def _run(
        self, config: QuantizationConfig, calibration: Calibration | None, steps: Mapping[str, Float32]
    ) -> dict[str, Tensor]:
        """Args: steps: float32 [rows] by name, in place of the clip rules; codes then take the bits that they need."""
        plans = self._plans(config, calibration)
        plans = {name: with_all_codes(plan) if name in steps else plan for name, plan in plans.items()}
        job = _Job(self.arrays, plans, config, calibration, steps, self._factors)
        tensors = {name: job.quantize_alone(name) for name in self.arrays if plans[name].method != "gptq"}
        tensors.update(job.quantize_with_feedback([name for name in self.arrays if plans[name].method == "gptq"]))
        tensors.update(job.corrections(tensors))
        if steps:
            tensors = with_fewest_bits(tensors)
        return {name: tensors[name] for name in self.arrays}


def with_fewest_bits(tensors: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """The tensors with the bits of each group (of one name but for the layer) as few as its codes allow."""
    largest: dict[tuple[object, ...], int] = {}
    keys = {}
    for name, tensor in tensors.items():
        if isinstance(tensor, QuantizedTensor) and tensor.kind == Kind.SYMMETRIC:
            keys[name] = (split_name(name)[0], tensor.shape)
            reach = max(int(tensor.symbols.max(initial=0)) + 1, -int(tensor.symbols.min(initial=0)))
            largest[keys[name]] = max(largest.get(keys[name], 1), reach)
    return {
        name: replace(tensor, bits=max(2, (largest[keys[name]] - 1).bit_length() + 1))
        if isinstance(tensor, QuantizedTensor) and name in keys
        else tensor
        for name, tensor in tensors.items()
    }


@dataclass(frozen=True)
class _Job:
    arrays: Mapping[str, Float32]
    plans: Mapping[str, TensorPlan]
    config: QuantizationConfig
    calibration: Calibration | None
    steps: Mapping[str, Float32]
    factors: Factors

    def quantize_alone(self, name: str) -> Tensor:
        """A tensor whose codes depend on nothing but itself (and its row importances)."""
        array, plan = self.arrays[name], self.plans[name]
        if plan.method == "float":
            return _store_floats(name, array, FloatType[plan.float_dtype.upper()])
        if plan.method in ("ternary", "binary"):
            try:
                return ternary.quantize(array, kind=Kind[plan.method.upper()], group_size=self.config.group_size)
            except ValueError as error:
                raise ValueError(f"{name}: {error}") from None
        array = round_to_nearest.zero_smallest(array, plan.pruned_fraction)
        return round_to_nearest.quantize(array, plan, self.config, steps=self._own_steps(name))

    def _own_steps(self, name: str) -> Float32 | None:
        """Steps that do not follow from the row's values alone; None: use the plan's rule."""
        if name in self.steps:
            return self.steps[name]
        strength = self.config.hessian_clip_strength
        if strength and self.plans[name].clip_rule == "deviations" and name in self._hessians():
            return self._rule_steps(name, None)
        return None

    def _rule_steps(self, name: str, percentile: float | None) -> Float32:
        matrix, plan = _matrix(self.arrays[name]), self.plans[name]
        clips = row_clips(matrix, plan, percentile)
        strength = self.config.hessian_clip_strength
        if strength and plan.clip_rule == "deviations" and name in self._hessians():
            diagonal = self._hessians()[name].diagonal().float().cpu().numpy()
            clips = clips * row_importance(matrix, diagonal, strength)
        return steps_from_clips(clips, plan)

    def _hessians(self) -> Mapping[str, torch.Tensor]:
        return {} if self.calibration is None else self.calibration.hessians

    def quantize_with_feedback(self, names: Sequence[str]) -> dict[str, Tensor]:
        """GPTQ of the named matrices."""
        for name in names:
            if name not in self._hessians():
                raise ValueError(f"{name} has no calibration Hessian; method round needs none")
        searched = [name for name in names if self.plans[name].clip_rule == "search" and name not in self.steps]
        fixed = [name for name in names if name not in searched]
        tensors = self._feedback(fixed, {name: self._fixed_steps(name) for name in fixed})
        best: dict[str, float] = {}
        for percentile in self.config.search_percentiles if searched else ():
            found = self._feedback(searched, {name: self._rule_steps(name, percentile) for name in searched})
            for name, tensor in found.items():
                error = self._error(name, tensor)
                if name not in best or error < best[name]:
                    best[name], tensors[name] = error, tensor
        return dict(tensors)

    def _fixed_steps(self, name: str) -> Float32:
        return self.steps[name] if name in self.steps else self._rule_steps(name, None)

    def _feedback(self, names: Sequence[str], steps: Mapping[str, Float32]) -> dict[str, QuantizedTensor]:
        """GPTQ with given steps; matrices of one shape, one plan and their own or one shared Hessian go together."""
        batches: dict[tuple[object, ...], list[str]] = {}
        for name in names:
            plan = self.plans[name]
            grid = (plan.bits, plan.lowest, plan.limit, plan.code_step)
            batches.setdefault((_matrix(self.arrays[name]).shape, grid), []).append(name)
        tensors: dict[str, QuantizedTensor] = {}
        scale_type = FloatType[self.config.scale_dtype.upper()]
        for batch in batches.values():
            stored = {name: store_scales(steps[name], scale_type) for name in batch}
            hessians = [self._hessians()[name] for name in batch]
            device = hessians[0].device
            plan = self.plans[batch[0]]
            codes = gptq.quantize(
                torch.stack([torch.from_numpy(_matrix(self.arrays[name])) for name in batch]).to(device),
                torch.stack(hessians),
                torch.stack([torch.from_numpy(stored[name][0]) for name in batch]).to(device),
                lowest=plan.lowest,
                highest=plan.limit,
                config=self.config.gptq,
                code_step=plan.code_step,
                names=batch,
                factored=self.factors.get(batch, self._hessians(), self.config.gptq),
            )
            for name, matrix in zip(batch, codes.cpu().numpy(), strict=True):
                tensors[name] = QuantizedTensor(
                    symbols=matrix.reshape(self.arrays[name].shape),
                    scales=stored[name][0],
                    bits=plan.bits,
                    scale_type=scale_type,
                    scale_exponent=stored[name][1],
                )
        return tensors

    def _error(self, name: str, tensor: QuantizedTensor) -> float:
        error = torch.from_numpy(self.arrays[name] - dequantize(tensor))
        if self.config.gptq.search_criterion == "weights":
            return float(error.double().square().mean())
        hessian = self._hessians()[name]
        return float(gptq.output_error(error.to(hessian.device), hessian).double().sum())

    def corrections(self, tensors: Mapping[str, Tensor]) -> dict[str, Tensor]:
        """The tensors with the largest errors, each with a low-rank correction."""
        settings = self.config.low_rank
        if not settings.num_tensors:
            return {}
        errors: dict[str, tuple[Float32, Float32 | None]] = {}
        norms: dict[str, float] = {}
        for name, tensor in tensors.items():
            # As published: the tensors that have been through error feedback. Without any, all matrices of codes.
            candidates = ("gptq",) if any(plan.method == "gptq" for plan in self.plans.values()) else ("round",)
            if self.plans[name].method not in candidates or not isinstance(tensor, QuantizedTensor):
                continue
            if len(tensor.shape) != 2:
                continue
            error = self.arrays[name] - dequantize(tensor)
            weights = self._column_weights(name) if settings.weighted else None
            errors[name] = error, weights
            measured = error if weights is None else error * weights
            norms[name] = float(np.linalg.norm(measured.astype(np.float64)))
        chosen = sorted(norms, key=lambda name: (-norms[name], name))[: settings.num_tensors]
        return {
            name: replace(tensors[name], low_rank=low_rank.correct(errors[name][0], settings, errors[name][1]))
            for name in chosen
        }

    def _column_weights(self, name: str) -> Float32 | None:
        """Roots of the Hessian's diagonal, floored so that they can be divided by."""
        if name not in self._hessians():
            return None
        diagonal = self._hessians()[name].diagonal().double().cpu().numpy()
        return np.sqrt(np.maximum(diagonal, 1e-4 * max(diagonal.mean(), 1e-30))).astype(np.float32)


def _matrix(array: Float32) -> Float32:
    return np.ascontiguousarray(array).reshape(-1, array.shape[-1])


def _store_floats(name: str, array: Float32, float_type: FloatType) -> PlainTensor:
    rounded = floats.round_to(array, float_type)
    if not np.isfinite(rounded).all():
        raise ValueError(f"{name} holds a value too large for {float_type.name.lower()}")
    return PlainTensor(rounded, float_type)
