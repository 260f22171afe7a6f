"""Calibration: what the network's matrices see and how much their outputs matter.

`collect_hessians` sums `x xᵀ` over the inputs x of every matrix product, through forward hooks on the network's
Projections. It streams: one batch's activations and the sums are all it holds.

Shapes: B rows of a batch, T tokens, I inputs of a matrix.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn

from model.network.gpt import GPT
from model.network.projection import Projection
from model.text.shards import TokenStream
from trainer.quantize.config import CalibrationConfig
from trainer.quantize.importance import Importances
from trainer.ranks import Ranks

_SHARE_INPUT = {"k": "q", "v": "q", "gate": "up"}
"""Projection attribute -> its sibling with the same input."""


@dataclass(frozen=True)
class Calibration:
    """Sums over calibration tokens, on the model's device.

    hessians: parameter name -> Σ x xᵀ, float32 [I, I]; matrices with the same input share one tensor. A tied token
      table counts as the head's matrix.
    importances: None unless collected.
    """

    hessians: dict[str, Tensor]
    num_tokens: int
    importances: Importances | None = None

    def traces(self) -> dict[str, float]:
        """Trace of every Hessian, over tokens: the mean squared norm of the matrix's input."""
        return {name: float(hessian.diagonal().sum()) / self.num_tokens for name, hessian in self.hessians.items()}


def training_batches(
    stream: TokenStream, config: CalibrationConfig, ranks: Ranks, rows_per_batch: int = 16
) -> Iterator[Tensor]:
    """This rank's share of the calibration rows, int64 [B, sequence_tokens], from the start of the training stream.

    The rows are the same for any number of ranks; fewer if the stream is short.

    Raises:
        ValueError: the stream is shorter than one row.
    """
    length = config.sequence_tokens
    num_rows = min(config.num_batches * config.batch_tokens, stream.num_tokens) // length
    if num_rows == 0:
        raise ValueError(f"calibration: {stream.num_tokens} training tokens are fewer than one row of {length}")
    mine = range(ranks.rank, num_rows, ranks.size)
    for start in range(0, len(mine), rows_per_batch):
        rows = [stream.read(row * length, length) for row in mine[start : start + rows_per_batch]]
        yield torch.from_numpy(np.stack(rows).astype(np.int64)).to(ranks.device)


def collect_hessians(model: GPT, batches: Iterable[Tensor], ranks: Ranks | None = None) -> Calibration:
    """Run the network, every pass of its recurrence on, over batches of ids [B, T]; sums over ranks.

    Raises:
        ValueError: there are no batches on this rank.
    """
    taps = _Taps(model)
    passes = model.extra_passes
    model.set_extra_passes(model.config.recurrence.num_extra_passes)
    num_tokens = 0
    try:
        with taps.attached(), torch.no_grad():
            for ids in batches:
                taps.run(ids)
                num_tokens += ids.numel()
    finally:
        model.set_extra_passes(passes)
    if not num_tokens:
        raise ValueError("calibration: no batches")
    return taps.finish(num_tokens, ranks)


class _Taps:
    """Hooks on every matrix product of one model, summing float32 Hessians."""

    def __init__(self, model: GPT) -> None:
        self._model = model
        self._modules = {name: module for name, module in model.named_modules() if isinstance(module, Projection)}
        self._owner = {name: _input_owner(name, self._modules) for name in self._modules}
        self._sums: dict[str, Tensor] = {}

    @contextmanager
    def attached(self) -> Iterator[None]:
        handles = [
            module.register_forward_pre_hook(self._hook(name))
            for name, module in self._modules.items()
            if self._owner[name] == name and name not in ("head", "embedding_out")
        ]
        try:
            with final_state_tap(self._model, self._add_final):
                yield
        finally:
            for handle in handles:
                handle.remove()

    def _add_final(self, hidden: Tensor) -> None:
        model = self._model
        if model.head is not None:
            self.add("head", hidden)
        elif model.embedding_out is None:
            self.add("embedding", hidden)
        else:
            self.add("embedding_out", hidden)
            self.add("embedding", model.embedding_out(hidden))

    def _hook(self, name: str) -> Any:
        def add(_: nn.Module, inputs: tuple[Any, ...]) -> None:
            self.add(name, inputs[0])

        return add

    def add(self, name: str, x: Tensor) -> None:
        """x [..., I] in any type; products and sums are float32."""
        # TF32 holds bfloat16 and float16 values exactly, so that their products are exact there too.
        exact_in_tf32 = x.dtype in (torch.bfloat16, torch.float16)
        flat = x.detach().flatten(0, -2).float()
        if name not in self._sums:
            self._sums[name] = torch.zeros(flat.shape[1], flat.shape[1], device=flat.device)
        with _tf32(exact_in_tf32):
            self._sums[name].addmm_(flat.T, flat)

    def run(self, ids: Tensor) -> None:
        """One forward, with logits for the last position only: the head's input is tapped before they are made."""
        self._model(ids, first_position=ids.shape[1] - 1)

    def finish(self, num_tokens: int, ranks: Ranks | None) -> Calibration:
        if ranks is not None:
            counted = torch.tensor([float(num_tokens)], dtype=torch.float64, device=ranks.device)
            ranks.sum(counted)
            num_tokens = int(counted.item())
            for name in sorted(self._sums):
                ranks.sum(self._sums[name])
        hessians = {f"{name}.weight": self._sums[name] for name in self._sums}
        for name, owner in self._owner.items():
            if owner in self._sums:
                hessians[f"{name}.weight"] = self._sums[owner]
        return Calibration(hessians, num_tokens)


def _input_owner(name: str, modules: dict[str, Projection]) -> str:
    """The projection whose tap sees the input of `name`."""
    parent, _, attribute = name.rpartition(".")
    sibling = f"{parent}.{_SHARE_INPUT.get(attribute, attribute)}"
    return sibling if parent and sibling in modules else name


@contextmanager
def final_state_tap(model: GPT, receive: Callable[[Tensor], None]) -> Iterator[None]:
    """While active, `receive` sees the normalized final state [B, T, D] of every forward."""
    compute = model._hidden

    def tapped(*arguments: Any, **options: Any) -> Tensor:
        hidden = compute(*arguments, **options)
        receive(hidden)
        return hidden

    # The tied head is a product with the token table, no Projection that a hook could be put on.
    model._hidden = tapped  # type: ignore[method-assign]
    try:
        yield
    finally:
        del model._hidden


@contextmanager
def _tf32(allowed: bool) -> Iterator[None]:
    """Whether float32 products on a GPU may take TF32, whatever the caller's setting."""
    before = torch.backends.cuda.matmul.allow_tf32
    torch.backends.cuda.matmul.allow_tf32 = allowed
    try:
        yield
    finally:
        torch.backends.cuda.matmul.allow_tf32 = before
