"""How to train: data order, optimizers, schedules, averaging, what to log and save; nothing about the network."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Literal

from model.network.fake_quantization import FakeQuantization
from model.optimizers.orthogonalize import POLAR_EXPRESS


@dataclass(frozen=True)
class MuonConfig:
    """Muon, for the matrices of the blocks."""

    learning_rate: float = 0.04
    momentum: float = 0.95
    momentum_start: float = 0.85
    """Momentum rises linearly from here over `momentum_warmup_steps`."""
    momentum_warmup_steps: int = 500
    momentum_dtype: Literal["float32", "bfloat16"] = "float32"
    orthogonalization: Literal["newton_schulz", "polar_express"] = "newton_schulz"
    num_iterations: int = 5
    row_normalize: bool = False
    """MuonEq-R: divide each row of the update by its norm before orthogonalizing. With 3 iterations: NeoMuon, whose
    division by the root mean square differs by a constant that orthogonalization removes."""
    weight_decay: float = 0.0
    """Decoupled: a step multiplies the weights by 1 - learning rate * this."""
    weight_decay_taper_start: float = 1.0
    """From this share of the run on, the weight decay changes linearly ..."""
    weight_decay_taper_final: float = 1.0
    """... to this multiple at its end (rank 7: 0.7 and 0.5)."""
    reduction_dtype: Literal["float32", "bfloat16"] = "float32"
    """Of the gradients while they travel between ranks; published entries with sharded Muon use bfloat16."""
    outer_projections: bool = True
    """Muon also moves projections outside the blocks (of hash and value embeddings, of narrow token tables); otherwise
    they are with the scalars."""

    def __post_init__(self) -> None:
        _require(self.learning_rate >= 0, "matrix.learning_rate", "a number of at least 0", self.learning_rate)
        for name in ("momentum", "momentum_start"):
            _require(0 <= getattr(self, name) < 1, f"matrix.{name}", "a number in [0, 1)", getattr(self, name))
        _require(
            self.momentum_warmup_steps >= 0, "matrix.momentum_warmup_steps", "at least 0", self.momentum_warmup_steps
        )
        for name in ("momentum_dtype", "reduction_dtype"):
            _one_of(getattr(self, name), f"matrix.{name}", ("float32", "bfloat16"))
        _one_of(self.orthogonalization, "matrix.orthogonalization", ("newton_schulz", "polar_express"))
        most = len(POLAR_EXPRESS) if self.orthogonalization == "polar_express" else 100
        _require(1 <= self.num_iterations <= most, "matrix.num_iterations", f"1 to {most}", self.num_iterations)
        _require(self.weight_decay >= 0, "matrix.weight_decay", "a number of at least 0", self.weight_decay)
        start = self.weight_decay_taper_start
        _require(0 <= start <= 1, "matrix.weight_decay_taper_start", "a number from 0 to 1", start)
        final = self.weight_decay_taper_final
        _require(final >= 0, "matrix.weight_decay_taper_final", "a number of at least 0", final)


@dataclass(frozen=True)
class AdamConfig:
    """AdamW, for the embedding or for the vectors and scalars."""

    learning_rate: float = 0.04
    betas: tuple[float, float] = (0.9, 0.95)
    epsilon: float = 1e-8
    weight_decay: float = 0.0

    def __post_init__(self) -> None:
        _require(self.learning_rate >= 0, "learning_rate", "a number of at least 0", self.learning_rate)
        _require(all(0 <= b < 1 for b in self.betas), "betas", "two numbers in [0, 1)", self.betas)
        _require(self.epsilon > 0, "epsilon", "a number above 0", self.epsilon)
        _require(self.weight_decay >= 0, "weight_decay", "a number of at least 0", self.weight_decay)


@dataclass(frozen=True)
class QATConfig:
    """Quantization-aware training: what the products of each role see of their weights (methods 4)."""

    attention: FakeQuantization = field(default_factory=FakeQuantization)
    """Roles q, k, v and attn_out."""
    mlp: FakeQuantization = field(default_factory=FakeQuantization)
    """Roles mlp_up and mlp_down."""
    embedding: FakeQuantization = field(default_factory=FakeQuantization)
    """The token table, where it is looked up and where it is the head, and every projection outside the blocks."""
    sensitive: FakeQuantization = field(default_factory=FakeQuantization)
    """In place of the above for `sensitive_matrices`: a finer grid where rounding hurts most."""
    sensitive_matrices: tuple[str, ...] = ()
    """Names of modules, such as `blocks.3.mlp.up`."""
    start_below_learning_rate: float = 0.0
    """Late QAT: switched on at the first step whose learning-rate multiplier is below this. 0: on from the start."""
    soft_round_steps: int = 500
    """Soft rounding sharpens linearly over this many steps from where it starts, ..."""
    soft_round_sharpness: tuple[float, float] = (1.0, 16.0)
    """... from the first of these to the second."""

    def __post_init__(self) -> None:
        start = self.start_below_learning_rate
        _require(0 <= start <= 1, "qat.start_below_learning_rate", "a number from 0 to 1", start)
        _require(self.soft_round_steps >= 1, "qat.soft_round_steps", "at least 1", self.soft_round_steps)
        sharpness = self.soft_round_sharpness
        _require(all(s > 0 for s in sharpness), "qat.soft_round_sharpness", "two numbers above 0", sharpness)
        _require(
            not self.sensitive_matrices or self.sensitive.method != "none",
            "qat.sensitive.method",
            "a method when sensitive_matrices names some",
            self.sensitive.method,
        )

    @property
    def enabled(self) -> bool:
        """Whether any weight is ever quantized in training."""
        return any(how.method != "none" for how in (self.attention, self.mlp, self.embedding, self.sensitive))


@dataclass(frozen=True)
class TrainingConfig:
    """One training run.

    The run ends when its clock reaches 1: after `max_steps` steps or `budget_seconds` seconds, whichever comes first.

    Raises:
        ValueError: a field has a value outside its range; the message names the field and what it accepts.
    """

    seed: int = 1337
    """Of the initial weights."""
    data_order: Literal["sequential", "shuffled", "coprime", "packed"] = "sequential"
    """Which samples a step takes, see trainer/loaders/orders.py. `packed`: rows of whole documents back to back,
    attention never crossing from one into another; the others: windows of the token stream, whatever they hold."""
    sequence_tokens: int = 1024
    """Tokens of a sample; with packed rows, the longest stretch of a document that attention spans."""
    packed_row_tokens: int = 0
    """Tokens of a packed row, which is a micro-batch; 0 unless data_order is `packed`."""
    batch_tokens: int = 524_288
    """Tokens of one optimizer step, over all ranks."""
    micro_batch_tokens: int = 65_536
    """Most tokens that one rank puts through the network at once."""
    max_steps: int = 20_000
    budget_seconds: float = 600.0
    """Wall-clock training time; compilation, validation and checkpoints are not counted. 0: no limit."""
    reserve_seconds: float = 0.0
    """Taken off the budget, for quantization afterwards."""

    matrix: MuonConfig = field(default_factory=MuonConfig)
    embedding: AdamConfig = field(default_factory=lambda: AdamConfig(learning_rate=0.05))
    scalar: AdamConfig = field(default_factory=AdamConfig)
    embedding_dtype: Literal["float32", "bfloat16"] = "float32"
    """Of the token table's master and so of its AdamW state; rank 1 kept both in bfloat16."""
    z_loss: float = 0.0
    """Weight in the loss, the reported one included, of the mean squared log-sum of the exponentiated logits."""
    gradient_clip_norm: float = 0.0
    """Largest global L2 norm of the averaged gradient, over all parameters and ranks; 0: no clipping."""
    gradient_clip_scope: Literal["global", "per_rank_before_reduction"] = "global"
    """`per_rank_before_reduction`: every rank clips its own gradient before they are averaged, each with another
    factor, as the entries with sharded Muon do (methods 11.2)."""
    zero_stage: int = 0
    """ZeRO: 0 keeps AdamW's state on every rank, 1 shards it. Muon's momentum is sharded either way."""
    deepspeed_config: str = ""
    """A JSON file merged into DeepSpeed's configuration; what the trainer itself decides is refused by name."""

    warmdown_steps: int = 0
    """The learning rate falls linearly to its floor over the time that this many steps take. Excludes the next."""
    warmdown_fraction: float = 0.0
    """... or over this share of the run."""
    min_learning_rate: float = 0.0
    """Floor of the learning-rate multiplier."""

    recurrence_start_fractions: tuple[float, ...] = ()
    """Depth recurrence: the clock at which each further pass is switched on (rank 1: 0.35). Excludes the next; with
    neither all passes run from the start."""
    recurrence_start_steps: tuple[int, ...] = ()
    """... or the steps at which they are (ranks 18, 19 and 21: 3000)."""

    qat: QATConfig = field(default_factory=QATConfig)

    average_horizon: float = 0.0
    """Exponential moving average of the weights, its memory as a share of the run: over one horizon an old value
    fades to 1/e. Sized to the run, so that short runs don't remember their initialization. 0: no averaging."""
    average_decay: float = 0.0
    """... or with this fixed decay a step, as published (0.9965, 0.997). Excludes average_horizon."""
    average_bias_correction: bool = False
    """The moving average forgets the initial weights, which it otherwise starts from."""
    swa_every_steps: int = 0
    """Stochastic weight averaging, in place of the moving average: the plain mean of the weights every so many
    steps ..."""
    swa_below_learning_rate: float = 0.5
    """... while the learning-rate multiplier is below this."""

    validate_every_steps: int = 0
    """0: only at the end."""
    validation_tokens: int = 0
    """Validation targets scored each time; 0: all. The end always scores all."""
    checkpoint_every_steps: int = 0
    """0: only at the end."""
    keep_checkpoints: int = 2
    log_every_steps: int = 10
    """Console lines; metrics.jsonl has every step."""
    compile: bool = True
    """torch.compile the training step on a GPU."""

    def __post_init__(self) -> None:
        for name in ("sequence_tokens", "batch_tokens", "micro_batch_tokens", "max_steps", "log_every_steps"):
            _require(getattr(self, name) >= 1, name, "an integer of at least 1", getattr(self, name))
        _one_of(self.data_order, "data_order", ("sequential", "shuffled", "coprime", "packed"))
        packed = self.data_order == "packed"
        _require(
            self.packed_row_tokens >= self.sequence_tokens if packed else self.packed_row_tokens == 0,
            "packed_row_tokens",
            f"at least sequence_tokens={self.sequence_tokens}" if packed else "0 unless data_order is packed",
            self.packed_row_tokens,
        )
        sample, name = self.sample_tokens, "packed_row_tokens" if packed else "sequence_tokens"
        _require(self.batch_tokens % sample == 0, "batch_tokens", f"a multiple of {name}={sample}", self.batch_tokens)
        most = self.micro_batch_tokens
        _require(most >= sample, "micro_batch_tokens", f"at least {name}={sample}", most)
        for name in (
            "budget_seconds",
            "z_loss",
            "gradient_clip_norm",
            "warmdown_steps",
            "validate_every_steps",
            "validation_tokens",
            "checkpoint_every_steps",
        ):
            _require(getattr(self, name) >= 0, name, "a number of at least 0", getattr(self, name))
        _require(
            self.reserve_seconds >= 0 and (self.reserve_seconds == 0 or self.reserve_seconds < self.budget_seconds),
            "reserve_seconds",
            "a number from 0 to below budget_seconds",
            self.reserve_seconds,
        )
        _require(0 <= self.warmdown_fraction <= 1, "warmdown_fraction", "a number from 0 to 1", self.warmdown_fraction)
        _require(
            not (self.warmdown_steps and self.warmdown_fraction),
            "warmdown_fraction",
            "0 when warmdown_steps is set",
            self.warmdown_fraction,
        )
        _require(0 <= self.min_learning_rate <= 1, "min_learning_rate", "a number from 0 to 1", self.min_learning_rate)
        _require(0 <= self.average_horizon <= 1, "average_horizon", "a number from 0 to 1", self.average_horizon)
        self._check_averaging()
        self._check_recurrence()
        _require(self.zero_stage in (0, 1), "zero_stage", "0 or 1", self.zero_stage)
        _one_of(self.embedding_dtype, "embedding_dtype", ("float32", "bfloat16"))
        _require(
            self.embedding_dtype == "float32" or self.zero_stage == 0,
            "embedding_dtype",
            "float32 with zero_stage 1, which lays all of AdamW's parameters end to end",
            self.embedding_dtype,
        )
        _one_of(self.gradient_clip_scope, "gradient_clip_scope", ("global", "per_rank_before_reduction"))
        _require(self.keep_checkpoints >= 1, "keep_checkpoints", "an integer of at least 1", self.keep_checkpoints)

    def _check_averaging(self) -> None:
        _require(0 <= self.average_decay < 1, "average_decay", "a number in [0, 1)", self.average_decay)
        _require(
            not (self.average_decay and self.average_horizon),
            "average_decay",
            "0 when average_horizon is set",
            self.average_decay,
        )
        moving = bool(self.average_decay or self.average_horizon)
        _require(
            moving or not self.average_bias_correction,
            "average_bias_correction",
            "false without average_horizon or average_decay",
            self.average_bias_correction,
        )
        _require(
            self.swa_every_steps == 0 or (self.swa_every_steps > 0 and not moving),
            "swa_every_steps",
            "an integer of at least 0, and 0 when a moving average is set",
            self.swa_every_steps,
        )
        threshold = self.swa_below_learning_rate
        _require(0 < threshold <= 1, "swa_below_learning_rate", "a number above 0 and at most 1", threshold)

    def _check_recurrence(self) -> None:
        fractions, steps = self.recurrence_start_fractions, self.recurrence_start_steps
        _require(
            all(0 <= f <= 1 for f in fractions) and list(fractions) == sorted(fractions),
            "recurrence_start_fractions",
            "rising numbers from 0 to 1",
            fractions,
        )
        _require(
            all(s >= 0 for s in steps) and list(steps) == sorted(steps) and not (steps and fractions),
            "recurrence_start_steps",
            "rising integers of at least 0, and none when recurrence_start_fractions has some",
            steps,
        )

    @property
    def sample_tokens(self) -> int:
        """Inputs of one sample: a sequence, or a packed row."""
        return self.packed_row_tokens or self.sequence_tokens

    @property
    def num_samples_per_step(self) -> int:
        """Samples of one optimizer step, over all ranks."""
        return self.batch_tokens // self.sample_tokens


def _require(condition: bool, field_name: str, accepted: str, value: object) -> None:
    if not condition:
        raise ValueError(f"training.{field_name}: accepts {accepted}, got {value!r}")


def _one_of(value: str, field_name: str, accepted: tuple[str, ...]) -> None:
    _require(value in accepted, field_name, " or ".join(accepted), value)
