"""Settings of the quantizer."""

from dataclasses import dataclass, field
from typing import Any, Final, Literal, get_args

Method = Literal["round", "gptq", "ternary", "binary", "float"]
ClipRule = Literal["percentile", "deviations", "maximum", "search"]
ScaleRule = Literal["scale_free", "published", "floored"]
SearchCriterion = Literal["weights", "outputs"]
SmallDtype = Literal["float16", "float32", "bfloat16", "float8_e4m3"]
ScaleDtype = Literal["float16", "float32", "bfloat16", "log8"]
CalibrationSource = Literal["none", "training", "generated"]
FactorGrid = Literal["asymmetric", "symmetric"]
SignRule = Literal["library", "largest_positive", "best"]

INTEGER_METHODS: Final = ("round", "gptq")


@dataclass(frozen=True)
class RoleQuantization:
    """How one role's tensors differ from the settings of `QuantizationConfig`; None: they don't.

    Raises:
        ValueError: a field has a value outside its range.
    """

    method: Method | None = None
    """`float`: kept in `float_dtype`."""
    bits: int | None = None
    clip_rule: ClipRule | None = None
    clip_percentile: float | None = None
    clip_deviations: float | None = None
    scale_rule: ScaleRule | None = None
    lowest_code: bool | None = None
    float_dtype: SmallDtype | None = None

    def __post_init__(self) -> None:
        _one_of(self.method, "method", Method)
        _one_of(self.clip_rule, "clip_rule", ClipRule)
        _one_of(self.scale_rule, "scale_rule", ScaleRule)
        _one_of(self.float_dtype, "float_dtype", SmallDtype)
        _check_bits(self.bits, "bits")
        _check_percentile(self.clip_percentile)
        _check_deviations(self.clip_deviations, "clip_deviations")


@dataclass(frozen=True)
class CalibrationConfig:
    """The tokens whose activations make the Hessians.

    training: the first `num_batches` batches of `batch_tokens` tokens of the training stream, cut into rows of
      `sequence_tokens` (methods.md 5.3); every rank takes its share.
    generated: `num_batches` batches sampled from the model itself at `temperature`, each row beginning with a random
      token (5.8).
    """

    source: CalibrationSource = "none"
    num_batches: int = 16
    batch_tokens: int = 98_304
    sequence_tokens: int = 2048
    temperature: float = 0.8
    seed: int = 1337

    def __post_init__(self) -> None:
        _one_of(self.source, "calibration.source", CalibrationSource)
        for name in ("num_batches", "batch_tokens", "sequence_tokens"):
            if getattr(self, name) < 1:
                raise ValueError(f"calibration.{name} is {getattr(self, name)}; accepted are 1 and more")
        if self.batch_tokens % self.sequence_tokens:
            raise ValueError(
                f"calibration.batch_tokens is {self.batch_tokens}; accepted are multiples of "
                f"sequence_tokens={self.sequence_tokens}"
            )
        if not 0 < self.temperature <= 10:
            raise ValueError(f"calibration.temperature is {self.temperature}; accepted are numbers above 0, up to 10")


@dataclass(frozen=True)
class GPTQConfig:
    """Error feedback from column to column (Frantar et al. 2022; methods.md 5.3)."""

    block_size: int = 128
    """Columns between updates of all later ones. Changes speed only."""
    damping: float = 0.01
    """Added to the Hessian's diagonal, as a share of its mean."""
    activation_order: bool = True
    """Columns with the largest Hessian diagonal first."""
    search_criterion: SearchCriterion = "outputs"
    """What clip_rule `search` minimizes: the error of the outputs (the Hessian's loss), or, as published, of the
    weights, which defeats error feedback (11.1)."""

    def __post_init__(self) -> None:
        if self.block_size < 1:
            raise ValueError(f"gptq.block_size is {self.block_size}; accepted are 1 and more")
        if not 0 <= self.damping <= 1:
            raise ValueError(f"gptq.damping is {self.damping}; accepted are 0 to 1")
        _one_of(self.search_criterion, "gptq.search_criterion", SearchCriterion)


@dataclass(frozen=True)
class LowRankConfig:
    """Low-rank corrections of the tensors with the largest quantization errors (LQER; methods.md 5.10).

    asymmetric: left factor on -2^(b-1)..2^(b-1)-1 with one scale, right factor likewise with a scale for each
    `group_size` values; symmetric: both of `symmetric_bits` bits with a scale per row. The asymmetric grids make the
    result depend on the signs of the singular vectors: `best` tries both of each pair.
    """

    num_tensors: int = 0
    rank: int = 4
    grid: FactorGrid = "asymmetric"
    left_bits: int = 2
    right_bits: int = 4
    group_size: int = 64
    symmetric_bits: int = 4
    sign_rule: SignRule = "best"
    weighted: bool = False
    """Choose tensors and factors by the error of the outputs instead of the weights."""

    def __post_init__(self) -> None:
        _one_of(self.grid, "low_rank.grid", FactorGrid)
        _one_of(self.sign_rule, "low_rank.sign_rule", SignRule)
        for name, smallest, largest in (
            ("num_tensors", 0, 4096),
            ("rank", 1, 64),
            ("left_bits", 2, 8),
            ("right_bits", 2, 8),
            ("symmetric_bits", 2, 8),
            ("group_size", 1, 1 << 20),
        ):
            if not smallest <= getattr(self, name) <= largest:
                raise ValueError(f"low_rank.{name} is {getattr(self, name)}; accepted are {smallest} to {largest}")


