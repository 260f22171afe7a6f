"""Data order: which samples a step trains on. Pure functions of the step, the same for any number of ranks."""

from __future__ import annotations

import numpy as np
import torch
from torch import Tensor

from model.errors import InputError
from model.text.shards import TokenStream
from trainer.config import TrainingConfig
from trainer.ranks import Ranks


class SequentialLoader:
    """The baseline's order: the token stream from its start, cut into sequences, around and around.

    Sample i is the span of `sequence_tokens + 1` tokens from `i * sequence_tokens` on (its last token is only a
    target). Step s takes the samples `s * num_sequences ...`, modulo the number of samples; the ranks share them out
    in micro-batches of equal size.

    Raises:
        InputError: the stream is shorter than one sample, or the sequences of a step don't divide over the ranks.
    """

    def __init__(self, stream: TokenStream, config: TrainingConfig, ranks: Ranks) -> None:
        self._stream = stream
        self._config = config
        self._ranks = ranks
        self.num_samples = (stream.num_tokens - 1) // config.sequence_tokens
        if self.num_samples < 1:
            raise InputError(
                f"training data: {stream.num_tokens} tokens are fewer than one sequence of "
                f"training.sequence_tokens={config.sequence_tokens} and its target"
            )
        if config.num_sequences % ranks.size:
            raise InputError(
                f"training.batch_tokens: its {config.num_sequences} sequences can't be shared out evenly over "
                f"{ranks.size} processes"
            )
        share = config.num_sequences // ranks.size
        most = config.micro_batch_tokens // config.sequence_tokens
        self.micro_batch_sequences = max(n for n in range(1, min(share, most) + 1) if share % n == 0)
        self.num_micro_batches = share // self.micro_batch_sequences

    def sample_numbers(self, step: int) -> np.ndarray:
        """Numbers of the samples of a step, int64 [num_sequences]."""
        first = step * self._config.num_sequences
        return (first + np.arange(self._config.num_sequences)) % self.num_samples

    def micro_batch(self, step: int, index: int) -> tuple[Tensor, Tensor]:
        """Ids and targets of this rank's micro-batch `index`, int64 [sequences, sequence_tokens], on its device."""
        length = self._config.sequence_tokens
        first = (index * self._ranks.size + self._ranks.rank) * self.micro_batch_sequences
        numbers = self.sample_numbers(step)[first : first + self.micro_batch_sequences]
        spans = np.stack([self._stream.read(int(n) * length, length + 1) for n in numbers])
        tokens = torch.from_numpy(spans.astype(np.int32)).to(self._ranks.device).long()
        return tokens[:, :-1], tokens[:, 1:]
