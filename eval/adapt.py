"""Score-first test-time training: one private LoRA set per document, documents adapted side by side (methods.md 8.5).

Each chunk takes one forward. Its losses are committed first, then the same losses are differentiated and the adapters
take one AdamW step; so every score comes from weights that had not seen the chunk. The base weights stay frozen.

Every document starts from the same A (drawn once from the seed) and B = 0, so its scores don't depend on which
documents share its batch, unless `warm_start` keeps A.

Shapes: B documents of a batch, T tokens of the buffer.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence

import numpy as np
import numpy.typing as npt
import torch

from eval.config import TTTConfig
from eval.documents import Documents
from eval.plan import ChunkStep, Share, Span, chunk_steps, document_batches
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
        self._draw_a()

    def begin(self) -> None:
        """Back to B = 0 and empty moments for the next batch; A as drawn, or kept if warm_start."""
        self.adapters.reset(keep_a=True)
        if not self.config.warm_start:
            self._draw_a()
        self.optimizer = torch.optim.AdamW(
            self.adapters.parameters(),
            lr=self.config.learning_rate,
            betas=(self.config.beta1, self.config.beta2),
            eps=self.config.epsilon,
            weight_decay=self.config.weight_decay,
            fused=True,
        )

    @torch.no_grad()
    def _draw_a(self) -> None:
        for pair, initial in zip(self._pairs, self._initial_a, strict=True):
            pair.a.copy_(initial.expand_as(pair.a))

    def step(
        self, ids: torch.Tensor, targets: torch.Tensor, step: ChunkStep, spans: Sequence[Span], scores: Scores
    ) -> None:
        """Scores one chunk of every document of the batch, commits, and then learns from it.

        `spans` are the step's spans with targets counted in the stream; ids [B, T] and targets
        [B, T - step.first_position] are on the device.
        """
        trains = bool(step.trains.any())
        with torch.set_grad_enabled(trains):
            nll = self.model.token_nll(ids, targets, adapters=self.adapters, first_position=step.first_position)
        scores.commit(nll, spans)
        if not trains:
            return
        learned = [span for span in spans if step.trains[span.row]]
        scores.permit_update(learned)
        weights = torch.zeros(nll.shape, dtype=nll.dtype)
        for span in learned:
            weights[span.row, span.column : span.column + span.length] = 1.0 / span.length
        # Mean over the chunk, sum over documents: private adapters then don't feel the size of the batch.
        loss = (nll * weights.to(nll.device, non_blocking=True)).sum()
        self.optimizer.zero_grad(set_to_none=True)
        torch.autograd.backward(loss)
        self.optimizer.step()


def score_adapting(
    model: GPT,
    tokens: npt.NDArray[np.integer],
    documents: Documents,
    config: TTTConfig,
    scores: Scores,
    *,
    share: Share | None = None,
    proceed: Continue | None = None,
    frozen: bool = False,
) -> None:
    """Scores every document (of this rank's share of the batches) with adapters that learn from its scored chunks.

    `frozen` scores the same windows without adapters. `proceed` is asked after every chunk step; a False answer stops
    with what has been committed so far. The model's parameters must not require gradients.
    """
    share = share or Share()
    adapters: dict[int, DocumentAdapter] = {}
    for batch_index, batch in enumerate(document_batches(documents.num_targets, config.batch_documents)):
        if not share.owns(batch_index):
            continue
        adapter = None
        if not frozen and int(documents.num_targets[batch].max()) > config.chunk_tokens:
            if len(batch) not in adapters:
                adapters[len(batch)] = DocumentAdapter(model, config, len(batch))
            adapter = adapters[len(batch)]
            adapter.begin()
        if not _score_batch(model, adapter, tokens, documents, batch, config, scores, proceed):
            return


def _score_batch(
    model: GPT,
    adapter: DocumentAdapter | None,
    tokens: npt.NDArray[np.integer],
    documents: Documents,
    batch: IntArray,
    config: TTTConfig,
    scores: Scores,
    proceed: Continue | None,
) -> bool:
    """One batch of documents; an adapter of None means B = 0 throughout, which is the frozen model."""
    device = model.embedding.weight.device
    starts = documents.starts[batch]
    for step in chunk_steps(documents.num_targets[batch], config.chunk_tokens, config.window_tokens):
        ids, targets = _fill_buffers(tokens, starts[step.first_row :], step)
        ids, targets = ids.to(device), targets.to(device)
        spans = [
            span._replace(target=span.target + int(start))
            for span, start in zip(step.spans, starts[step.first_row :], strict=True)
        ]
        if adapter is not None:
            adapter.step(ids, targets, step, spans, scores)
        else:
            with torch.inference_mode():
                scores.commit(model.token_nll(ids, targets, first_position=step.first_position), spans)
        nats = scores.flush()
        if proceed is not None and not proceed(sum(span.length for span in spans), nats):
            return False
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
