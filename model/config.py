"""The network's configuration: everything that decides its shape and its function, and nothing about training.

No torch in here, so that tools which only read artifacts can validate a configuration. Numbers such as 1.10 in
docstrings are sections of the methods reference, methods.md.
"""

from __future__ import annotations

import dataclasses
import typing
from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any, Literal, get_args

FLOAT32_EPSILON = 2.0**-23
BOS_ID = 1
"""Token that begins a document. A constant: comparing with an unset variable once made every mask true (11.5)."""

Activation = Literal["relu_squared", "leaky_relu_squared", "swiglu"]
SoftcapForm = Literal["tanh", "polynomial"]
RopeScaling = Literal["none", "ntk", "yarn"]
SmearKind = Literal["none", "token", "channel", "mean"]
SmearPlace = Literal["before_norm", "after_norm"]
HashFunction = Literal["xor", "linear"]
HeadGateKind = Literal["none", "sparse", "dense", "output", "biased"]
HeadGateSource = Literal["input", "query"]
LaneKind = Literal["none", "single_stream", "simultaneous", "sequential", "uncoupled"]
LaneMerge = Literal["mean", "first", "second"]
MatrixInit = Literal["uniform", "orthogonal", "normal"]
EmbeddingInit = Literal["normal", "overtone", "spectral"]
ResidualMixInit = Literal["identity", "phase"]


@dataclass(frozen=True)
class RopeScalingConfig:
    """How rotary frequencies are stretched for contexts longer than the ones they were made for.

    ntk: the base becomes `base * (context/original)^(r/(r-2))`, r the rotated dimensions (1.5). The published programs
    rescale whenever a row is longer than `original_tokens`; theirs are always padded to the full context, so here the
    factor is fixed by `context_tokens` and a short window sees the frequencies that the network was trained with.
    yarn: each frequency is divided by a ramp from 1 to context/original over the dimensions (2.8, Peng et al. 2023
    without the temperature).
    """

    kind: RopeScaling = "none"
    original_tokens: int = 1024
    context_tokens: int = 2048

    def __post_init__(self) -> None:
        _one_of(self.kind, "rope_scaling.kind", RopeScaling)
        _require(self.original_tokens >= 1, "rope_scaling.original_tokens", "at least 1", self.original_tokens)
        _require(
            self.context_tokens >= self.original_tokens,
            "rope_scaling.context_tokens",
            f"at least original_tokens={self.original_tokens}",
            self.context_tokens,
        )


@dataclass(frozen=True)
class SmearConfig:
    """SmearGate: the previous position is blended into the current one.

    token: `e_t + λ σ(w · e_t[:window]) e_{t-1}` on the embedding before the norm; `bos_mask` keeps the last token of a
    document out of the next one (1.2).
    channel: `(1-g) ⊙ x_t + g ⊙ x_{t-1}`, g = σ(γ), γ starting at `gate_init`, before or after the norm (2.2).
    mean: at the end of every block `x + tanh(γ) ⊙ (mean of x up to here - x)` (2.2).
    """

    kind: SmearKind = "none"
    window: int = 12
    bos_mask: bool = True
    place: SmearPlace = "after_norm"
    gate_init: float = 0.0

    def __post_init__(self) -> None:
        _one_of(self.kind, "smear.kind", SmearKind)
        _one_of(self.place, "smear.place", SmearPlace)
        _require(self.window >= 1, "smear.window", "an integer of at least 1", self.window)


