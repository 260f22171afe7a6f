"""The network's configuration: everything that decides its shape and its function, and nothing about training.

No torch in here, so that tools which only read artifacts can validate a configuration.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal

FLOAT32_EPSILON = 2.0**-23


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
    activation: Literal["relu_squared"] = "relu_squared"
    rope_base: float = 10_000.0
    rope_dims: int = 0
    """Rotated dimensions at the front of each head; 0 rotates the whole head."""
    qk_gain_init: float = 1.5
    unet_skips: bool = True
    """U-Net skips: the second half of the layers receives the outputs of the first half, last in, first out."""
    logit_softcap: float = 30.0
    """`c * tanh(z / c)` on the logits; 0 switches it off."""
    embedding_init_std: float = 0.005
    norm_epsilon: float = FLOAT32_EPSILON
    """Added to the mean square in every RMSNorm. Explicit, because the framework's default follows the input's type."""

    def __post_init__(self) -> None:
        for name in ("vocab_size", "num_layers", "model_dim", "num_heads", "num_kv_heads"):
            _require(getattr(self, name) >= 1, name, "an integer of at least 1", getattr(self, name))
        _require(self.vocab_size <= 65_536, "vocab_size", "at most 65536 (token ids are uint16)", self.vocab_size)
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
        _require(self.mlp_ratio > 0, "mlp_ratio", "a number above 0", self.mlp_ratio)
        _require(self.activation == "relu_squared", "activation", "relu_squared", self.activation)
        _require(self.rope_base > 1, "rope_base", "a number above 1", self.rope_base)
        _require(
            0 <= self.rope_dims <= self.head_dim and self.rope_dims % 2 == 0,
            "rope_dims",
            f"an even number from 0 to the head width {self.head_dim}",
            self.rope_dims,
        )
        _require(self.logit_softcap >= 0, "logit_softcap", "a number of at least 0", self.logit_softcap)
        _require(self.embedding_init_std > 0, "embedding_init_std", "a number above 0", self.embedding_init_std)
        _require(self.norm_epsilon > 0, "norm_epsilon", "a number above 0", self.norm_epsilon)

    @property
    def head_dim(self) -> int:
        return self.model_dim // self.num_heads

    @property
    def kv_dim(self) -> int:
        return self.num_kv_heads * self.head_dim

    @property
    def mlp_dim(self) -> int:
        return int(self.mlp_ratio * self.model_dim)


def _require(condition: bool, field: str, accepted: str, value: object) -> None:
    if not condition:
        raise ValueError(f"model.{field}: accepts {accepted}, got {value!r}")
