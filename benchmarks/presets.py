"""Parameters, arithmetic and activation memory of every preset, without allocating any: `python -m benchmarks.presets`.

And what `tiny` does on this machine's CPU: forward and backward on one thread, in tokens per second of processor time.

FLOPs per token are those of one forward and backward pass over a row of the preset's training length with every pass of
the recurrence on: 2 for each weight of a product and token forward, 4 backward, and the attention products over the
positions that a causal row has on average. Activation memory is what the forward keeps for the backward, per token of a
row, in bfloat16 and before any fusion: each stored tensor's storage counted once, neither weights nor the attention
matrices, which no kernel in use stores.
"""

from __future__ import annotations

import argparse
import datetime
import json
import platform
import time
from dataclasses import dataclass

import torch

from launch.preset import Preset, load, load_all
from model.config import ModelConfig
from model.network.gpt import GPT
from model.network.initialize import initialize
from model.network.projection import Projection


@dataclass(frozen=True)
class Cost:
    params: int
    forward_flops_per_token: float
    activation_bytes_per_token: float

    @property
    def training_flops_per_token(self) -> float:
        return 3 * self.forward_flops_per_token


def forward_flops_per_token(config: ModelConfig, row_tokens: int) -> float:
    """Multiplications and additions of one forward per token of a causal row of `row_tokens`."""
    with torch.device("meta"):
        model = GPT(config)
    products = 0
    for execution in model.plan.executions:
        block = model.blocks[execution.layer]
        products += sum(m.weight.numel() for m in block.modules() if isinstance(m, Projection))
    ends = [
        m
        for name, m in model.named_modules()
        if isinstance(m, Projection) and not name.startswith(("blocks", "untied"))
    ]
    products += sum(m.weight.numel() for m in ends)
    if config.tied_head:
        products += model.embedding.weight.numel()
    reach = min(config.attention_window or row_tokens, row_tokens)
    keys = (reach + 1) / 2 if reach == row_tokens else reach - reach * (reach - 1) / (2 * row_tokens)
    attending = sum(execution.layer not in config.attention_free_layers for execution in model.plan.executions)
    return 2 * products + 4 * attending * config.model_dim * keys


def activation_bytes_per_token(config: ModelConfig, row_tokens: int) -> float:
    """Bytes that autograd keeps for the backward of one row of `row_tokens`, over its tokens."""
    with torch.device("meta"):
        model = GPT(config, torch.bfloat16)
        ids = torch.zeros(1, row_tokens, dtype=torch.int64)
    weights = {p.untyped_storage()._cdata for p in model.parameters()}
    kept: dict[int, torch.UntypedStorage] = {}

    def keep(tensor: torch.Tensor) -> torch.Tensor:
        storage = tensor.untyped_storage()
        is_attention_matrix = tensor.numel() == config.num_heads * row_tokens**2
        if storage._cdata not in weights and not is_attention_matrix:
            kept[storage._cdata] = storage
        return tensor

    with torch.autograd.graph.saved_tensors_hooks(keep, lambda tensor: tensor):
        loss = model.token_nll(ids, ids).mean()
    total = sum(storage.nbytes() for storage in kept.values())
    del loss
    return total / row_tokens


def cost(preset: Preset) -> Cost:
    config, row = preset.settings.model, preset.settings.training.sequence_tokens
    with torch.device("meta"):
        params = sum(p.numel() for p in GPT(config).parameters())
    return Cost(params, forward_flops_per_token(config, row), activation_bytes_per_token(config, row))


def cpu_tokens_per_second(preset: Preset, num_rows: int = 8, num_passes: int = 5) -> float:
    """Tokens through forward and backward per second of one thread's processor time, after one pass to warm up."""
    torch.set_num_threads(1)
    model = GPT(preset.settings.model)
    initialize(model, seed=0)
    row = preset.settings.training.sequence_tokens
    ids = torch.randint(1, preset.settings.model.vocab_size, (num_rows, row))
    started = 0.0
    for number in range(num_passes + 1):
        if number == 1:
            started = time.process_time()
        model.token_nll(ids, ids).mean().backward()
    return num_passes * ids.numel() / (time.process_time() - started)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--json", action="store_true", help="one JSON object instead of a table")
    options = parser.parse_args()
    costs = {preset.name: cost(preset) for preset in load_all()}
    tiny = cpu_tokens_per_second(load("tiny"))
    if options.json:
        rows: dict[str, object] = {
            name: {
                "params": c.params,
                "training_flops_per_token": c.training_flops_per_token,
                "activation_bytes_per_token": c.activation_bytes_per_token,
            }
            for name, c in costs.items()
        }
        machine = {"processor": platform.processor() or platform.machine(), "torch": torch.__version__}
        measured = {"tiny_cpu_tokens_per_second": tiny, **machine, "date": datetime.date.today().isoformat()}
        print(json.dumps({"presets": rows, "measured": measured}, indent=2))
        return
    print(f"{'preset':<10}{'parameters':>14}{'MFLOP/token':>14}{'activations, KiB/token':>25}")
    for name, c in costs.items():
        mflop, kib = c.training_flops_per_token / 1e6, c.activation_bytes_per_token / 1024
        print(f"{name:<10}{c.params:>14,}{mflop:>14.1f}{kib:>25.1f}")
    print(f"tiny on one thread of this CPU: {tiny:,.0f} tokens/s, forward and backward")


if __name__ == "__main__":
    main()
