"""Quantization simulated in the forward pass, so that weights learn to live with it (methods 4).

A product sees `fake_quantize(W)` instead of W; W itself stays the float32 master that the optimizer moves. Rounding
passes gradients straight through (Bengio et al. 2013): forward Ŵ, backward dŴ/dW = 1.

Shapes: R rows (outputs), C columns (inputs), G groups of consecutive weights of the row-major matrix.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Final, Literal

import torch
from torch import Tensor

Method = Literal["none", "round", "soft_round", "noise", "ternary", "binary", "float8"]

_METHODS: Final = ("none", "round", "soft_round", "noise", "ternary", "binary", "float8")
_LARGEST_FLOAT8 = 448.0
"""Of e4m3 (1 sign, 4 exponent, 3 mantissa bits, no infinity); larger values are clamped instead of becoming NaN."""
_LEAST_GROUP_SCALE = 2.0**-24
"""Smallest positive float16, the type that group scales are stored in."""


@dataclass(frozen=True)
class FakeQuantization:
    """How a matrix is quantized in the forward pass.

    round: to integer codes times a scale per row, `clip = max(row clip, clip_floor)`, `s = max(clip / divisor,
      scale_floor)`, `Ŵ = s clamp(round(W / s), min_code, max_code)`; codes are multiples of `code_step`.
    soft_round: `s (floor(u) + σ(α (frac(u) - 1/2)))` for u = W/s within the code range: differentiable, and closer to
      rounding the larger the sharpness α; evaluation sees W.
    noise: training sees `W + s U(-1/2, 1/2)`, one quantization step wide; evaluation sees W.
    ternary, binary: signs (and zeros) times a scale for each `group_size` consecutive weights (BitNet b1.58).
    float8: W rounded to e4m3, without a scale.

    Raises:
        ValueError: a field has a value outside its range.
    """

    method: Method = "none"
    min_code: int = -31
    max_code: int = 31
    divisor: int = 31
    """Codes up to the clip; int5 15, int6 31, int8 127."""
    code_step: int = 1
    clip_quantile: float = 1.0
    """The row's clip is this quantile of its absolute values, linearly interpolated; 1: the largest."""
    clip_floor: float = 0.0
    """Least clip, in units of the weights. Entries up to rank 18 have 1 here or 1/31 (methods 11.1)."""
    scale_floor: float = 1e-8
    group_size: int = 128

    def __post_init__(self) -> None:
        _require(self.method in _METHODS, "method", " or ".join(_METHODS), self.method)
        _require(-128 <= self.min_code < 0, "min_code", "-128 to -1", self.min_code)
        _require(0 < self.max_code <= 127, "max_code", "1 to 127", self.max_code)
        _require(1 <= self.divisor <= 128, "divisor", "1 to 128", self.divisor)
        _require(1 <= self.code_step <= 64, "code_step", "1 to 64", self.code_step)
        _require(0.5 <= self.clip_quantile <= 1, "clip_quantile", "0.5 to 1", self.clip_quantile)
        _require(self.clip_floor >= 0, "clip_floor", "a number of at least 0", self.clip_floor)
        _require(self.scale_floor > 0, "scale_floor", "a number above 0", self.scale_floor)
        _require(self.group_size >= 1, "group_size", "an integer of at least 1", self.group_size)

    @property
    def changes_evaluation(self) -> bool:
        """Whether evaluation, too, sees quantized weights."""
        return self.method in ("round", "ternary", "binary", "float8")


def integer_grid(bits: int, method: Method = "round") -> FakeQuantization:
    """Symmetric codes of `bits` bits, the row's largest absolute value on the last one, no floor worth speaking of."""
    largest = 2 ** (bits - 1) - 1
    return FakeQuantization(method=method, min_code=-largest, max_code=largest, divisor=largest)


def fake_quantize(weight: Tensor, how: FakeQuantization, sharpness: Tensor | None, training: bool) -> Tensor:
    """What a product sees of `weight` [R, C]; same shape and type.

    Args:
        sharpness: α of soft rounding, a scalar on the weight's device (a tensor, so that a compiled graph serves every
            value); other methods ignore it.
        training: noise and soft rounding act in training only.
    """
    match how.method:
        case "none":
            return weight
        case "round":
            return _straight_through(weight, round_to_grid(weight.detach(), how))
        case "soft_round":
            assert sharpness is not None
            return soft_round(weight, how, sharpness) if training else weight
        case "noise":
            return weight + (torch.rand_like(weight) - 0.5) * row_scales(weight.detach(), how) if training else weight
        case "ternary":
            codes, scales = ternary_codes(weight.detach(), how.group_size)
        case "binary":
            codes, scales = binary_codes(weight.detach(), how.group_size)
        case "float8":
            return _straight_through(weight, round_to_float8(weight.detach()))
    return _straight_through(weight, (codes * scales).view_as(weight))


