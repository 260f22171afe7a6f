"""How much the loss minds errors at each output of each matrix: the diagonal of the Fisher information there.

A small error of a matrix's weights E raises the expected loss by about half the sum over outputs r of
`g_r · e_r (Σ x xᵀ) e_rᵀ` (the Kronecker-factored view of Martens and Grosse 2015): `g_r`, the mean squared gradient at
output r with targets drawn from the model itself, stands here; the sum of inputs is the calibration Hessian.

Shapes: B rows of a batch, T tokens, O outputs of a matrix, V vocabulary, E table width.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable
from dataclasses import dataclass
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from model.network.gpt import GPT
from model.network.projection import Projection
from trainer.ranks import Ranks


@dataclass(frozen=True)
class Importances:
    """Means over calibration tokens, in nats squared over the squared unit of what they belong to.

    outputs: parameter name -> mean squared gradient at each output of one product, float32 [O]. For the head (the
      token table where tied) `E[p (1 - p)]`, which needs no sampling.
    table_rows: mean squared gradient at one element of the token embedding that enters the network, times each token's
      share of the text, float32 [V]: what an error in a row of the table does through the input. The share is the mean
      of what the model predicts, which knows rare tokens better than a count does.
    """

    outputs: dict[str, Tensor]
    table_rows: Tensor


def collect_importances(
    model: GPT, batches: Iterable[Tensor], ranks: Ranks | None = None, seed: int = 0
) -> Importances:
    """One forward and backward of the full network for each batch of ids [B, T]; sums over ranks.

    Gradients of the sum of losses with sampled targets are unbiased for the sum of squares: samples are independent.

    Raises:
        ValueError: there are no batches on this rank.
    """
    taps = _GradientTaps(model)
    device = next(model.parameters()).device
    generator = torch.Generator(device).manual_seed(seed + (0 if ranks is None else ranks.rank))
    trained = [parameter for parameter in model.parameters() if parameter.requires_grad]
    passes = model.extra_passes
    model.set_extra_passes(model.config.recurrence.num_extra_passes)
    handles = taps.attach()
    try:
        for parameter in trained:
            parameter.requires_grad_(False)
        for ids in batches:
            logits = model(ids)
            with torch.no_grad():
                predicted = logits.softmax(dim=-1).flatten(0, 1)
                targets = torch.multinomial(predicted, 1, generator=generator)[:, 0]
                taps.add_head(logits.flatten(0, 1), predicted)
            F.cross_entropy(logits.flatten(0, 1), targets, reduction="sum").backward()
    finally:
        for handle in handles:
            handle.remove()
        for parameter in trained:
            parameter.requires_grad_(True)
        model.set_extra_passes(passes)
    return taps.finish(ranks)


class _GradientTaps:
    def __init__(self, model: GPT) -> None:
        self._model = model
        self._sums: dict[str, Tensor] = {}
        self._counts: dict[str, Tensor] = {}

    def attach(self) -> list[Any]:
        modules = {n: m for n, m in self._model.named_modules() if isinstance(m, Projection) and n != "head"}
        handles = [module.register_forward_hook(self._hook(f"{name}.weight")) for name, module in modules.items()]
        # Parameters take no gradients, so the graph has to begin at the embedding.
        handles.append(self._model.embedding.register_forward_hook(self._hook("input", begins=True)))
        return handles

    def _hook(self, name: str, begins: bool = False) -> Callable[..., None]:
        def watch(_: nn.Module, __: Any, output: Tensor) -> None:
            if begins:
                output.requires_grad_(True)
            if output.requires_grad:
                output.register_hook(lambda gradient: self._add(name, gradient))

        return watch

    def _add(self, name: str, gradient: Tensor) -> None:
        flat = gradient.flatten(0, -2).float()
        self._accumulate(name, flat.square().sum(dim=0), len(flat))

    def _accumulate(self, name: str, total: Tensor, count: int) -> None:
        if name not in self._sums:
            self._sums[name] = torch.zeros_like(total)
            self._counts[name] = torch.zeros(1, dtype=torch.float64, device=total.device)
        self._sums[name] += total
        self._counts[name] += count

    def add_head(self, logits: Tensor, predicted: Tensor) -> None:
        """Fisher information of the logits before the soft cap: p (1 - p) times the cap's squared slope."""
        config = self._model.config
        information = predicted * (1 - predicted)
        if config.logit_softcap and config.softcap_form == "tanh":
            information = information * (1 - (logits / config.logit_softcap).square()).square()
        head = "embedding.weight" if config.tied_head else "head.weight"
        self._accumulate(head, information.sum(dim=0), len(logits))
        self._accumulate("predicted", predicted.sum(dim=0), len(logits))

    def finish(self, ranks: Ranks | None) -> Importances:
        if ranks is not None:
            for name in sorted(self._sums):
                ranks.sum(self._sums[name])
                ranks.sum(self._counts[name])
        if not self._sums:
            raise ValueError("calibration: no batches")
        means = {name: total / float(self._counts[name]) for name, total in self._sums.items()}
        table_rows = means.pop("input").mean() * means.pop("predicted")
        return Importances(means, table_rows)