@dataclass(frozen=True)
class HashEmbeddingConfig:
    """BigramHash: an embedding of the hashed pair (previous token, token), added before the first norm (2.1).

    xor: `(36313 t_i xor 27191 t_{i-1}) mod (num_buckets-1)`, the last bucket for positions without predecessor.
    linear: `(92821 t_{i-1} + t_i) mod num_buckets`, the predecessor of the first position being 0.
    """

    num_buckets: int = 0
    """0: no hash embedding."""
    dim: int = 128
    hash: HashFunction = "xor"
    trigram: bool = False
    """Adds the same table's row for `36313 t_i xor 27191 t_{i-1} xor 51497 t_{i-2}`."""
    learned_scale: bool = True
    scale_init: float = 0.05
    table_init_std: float = 0.0
    projection_init: Literal["matrix", "zero"] = "matrix"
    """`matrix`: like the other matrices."""

    def __post_init__(self) -> None:
        _one_of(self.hash, "hash_embedding.hash", HashFunction)
        _require(
            self.num_buckets == 0 or self.num_buckets >= 2,
            "hash_embedding.num_buckets",
            "0 or at least 2",
            self.num_buckets,
        )
        _require(self.dim >= 1, "hash_embedding.dim", "an integer of at least 1", self.dim)
        _require(self.table_init_std >= 0, "hash_embedding.table_init_std", "at least 0", self.table_init_std)
        _require(
            self.projection_init == "matrix" or (self.projection_init == "zero" and self.table_init_std > 0),
            "hash_embedding.projection_init",
            "matrix, or zero with a table_init_std above 0 (with both at zero the branch never learns)",
            self.projection_init,
        )
        _require(
            not (self.trigram and self.hash == "linear"),
            "hash_embedding.trigram",
            "false for the linear hash",
            self.trigram,
        )


@dataclass(frozen=True)
class ValueEmbeddingConfig:
    """A second token table, added to the values of a few layers: `v + α_l s P E_v[ids]` (2.3)."""

    layers: tuple[int, ...] = ()
    """Layers, or executions where `recurrence.per_execution_scalars`."""
    dim: int = 128
    table_init_std: float = 0.01
    scale_init: float = 0.1

    def __post_init__(self) -> None:
        _require(self.dim >= 1, "value_embedding.dim", "an integer of at least 1", self.dim)
        _require(
            list(self.layers) == sorted(set(self.layers)),
            "value_embedding.layers",
            "ascending layer numbers",
            self.layers,
        )
        _require(self.table_init_std >= 0, "value_embedding.table_init_std", "at least 0", self.table_init_std)


@dataclass(frozen=True)
class HeadGateConfig:
    """A gate per attention head on its output, before the output projection (1.7).

    sparse: `σ(scale * W n[:window])`; dense: `σ(W n)`; output: `2 σ(W src[:window])`, src the attention input or the
    query projection; biased: `σ(W n + b)`, b starting at 4.
    """

    kind: HeadGateKind = "none"
    window: int = 12
    scale: float = 1.0
    source: HeadGateSource = "input"
    init_std: float = 0.0

    def __post_init__(self) -> None:
        _one_of(self.kind, "head_gate.kind", HeadGateKind)
        _one_of(self.source, "head_gate.source", HeadGateSource)
        _require(self.window >= 1, "head_gate.window", "an integer of at least 1", self.window)
        _require(self.scale > 0, "head_gate.scale", "a number above 0", self.scale)
        _require(self.init_std >= 0, "head_gate.init_std", "a number of at least 0", self.init_std)
        _require(
            self.source == "input" or self.kind == "output",
            "head_gate.source",
            "query only for kind output",
            self.source,
        )


@dataclass(frozen=True)
class LaneConfig:
    """Parallel residuals: from `first_layer` on, attention and MLP no longer follow one another (1.11).

    single_stream: both read the same state and both are added (GPT-J).
    simultaneous: two lanes, each branch reads its own and writes to both (ranks 1-11).
    sequential: the same, but the MLP reads its lane after attention has written to it (rank 21).
    uncoupled: each branch writes its own lane; a learned scalar merges them (ranks 14, 18).
    """

    kind: LaneKind = "none"
    first_layer: int = 0
    residual_init: float = 1.1
    """Start of the factor that each lane keeps of itself (simultaneous, sequential)."""
    merge: LaneMerge = "mean"
    """What the head reads (simultaneous, sequential)."""

    def __post_init__(self) -> None:
        _one_of(self.kind, "lanes.kind", LaneKind)
        _one_of(self.merge, "lanes.merge", LaneMerge)
        _require(self.first_layer >= 0, "lanes.first_layer", "an integer of at least 0", self.first_layer)


