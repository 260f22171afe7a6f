"""Each method against its formula, written out slowly (sections of the methods reference), and its reference values."""

import math

import numpy as np
import pytest
import torch
from torch import Tensor

from model.config import (
    HashEmbeddingConfig,
    HeadGateConfig,
    LaneConfig,
    ModelConfig,
    RopeScalingConfig,
    ValueEmbeddingConfig,
)
from model.network.attention import causal_attention
from model.network.gates import HeadGate
from model.network.hash_embedding import HashEmbedding
from model.network.lanes import LaneWeights, merge_lanes
from model.network.mlp import MLP
from model.network.rotary import ntk_base, rotary_frequencies, rotary_tables, rotate
from model.network.sequence import SequenceLayout, attention_mask, sequence_layout
from model.network.skips import add_skip, blend_skip
from model.network.smear import ChannelSmear, MeanSmear, TokenSmear
from model.network.softcap import polynomial_softcap, tanh_softcap
from model.network.value_embedding import ValueEmbedding
from model.network.xsa import remove_own_value

CPU = torch.device("cpu")
STARTS = [0, 3, 4, 9]
"""Where the documents of the packed row of 12 begin."""
CU_SEQLENS = torch.tensor([*STARTS, 12, 12, 12], dtype=torch.int32)
DOCUMENT = [0, 0, 0, 1, 2, 2, 2, 2, 2, 3, 3, 3]


def draw(*shape: int, seed: int = 0) -> Tensor:
    return torch.randn(shape, generator=torch.Generator().manual_seed(seed), dtype=torch.float64)


def layout(packed: bool, time: int = 12, window: int = 0) -> SequenceLayout:
    config = ModelConfig(attention_window=window)
    return sequence_layout(config, time, CU_SEQLENS if packed else None, None, CPU, torch.float64)


def set_weights(module: torch.nn.Module, seed: int = 0) -> torch.nn.Module:
    """Double precision and standard normal weights."""
    with torch.no_grad():
        for number, parameter in enumerate(module.parameters()):
            parameter.copy_(draw(*parameter.shape, seed=seed + number).float())
    return module.double()


def test_xsa_reference_values() -> None:
    v = torch.tensor([1.0, 2, 2, 0], dtype=torch.float64).view(1, 1, 1, 4)
    y = torch.tensor([1.0, 0, 0, 1], dtype=torch.float64).view(1, 1, 1, 4)
    np.testing.assert_allclose(remove_own_value(y, v).flatten(), (8 / 9, -2 / 9, -2 / 9, 1))
    assert torch.equal(remove_own_value(y, 0 * v), y)