def _straight_through(weight: Tensor, quantized: Tensor) -> Tensor:
    """Exactly `quantized` forward (`w - w` is 0, unlike `w + (q - w)`, which rounds), the identity backward."""
    return quantized + (weight - weight.detach())


def row_scales(weight: Tensor, how: FakeQuantization) -> Tensor:
    """Weight units of one code, for each row of [R, C]: [R, 1]."""
    magnitude = weight.abs()
    if how.clip_quantile == 1:
        clip = magnitude.amax(dim=-1, keepdim=True)
    else:
        clip = torch.quantile(magnitude.float(), how.clip_quantile, dim=-1, keepdim=True).to(weight.dtype)
    return (clip.clamp_min(how.clip_floor) / how.divisor).clamp_min(how.scale_floor)


def round_to_grid(weight: Tensor, how: FakeQuantization) -> Tensor:
    """[R, C] rounded (half to even) to the codes of `how`, in weight units."""
    scales = row_scales(weight, how)
    codes = torch.round(weight / scales)
    if how.code_step > 1:
        codes = torch.round(codes / how.code_step) * how.code_step
    return codes.clamp(how.min_code, how.max_code) * scales


def soft_round(weight: Tensor, how: FakeQuantization, sharpness: Tensor) -> Tensor:
    """The differentiable stand-in for `round_to_grid`; scales carry no gradient."""
    scales = row_scales(weight.detach(), how)
    u = (weight / scales).clamp(how.min_code, how.max_code)
    # The row's largest value sits on the last code give or take a rounding error: keep it in the interval below.
    floor = u.detach().floor().clamp(max=how.max_code - 1)
    return scales * (floor + torch.sigmoid(sharpness * (u - floor - 0.5)))


def round_to_float8(weight: Tensor) -> Tensor:
    """Rounded to the nearest e4m3 value, in the weight's own type."""
    return weight.clamp(-_LARGEST_FLOAT8, _LARGEST_FLOAT8).to(torch.float8_e4m3fn).to(weight.dtype)


def ternary_codes(weight: Tensor, group_size: int) -> tuple[Tensor, Tensor]:
    """Codes -1, 0, 1 [G, group_size] and scales [G, 1], both in the weight's type: `s = mean |w|`, `q = round(w / s)`.

    The scale is rounded to float16, as it is stored, so that training sees what the artifact will hold.
    """
    groups, scales = _groups(weight, group_size)
    return torch.round(groups / scales).clamp(-1, 1), scales


def binary_codes(weight: Tensor, group_size: int) -> tuple[Tensor, Tensor]:
    """Codes -1 (negative) or 1 [G, group_size] and scales [G, 1], as in `ternary_codes`."""
    groups, scales = _groups(weight, group_size)
    return torch.where(groups >= 0, 1.0, -1.0).to(weight.dtype), scales


def _groups(weight: Tensor, group_size: int) -> tuple[Tensor, Tensor]:
    groups = weight.reshape(-1, group_size)
    scales = groups.float().abs().mean(dim=-1, keepdim=True).half().float().clamp_min(_LEAST_GROUP_SCALE)
    return groups, scales.to(weight.dtype)


def weights_to_train_on(codes: Tensor, scales: Tensor) -> Tensor:
    """Master weights [G, group_size] whose `ternary_codes` are `codes` and `scales` again.

    `q s` itself has mean `s mean|q| < s` wherever there are zeros, so that quantizing it once more would shrink it;
    `q s / mean|q|` is a fixed point (the shrinkage fix, methods 4.6). Binary codes have no zeros and need no fix.
    """
    return codes * scales / codes.abs().mean(dim=-1, keepdim=True).clamp_min(1 / codes.shape[-1])


def _require(condition: bool, name: str, accepted: str, value: object) -> None:
    if not condition:
        raise ValueError(f"{name}: accepts {accepted}, got {value!r}")
