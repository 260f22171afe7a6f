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
from model.network.block import Block, BlockCall, ExecutionScalars, first_attention_layer
from model.network.decoding import LOOK_BACK, History, can_decode
from model.network.embedding import TokenEmbedding
from model.network.hash_embedding import HashEmbedding
from model.network.lanes import Lanes, merge_lanes
from model.network.mlp import MLP
from model.network.norm import rms_norm
from model.network.plan import Execution, LayerPlan, layer_plan
from model.network.projection import Projection, project
from model.network.sequence import SequenceLayout, next_position_layout, sequence_layout
from model.network.skips import add_skip, blend_skip
from model.network.smear import ChannelSmear, TokenSmear
from model.network.softcap import polynomial_softcap, tanh_softcap
from model.network.value_embedding import ValueEmbedding


class GPT(nn.Module):
    """A decoder-only transformer described by a `ModelConfig`.

    Parameters are float32 masters; products and activations run in `activation_dtype`.
    """

    def __init__(self, config: ModelConfig, activation_dtype: torch.dtype = torch.float32) -> None:
        super().__init__()
        self.config = config
        self.activation_dtype = activation_dtype
        recurrence = config.recurrence
        self.plans = tuple(layer_plan(config, passes) for passes in range(recurrence.num_extra_passes + 1))
        """By number of extra passes."""
        self.extra_passes = recurrence.num_extra_passes
        """Extra passes of the recurrence that the forward runs; see `set_extra_passes`."""
        self._add_ends()
        self.blocks = nn.ModuleList(Block(config, layer) for layer in range(config.num_layers))
        full = self.plans[-1]
        if full.num_skips:
            self.skip_weights = nn.Parameter(torch.empty(full.num_skips, config.model_dim))
            if config.skip_gates:
                self.skip_gates = nn.Parameter(torch.empty(full.num_skips, config.model_dim))
        if recurrence.per_execution_scalars:
            self.execution_scalars = nn.ModuleList(
                ExecutionScalars(config, execution.layer not in config.attention_free_layers)
                for execution in full.executions
            )
        if recurrence.untied_mlp:
            num_untied = sum(execution.untied_mlp is not None for execution in full.executions)
            self.untied_mlps = nn.ModuleList(MLP(config) for _ in range(num_untied))
        if recurrence.iteration_embedding:
            self.iteration_embedding = nn.Parameter(torch.empty(recurrence.num_extra_passes + 1, config.model_dim))
        self.lane_merge = nn.Parameter(torch.empty(1)) if config.lanes.kind == "uncoupled" else None

    def _add_ends(self) -> None:
        """What stands before the first and after the last block."""
        config = self.config
        width = config.embedding_dim or config.model_dim
        self.embedding = TokenEmbedding(config.vocab_size, width)
        self.hash_embedding = (
            HashEmbedding(config.hash_embedding, config.model_dim) if config.hash_embedding.num_buckets else None
        )
        self.smear: TokenSmear | ChannelSmear | None = None
        if config.smear.kind == "token":
            self.smear = TokenSmear(config.smear.window, config.smear.bos_mask)
        elif config.smear.kind == "channel":
            self.smear = ChannelSmear(config.model_dim)
        self.value_embedding = (
            ValueEmbedding(config.value_embedding, config.vocab_size, config.kv_dim)
            if config.value_embedding.layers
            else None
        )
        factored = width != config.model_dim
        self.embedding_in = Projection("embedding_in", width, config.model_dim) if factored else None
        through_table = factored and config.tied_head
        self.embedding_out = Projection("embedding_out", config.model_dim, width) if through_table else None
        self.head = None if config.tied_head else Projection("head", config.model_dim, config.vocab_size)
        self.head_bias = nn.Parameter(torch.empty(config.vocab_size)) if config.head_bias else None

    @property
    def plan(self) -> LayerPlan:
        """The order of block executions that the forward runs now."""
        return self.plans[self.extra_passes]

    def set_extra_passes(self, num_extra_passes: int) -> None:
        """Switch depth recurrence: 0 runs every layer once, `config.recurrence.num_extra_passes` is the full network,
        which evaluation always runs and a new GPT starts with. Compiled, each number is a graph of its own.

        Raises:
            ValueError: more passes than the configuration has.
        """
        layer_plan(self.config, num_extra_passes)
        self.extra_passes = num_extra_passes

    @torch.no_grad()
    def copy_mlps_to_extra_passes(self) -> None:
        """Give untied MLPs of extra passes the weights of their layers: what to do when recurrence starts (rank 21)."""
        for execution in self.plans[-1].executions:
            if execution.untied_mlp is not None:
                own, untied = self.blocks[execution.layer].mlp, self.untied_mlps[execution.untied_mlp]
                untied.load_state_dict(own.state_dict())

    def forward(
        self,
        ids: Tensor,
        cu_seqlens: Tensor | None = None,
        adapters: AdapterSet | None = None,
        first_position: int = 0,
        longest_document: int | None = None,
    ) -> Tensor:
        """Logits after the soft cap, float32 [B, T - first_position, V] (float64 if activations are).

        Args:
            ids: token ids, integer [B, T].
            cu_seqlens: int32 [N + 1], for B = 1: document starts within the row, then T (padding with T is allowed);
                attention stays within a document. None: rows are independent and attention is causal over the row.
            adapters: private low-rank corrections, one set a row (those that it has selected). Every pass of the
                recurrence must be on.
            first_position: positions before it are context only and get no logits.
            longest_document: with cu_seqlens, at least the tokens of the longest document; None: T.
        """
        return self._logits(self._hidden(ids, cu_seqlens, adapters, longest_document)[:, first_position:], adapters)

    def next_logits(self, ids: Tensor, history: History) -> Tensor:
        """Logits [B, V] of what follows ids [B, T], as `forward` gives them for the last position, without running the
        others again: their keys and values are in `history`, from T - 1 earlier calls with shorter ids.

        Raises:
            ValueError: the history is not of T - 1 positions, is full, or the network cannot be run this way (see
                `model.network.decoding.can_decode`).
        """
        if history.num_tokens != ids.shape[1] - 1 or not can_decode(self.config):
            raise ValueError(f"a history of {history.num_tokens} tokens for the logits after {ids.shape[1]}")
        recent = ids[:, -LOOK_BACK:]
        around = sequence_layout(self.config, recent.shape[1], None, None, ids.device, self.activation_dtype)
        x0 = self._embed(recent, around)[:, -1:]
        layout = next_position_layout(self.config, history, ids.device)
        return self._logits(self._run_blocks(ids[:, -1:], x0, layout, None), None)[:, 0]

    def _logits(self, hidden: Tensor, adapters: AdapterSet | None) -> Tensor:
        """Logits after the soft cap of final states [B, T, D]."""
        correction = adapters.head if adapters is not None else None
        narrow = hidden if self.embedding_out is None else self.embedding_out(hidden)
        logits = project(narrow, self.embedding.table()) if self.head is None else self.head(narrow)
        if correction is not None:
            logits = logits + correction(hidden)
        if self.head_bias is not None:
            logits = logits + self.head_bias.to(logits.dtype)
        logits = logits if logits.dtype == torch.float64 else logits.float()
        cap = self.config.logit_softcap
        if not cap:
            return logits
        return tanh_softcap(logits, cap) if self.config.softcap_form == "tanh" else polynomial_softcap(logits, cap)

    def token_nll(
        self,
        ids: Tensor,
        targets: Tensor,
        cu_seqlens: Tensor | None = None,
        adapters: AdapterSet | None = None,
        first_position: int = 0,
        longest_document: int | None = None,
    ) -> Tensor:
        """Negative log-likelihood in nats, float32, of targets [B, T - first_position]; arguments as in `forward`."""
        logits = self(ids, cu_seqlens, adapters, first_position, longest_document)
        return F.cross_entropy(logits.flatten(0, 1), targets.flatten().long(), reduction="none").view(targets.shape)

    def _hidden(
        self, ids: Tensor, cu_seqlens: Tensor | None, adapters: AdapterSet | None, longest_document: int | None
    ) -> Tensor:
        """The normalized final state that the head reads [B, T, D]."""
        dtype = self.activation_dtype
        layout = sequence_layout(self.config, ids.shape[1], cu_seqlens, longest_document, ids.device, dtype)
        return self._run_blocks(ids, self._embed(ids, layout), layout, adapters)

    def _run_blocks(self, ids: Tensor, x0: Tensor, layout: SequenceLayout, adapters: AdapterSet | None) -> Tensor:
        """The normalized final state [B, T, D] from the stream that enters the first block."""
        config, plan = self.config, self.plan
        lanes: Lanes = (x0,)
        shared_value = None if self.value_embedding is None else self.value_embedding(ids, x0.dtype)
        first_value: Tensor | None = None
        sources = {execution.source for execution in plan.executions}
        stored: dict[int, Lanes] = {}
        for index, execution in enumerate(plan.executions):
            lanes = self._enter(lanes, execution, stored)
            corrections = {} if adapters is None else adapters.of_execution(index)
            call = self._block_call(execution, shared_value, first_value, corrections)
            lanes, values = self.blocks[execution.layer](lanes, x0, layout, call)
            if config.value_residual and execution.layer == first_attention_layer(config) and first_value is None:
                first_value = values
            if index in sources:
                stored[index] = lanes
        return rms_norm(merge_lanes(lanes, config.lanes, self.lane_merge), config.norm_epsilon)

    def _embed(self, ids: Tensor, layout: SequenceLayout) -> Tensor:
        """The stream that enters the first block [B, T, D]: table, hash embedding, smear gate and norm."""
        dtype, config = self.activation_dtype, self.config
        x = self.embedding(ids).to(dtype)
        if self.embedding_in is not None:
            x = self.embedding_in(x)
        if self.hash_embedding is not None:
            x = x + self.hash_embedding(ids, layout, dtype)
        if isinstance(self.smear, TokenSmear):
            x = self.smear(x, ids)
        smears_channels = isinstance(self.smear, ChannelSmear)
        if smears_channels and config.smear.place == "before_norm":
            x = self.smear(x, layout)
        x = rms_norm(x, config.norm_epsilon)
        if smears_channels and config.smear.place == "after_norm":
            x = self.smear(x, layout)
        return x

    def _enter(self, lanes: Lanes, execution: Execution, stored: dict[int, Lanes]) -> Lanes:
        """The stream as a block execution meets it: split into lanes, skip mixed in, iteration embedding added."""
        if execution.in_lanes and len(lanes) == 1:
            lanes = (lanes[0], lanes[0])
        if execution.skip is not None and execution.source is not None:
            source = stored[execution.source]
            both = self.config.lanes.kind == "sequential"
            mixed = [
                self._mix_skip(lane, source[min(i, len(source) - 1)], execution.skip) if i == 0 or both else lane
                for i, lane in enumerate(lanes)
            ]
            lanes = tuple(mixed)
        if execution.iteration is not None:
            lanes = (lanes[0] + self.iteration_embedding[execution.iteration].to(lanes[0].dtype), *lanes[1:])
        return lanes

    def _mix_skip(self, x: Tensor, skip: Tensor, row: int) -> Tensor:
        if self.config.skip_gates:
            return blend_skip(x, skip, self.skip_weights[row], self.skip_gates[row])
        return add_skip(x, skip, self.skip_weights[row])

    def _block_call(
        self,
        execution: Execution,
        shared_value: Tensor | None,
        first_value: Tensor | None,
        adapters: Mapping,
    ) -> BlockCall:
        by_execution = self.config.recurrence.per_execution_scalars
        owner = self.execution_scalars[execution.scalars] if by_execution else self.blocks[execution.layer]
        extra_value = None
        if execution.value_embedding is not None:
            assert self.value_embedding is not None
            assert shared_value is not None
            extra_value = (
                self.value_embedding.layer_scales[execution.value_embedding].to(shared_value.dtype) * shared_value
            )
        return BlockCall(
            scalars=owner.scalars(),
            ln_scale=(execution.scalars + 1) ** -0.5,
            exclusive=execution.exclusive,
            extra_value=extra_value,
            first_value=first_value,
            mlp=None if execution.untied_mlp is None else self.untied_mlps[execution.untied_mlp],
            adapters=adapters,
        )


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