@dataclass(frozen=True)
class RecurrenceConfig:
    """Depth recurrence: layers `first_layer..last_layer` run `1 + num_extra_passes` times (1.10)."""

    first_layer: int = 0
    last_layer: int = 0
    num_extra_passes: int = 0
    """0: every layer runs once."""
    untied_mlp: bool = False
    """The extra passes have MLPs of their own, copied from the layers' when recurrence starts (rank 21)."""
    per_execution_scalars: bool = False
    """Scales, mixes, gains, LN scale, XSA and value embeddings go by position in the order of executions, not by
    layer (rank 21)."""
    iteration_embedding: bool = False
    """A learned vector per pass, added where the pass begins (Universal Transformer, Dehghani et al. 2018; 2.6)."""

    def __post_init__(self) -> None:
        _require(self.num_extra_passes >= 0, "recurrence.num_extra_passes", "at least 0", self.num_extra_passes)
        _require(self.first_layer >= 0, "recurrence.first_layer", "at least 0", self.first_layer)
        _require(
            self.last_layer >= self.first_layer,
            "recurrence.last_layer",
            f"at least first_layer={self.first_layer}",
            self.last_layer,
        )


@dataclass(frozen=True)
class InitializationConfig:
    """Where the weights start (1.13, 2.9, 2.10). Output matrices of both branches start at zero in every case."""

    matrices: MatrixInit = "uniform"
    """uniform in ±1/sqrt(inputs); orthogonal with gain 1; normal with standard deviation 0.02."""
    embedding: EmbeddingInit = "normal"
    """overtone: normal with its singular values replaced by S₁/sqrt(k); spectral: leading singular vectors of the
    bigram counts of the training split."""
    residual_mix: ResidualMixInit = "identity"
    """identity: (1, 0); phase: (φ, 1-φ), φ = σ(3 (l/(L-1) - 1/2))."""
    scale_side_projections: bool = False
    """Multiply the projections of hash and value embeddings by 1/sqrt(2L): all that is left of the "muP scaling" of
    ranks 25-29, whose other targets are zero."""

    def __post_init__(self) -> None:
        _one_of(self.matrices, "initialization.matrices", MatrixInit)
        _one_of(self.embedding, "initialization.embedding", EmbeddingInit)
        _one_of(self.residual_mix, "initialization.residual_mix", ResidualMixInit)


