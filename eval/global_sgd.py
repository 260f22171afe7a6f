"""SGD with momentum on the base weights, from tokens whose scores are fixed (methods.md 8.4 and 8.6).

Shapes: T targets of a buffer.
"""

from __future__ import annotations

import math
from collections.abc import Iterator, Sequence
from contextlib import contextmanager

import numpy as np
import numpy.typing as npt
import torch

from eval.config import SGDConfig
from eval.plan import Share
from eval.ranks import Ranks
from model.network.gpt import GPT


class GlobalSGD:
    """One optimizer over the base weights. Weights require gradients only inside `step`."""

    def __init__(self, model: GPT, config: SGDConfig, ranks: Ranks) -> None:
        self.model = model
        self.config = config
        self.ranks = ranks
        frozen = tuple(f"blocks.{block}." for block in range(config.frozen_blocks))
        self.parameters = [p for name, p in model.named_parameters() if not name.startswith(frozen)]
        self.optimizer = torch.optim.SGD(self.parameters, lr=config.learning_rate, momentum=config.momentum)

    def learning_rate(self, chunk: int, num_chunks: int) -> float:
        """Half a cosine over the chunks: lr/2 (1 + cos(pi chunk / (num_chunks - 1)))."""
        return 0.5 * self.config.learning_rate * (1.0 + math.cos(math.pi * chunk / (num_chunks - 1)))

    def step(self, tokens: npt.NDArray[np.integer], bos_id: int | None, learning_rate: float) -> tuple[float, float]:
        """One step on the mean loss over a chunk.

        Args:
            tokens: the chunk's inputs followed by its last target; one more than the number of targets.
            bos_id: where attention begins anew; None: only every `sequence_tokens`.

        Returns:
            The loss in nats per target, and the gradient's norm before clipping.
        """
        share = Share(self.ranks.rank, self.ranks.size)
        num_targets = len(tokens) - 1
        total = torch.zeros((), dtype=torch.float64, device=self.model.embedding.weight.device)
        self.optimizer.zero_grad(set_to_none=True)
        with _requiring_gradients(self.parameters):
            for index, first in enumerate(range(0, num_targets, self.config.buffer_tokens)):
                if share.owns(index):
                    part = tokens[first : first + self.config.buffer_tokens + 1]
                    loss = self._buffer_nll(part, bos_id).sum() / num_targets
                    torch.autograd.backward(loss)
                    total += loss.detach()
            for parameter in self.parameters:
                if parameter.grad is None:
                    parameter.grad = torch.zeros_like(parameter)
                self.ranks.sum(parameter.grad)
            self.ranks.sum(total)
            norm = torch.nn.utils.clip_grad_norm_(self.parameters, self.config.gradient_clip_norm)
            for group in self.optimizer.param_groups:
                group["lr"] = learning_rate
            self.optimizer.step()
        self.optimizer.zero_grad(set_to_none=True)
        return float(total), float(norm)

    def _buffer_nll(self, tokens: npt.NDArray[np.integer], bos_id: int | None) -> torch.Tensor:
        device = self.model.embedding.weight.device
        packed = torch.from_numpy(tokens.astype(np.int64)).to(device)
        starts = segment_starts(tokens[:-1], bos_id, self.config.sequence_tokens)
        cu_seqlens = torch.tensor([*starts, len(tokens) - 1], dtype=torch.int32, device=device)
        longest = min(self.config.sequence_tokens, len(tokens) - 1)
        return self.model.token_nll(
            packed[None, :-1], packed[None, 1:], cu_seqlens=cu_seqlens, longest_document=longest
        )


def segment_starts(tokens: npt.NDArray[np.integer], bos_id: int | None, sequence_tokens: int) -> list[int]:
    """Where attention begins anew in a packed buffer: at 0, at BOS, and every `sequence_tokens` within a segment."""
    documents = [] if bos_id is None else np.flatnonzero(np.asarray(tokens) == bos_id).tolist()
    edges = sorted({0, *documents})
    starts: list[int] = []
    for start, end in zip(edges, [*edges[1:], len(tokens)], strict=True):
        starts.extend(range(start, end, sequence_tokens))
    return starts


@contextmanager
def _requiring_gradients(parameters: Sequence[torch.nn.Parameter]) -> Iterator[None]:
    for parameter in parameters:
        parameter.requires_grad_(True)
    try:
        yield
    finally:
        for parameter in parameters:
            parameter.requires_grad_(False)


@contextmanager
def restored_weights(model: GPT) -> Iterator[None]:
    """Gives the model the weights back that it had at the start, whatever happens in between."""
    before = {name: parameter.detach().clone() for name, parameter in model.named_parameters()}
    try:
        yield
    finally:
        with torch.no_grad():
            for name, parameter in model.named_parameters():
                parameter.copy_(before[name])