def test_xsa_shares_each_value_head() -> None:
    y, v = draw(2, 5, 6, 8), draw(2, 5, 3, 8, seed=1)
    out = remove_own_value(y, v)
    for head in range(6):
        own = v[:, :, head // 2]
        unit = own / own.norm(dim=-1, keepdim=True)
        expected = y[:, :, head] - (y[:, :, head] * unit).sum(-1, keepdim=True) * unit
        torch.testing.assert_close(out[:, :, head], expected)
        assert (out[:, :, head] * own).sum(-1).abs().max() < 1e-12


@pytest.mark.parametrize(
    ("config", "expected"),
    [
        (HeadGateConfig("sparse", scale=0.5), 0.731059),
        (HeadGateConfig("sparse"), 0.880797),
        (HeadGateConfig("dense"), 0.880797),
        (HeadGateConfig("output"), 1.761594),
        (HeadGateConfig("biased"), 1 / (1 + math.exp(-6))),
    ],
    ids=["sparse half", "sparse", "dense", "output", "biased"],
)
def test_gate_reference_values(config: HeadGateConfig, expected: float) -> None:
    """A pre-activation of 2; the biased gate adds its bias of 4."""
    gate = HeadGate(config, num_heads=3, model_dim=20).double()
    torch.nn.init.zeros_(gate.weight)
    gate.weight.data[:, 0] = 2
    if gate.bias is not None:
        torch.nn.init.constant_(gate.bias, 4)
    x = torch.zeros(1, 2, 20, dtype=torch.float64)
    x[..., 0] = 1
    np.testing.assert_allclose(gate(x, x).detach(), np.full((1, 2, 3, 1), expected), atol=1e-6)


def test_gate_reads_its_window_of_its_source() -> None:
    gate = set_weights(HeadGate(HeadGateConfig("output", window=12, source="query"), 2, 16))
    x, query = draw(1, 3, 16), draw(1, 3, 16, seed=1)
    expected = 2 * torch.sigmoid(query[..., :12] @ gate.weight.T)
    torch.testing.assert_close(gate(x, query)[..., 0], expected)
    ours = set_weights(HeadGate(HeadGateConfig("output", window=12), 2, 16))
    torch.testing.assert_close(ours(x, query)[..., 0], 2 * torch.sigmoid(x[..., :12] @ ours.weight.T))


def test_lane_reference_values() -> None:
    weights = LaneWeights().double()
    with torch.no_grad():
        weights.residual.copy_(torch.tensor([1.1, 0.9]))
        weights.writes.copy_(torch.tensor([[0.8, 0.3], [0.2, 1.2]]))
    lanes = (torch.tensor([1.0, 2.0]).double(), torch.tensor([3.0, -1.0]).double())
    attended, transformed = torch.tensor([0.5, -0.5]).double(), torch.tensor([2.0, 1.0]).double()
    lane0, lane1 = weights.update(lanes, attended, transformed)
    np.testing.assert_allclose(lane0.detach(), (1.9, 2.0), atol=1e-6)
    np.testing.assert_allclose(lane1.detach(), (5.25, 0.15), atol=1e-6)


def test_lanes_merge() -> None:
    lanes = (draw(1, 2, 4), draw(1, 2, 4, seed=1))
    torch.testing.assert_close(merge_lanes(lanes, LaneConfig(), None), 0.5 * lanes[0] + 0.5 * lanes[1])
    assert merge_lanes(lanes, LaneConfig(merge="first"), None) is lanes[0]
    assert merge_lanes(lanes, LaneConfig(merge="second"), None) is lanes[1]
    assert merge_lanes(lanes[:1], LaneConfig(), None) is lanes[0]
    weight = torch.tensor(0.3, dtype=torch.float64)
    torch.testing.assert_close(merge_lanes(lanes, LaneConfig("uncoupled"), weight), 0.3 * lanes[0] + 0.7 * lanes[1])


def test_rotary_reference_values() -> None:
    x = torch.sin(1 + torch.arange(64, dtype=torch.float64)).view(1, 1, 1, 64).expand(1, 4, 1, 64)
    turned = rotate(x, *rotary_tables(4, 16, 10_000.0))[0, 3, 0]
    expected = (-0.774892, 0.087798, 0.989085, -0.526743, -1.055970, -0.288842)
    np.testing.assert_allclose(turned[[0, 1, 7, 8, 9, 15]], expected, atol=1e-6)
    np.testing.assert_allclose(turned[16], -0.961397, atol=1e-6)
    assert torch.equal(turned[16:], x[0, 0, 0, 16:])


def test_rotary_depends_on_differences_only() -> None:
    q, k = draw(1, 1, 1, 8), draw(1, 1, 1, 8, seed=1)
    tables = rotary_tables(40, 8, 100.0)
    q, k = (rotate(x.expand(1, 40, 1, 8), *tables)[0, :, 0] for x in (q, k))
    assert (q[7] @ k[2]).item() == pytest.approx((q[38] @ k[33]).item(), abs=1e-5)


def test_yarn_frequencies() -> None:
    """Section 2.8, one frequency at a time."""
    scaling = RopeScalingConfig("yarn", original_tokens=1024, context_tokens=2048)
    ours = rotary_frequencies(96, 5000.0, scaling)
    for index, dim in enumerate(range(0, 96, 2)):
        ramp = min(max((dim / 96 - 0.25) / 0.75, 0), 1)
        expected = 5000.0 ** (-dim / 96) / (ramp * (2048 / 1024 - 1) + 1)
        assert ours[index].item() == pytest.approx(expected, rel=1e-5)


def test_ntk_base() -> None:
    assert ntk_base(10_000, 16, 1024, 2048) == pytest.approx(10_000 * 2 ** (16 / 14))
    assert ntk_base(10_000, 16, 1024, 512) == 10_000
    scaled = rotary_frequencies(16, 10_000.0, RopeScalingConfig("ntk", 1024, 2048))
    assert scaled[3].item() == pytest.approx((10_000 * 2 ** (16 / 14)) ** (-6 / 16), rel=1e-5)


@pytest.mark.parametrize("packed", [False, True])
@pytest.mark.parametrize("window", [0, 2])
def test_attention_position_by_position(packed: bool, window: int) -> None:
    """Grouped heads, causality, documents and window, with loops in place of masks."""
    q, k, v = draw(1, 12, 4, 6), draw(1, 12, 2, 6, seed=1), draw(1, 12, 2, 6, seed=2)
    out = causal_attention(q, k, v, layout(packed, window=window))
    for time in range(12):
        first = STARTS[DOCUMENT[time]] if packed else 0
        if window:
            first = max(first, time - window + 1)
        for head in range(4):
            keys, values = k[0, first : time + 1, head // 2], v[0, first : time + 1, head // 2]
            weights = torch.softmax(keys @ q[0, time, head] / math.sqrt(6), dim=0)
            torch.testing.assert_close(out[0, time, head], weights @ values)


def test_attention_mask_of_one_document_is_causal() -> None:
    assert torch.equal(attention_mask(5, None, 0, CPU), torch.ones(5, 5, dtype=torch.bool).tril())


@pytest.mark.parametrize("packed", [False, True])
@pytest.mark.parametrize("trigram", [False, True])
def test_hash_buckets(packed: bool, trigram: bool) -> None:
    """Section 2.1 with Python's integers; tokens large enough for the products to pass 2^31."""
    config = HashEmbeddingConfig(num_buckets=97, dim=4, trigram=trigram)
    module = set_weights(HashEmbedding(config, 6))
    ids = torch.randint(0, 65_536, (1, 12), generator=torch.Generator().manual_seed(0))

    def wrapped(value: int) -> int:
        return (value + 2**31) % 2**32 - 2**31

    def bucket(time: int, order: int) -> int:
        first = STARTS[DOCUMENT[time]] if packed else 0
        if time - first < order - 1:
            return 96
        tokens = [int(ids[0, time - distance]) for distance in range(order)]
        hashed = 0
        for token, factor in zip(tokens, (36_313, 27_191, 51_497), strict=False):
            hashed ^= wrapped(token * factor)
        return hashed % 96

    out = module(ids, layout(packed), torch.float64)
    for time in range(12):
        row = module.table[bucket(time, 2)]
        if trigram:
            row = row + module.table[bucket(time, 3)]
        torch.testing.assert_close(out[0, time], module.scale * (module.projection.weight @ row))


def test_linear_hash_has_no_scale() -> None:
    config = HashEmbeddingConfig(
        num_buckets=50, dim=4, hash="linear", learned_scale=False, table_init_std=0.01, projection_init="zero"
    )
    module = set_weights(HashEmbedding(config, 4))
    ids = torch.tensor([[3, 60_000, 7, 9]])
    buckets = [3 % 50, (92_821 * 3 + 60_000) % 50, (92_821 * 60_000 + 7) % 50, (92_821 * 7 + 9) % 50]
    assert module.projection is None
    torch.testing.assert_close(module(ids, layout(False, 4), torch.float64)[0], module.table[buckets])


def test_value_embedding() -> None:
    module = set_weights(ValueEmbedding(ValueEmbeddingConfig((1, 3), dim=4), vocab_size=20, kv_dim=6))
    ids = torch.tensor([[4, 0, 19]])
    expected = module.scale * torch.stack([module.projection.weight @ module.table[i] for i in (4, 0, 19)])
    torch.testing.assert_close(module(ids, torch.float64)[0], expected)
    assert module.layer_scales.shape == (2,)


@pytest.mark.parametrize("bos_mask", [False, True])
def test_token_smear(bos_mask: bool) -> None:
    module = set_weights(TokenSmear(3, bos_mask))
    x, ids = draw(1, 6, 5), torch.tensor([[1, 4, 1, 1, 7, 2]])
    out = module(x, ids)[0]
    for time in range(6):
        gate = module.strength * torch.sigmoid(module.weight @ x[0, time, :3])
        previous = x[0, time - 1] if time else torch.zeros(5)
        keeps_out = bos_mask and ids[0, time] == 1
        torch.testing.assert_close(out[time], x[0, time] + (0 if keeps_out else gate) * previous)


@pytest.mark.parametrize("packed", [False, True])
def test_channel_smear(packed: bool) -> None:
    module = set_weights(ChannelSmear(5))
    x = draw(1, 12, 5)
    gate, out = torch.sigmoid(module.gate), module(x, layout(packed))[0]
    for time in range(12):
        first = time in (STARTS if packed else [0])
        previous = torch.zeros(5) if first else x[0, time - 1]
        torch.testing.assert_close(out[time], (1 - gate) * x[0, time] + gate * previous)


@pytest.mark.parametrize("packed", [False, True])
def test_mean_smear(packed: bool) -> None:
    module = set_weights(MeanSmear(5))
    x = draw(1, 12, 5)
    out = module(x, layout(packed))[0]
    for time in range(12):
        first = STARTS[DOCUMENT[time]] if packed else 0
        mean = x[0, first : time + 1].mean(0)
        torch.testing.assert_close(out[time], x[0, time] + torch.tanh(module.gate) * (mean - x[0, time]))


def test_skips() -> None:
    x, skip, weight, gate = (draw(2, 3, 4, seed=s) if s < 2 else draw(4, seed=s) for s in range(4))
    torch.testing.assert_close(add_skip(x, skip, weight), x + weight * skip)
    share = 1 / (1 + torch.exp(-gate))
    torch.testing.assert_close(blend_skip(x, skip, weight, gate), share * x + (1 - share) * weight * skip)


def test_softcaps() -> None:
    z = torch.linspace(-100, 100, 401, dtype=torch.float64)
    np.testing.assert_allclose(tanh_softcap(z, 30.0), 30 * np.tanh(z.numpy() / 30))
    u = np.clip(z.numpy() / 10, -2, 2)
    np.testing.assert_allclose(polynomial_softcap(z, 10.0), 10 * np.clip(u * (1 - u**2 / 3 + u**4 / 15), -1, 1))
    near_zero = torch.tensor([0.1], dtype=torch.float64)
    assert polynomial_softcap(near_zero, 10.0).item() == pytest.approx(0.1, rel=1e-4)


@pytest.mark.parametrize("activation", ["relu_squared", "leaky_relu_squared", "swiglu"])
def test_mlp(activation: str) -> None:
    config = ModelConfig(model_dim=8, num_heads=2, num_kv_heads=1, mlp_ratio=3, activation=activation)  # type: ignore[arg-type]
    mlp = set_weights(MLP(config))
    x = draw(1, 4, 8)
    up = x @ mlp.up.weight.T
    if activation == "swiglu":
        gate = x @ mlp.gate.weight.T
        hidden = gate / (1 + torch.exp(-gate)) * up
    elif activation == "relu_squared":
        hidden = torch.where(up > 0, up * up, 0)
    else:
        hidden = torch.where(up > 0, up * up, 0.25 * up * up)
    torch.testing.assert_close(mlp(x, {}), hidden @ mlp.down.weight.T)