@dataclass(frozen=True)
class ModelConfig:
    """Shape and function of the network.

    The defaults are those of artifact format version 1: an artifact stores only the fields that differ from them,
    so a default never changes within a format version.

    Raises:
        ValueError: a field has a value outside its range; the message names the field and what it accepts.
    """

    vocab_size: int = 1024
    num_layers: int = 9
    model_dim: int = 512
    num_heads: int = 8
    num_kv_heads: int = 4
    """Grouped-query attention: query heads `j * num_heads/num_kv_heads ...` share key/value head `j`."""
    mlp_ratio: float = 2.0
    """Hidden width of the MLP over `model_dim`."""
    activation: Activation = "relu_squared"
    leaky_slope: float = 0.5
    """Slope for negative inputs of leaky_relu_squared."""
    rope_base: float = 10_000.0
    rope_dims: int = 0
    """Rotated dimensions at the front of each head; 0 rotates the whole head."""
    qk_gain_init: float = 1.5
    unet_skips: bool = True
    """U-Net skips: the second half of the executions receives the outputs of the first half, last in, first out."""
    logit_softcap: float = 30.0
    """`c * tanh(z / c)` on the logits; 0 switches it off."""
    embedding_init_std: float = 0.005
    norm_epsilon: float = FLOAT32_EPSILON
    """Added to the mean square in every RMSNorm. Explicit, because the framework's default follows the input's type."""
    embedding_dim: int = 0
    """Width of the token table; 0: model_dim. Narrower tables have projections to and from model_dim (2.7)."""
    tied_head: bool = True
    head_bias: bool = False
    """A learned bias per vocabulary entry on the logits."""
    softcap_form: SoftcapForm = "tanh"
    """polynomial: degree 5, clamped (2.7)."""
    attention_window: int = 0
    """Positions that attention reaches back, the own included; 0: all."""
    attention_free_layers: tuple[int, ...] = ()
    num_xsa_layers: int = 0
    """The last n layers take out of each head's output its component along the token's own value (XSA, 1.6)."""
    fused_qkv: bool = False
    """q, k and v are one matrix, which Muon orthogonalizes as a whole."""
    ln_scale: bool = False
    """Multiply both normalized branch inputs of layer l by 1/sqrt(l+1)."""
    output_norm: bool = False
    """RMSNorm of the input of both output projections."""
    max_skips: int = 0
    """At most this many decoder executions take a skip, from the first on; 0: as many as there are encoder outputs. Two
    entries (ranks 18, 19) have rows for the order without recurrence only."""
    skip_gates: bool = False
    """Skips blend, `γ ⊙ x + (1-γ) ⊙ w ⊙ s` with γ = σ(gate), instead of adding (1.9)."""
    value_residual: bool = False
    """`v = λ₀ v(layer 0) + λ₁ v` (Zhou et al. 2024; 2.4)."""
    rope_scaling: RopeScalingConfig = field(default_factory=RopeScalingConfig)
    smear: SmearConfig = field(default_factory=SmearConfig)
    hash_embedding: HashEmbeddingConfig = field(default_factory=HashEmbeddingConfig)
    value_embedding: ValueEmbeddingConfig = field(default_factory=ValueEmbeddingConfig)
    head_gate: HeadGateConfig = field(default_factory=HeadGateConfig)
    lanes: LaneConfig = field(default_factory=LaneConfig)
    recurrence: RecurrenceConfig = field(default_factory=RecurrenceConfig)
    initialization: InitializationConfig = field(default_factory=InitializationConfig)

    def __post_init__(self) -> None:
        for name in ("vocab_size", "num_layers", "model_dim", "num_heads", "num_kv_heads"):
            _require(getattr(self, name) >= 1, name, "an integer of at least 1", getattr(self, name))
        for name in ("embedding_dim", "attention_window", "max_skips", "leaky_slope", "logit_softcap"):
            _require(getattr(self, name) >= 0, name, "a number of at least 0", getattr(self, name))
        for name in ("mlp_ratio", "embedding_init_std", "norm_epsilon"):
            _require(getattr(self, name) > 0, name, "a number above 0", getattr(self, name))
        _require(self.vocab_size <= 65_536, "vocab_size", "at most 65536 (token ids are uint16)", self.vocab_size)
        _one_of(self.activation, "activation", Activation)
        _one_of(self.softcap_form, "softcap_form", SoftcapForm)
        self._check_heads()
        self._check_layers()

    def _check_heads(self) -> None:
        _require(
            self.model_dim % self.num_heads == 0,
            "num_heads",
            f"a divisor of model_dim={self.model_dim}",
            self.num_heads,
        )
        _require(
            self.num_heads % self.num_kv_heads == 0,
            "num_kv_heads",
            f"a divisor of num_heads={self.num_heads}",
            self.num_kv_heads,
        )
        _require(self.head_dim % 2 == 0, "num_heads", "a head width model_dim/num_heads that is even", self.num_heads)
        _require(self.rope_base > 1, "rope_base", "a number above 1", self.rope_base)
        _require(
            0 <= self.rope_dims <= self.head_dim and self.rope_dims % 2 == 0,
            "rope_dims",
            f"an even number from 0 to the head width {self.head_dim}",
            self.rope_dims,
        )
        for name, window in (("smear.window", self.smear.window), ("head_gate.window", self.head_gate.window)):
            used = self.smear.kind == "token" if name == "smear.window" else self.head_gate.kind in ("sparse", "output")
            _require(not used or window <= self.model_dim, name, f"at most model_dim={self.model_dim}", window)

    def _check_layers(self) -> None:
        layers = self.num_layers
        _require(
            0 <= self.num_xsa_layers <= self.num_executions, "num_xsa_layers", "from 0 to all", self.num_xsa_layers
        )
        _require(
            all(0 <= layer < layers for layer in self.attention_free_layers),
            "attention_free_layers",
            f"layers from 0 to {layers - 1}",
            self.attention_free_layers,
        )
        positions = self.num_executions if self.recurrence.per_execution_scalars else layers
        _require(
            all(0 <= layer < positions for layer in self.value_embedding.layers),
            "value_embedding.layers",
            f"numbers from 0 to {positions - 1}",
            self.value_embedding.layers,
        )
        _require(
            self.lanes.kind == "none" or self.lanes.first_layer < layers,
            "lanes.first_layer",
            f"below num_layers={layers}",
            self.lanes.first_layer,
        )
        recurrence = self.recurrence
        _require(
            recurrence.num_extra_passes == 0 or recurrence.last_layer < layers,
            "recurrence.last_layer",
            f"below num_layers={layers}",
            recurrence.last_layer,
        )
        needs_passes = ("untied_mlp", "per_execution_scalars", "iteration_embedding")
        for name in needs_passes:
            _require(
                not getattr(recurrence, name) or recurrence.num_extra_passes > 0,
                f"recurrence.{name}",
                "false without extra passes",
                True,
            )

    @property
    def head_dim(self) -> int:
        return self.model_dim // self.num_heads

    @property
    def kv_dim(self) -> int:
        return self.num_kv_heads * self.head_dim

    @property
    def mlp_dim(self) -> int:
        return int(self.mlp_ratio * self.model_dim)

    @property
    def num_executions(self) -> int:
        """Block executions of one forward with every pass of the recurrence."""
        segment = self.recurrence.last_layer - self.recurrence.first_layer + 1
        return self.num_layers + self.recurrence.num_extra_passes * segment


