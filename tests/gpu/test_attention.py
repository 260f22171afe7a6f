"""Every attention backend against the masked product in float64."""

import pytest
import torch
from torch import Tensor

from model.kernels.attention import MODULES, Backend, available_backends, packed_attention
from model.network.sequence import attention_mask, document_starts

pytestmark = [pytest.mark.gpu, pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a GPU")]

LENGTHS = [1, 63, 64, 65, 2048, 1, 2, 700]
HEADS, KV_HEADS, WIDTH = 8, 4, 64


def reference(q: Tensor, k: Tensor, v: Tensor, cu_seqlens: Tensor, window: int) -> Tensor:
    num_tokens = q.shape[0]
    mask = attention_mask(num_tokens, document_starts(cu_seqlens, num_tokens), window, q.device)
    k, v = (x.repeat_interleave(HEADS // KV_HEADS, dim=1) for x in (k, v))
    logits = torch.einsum("qhd,khd->hqk", q, k) / WIDTH**0.5
    return torch.einsum("hqk,khd->qhd", logits.masked_fill(~mask, -torch.inf).softmax(-1), v)


@pytest.mark.parametrize("backend", list(MODULES))
@pytest.mark.parametrize("window", [0, 100])
@pytest.mark.parametrize("compiled", [False, True])
def test_forward_and_gradients(backend: Backend, window: int, compiled: bool) -> None:
    if backend not in available_backends():
        pytest.skip(f"{MODULES[backend]} is not installed")
    generator = torch.Generator("cuda").manual_seed(0)
    total = sum(LENGTHS)
    ends = torch.tensor(LENGTHS, device="cuda").cumsum(0).int()
    cu_seqlens = torch.cat((ends.new_zeros(1), ends, ends[-1:].expand(7))).contiguous()  # padded
    shapes = [(total, HEADS, WIDTH), (total, KV_HEADS, WIDTH), (total, KV_HEADS, WIDTH), (total, HEADS, WIDTH)]
    q, k, v, upstream = (torch.randn(s, device="cuda", generator=generator).bfloat16() for s in shapes)
    for x in (q, k, v):
        x.requires_grad_()

    def attend(q: Tensor, k: Tensor, v: Tensor) -> Tensor:
        return packed_attention(q, k, v, cu_seqlens, 2048, window, backend)

    out = (torch.compile(attend, fullgraph=True) if compiled else attend)(q, k, v)
    out.backward(upstream)
    exact = [x.detach().double().requires_grad_() for x in (q, k, v)]
    expected = reference(*exact, cu_seqlens, window)
    expected.backward(upstream.double())
    pairs = [(out, expected), *((x.grad, y.grad) for x, y in zip((q, k, v), exact, strict=True))]
    for got, wanted in pairs:
        assert got is not None
        assert wanted is not None
        error = (got.double() - wanted).norm() / wanted.norm()
        assert error < 1e-2, f"relative error {error:.1e}"