@dataclass(frozen=True)
class PruningConfig:
    """Weights set to zero: the smallest before quantization (rank 44), or codes of ±1 after it (rank 23; 5.11)."""

    magnitude_fraction: float = 0.0
    """Of each block and table matrix, set to zero before quantization."""
    selective: bool = False
    """Zero the codes ±1 with the smallest scales, as many as it takes to come under the cap."""

    def __post_init__(self) -> None:
        if not 0 <= self.magnitude_fraction < 1:
            raise ValueError(
                f"pruning.magnitude_fraction is {self.magnitude_fraction}; accepted are 0 up to but not including 1"
            )


@dataclass(frozen=True)
class MixedPrecisionConfig:
    """Matrices of the blocks ranked by the trace of their Hessians: the first get matrix_bits, the others fewer (4.3).

    Every matrix of `always_fine_layers` counts among the first.
    """

    num_fine: int = 0
    """0: all matrices are alike."""
    coarse_bits: int = 5
    always_fine_layers: tuple[int, ...] = ()

    def __post_init__(self) -> None:
        if self.num_fine < 0:
            raise ValueError(f"mixed_precision.num_fine is {self.num_fine}; accepted are 0 and more")
        _check_bits(self.coarse_bits, "mixed_precision.coarse_bits")


@dataclass(frozen=True)
class AllocationConfig:
    """Bytes where they buy most: a step for every row by rate and distortion together (trainer.quantize.allocation).

    Takes the place of clip rules and bits for every matrix that has a calibration Hessian.
    """

    enabled: bool = False
    price_nats_per_megabyte: float = 0.005
    """What a megabyte must buy in loss to be spent; sets the size. `pack --fit` chooses it."""
    importance_tokens: int = 131_072
    """Of the calibration text, for the gradients that weigh the outputs."""
    output_floor: float = 0.1
    """Least importance of an output, as a share of its matrix's mean, added to what was measured."""
    token_floor: float = 0.2
    """The same for the rows of the token table: tokens that calibration did not see will come."""
    refine: bool = True
    """Correct each matrix's steps by its measured rate and loss."""

    def __post_init__(self) -> None:
        if not 1e-9 <= self.price_nats_per_megabyte <= 1e9:
            raise ValueError(
                f"allocation.price_nats_per_megabyte is {self.price_nats_per_megabyte}; accepted are 1e-9 to 1e9"
            )
        if self.importance_tokens < 1:
            raise ValueError(f"allocation.importance_tokens is {self.importance_tokens}; accepted are 1 and more")
        for name in ("output_floor", "token_floor"):
            if not 0 <= getattr(self, name) <= 1:
                raise ValueError(f"allocation.{name} is {getattr(self, name)}; accepted are 0 to 1")


