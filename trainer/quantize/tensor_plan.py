"""What happens to each tensor: its role, read off its name, and the settings of that role."""

from __future__ import annotations

import math
import re
from collections.abc import Iterable, Mapping
from dataclasses import dataclass, replace
from fnmatch import fnmatchcase
from typing import Final, Literal

from trainer.quantize.config import (
    INTEGER_METHODS,
    ClipRule,
    Method,
    QuantizationConfig,
    RoleQuantization,
    ScaleRule,
    SmallDtype,
)

Role = Literal["attention", "mlp", "embedding", "table", "side", "gate", "vector"]

_PATTERNS: Final[tuple[tuple[str, Role], ...]] = (
    (r"blocks\.\d+\.attention\.(q|k|v|qkv|out)\.weight", "attention"),
    (r"(blocks\.\d+\.mlp|untied_mlps\.\d+)\.(up|gate|down)\.weight", "mlp"),
    (r"(hash|value)_embedding\.table", "table"),
    (r"((hash|value)_embedding\.projection|embedding_in|embedding_out)\.weight", "side"),
    (r"blocks\.\d+\.attention\.gate\.weight", "gate"),
)
_LAYER: Final = re.compile(r"blocks\.(\d+)\.")


def role_of(name: str, embedding_names: Iterable[str] = ("embedding.weight", "head.weight")) -> Role:
    """Role of the parameter `name`: `vector` for whatever is no matrix product, table or head gate."""
    if name in embedding_names:
        return "embedding"
    return next((role for pattern, role in _PATTERNS if re.fullmatch(pattern, name)), "vector")


def layer_of(name: str) -> int | None:
    """Layer that a parameter belongs to, None if to none."""
    match = _LAYER.match(name)
    return int(match.group(1)) if match else None


@dataclass(frozen=True)
class TensorPlan:
    """How one tensor is stored. `float`: rounded to `float_dtype`; ternary and binary: signs with scales per
    `group_size`; round and gptq: codes lowest..highest, multiples of `code_step`, with one scale per row."""

    role: Role
    method: Method
    float_dtype: SmallDtype = "float16"
    bits: int = 0
    lowest: int = 0
    highest: int = 0
    """Of the full range of `bits`: a row's step is its clip over this."""
    limit: int = 0
    """Largest code in use."""
    code_step: int = 1
    clip_rule: ClipRule = "maximum"
    clip_percentile: float = 1.0
    clip_deviations: float = 1.0
    scale_rule: ScaleRule = "scale_free"
    step_factor: float = 1.0
    pruned_fraction: float = 0.0


def make_plans(
    shapes: Mapping[str, tuple[int, ...]], config: QuantizationConfig, traces: Mapping[str, float] | None = None
) -> dict[str, TensorPlan]:
    """The plan of every tensor, by name.

    Args:
        traces: of the calibration Hessians, for mixed precision.
    """
    coarse = _coarse_matrices(shapes, config, traces or {})
    plans = {name: _plan(name, shape, config, coarse) for name, shape in shapes.items()}
    if "head.weight" in plans and "embedding.weight" in plans and plans["embedding.weight"].method == "gptq":
        # A table beside a head of its own is looked up, never multiplied: there is no Hessian, and rounding is best.
        plans["embedding.weight"] = replace(plans["embedding.weight"], method="round")
    return plans


def _plan(name: str, shape: tuple[int, ...], config: QuantizationConfig, coarse: set[str]) -> TensorPlan:
    role = role_of(name, config.embedding_names)
    own = _settings_of(role, config)
    if any(fnmatchcase(name, pattern) for pattern in config.float_tensors):
        return TensorPlan(role, "float", "float16")
    if role == "gate" and own.method in ("round", "gptq") and len(shape) == 2:
        return _integer_plan(role, RoleQuantization(method="round", bits=own.bits or 8, clip_rule="maximum"), config)
    size = 1
    for dimension in shape:
        size *= dimension
    if role == "gate" or len(shape) < 2 or size <= config.small_tensor_max_elements:
        return TensorPlan(role, "float", config.small_tensor_dtype)
    if own.method == "float":
        return TensorPlan(role, "float", own.float_dtype or "float16")
    if (own.method or config.method) in ("ternary", "binary") and (own.method or role in ("attention", "mlp", "side")):
        return TensorPlan(role, own.method or config.method)
    plan = _integer_plan(role, own, config, bits=config.mixed_precision.coarse_bits if name in coarse else None)
    if layer_of(name) in config.coarse_layers:
        plan = _with_code_step(plan, config.coarse_code_step)
    return plan if config.step_factor == 1 else _with_step_factor(plan, config.step_factor)