def model_config_from_dict(values: Mapping[str, Any]) -> ModelConfig:
    """The configuration that nested plain data (an artifact's, a preset's) describe; fields left out keep defaults.

    Raises:
        ValueError: an unknown field, a value of another type or out of range; the message names the field.
    """
    config = _from_dict(ModelConfig, values, "model")
    assert isinstance(config, ModelConfig)
    return config


def _from_dict(cls: type, values: Mapping[str, Any], where: str) -> object:
    if not isinstance(values, Mapping):
        raise ValueError(f"{where}: accepts a table of settings, got {values!r}")
    hints = typing.get_type_hints(cls)
    known = {item.name for item in dataclasses.fields(cls)}
    arguments = {}
    for key, value in values.items():
        if key not in known:
            raise ValueError(f"{where}: unknown field {key!r}")
        arguments[key] = _convert(value, hints[key], f"{where}.{key}")
    return cls(**arguments)


def _convert(value: object, hint: Any, where: str) -> object:
    if isinstance(hint, type) and dataclasses.is_dataclass(hint):
        return _from_dict(hint, value, where)  # type: ignore[arg-type]
    if typing.get_origin(hint) is tuple:
        if not isinstance(value, list | tuple):
            raise ValueError(f"{where}: accepts a list, got {value!r}")
        return tuple(_convert(item, get_args(hint)[0], where) for item in value)
    accepted = str if typing.get_origin(hint) is Literal else hint
    if accepted is float and type(value) is int:
        return float(value)
    if type(value) is not accepted:
        raise ValueError(f"{where}: accepts a value of type {accepted.__name__}, got {value!r}")
    return value


def _require(condition: bool, field_name: str, accepted: str, value: object) -> None:
    if not condition:
        raise ValueError(f"model.{field_name}: accepts {accepted}, got {value!r}")


def _one_of(value: str, field_name: str, literal: Any) -> None:
    _require(value in get_args(literal), field_name, " or ".join(get_args(literal)), value)
