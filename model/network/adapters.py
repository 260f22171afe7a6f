"""Low-rank adapters for test-time training: one private set for each row of the batch (methods 8.5).

Shapes: B batch rows, T time, I inputs, O outputs, r rank.
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from typing import Literal, get_args

import torch
from torch import Tensor, nn

from model.config import ModelConfig
from model.network.plan import layer_plan

Site = Literal["q", "k", "v", "attention", "mlp", "head"]
"""Where an adapter acts: inside the q, k and v products and the head, or parallel to a whole branch
("attention": from the attention input to its output, "mlp" likewise)."""

SITES: tuple[Site, ...] = get_args(Site)

ExecutionAdapters = Mapping[Site, "LowRankAdapter"]
"""The adapters of one block execution by site; the empty mapping leaves the network as it is."""


class LowRankAdapter(nn.Module):
    """`Δ(x) = scale (x Aᵀ) Bᵀ` with a pair (A, B) for each batch row (LoRA, Hu et al. 2021).

    A [B, r, I] is drawn uniformly from ±1/sqrt(I), B [B, O, r] is zero, so a fresh adapter changes nothing.
    Parameters are float32; the products run in x's type. `rows` selects the pairs that the input's rows use.
    """

    def __init__(self, batch_size: int, num_inputs: int, num_outputs: int, rank: int, scale: float) -> None:
        super().__init__()
        self.scale = scale
        self.rows = slice(0, batch_size)
        self.a = nn.Parameter(torch.empty(batch_size, rank, num_inputs))
        self.b = nn.Parameter(torch.empty(batch_size, num_outputs, rank))

    def forward(self, x: Tensor) -> Tensor:
        low = torch.bmm(x, self.a[self.rows].to(x.dtype).transpose(1, 2))
        return self.scale * torch.bmm(low, self.b[self.rows].to(x.dtype).transpose(1, 2))


class AdapterSet(nn.Module):
    """Adapters at the chosen sites of every block execution, and at the head.

    Executions, not layers, own adapters: the passes of a repeated layer have different ones. Executions without
    attention have none of its sites.

    Args:
        batch_size: rows, each with private adapters.
        sites: any of `SITES`.
        rank, alpha: the correction is scaled by alpha/rank.
        seed: of the initial A; the same seed gives the same A for a row whatever the batch size.

    Raises:
        ValueError: an unknown site, or a rank below 1.
    """

    def __init__(
        self,
        config: ModelConfig,
        batch_size: int,
        *,
        sites: Sequence[Site],
        rank: int,
        alpha: float,
        seed: int,
        device: torch.device | str = "cpu",
    ) -> None:
        super().__init__()
        unknown = [site for site in sites if site not in SITES]
        if unknown:
            raise ValueError(f"sites: accepts {', '.join(SITES)}, got {unknown[0]!r}")
        if rank < 1:
            raise ValueError(f"rank: accepts an integer of at least 1, got {rank}")
        self.seed = seed
        widths = {
            "q": config.model_dim,
            "k": config.kv_dim,
            "v": config.kv_dim,
            "attention": config.model_dim,
            "mlp": config.model_dim,
        }

        def adapter(num_outputs: int) -> LowRankAdapter:
            return LowRankAdapter(batch_size, config.model_dim, num_outputs, rank, alpha / rank)

        def sites_of(layer: int) -> list[Site]:
            no_attention = layer in config.attention_free_layers
            return [site for site in sites if site != "head" and (site == "mlp" or not no_attention)]

        self.executions = nn.ModuleList(
            nn.ModuleDict({site: adapter(widths[site]) for site in sites_of(execution.layer)})
            for execution in layer_plan(config).executions
        )
        self.head = adapter(config.vocab_size) if "head" in sites else None
        self.reset()
        self.to(device)

    def of_execution(self, index: int) -> ExecutionAdapters:
        """The adapters of block execution `index`, by site."""
        return dict(self.executions[index].items())  # type: ignore[arg-type]

    def select_rows(self, first: int, end: int) -> None:
        """From now on the inputs' rows are rows [first, end) of the batch, so that documents that have ended can be
        left out and a batch can be run in parts."""
        for module in self.modules():
            if isinstance(module, LowRankAdapter):
                module.rows = slice(first, end)

    @torch.no_grad()
    def reset(self, *, keep_a: bool = False) -> None:
        """Back to the start: B zero and A drawn anew from the seed, or A kept ("warm A", ranks 1-4)."""
        for number, module in enumerate(m for m in self.modules() if isinstance(m, LowRankAdapter)):
            module.b.zero_()
            if keep_a:
                continue
            bound = 1 / math.sqrt(module.a.shape[-1])
            for row, a in enumerate(module.a):
                generator = torch.Generator().manual_seed((self.seed * 1_000_003 + number) * 65_537 + row)
                a.copy_(torch.empty(a.shape).uniform_(-bound, bound, generator=generator))
