"""Score-first test-time training of the base weights over chunks of the stream (methods.md 8.4).

Every chunk is scored with sliding windows first; then its targets, whose scores are fixed, are trained on for a few
epochs. One optimizer serves the whole evaluation, so momentum persists. The last chunk is never trained on.
"""

from __future__ import annotations

import numpy as np
import numpy.typing as npt
import torch

from eval.adapt import Continue
from eval.config import EvalConfig
from eval.global_sgd import GlobalSGD, restored_weights
from eval.plan import Span, WindowPlan, sliding_windows
from eval.ranks import Ranks
from eval.scores import Scores
from eval.scoring import TokenArray, score_windows
from eval.tilt import find_hints
from model.network.gpt import GPT


def window_chunks(plan: WindowPlan, num_targets: int, chunk_tokens: int) -> list[WindowPlan]:
    """Assigns each window to the chunk that holds its first scored target. A chunk may have no window of its own."""
    num_chunks = -(-num_targets // chunk_tokens)
    edges = np.searchsorted(plan.first_scored // chunk_tokens, np.arange(num_chunks + 1))
    pairs = zip(edges[:-1].tolist(), edges[1:].tolist(), strict=True)
    return [WindowPlan(plan.starts[a:b], plan.ends[a:b], plan.first_scored[a:b]) for a, b in pairs]


def score_chunks(
    model: GPT,
    tokens: npt.NDArray[np.uint16],
    config: EvalConfig,
    scores: Scores,
    *,
    ranks: Ranks | None = None,
    proceed: Continue | None = None,
    frozen: bool = False,
) -> None:
    """Scores the stream chunk by chunk, training all weights on each chunk before the next is scored.

    Windows are those of the sliding mode; losses are tilted if the configuration says so. `frozen` leaves training and
    tilt out. The model's parameters must not require gradients; they are the same afterwards.
    """
    ranks = ranks or Ranks()
    sgd_config = config.ttt.sgd
    num_targets = len(tokens) - 1
    plan = sliding_windows(num_targets, config.context_tokens, config.stride_tokens)
    chunks = window_chunks(plan, num_targets, sgd_config.chunk_tokens)
    stream = TokenArray(tokens)
    hints = find_hints(tokens, config.tilt) if config.tilt.strength > 0 and not frozen else None
    stopped = False

    def watch(count: int, nats: float) -> bool:
        nonlocal stopped
        stopped = proceed is not None and not proceed(count, nats)
        return not stopped

    device = model.embedding.weight.device
    with restored_weights(model):
        sgd = GlobalSGD(model, sgd_config, ranks)
        for index, windows in enumerate(chunks):
            if len(windows):
                score_windows(
                    model,
                    stream,
                    windows,
                    scores,
                    config.batch_windows,
                    device,
                    share=ranks.share,
                    proceed=watch,
                    hints=hints,
                )
            if not ranks.all_agree(not stopped):
                return
            if index == len(chunks) - 1 or frozen:
                continue
            first = index * sgd_config.chunk_tokens
            end = first + sgd_config.chunk_tokens
            scores.exchange_commitments(ranks, first, end)
            scores.permit_update([Span(0, 0, first, sgd_config.chunk_tokens)])
            rate = sgd.learning_rate(index, len(chunks))
            for _ in range(sgd_config.num_epochs):
                sgd.step(tokens[first : end + 1], None, rate)
    if device.type == "cuda":
        torch.cuda.synchronize(device)
