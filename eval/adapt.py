"""Score-first test-time training on documents: private LoRA sets, documents adapted side by side (methods.md 8.5).

Each chunk takes one forward. Its losses are committed first, then the same losses are differentiated and the adapters
take one AdamW step; so every score comes from weights that had not seen the chunk. The base weights are frozen.

Every document starts from the same A (drawn once from the seed) and B = 0, so its scores don't depend on which
documents share its batch, unless `warm_start` keeps A.

Shapes: B documents of a batch, T tokens of the buffer.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass

import numpy as np
import numpy.typing as npt
import torch

from eval.config import TTTConfig
from eval.documents import Documents
from eval.plan import ChunkStep, Span, chunk_steps
from eval.scores import Scores
from model.network.adapters import AdapterSet, LowRankAdapter
from model.network.gpt import GPT

IntArray = npt.NDArray[np.int64]
Continue = Callable[[int, float], bool]


class DocumentAdapter:
    """Adapters and their optimizer for batches of one size."""

    def __init__(self, model: GPT, config: TTTConfig, batch_size: int) -> None:
        device = model.embedding.weight.device
        self.model = model
        self.config = config
        self.max_rows = batch_size
        self.adapters = AdapterSet(
            model.config,
            batch_size,
            sites=config.sites,  # type: ignore[arg-type]
            rank=config.rank,
            alpha=config.alpha,
            seed=config.seed,
            device=device,
        ).to(model.embedding.weight.dtype)
        self._pairs = [module for module in self.adapters.modules() if isinstance(module, LowRankAdapter)]
        self._initial_a = [pair.a.detach()[:1].clone() for pair in self._pairs]

    def begin(self, warm_a: Sequence[torch.Tensor] | None = None) -> None:
        """Back to B = 0 and empty moments for the next batch; A as drawn, or as given."""
        self.adapters.reset(keep_a=True)
        with torch.no_grad():
            for pair, initial in zip(self._pairs, warm_a or self._initial_a, strict=True):
                pair.a.copy_(initial.expand_as(pair.a))
        self.optimizer = torch.optim.AdamW(
            self.adapters.parameters(),
            lr=self.config.learning_rate,
            betas=(self.config.beta1, self.config.beta2),
            eps=self.config.epsilon,
            weight_decay=self.config.weight_decay,
            fused=True,
        )

    def current_a(self) -> list[torch.Tensor]:
        """A as it is now, to begin a later batch with."""
        return [pair.a.detach().clone() for pair in self._pairs]

    def step(
        self, ids: torch.Tensor, targets: torch.Tensor, step: ChunkStep, spans: Sequence[Span], scores: Scores
    ) -> None:
        """Scores one chunk of every document of the batch, commits, and then learns from it.

        `spans` are the step's spans with targets counted in the stream; ids [B, T] and targets
        [B, T - step.first_position] are on the device. If the GPU runs out of memory, documents are run in halves.
        """
        self.optimizer.zero_grad(set_to_none=True)
        first = num_committed = 0
        while first < len(ids):
            end = min(first + self.max_rows, len(ids))
            try:
                nll = self._forward(ids[first:end], targets[first:end], step, first, end)
                fresh = [span._replace(row=span.row - first) for span in spans[max(first, num_committed) : end]]
                scores.commit(nll, fresh)
                num_committed = max(num_committed, end)
                self._add_gradients(nll, step, spans[first:end], scores)
            except torch.OutOfMemoryError:
                if end - first == 1:
                    raise
                self.max_rows = (end - first) // 2
                torch.cuda.empty_cache()
                print(f"out of GPU memory: adapting {self.max_rows} documents at a time from here on", flush=True)
                continue
            first = end
        if step.trains.any():
            self.optimizer.step()

    def _forward(self, ids: torch.Tensor, targets: torch.Tensor, step: ChunkStep, first: int, end: int) -> torch.Tensor:
        """Losses of rows [first, end) of the step, differentiable if one of them trains."""
        self.adapters.select_rows(step.first_row + first, step.first_row + end)
        with torch.set_grad_enabled(bool(step.trains[first:end].any())):
            return self.model.token_nll(ids, targets, adapters=self.adapters, first_position=step.first_position)

    def _add_gradients(self, nll: torch.Tensor, step: ChunkStep, spans: Sequence[Span], scores: Scores) -> None:
        """Differentiates the losses of the documents that have a later chunk; `spans` has one span per row of nll."""
        learned = [(row, span) for row, span in enumerate(spans) if step.trains[span.row]]
        if not learned:
            return
        scores.permit_update(span for _, span in learned)
        weights = torch.zeros(nll.shape, dtype=nll.dtype)
        for row, span in learned:
            weights[row, span.column : span.column + span.length] = 1.0 / span.length
        # Mean over the chunk, sum over documents: private adapters then don't feel the size of the batch.
        loss = (nll * weights.to(nll.device, non_blocking=True)).sum()
        parameters = list(self.adapters.parameters())
        for parameter, gradient in zip(parameters, torch.autograd.grad(loss, parameters), strict=True):
            parameter.grad = gradient if parameter.grad is None else parameter.grad + gradient


class AdapterPool:
    """Adapters for the batches of one phase, and warm A by lane.

    Batch i belongs to lane i modulo num_lanes. A batch of another size than configured gets adapters of its own, which
    are discarded afterwards (methods.md 8.5).
    """

    def __init__(self, model: GPT, config: TTTConfig) -> None:
        self.model = model
        self.config = config
        self._regular: DocumentAdapter | None = None
        self._warm_a: dict[int, list[torch.Tensor]] = {}

    def begin(self, batch_index: int, batch_size: int) -> DocumentAdapter:
        """Fresh adapters for a batch."""
        if batch_size != self.config.batch_documents:
            adapter = DocumentAdapter(self.model, self.config, batch_size)
            adapter.begin()
            return adapter
        if self._regular is None:
            self._regular = DocumentAdapter(self.model, self.config, batch_size)
        self._regular.begin(self._warm_a.get(batch_index % self.config.num_lanes))
        return self._regular

    def end(self, batch_index: int, adapter: DocumentAdapter) -> None:
        """Keeps A for the lane's next batch."""
        if self.config.warm_start and adapter is self._regular:
            self._warm_a[batch_index % self.config.num_lanes] = adapter.current_a()


