"""Settings of the quantizer."""

from dataclasses import dataclass
from typing import Final, Literal

ClipRule = Literal["percentile", "deviations", "maximum"]
ScaleRule = Literal["scale_free", "published"]
SmallDtype = Literal["float16", "float32", "bfloat16", "float8_e4m3"]
ScaleDtype = Literal["float16", "float32", "bfloat16", "log8"]

_CLIP_RULES: Final = ("percentile", "deviations", "maximum")
_SCALE_RULES: Final = ("scale_free", "published")
_SMALL_DTYPES: Final = ("float16", "float32", "bfloat16", "float8_e4m3")
_SCALE_DTYPES: Final = ("float16", "float32", "bfloat16", "log8")


@dataclass(frozen=True)
class QuantizationConfig:
    """Round-to-nearest quantization of matrices, one scale per row; small tensors keep floating point.

    With Q = 2^(bits-1) - 1 a row's step is clip / Q, where the clip is
      percentile: the `clip_percentile` quantile of the row's absolute values (methods.md 5.1),
      deviations: `clip_deviations` sample standard deviations of the row (5.4),
      maximum: the row's largest absolute value.

    scale_rule `scale_free` uses the step as it is: multiplying a matrix by a constant does not change its symbols.
    `published` reproduces the first entries exactly: steps of at least 1/Q (methods.md 11.1), symbols computed before
    the step is rounded to its stored type.

    A tensor is small if it has at most `small_tensor_max_elements` values or fewer than two dimensions.
    """

    matrix_bits: int = 6
    embedding_bits: int = 8
    clip_rule: ClipRule = "percentile"
    clip_percentile: float = 0.9999984
    clip_deviations: float = 12.85
    embedding_clip_deviations: float = 20.0
    scale_rule: ScaleRule = "scale_free"
    scale_dtype: ScaleDtype = "float16"
    small_tensor_max_elements: int = 8192
    small_tensor_dtype: SmallDtype = "float16"
    embedding_names: tuple[str, ...] = ("embedding.weight", "head.weight")

    def __post_init__(self) -> None:
        for name in ("matrix_bits", "embedding_bits"):
            if not 2 <= getattr(self, name) <= 8:
                raise ValueError(f"{name} is {getattr(self, name)}; accepted are 2 to 8")
        if not 0.5 <= self.clip_percentile <= 1:
            raise ValueError(f"clip_percentile is {self.clip_percentile}; accepted are 0.5 to 1 (a fraction)")
        for name in ("clip_deviations", "embedding_clip_deviations"):
            if not 0.1 <= getattr(self, name) <= 1000:
                raise ValueError(f"{name} is {getattr(self, name)}; accepted are 0.1 to 1000")
        if self.small_tensor_max_elements < 0:
            raise ValueError(f"small_tensor_max_elements is {self.small_tensor_max_elements}; accepted are 0 and more")
        for name, accepted in (
            ("clip_rule", _CLIP_RULES),
            ("scale_rule", _SCALE_RULES),
            ("scale_dtype", _SCALE_DTYPES),
            ("small_tensor_dtype", _SMALL_DTYPES),
        ):
            if getattr(self, name) not in accepted:
                raise ValueError(f"{name} is {getattr(self, name)!r}; accepted are {', '.join(accepted)}")
