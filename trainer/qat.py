"""Quantization-aware training: puts fake quantization between the master weights and the products."""

from __future__ import annotations

from collections.abc import Iterable, Mapping

import torch
from torch import Tensor, nn

from model.network.embedding import TokenEmbedding
from model.network.fake_quantization import FakeQuantization, fake_quantize
from model.network.projection import Projection
from trainer.config import QATConfig

_ATTENTION = ("q", "k", "v", "qkv", "attn_out")
_MLP = ("mlp_up", "mlp_gate", "mlp_down")


class WeightQuantizer(nn.Module):
    """The `transform` of one projection or embedding."""

    def __init__(self, how: FakeQuantization, sharpness: Tensor) -> None:
        super().__init__()
        self.how = how
        self.register_buffer("sharpness", sharpness, persistent=False)

    def forward(self, weight: Tensor) -> Tensor:
        assert isinstance(self.sharpness, Tensor)
        return fake_quantize(weight, self.how, self.sharpness, self.training)


class QuantizationAware:
    """Fake quantization of one model's weights, on or off.

    Switching adds or removes the `transform` of every projection concerned: it changes the module tree, which a
    compiled graph is guarded by, so that the next step compiles (or finds) another graph. A flag inside the
    transform could be folded into the graph at its first trace, as it was in the published entries (methods 4.2).

    Raises:
        ValueError: `sensitive_matrices` names something that is no matrix of the model, or a matrix does not divide
            into the groups of ternary or binary weights.
    """

    def __init__(self, model: nn.Module, config: QATConfig) -> None:
        device = next(model.parameters()).device
        self.sharpness = torch.tensor(config.soft_round_sharpness[0], device=device)
        """α of soft rounding, shared by all weights; fill it in place."""
        self._targets: list[tuple[Projection | TokenEmbedding, WeightQuantizer]] = []
        unknown = set(config.sensitive_matrices)
        for name, module in model.named_modules():
            if not isinstance(module, Projection | TokenEmbedding):
                continue
            unknown.discard(name)
            how = config.sensitive if name in config.sensitive_matrices else _by_role(module, config)
            if how.method == "none":
                continue
            if how.method in ("ternary", "binary") and module.weight.shape[-1] % how.group_size:
                raise ValueError(
                    f"training.qat: {name} has rows of {module.weight.shape[-1]} weights, "
                    f"which groups of {how.group_size} do not divide"
                )
            # A submodule from the start, though absent: as a plain None it would be kept elsewhere, and a graph
            # compiled before the first switch would not be found again after the second.
            del module.transform
            module.register_module("transform", None)
            self._targets.append((module, WeightQuantizer(how, self.sharpness)))
        if unknown:
            raise ValueError(f"training.qat.sensitive_matrices: {min(unknown)} is no matrix of this model")
        self.is_on = False
        self.is_random = any(quantizer.how.method == "noise" for _, quantizer in self._targets)
        """Whether the forward pass draws random numbers."""

    def switch(self, on: bool) -> None:
        """Quantize the weights in every forward pass from now on, or leave them alone."""
        if on == self.is_on:
            return
        for module, quantizer in self._targets:
            quantizer.train(module.training)
            module.transform = quantizer if on else None
        self.is_on = on


def _by_role(module: Projection | TokenEmbedding, config: QATConfig) -> FakeQuantization:
    if isinstance(module, TokenEmbedding):
        return config.embedding
    return config.attention if module.role in _ATTENTION else config.mlp if module.role in _MLP else config.embedding


def mix_by_sensitivity(
    sensitivities: Mapping[str, float], num_sensitive: int, *, always: Iterable[str] = ()
) -> tuple[str, ...]:
    """Which matrices get the finer grid: those of `always` and the most sensitive others, `num_sensitive` in all.

    Sensitivity of the published entries: the trace of the calibration Hessian (methods 4.3; rank 21 takes 32 of 67
    with the repeated layers always among them). Ties go by name. For `QATConfig.sensitive_matrices`.

    Raises:
        ValueError: `always` names an unknown matrix, or more than `num_sensitive`.
    """
    forced = sorted(set(always))
    unknown = [name for name in forced if name not in sensitivities]
    if unknown:
        raise ValueError(f"always: {unknown[0]} has no sensitivity")
    if len(forced) > num_sensitive:
        raise ValueError(f"num_sensitive: accepts at least the {len(forced)} of always, got {num_sensitive}")
    others = sorted(sensitivities.keys() - set(forced), key=lambda name: (-sensitivities[name], name))
    return tuple(sorted([*forced, *others[: num_sensitive - len(forced)]]))