@dataclass
class DocumentScorer:
    """Scores batches of documents of one token stream.

    `proceed` is asked after every chunk step; a False answer stops with what has been committed so far.
    """

    model: GPT
    tokens: npt.NDArray[np.integer]
    documents: Documents
    config: TTTConfig
    scores: Scores
    proceed: Continue | None = None

    def score_batch(self, batch_index: int, batch: IntArray, pool: AdapterPool | None) -> bool:
        """Scores one batch, adapting with adapters of the pool; without one the model is frozen.

        Returns False if it was told to stop. A batch of documents of one chunk each has nothing to learn from, so that
        B would stay 0, and is scored frozen.
        """
        learns = int(self.documents.num_targets[batch[-1]]) > self.config.chunk_tokens or self.config.warm_start
        adapter = pool.begin(batch_index, len(batch)) if pool is not None and learns else None
        device = self.model.embedding.weight.device
        starts = self.documents.starts[batch]
        lengths = self.documents.num_targets[batch]
        for step in chunk_steps(lengths, self.config.chunk_tokens, self.config.window_tokens):
            row_starts = starts[step.first_row :]
            ids, targets = _fill_buffers(self.tokens, row_starts, step)
            ids, targets = ids.to(device), targets.to(device)
            spans = [
                span._replace(target=span.target + int(start))
                for span, start in zip(step.spans, row_starts, strict=True)
            ]
            if adapter is not None:
                adapter.step(ids, targets, step, spans, self.scores)
            else:
                with torch.inference_mode():
                    nll = self.model.token_nll(ids, targets, first_position=step.first_position)
                self.scores.commit(nll, spans)
            nats = self.scores.flush()
            if self.proceed is not None and not self.proceed(sum(span.length for span in spans), nats):
                return False
        if pool is not None and adapter is not None:
            pool.end(batch_index, adapter)
        return True


def _fill_buffers(
    tokens: npt.NDArray[np.integer], starts: IntArray, step: ChunkStep
) -> tuple[torch.Tensor, torch.Tensor]:
    """Left-aligned windows [B, T] and targets [B, T - first_position], id 0 to the right of shorter ones."""
    ids = np.zeros((len(starts), step.buffer_tokens), dtype=np.int64)
    targets = np.zeros_like(ids)
    windows = zip(starts.tolist(), step.window_starts.tolist(), step.window_ends.tolist(), strict=True)
    for row, (start, first, end) in enumerate(windows):
        ids[row, : end - first] = tokens[start + first : start + end]
        targets[row, : end - first] = tokens[start + first + 1 : start + end + 1]
    return torch.from_numpy(ids), torch.from_numpy(targets[:, step.first_position :])
