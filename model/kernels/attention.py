"""Variable-length causal attention on GPUs: documents of different lengths in one packed row, none seeing another.

The only file that imports flash-attn. Backends, best first: `flash4` (flash-attn-4), `flash3`, `flash2` (earlier
releases), `torch` (the flash attention that torch brings). All take bfloat16 on CUDA; anything else goes through the
masked product in model/network/attention.py, which is their reference in tests.

Shapes: T tokens of the packed row, H query heads, K key/value heads, d head width, N documents.
"""

from __future__ import annotations

import functools
import importlib
import inspect
from typing import Any, Literal

import torch
from torch import Tensor

try:
    from torch.nn.attention.varlen import varlen_attn

    # Its options for causal attention changed between torch 2.10 and 2.13; looked up here, where no compiler traces.
    _VARLEN_OPTIONS = frozenset(inspect.signature(varlen_attn).parameters)
except ImportError:
    _VARLEN_OPTIONS = frozenset()

Backend = Literal["flash4", "flash3", "flash2", "torch"]

MODULES: dict[Backend, str] = {
    "flash4": "flash_attn.cute.interface",
    "flash3": "flash_attn_interface",
    "flash2": "flash_attn.flash_attn_interface",
    "torch": "torch.nn.attention.varlen",
}


@functools.cache
def available_backends() -> tuple[Backend, ...]:
    """The backends whose library imports here, best first; none without a GPU."""
    if not torch.cuda.is_available():
        return ()
    return tuple(backend for backend in MODULES if _module(backend) is not None)


@torch.compiler.assume_constant_result
def chosen_backend(device: torch.device, dtype: torch.dtype) -> Backend | None:
    """The backend that `packed_attention` uses for such tensors; None: there is none, use the reference."""
    if device.type != "cuda" or dtype != torch.bfloat16:
        return None
    return next(iter(available_backends()), None)


def packed_attention(
    q: Tensor, k: Tensor, v: Tensor, cu_seqlens: Tensor, longest: int, window: int, backend: Backend
) -> Tensor:
    """softmax(q kᵀ / sqrt(d)) v over earlier positions of the same document, [T, H, d].

    Args:
        q: bfloat16 [T, H, d]; k, v: bfloat16 [T, K, d], H a multiple of K.
        cu_seqlens: int32 [N + 1], document starts, then T; padding with T (documents of no tokens) is allowed.
        longest: at least the tokens of the longest document.
        window: attend to the last `window` positions, the own included; 0: to all.
    """
    if backend == "flash4":
        return torch.ops.albatross.flash4(q, k, v, cu_seqlens, longest, window)[0]
    if backend == "torch":
        return _torch(q, k, v, cu_seqlens, longest, window)
    return _earlier_flash(backend, q, k, v, cu_seqlens, longest, window)


@functools.cache
def _module(backend: Backend) -> Any:
    name = MODULES[backend]
    try:
        return importlib.import_module(name)
    except ImportError:
        return None


def _torch(q: Tensor, k: Tensor, v: Tensor, cu_seqlens: Tensor, longest: int, window: int) -> Tensor:
    options: dict[str, Any] = {"enable_gqa": True} if "enable_gqa" in _VARLEN_OPTIONS else {}
    if "window_size" in _VARLEN_OPTIONS:
        options["window_size"] = (window - 1 if window else -1, 0)
    elif window:
        raise ValueError("this torch's varlen_attn has no attention window")
    else:
        options["is_causal"] = True
    return varlen_attn(q, k, v, cu_seqlens, cu_seqlens, longest, longest, **options)


def _earlier_flash(
    backend: Backend, q: Tensor, k: Tensor, v: Tensor, cu_seqlens: Tensor, longest: int, window: int
) -> Tensor:
    left = window - 1 if window else -1
    result = _module(backend).flash_attn_varlen_func(
        q, k, v, cu_seqlens, cu_seqlens, longest, longest, causal=True, window_size=(left, 0 if window else -1)
    )
    return result[0] if isinstance(result, tuple) else result


def _flash4_window(window: int) -> dict[str, int | None]:
    return {"window_size_left": window - 1, "window_size_right": 0} if window else {}


# flash-attn-4 compiles its kernels itself and can't be traced; as custom operators its two halves fit into
# torch.compile without a graph break and into CUDA graphs.
@torch.library.custom_op("albatross::flash4", mutates_args=(), device_types="cuda")
def _flash4(q: Tensor, k: Tensor, v: Tensor, cu_seqlens: Tensor, longest: int, window: int) -> tuple[Tensor, Tensor]:
    """Attention [T, H, d] and the log-sum-exp of its logits, float32 [H, T]."""
    out, lse, *_ = _module("flash4")._flash_attn_fwd(
        q.contiguous(),
        k.contiguous(),
        v.contiguous(),
        cu_seqlens_q=cu_seqlens,
        cu_seqlens_k=cu_seqlens,
        max_seqlen_q=longest,
        max_seqlen_k=longest,
        causal=not window,
        return_lse=True,
        **_flash4_window(window),
    )
    return out, lse


@_flash4.register_fake
def _(q: Tensor, k: Tensor, v: Tensor, cu_seqlens: Tensor, longest: int, window: int) -> tuple[Tensor, Tensor]:
    return torch.empty_like(q, memory_format=torch.contiguous_format), q.new_empty(
        (q.shape[1], q.shape[0]), dtype=torch.float32
    )


@torch.library.custom_op("albatross::flash4_backward", mutates_args=(), device_types="cuda")
def _flash4_backward(
    gradient: Tensor,
    q: Tensor,
    k: Tensor,
    v: Tensor,
    out: Tensor,
    lse: Tensor,
    cu_seqlens: Tensor,
    longest: int,
    window: int,
) -> tuple[Tensor, Tensor, Tensor]:
    q, k, v = q.contiguous(), k.contiguous(), v.contiguous()
    dq, dk, dv, *_ = _module("flash4")._flash_attn_bwd(
        q,
        k,
        v,
        out,
        gradient.contiguous(),
        lse,
        causal=not window,
        cu_seqlens_q=cu_seqlens,
        cu_seqlens_k=cu_seqlens,
        max_seqlen_q=longest,
        max_seqlen_k=longest,
        deterministic=torch.are_deterministic_algorithms_enabled(),
        **_flash4_window(window),
    )
    return dq, dk, dv


@_flash4_backward.register_fake
def _(
    gradient: Tensor,
    q: Tensor,
    k: Tensor,
    v: Tensor,
    out: Tensor,
    lse: Tensor,
    cu_seqlens: Tensor,
    longest: int,
    window: int,
) -> tuple[Tensor, Tensor, Tensor]:
    return tuple(torch.empty_like(x, memory_format=torch.contiguous_format) for x in (q, k, v))  # type: ignore[return-value]


def _save(ctx: Any, inputs: tuple[Any, ...], output: tuple[Tensor, Tensor]) -> None:
    q, k, v, cu_seqlens, ctx.longest, ctx.window = inputs
    ctx.save_for_backward(q, k, v, *output, cu_seqlens)


def _differentiate(ctx: Any, gradient: Tensor, _: Tensor | None) -> tuple[Tensor | None, ...]:
    q, k, v, out, lse, cu_seqlens = ctx.saved_tensors
    gradients = torch.ops.albatross.flash4_backward(gradient, q, k, v, out, lse, cu_seqlens, ctx.longest, ctx.window)
    return (*gradients, None, None, None)


_flash4.register_autograd(_differentiate, setup_context=_save)
