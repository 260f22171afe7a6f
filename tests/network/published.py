"""Weights of the published programs (tests/vectors) under our names."""

from collections.abc import Mapping
from pathlib import Path

import numpy as np

from model.config import ModelConfig

VECTORS = Path(__file__).parent.parent / "vectors"
BLOCK_NAMES = {
    "attn.c_q.weight": "attention.q.weight",
    "attn.c_k.weight": "attention.k.weight",
    "attn.c_v.weight": "attention.v.weight",
    "attn.proj.weight": "attention.out.weight",
    "attn.q_gain": "attention.q_gain",
    "attn.attn_gate_w": "attention.gate.weight",
    "attn_scale": "attention_scale",
    "mlp.fc.weight": "mlp.up.weight",
    "mlp.proj.weight": "mlp.down.weight",
    "mlp_scale": "mlp_scale",
    "resid_mix": "residual_mix",
}
NAMES = {
    "tok_emb.weight": "embedding.weight",
    "skip_weights": "skip_weights",
    "skip_gates": "skip_gates",
    "smear.gate": "smear.gate",
    "smear_gate.weight": "smear.weight",
    "smear_lambda": "smear.strength",
    "bigram.embed.weight": "hash_embedding.table",
    "bigram.proj.weight": "hash_embedding.projection.weight",
    "bigram.scale": "hash_embedding.scale",
    "ve_shared.embed.weight": "value_embedding.table",
    "ve_shared.proj.weight": "value_embedding.projection.weight",
    "ve_shared.scale": "value_embedding.scale",
}


def read(name: str) -> dict[str, np.ndarray]:
    """Every array of one vector file."""
    with np.load(VECTORS / f"{name}.npz") as file:
        return dict(file)


def weights(vectors: Mapping[str, np.ndarray], config: ModelConfig) -> dict[str, np.ndarray]:
    """The parameters of a vector file as `load` takes them: banks taken apart, lane scalars of one-lane layers left
    out."""
    published = {name.removeprefix("param/"): array for name, array in vectors.items() if name.startswith("param/")}
    result: dict[str, np.ndarray] = {}
    for name, array in published.items():
        if name.startswith("blocks."):
            _, layer, rest = name.split(".", 2)
            result[f"blocks.{layer}.{BLOCK_NAMES[rest]}"] = array
        elif name in NAMES:
            ours = NAMES[name]
            result[ours] = array.reshape(-1) if array.ndim == 0 or ours == "smear.weight" else array
    if "ve_layer_scales.0" in published:
        scales = [published[f"ve_layer_scales.{index}"] for index in range(len(config.value_embedding.layers))]
        result["value_embedding.layer_scales"] = np.concatenate(scales)
    if "qo_bank" in published:
        result.update(_from_banks(published, config.num_layers))
    if "parallel_post_lambdas" in published:
        for layer in range(config.lanes.first_layer, config.num_layers):
            result[f"blocks.{layer}.lanes.residual"] = published["parallel_resid_lambdas"][layer]
            result[f"blocks.{layer}.lanes.writes"] = published["parallel_post_lambdas"][layer]
    return result


def _from_banks(published: Mapping[str, np.ndarray], num_layers: int) -> dict[str, np.ndarray]:
    result = {}
    for layer in range(num_layers):
        block = f"blocks.{layer}"
        result[f"{block}.attention.q.weight"] = published["qo_bank"][layer]
        result[f"{block}.attention.out.weight"] = published["qo_bank"][num_layers + layer]
        result[f"{block}.attention.k.weight"] = published["kv_bank"][layer]
        result[f"{block}.attention.v.weight"] = published["kv_bank"][num_layers + layer]
        result[f"{block}.mlp.up.weight"] = published["mlp_up_bank"][layer]
        result[f"{block}.mlp.down.weight"] = published["mlp_down_bank"][layer]
    return result
