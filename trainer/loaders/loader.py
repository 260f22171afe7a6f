"""From an order of samples to tensors: each rank's micro-batches, prepared ahead on a thread."""

from __future__ import annotations

from concurrent.futures import Future, ThreadPoolExecutor

import numpy as np
import torch
from torch import Tensor

from model.errors import InputError
from model.text.shards import TokenStream
from trainer.config import TrainingConfig
from trainer.loaders.orders import CoprimeStrideOrder, PackedOrder, SampleOrder, SequentialOrder, ShuffledOrder
from trainer.loaders.packing import cumulative_lengths
from trainer.ranks import Ranks

LENGTHS_BUCKET = 256
"""Entries of a row's cumulative lengths, rounded up to this: nearly all rows of 98,304 tokens then have tensors of one
shape. Every other shape would cost a compilation within the timed run."""
ORDERS = ("sequential", "shuffled", "coprime", "packed")
Batch = tuple[Tensor, ...]


def training_loader(stream: TokenStream, config: TrainingConfig, ranks: Ranks) -> SampleLoader:
    """The micro-batches of one rank of a run: as many samples each as `micro_batch_tokens` allows.

    Raises:
        InputError: the data are too short for a sample, or a step's samples don't divide over the ranks.
    """
    num_samples, packed = config.num_samples_per_step, config.data_order == "packed"
    order = make_order(config.data_order, stream, config.sample_tokens, num_samples, config.seed)
    if num_samples % ranks.size:
        raise InputError(
            f"training.batch_tokens: its {num_samples} samples of {config.sample_tokens} tokens can't be shared out "
            f"evenly over {ranks.size} processes"
        )
    share = num_samples // ranks.size
    most = 1 if packed else config.micro_batch_tokens // config.sample_tokens
    return SampleLoader(
        stream,
        order,
        ranks,
        sequence_tokens=config.sample_tokens,
        num_sequences=num_samples,
        micro_batch_sequences=max(n for n in range(1, min(share, most) + 1) if share % n == 0),
        longest_segment=config.sequence_tokens if packed else None,
    )


def make_order(name: str, stream: TokenStream, sequence_tokens: int, num_sequences: int, seed: int) -> SampleOrder:
    """The order of that name (one of ORDERS) over a stream's shards. InputError if the data are too short for it."""
    shard_tokens = [len(shard) for shard in stream.shards]
    if name == "sequential":
        return SequentialOrder(shard_tokens, sequence_tokens, num_sequences)
    if name == "shuffled":
        return ShuffledOrder(shard_tokens, sequence_tokens, num_sequences, seed)
    if name == "coprime":
        return CoprimeStrideOrder(shard_tokens, sequence_tokens, num_sequences, seed)
    if name == "packed":
        return PackedOrder(shard_tokens, stream.first_bos(), sequence_tokens, num_sequences)
    raise ValueError(f"data order {name!r}: accepted are {', '.join(ORDERS)}")


class SampleLoader:
    """Micro-batches of an order's samples for one rank.

    Micro-batch i of a step on rank r holds the samples from (i * ranks + r) * size on, so a step's samples are the
    same for any number of ranks. With `longest_segment` set, a micro-batch is one packed row and comes with the
    cumulative lengths of its documents.

    Raises: InputError: the sequences of a step don't divide over the ranks, or a packed micro-batch is not one row.
    """

    def __init__(
        self,
        stream: TokenStream,
        order: SampleOrder,
        ranks: Ranks,
        *,
        sequence_tokens: int,
        num_sequences: int,
        micro_batch_sequences: int,
        longest_segment: int | None = None,
        prefetch: int = 2,
    ) -> None:
        if num_sequences % (ranks.size * micro_batch_sequences):
            raise InputError(
                f"a step's {num_sequences} sequences can't be shared out as micro-batches of {micro_batch_sequences} "
                f"over {ranks.size} processes"
            )
        if longest_segment is not None and micro_batch_sequences != 1:
            raise InputError(f"packed documents come one row a micro-batch, not {micro_batch_sequences}")
        self._stream, self._order, self._ranks = stream, order, ranks
        self._sequence_tokens, self._longest_segment = sequence_tokens, longest_segment
        self.num_samples = order.num_samples
        self.micro_batch_sequences = micro_batch_sequences
        self.num_micro_batches = num_sequences // (ranks.size * micro_batch_sequences)
        self._prefetch = prefetch
        self._thread = ThreadPoolExecutor(1, thread_name_prefix="loader") if prefetch else None
        self._ahead: dict[tuple[int, int], Future[Batch]] = {}

    def sample_positions(self, step: int) -> np.ndarray:
        """Where the samples of a step begin in the token stream, over all ranks, int64 [num_sequences]."""
        return self._order.positions(step)

    def micro_batch(self, step: int, index: int) -> Batch:
        """Ids and targets, int64 [micro_batch_sequences, sequence_tokens] each, on the rank's device; for packed rows
        also the cumulative lengths, int32 (see `trainer.loaders.packing`).
        """
        waiting = self._ahead.pop((step, index), None)
        if self._thread is not None:
            self._look_ahead(self._thread, step, index)
        prepared = self._prepare(step, index) if waiting is None else waiting.result()
        return tuple(tensor.to(self._ranks.device, non_blocking=True) for tensor in prepared)

    def close(self) -> None:
        """Stop the thread."""
        if self._thread is not None:
            self._thread.shutdown(cancel_futures=True)

    def _look_ahead(self, thread: ThreadPoolExecutor, step: int, index: int) -> None:
        wanted = []
        for _ in range(self._prefetch):
            step, index = (step, index + 1) if index + 1 < self.num_micro_batches else (step + 1, 0)
            wanted.append((step, index))
        for key in [key for key in self._ahead if key not in wanted]:
            self._ahead.pop(key).cancel()
        for key in wanted:
            if key not in self._ahead:
                self._ahead[key] = thread.submit(self._prepare, *key)

    def _prepare(self, step: int, index: int) -> Batch:
        first = (index * self._ranks.size + self._ranks.rank) * self.micro_batch_sequences
        positions = self._order.positions(step)[first : first + self.micro_batch_sequences]
        pinned = self._ranks.device.type == "cuda"
        ids, targets = (
            torch.empty((len(positions), self._sequence_tokens), dtype=torch.int64, pin_memory=pinned) for _ in range(2)
        )
        for row, position in enumerate(positions.tolist()):
            span = self._stream.read(position, self._sequence_tokens + 1)
            ids[row].numpy()[:] = span[:-1]
            targets[row].numpy()[:] = span[1:]
        if self._longest_segment is None:
            return ids, targets
        lengths = torch.from_numpy(cumulative_lengths(ids[0].numpy(), self._longest_segment, LENGTHS_BUCKET))
        return ids, targets, lengths.pin_memory() if pinned else lengths