def _settings_of(role: Role, config: QuantizationConfig) -> RoleQuantization:
    return RoleQuantization() if role == "vector" else getattr(config, role)


def _integer_plan(role: Role, own: RoleQuantization, config: QuantizationConfig, bits: int | None = None) -> TensorPlan:
    of_blocks = role in ("attention", "mlp")
    bits = bits or own.bits or (config.matrix_bits if of_blocks or role == "vector" else config.embedding_bits)
    highest = 2 ** (bits - 1) - 1
    takes_lowest = config.lowest_code and of_blocks if own.lowest_code is None else own.lowest_code
    deviations = config.embedding_clip_deviations if role == "embedding" else config.clip_deviations
    # Only matrices whose inputs are tapped have Hessians; tables that are looked up are rounded unless they say else.
    fallback = config.method if of_blocks or role in ("embedding", "side") else "round"
    method = own.method or (fallback if fallback in ("round", "gptq") else "round")
    return TensorPlan(
        role=role,
        method=method,
        bits=bits,
        lowest=-highest - 1 if takes_lowest else -highest,
        highest=highest,
        limit=highest,
        clip_rule=own.clip_rule or config.clip_rule,
        clip_percentile=own.clip_percentile or config.clip_percentile,
        clip_deviations=own.clip_deviations or deviations,
        scale_rule=own.scale_rule or config.scale_rule,
        pruned_fraction=config.pruning.magnitude_fraction if role in ("attention", "mlp", "table") else 0.0,
    )


def _with_code_step(plan: TensorPlan, step: int) -> TensorPlan:
    """Codes are multiples of `step` within the plan's range; the row's step stays that of the full range."""
    return replace(plan, code_step=step, lowest=-(-plan.lowest // step) * step, limit=plan.highest // step * step)


def _with_step_factor(plan: TensorPlan, factor: float) -> TensorPlan:
    """Steps times `factor`, with as many codes as reach the same clip; no smaller than 127 codes allow."""
    factor = max(factor, plan.limit / 127)
    limit = min(math.ceil(plan.limit / factor), 127)
    lowest = -limit if plan.lowest == -plan.limit else max(math.floor(plan.lowest / factor), -128)
    bits = max(2, limit.bit_length() + 1)
    return replace(plan, step_factor=factor, bits=bits, lowest=max(lowest, -(1 << (bits - 1))), limit=limit)


def with_all_codes(plan: TensorPlan) -> TensorPlan:
    """The plan with the symmetric range of 8 bits, for steps that were chosen without a view to the range."""
    if plan.method not in INTEGER_METHODS:
        return plan
    return replace(plan, bits=8, lowest=-127, highest=127, limit=127)


def _coarse_matrices(
    shapes: Mapping[str, tuple[int, ...]], config: QuantizationConfig, traces: Mapping[str, float]
) -> set[str]:
    """Matrices of the blocks that get `coarse_bits`."""
    mixed = config.mixed_precision
    if not mixed.num_fine:
        return set()
    matrices = [name for name in shapes if role_of(name, config.embedding_names) in ("attention", "mlp")]
    if missing := [name for name in matrices if name not in traces]:
        raise ValueError(f"mixed_precision: {missing[0]} has no calibration Hessian")
    always = {name for name in matrices if layer_of(name) in mixed.always_fine_layers}
    others = sorted((name for name in matrices if name not in always), key=lambda name: (-traces[name], name))
    return set(others[max(mixed.num_fine - len(always), 0) :])
