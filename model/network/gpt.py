"""The language model: one forward pass for training, plain scoring and test-time training.

Shapes: B batch, T time, D width, V vocabulary.
"""

from __future__ import annotations

from collections.abc import Mapping

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor, nn

from model.config import ModelConfig
from model.errors import InputError
from model.network.adapters import AdapterSet
from model.network.attention import packed_document_mask
from model.network.block import Block
from model.network.norm import rms_norm
from model.network.plan import layer_plan
from model.network.projection import project
from model.network.rotary import rotary_tables


class GPT(nn.Module):
    """A decoder-only transformer described by a `ModelConfig`.

    Parameters are float32 masters; products and activations run in `activation_dtype`.
    """

    def __init__(self, config: ModelConfig, activation_dtype: torch.dtype = torch.float32) -> None:
        super().__init__()
        self.config = config
        self.activation_dtype = activation_dtype
        self.plan = layer_plan(config)
        self.embedding = nn.Embedding(config.vocab_size, config.model_dim)
        self.blocks = nn.ModuleList(Block(config) for _ in range(config.num_layers))
        self.skip_weights = nn.Parameter(torch.empty(self.plan.num_skips, config.model_dim))

    def forward(
        self,
        ids: Tensor,
        cu_seqlens: Tensor | None = None,
        adapters: AdapterSet | None = None,
        first_position: int = 0,
    ) -> Tensor:
        """Logits after the soft cap, float32 [B, T - first_position, V] (float64 if activations are).

        Args:
            ids: token ids, integer [B, T].
            cu_seqlens: int32 [N + 1], for B = 1: document starts within the row, then T (padding with T is allowed);
                attention stays within a document. None: rows are independent and attention is causal over the row.
            adapters: private low-rank corrections, one set a row; a batch of fewer rows uses the last ones.
            first_position: positions before it are context only and get no logits.
        """
        hidden = self._hidden(ids, cu_seqlens, adapters)[:, first_position:]
        head = adapters.head if adapters is not None else None
        logits = project(hidden, self.embedding.weight, head)
        logits = logits if logits.dtype == torch.float64 else logits.float()
        cap = self.config.logit_softcap
        return cap * torch.tanh(logits / cap) if cap else logits

    def token_nll(
        self,
        ids: Tensor,
        targets: Tensor,
        cu_seqlens: Tensor | None = None,
        adapters: AdapterSet | None = None,
        first_position: int = 0,
    ) -> Tensor:
        """Negative log-likelihood in nats, float32, of targets [B, T - first_position]; arguments as in `forward`."""
        logits = self(ids, cu_seqlens, adapters, first_position)
        return F.cross_entropy(logits.flatten(0, 1), targets.flatten().long(), reduction="none").view(targets.shape)

    def _hidden(self, ids: Tensor, cu_seqlens: Tensor | None, adapters: AdapterSet | None) -> Tensor:
        """The normalized final state that the head reads [B, T, D]."""
        config = self.config
        num_tokens = ids.shape[1]
        rotary = rotary_tables(num_tokens, config.rope_dims or config.head_dim, config.rope_base, ids.device)
        mask = None if cu_seqlens is None else packed_document_mask(cu_seqlens, num_tokens)
        x = self.embedding(ids).to(self.activation_dtype)
        x = x0 = rms_norm(x, config.norm_epsilon)
        outputs: list[Tensor] = []
        for index, execution in enumerate(self.plan.executions):
            if execution.skip is not None and execution.source is not None:
                x = x + self.skip_weights[execution.skip].to(x.dtype) * outputs[execution.source]
            corrections = {} if adapters is None else adapters.of_execution(index)
            x = self.blocks[execution.layer](x, x0, rotary, mask, corrections)
            outputs.append(x)
        return rms_norm(x, config.norm_epsilon)


def load(
    config: ModelConfig,
    arrays: Mapping[str, np.ndarray],
    *,
    device: torch.device | str = "cpu",
    activation_dtype: torch.dtype = torch.float32,
) -> GPT:
    """The network with the given weights, in evaluation mode.

    Args:
        arrays: one floating-point array for each parameter, by name.

    Raises:
        InputError: a parameter is missing, unknown, of another shape, or holds values that are not finite.
    """
    with torch.device("meta"):
        model = GPT(config, activation_dtype)
    parameters = dict(model.named_parameters())
    for name in sorted(parameters.keys() | arrays.keys()):
        if name not in arrays:
            raise InputError(f"weights: {name} is missing")
        if name not in parameters:
            raise InputError(f"weights: {name} is not a parameter of this model")
        if arrays[name].shape != tuple(parameters[name].shape):
            raise InputError(
                f"weights: {name} has shape {arrays[name].shape}, the model expects {tuple(parameters[name].shape)}"
            )
        if not np.isfinite(arrays[name]).all():
            raise InputError(f"weights: {name} holds values that are not finite")
    dtype = torch.float64 if activation_dtype == torch.float64 else torch.float32
    state = {name: torch.tensor(arrays[name], dtype=dtype, device=device) for name in parameters}
    model.load_state_dict(state, assign=True)
    return model.eval()


def to_arrays(model: GPT) -> dict[str, np.ndarray]:
    """Every parameter as a float32 array, by name: what `load` takes."""
    return {name: p.detach().float().cpu().numpy().copy() for name, p in model.named_parameters()}