@dataclass(frozen=True)
class QuantizationConfig:
    """Quantization of matrices, by their role, one scale per row; small tensors keep floating point.

    With Q = 2^(bits-1) - 1 a row's step is clip / Q, where the clip is
      percentile: the `clip_percentile` quantile of the row's absolute values (methods.md 5.1),
      deviations: `clip_deviations` sample standard deviations of the row (5.4), with `hessian_clip_strength` above 0
        weighted by the row's importance (5.5),
      maximum: the row's largest absolute value,
      search: the quantile among `search_percentiles` with the smallest error over the matrix (5.2).

    scale_rule `scale_free` uses the step as it is: multiplying a matrix by a constant does not change its symbols.
    `published` reproduces the first entries exactly: steps of at least 1/Q (methods.md 11.1), symbols computed before
    the step is rounded to its stored type. `floored` has the same floor, and symbols computed with the stored step.

    method `round` rounds each weight by itself; `gptq` feeds each column's error to later ones and needs calibration;
    `ternary` and `binary` have one scale for each `group_size` weights (4.6, 4.7). The tables by role override these.

    A tensor is small if it has at most `small_tensor_max_elements` values or fewer than two dimensions; head gates are
    small unless `gate.method` or `gate.bits` is set.

    Raises:
        ValueError: a field has a value outside its range; the message names the field and what it accepts.
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
    method: Method = "round"
    """Of the matrices of the blocks; tokens' embeddings follow for `gptq` only, other tables are rounded."""
    hessian_clip_strength: float = 0.0
    search_percentiles: tuple[float, ...] = (0.999, 0.9995, 0.9999, 0.99999, 1.0)
    group_size: int = 128
    step_factor: float = 1.0
    """Multiplies every row's step while its clip stays: fewer or more codes, as many bits as they then need (up to 8).
    `pack --fit` chooses it."""
    lowest_code: bool = False
    """Codes of block matrices reach -2^(bits-1), one lower than the symmetric range."""
    coarse_layers: tuple[int, ...] = ()
    """Layers whose codes are rounded to multiples of `coarse_code_step` (ranks 30, 39)."""
    coarse_code_step: int = 4
    float_tensors: tuple[str, ...] = ()
    """Names (with * for any part) of tensors kept in float16."""
    attention: RoleQuantization = field(default_factory=RoleQuantization)
    mlp: RoleQuantization = field(default_factory=RoleQuantization)
    embedding: RoleQuantization = field(default_factory=RoleQuantization)
    table: RoleQuantization = field(default_factory=RoleQuantization)
    """Tables of hash and value embeddings."""
    side: RoleQuantization = field(default_factory=RoleQuantization)
    """Projections of hash, value and narrow token embeddings."""
    gate: RoleQuantization = field(default_factory=RoleQuantization)
    """Weights of head gates: 8 bits per row by the maximum (5.9) once a method is set here."""
    calibration: CalibrationConfig = field(default_factory=CalibrationConfig)
    gptq: GPTQConfig = field(default_factory=GPTQConfig)
    low_rank: LowRankConfig = field(default_factory=LowRankConfig)
    pruning: PruningConfig = field(default_factory=PruningConfig)
    mixed_precision: MixedPrecisionConfig = field(default_factory=MixedPrecisionConfig)
    allocation: AllocationConfig = field(default_factory=AllocationConfig)

    def __post_init__(self) -> None:
        for name in ("matrix_bits", "embedding_bits"):
            _check_bits(getattr(self, name), name)
        _check_percentile(self.clip_percentile)
        for percentile in self.search_percentiles:
            _check_percentile(percentile, "search_percentiles")
        if not self.search_percentiles:
            raise ValueError("search_percentiles is empty; accepted are one or more fractions from 0.5 to 1")
        for name in ("clip_deviations", "embedding_clip_deviations"):
            _check_deviations(getattr(self, name), name)
        for name, smallest in (("small_tensor_max_elements", 0), ("group_size", 1), ("coarse_code_step", 1)):
            if getattr(self, name) < smallest:
                raise ValueError(f"{name} is {getattr(self, name)}; accepted are {smallest} and more")
        if not 2**-8 <= self.step_factor <= 2**8:
            raise ValueError(f"step_factor is {self.step_factor}; accepted are 1/256 to 256")
        if not 0 <= self.hessian_clip_strength <= 1:
            raise ValueError(f"hessian_clip_strength is {self.hessian_clip_strength}; accepted are 0 to 1")
        for name, kind in (
            ("clip_rule", ClipRule),
            ("scale_rule", ScaleRule),
            ("scale_dtype", ScaleDtype),
            ("small_tensor_dtype", SmallDtype),
            ("method", Method),
        ):
            _one_of(getattr(self, name), name, kind)
        if self.needs_hessians and self.calibration.source == "none":
            raise ValueError("calibration.source is none; accepted for these methods are training, generated")

    @property
    def needs_hessians(self) -> bool:
        """Whether quantizing takes calibration."""
        by_role = (self.attention, self.mlp, self.embedding, self.table, self.side, self.gate)
        return (
            self.method == "gptq"
            or any(role.method == "gptq" for role in by_role)
            or self.hessian_clip_strength > 0
            or self.mixed_precision.num_fine > 0
            or self.low_rank.weighted
            or self.allocation.enabled
        )


def _one_of(value: str | None, name: str, literal: Any) -> None:
    accepted = get_args(literal)
    if value is not None and value not in accepted:
        raise ValueError(f"{name} is {value!r}; accepted are {', '.join(accepted)}")


def _check_bits(bits: int | None, name: str) -> None:
    if bits is not None and not 2 <= bits <= 8:
        raise ValueError(f"{name} is {bits}; accepted are 2 to 8")


def _check_percentile(percentile: float | None, name: str = "clip_percentile") -> None:
    if percentile is not None and not 0.5 <= percentile <= 1:
        raise ValueError(f"{name} is {percentile}; accepted are 0.5 to 1 (a fraction)")


def _check_deviations(deviations: float | None, name: str) -> None:
    if deviations is not None and not 0.1 <= deviations <= 1000:
        raise ValueError(f"{name} is {deviations}; accepted are 0.1 to 1000")
