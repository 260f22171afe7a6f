"""Calibration text that the model writes itself (methods.md 5.8): no training data are read after training."""

from __future__ import annotations

from collections.abc import Callable, Iterator

import torch
from torch import Tensor

from model.network.decoding import History, can_decode
from model.network.gpt import GPT
from trainer.quantize.config import CalibrationConfig
from trainer.ranks import Ranks

_ROWS_AT_A_TIME = 64


def generated_batches(
    model: GPT, config: CalibrationConfig, ranks: Ranks, log: Callable[[str], None]
) -> Iterator[Tensor]:
    """This rank's share of the rows, int64 [B, sequence_tokens]; the same on the same device for the same seed.

    Rows begin with a token drawn from the whole vocabulary; each further token is sampled from the model.
    """
    num_rows = config.num_batches * config.batch_tokens // config.sequence_tokens
    mine = len(range(ranks.rank, num_rows, ranks.size))
    generator = torch.Generator(ranks.device).manual_seed(config.seed + ranks.rank)
    for start in range(0, mine, _ROWS_AT_A_TIME):
        rows = min(_ROWS_AT_A_TIME, mine - start)
        yield generate(model, rows, config.sequence_tokens, config.temperature, generator)
        log(f"calibration: {start + rows} of {mine} rows of {config.sequence_tokens} tokens generated")


@torch.no_grad()
def generate(model: GPT, num_rows: int, num_tokens: int, temperature: float, generator: torch.Generator) -> Tensor:
    """Samples int64 [num_rows, num_tokens] on the model's device, with keys and values of earlier positions kept.

    A network that looks at more than attention and a few tokens back (mean smear) is run over the whole row each time.
    """
    device = next(model.parameters()).device
    ids = torch.empty(num_rows, num_tokens, dtype=torch.int64, device=device)
    ids[:, 0] = torch.randint(model.config.vocab_size, (num_rows,), generator=generator, device=device)
    history = History(num_tokens) if can_decode(model.config) else None
    for length in range(1, num_tokens):
        if history is None:
            logits = model(ids[:, :length], first_position=length - 1)[:, 0]
        else:
            logits = model.next_logits(ids[:, :length], history)
        probabilities = (logits / temperature).softmax(dim=-1)
        ids[:, length] = torch.multinomial(probabilities, 1, generator=generator)[:, 0]
    return ids
