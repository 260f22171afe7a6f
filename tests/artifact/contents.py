"""Contents that between them use every kind of tensor, for round trips and as good vectors for other readers."""

import numpy as np

from artifact import floats
from artifact.content import Content, LowRank, PlainTensor, QuantizedTensor
from artifact.schema import FloatType, Kind

TOKENIZER_SHA256 = "0123456789abcdef" * 4


def integers(
    seed: int,
    shape: tuple[int, ...],
    bits: int = 6,
    *,
    kind: Kind = Kind.SYMMETRIC,
    group_size: int = 0,
    scale_type: FloatType = FloatType.FLOAT16,
    spread: float = 0.2,
    row_order: bool = False,
    low_rank: LowRank | None = None,
) -> QuantizedTensor:
    """Symbols that are roughly Gaussian (`spread` of the range), scales around 0.05."""
    rng = np.random.default_rng(seed)
    half = 1 << (bits - 1) if bits else 1
    gaussian = rng.normal(size=shape) * half * 2 * spread
    columns = shape[-1] if shape else 1
    rows = int(np.prod(shape[:-1], dtype=np.int64)) if shape else 1
    count = -(-rows * columns // group_size) if group_size else rows
    exponent = -12 if scale_type == FloatType.LOG8 else 0
    scales = floats.round_to(np.exp(rng.normal(size=count) * 0.3 - 3).astype(np.float32), scale_type, exponent)
    points = None
    if kind == Kind.ASYMMETRIC:
        symbols = np.clip(np.rint(gaussian) + half, 0, 2 * half - 1).astype(np.uint8)
        points = np.clip(np.rint(rng.normal(size=count) + half), 0, 2 * half - 1).astype(np.uint8)
    elif kind == Kind.BINARY:
        symbols = np.where(gaussian >= 0, 1, -1).astype(np.int8)
    elif kind == Kind.TERNARY:
        symbols = np.clip(np.rint(gaussian * 2), -1, 1).astype(np.int8)
    else:
        symbols = np.clip(np.rint(gaussian), -half, half - 1).astype(np.int8)
    return QuantizedTensor(
        symbols=symbols,
        scales=scales,
        bits=bits,
        kind=kind,
        group_size=group_size,
        scale_type=scale_type,
        scale_exponent=exponent,
        zero_points=points,
        row_order=rng.permutation(rows).astype(np.uint16) if row_order else None,
        low_rank=low_rank,
    )


def uneven(seed: int, by_columns: bool) -> QuantizedTensor:
    """Six-bit symbols whose columns (or rows) differ much in scale: the entropy coder uses several contexts."""
    rng = np.random.default_rng(seed)
    spread = np.exp(rng.normal(size=96))
    drawn = rng.normal(size=(200, 96)) * spread if by_columns else (rng.normal(size=(96, 200)) * spread[:, None])
    symbols = np.clip(np.rint(drawn * 2), -32, 31).astype(np.int8)
    return QuantizedTensor(symbols, np.ones(len(symbols), np.float16), 6)


def log8_scales(seed: int, exponent: int) -> QuantizedTensor:
    """A matrix with LOG8 scales around 2^exponent, based there."""
    rng = np.random.default_rng(seed)
    scales = floats.log8_table(exponent)[rng.integers(0, 64, 9)]
    symbols = rng.integers(-8, 8, (9, 8)).astype(np.int8)
    return QuantizedTensor(symbols, scales, 4, scale_type=FloatType.LOG8, scale_exponent=exponent)


def plain(seed: int, shape: tuple[int, ...], float_type: FloatType) -> PlainTensor:
    values = np.random.default_rng(seed).normal(size=shape).astype(np.float32)
    return PlainTensor(np.asarray(floats.round_to(values, float_type)), float_type)


def _content(tensors: dict[str, PlainTensor | QuantizedTensor], **changes: object) -> Content:
    configuration = {"preset": "tiny", "model": {"num_layers": 3, "rope_base": 1e4, "name": "α β\n"}}
    return Content(configuration, TOKENIZER_SHA256, tensors, **{"code": b"print('inert')\n", **changes})  # type: ignore[arg-type]


def good_contents() -> dict[str, Content]:
    """Name -> content; small, deterministic."""
    layered = {f"blocks.{layer}.q.weight": integers(layer, (24, 16)) for layer in range(3)}
    small = {f"blocks.{layer}.q_gain": plain(layer, (4,), FloatType.FLOAT16) for layer in range(3)}
    symmetric = {f"int{bits}": integers(bits, (7, 13), bits) for bits in range(2, 9)}
    asymmetric = {f"uint{bits}": integers(bits, (7, 13), bits, kind=Kind.ASYMMETRIC) for bits in range(2, 9)}
    grouped = {
        "straddling": integers(1, (5, 12), 4, group_size=9),
        "whole": integers(2, (5, 12), 2, group_size=60),
        "larger": integers(3, (5, 12), 5, kind=Kind.ASYMMETRIC, group_size=64),
        "single": integers(4, (2, 3), 8, group_size=1),
    }
    low_bits = {
        "ternary": integers(1, (6, 11), 0, kind=Kind.TERNARY, group_size=8),
        "binary": integers(2, (6, 11), 0, kind=Kind.BINARY),
    }
    scale_types = {
        name.lower(): integers(1, (9, 8), scale_type=FloatType[name])
        for name in ("FLOAT32", "FLOAT16", "BFLOAT16", "LOG8")
    }
    scale_types.update({f"near.{layer}.w": log8_scales(layer, -9 + layer) for layer in range(3)})
    scale_types.update({f"far.{layer}.w": log8_scales(layer, 60 * layer - 30) for layer in range(2)})
    corrected = {
        "asymmetric_factors": integers(
            5,
            (12, 32),
            low_rank=LowRank(integers(6, (12, 4), 2, group_size=48), integers(7, (4, 32), 4, group_size=64)),
        ),
        "float_factors": integers(
            8, (12, 32), low_rank=LowRank(plain(1, (12, 1), FloatType.FLOAT16), plain(2, (1, 32), FloatType.FLOAT32))
        ),
        "uncorrected": integers(9, (12, 32)),
    }
    shapes = {
        "scalar": plain(1, (), FloatType.FLOAT32),
        "empty": plain(1, (0, 5), FloatType.FLOAT32),
        "empty_quantized": integers(1, (4, 0)),
        "scalar_quantized": integers(2, ()),
        "vector_quantized": integers(3, (33,), 5),
        "four_dimensions": integers(4, (2, 3, 1, 5), 4),
    }
    plains = {
        name.lower(): plain(index, (6, 5), FloatType[name])
        for index, name in enumerate(("FLOAT32", "FLOAT16", "BFLOAT16", "FLOAT8_E4M3"))
    }
    layers = {f"a.{layer}.w": integers(layer, (3, 4), 5 if layer % 2 else 6) for layer in (0, 1, 2, 3, 7, 12)}
    large = {f"blocks.{layer}.up.weight": integers(layer, (256, 128), spread=0.08) for layer in range(2)}
    return {
        "layers": _content({**layered, **small}),
        "symmetric": _content(symmetric),
        "asymmetric": _content(asymmetric),
        "grouped": _content(grouped),
        "low_bits": _content(low_bits),
        "scale_types": _content(scale_types),
        "low_rank": _content(corrected),
        "shapes": _content(shapes),
        "plain": _content(plains),
        "mixed_layers": _content(layers),
        "permuted": _content({"p": integers(3, (300, 8), 4, row_order=True), "q": integers(4, (5, 8), row_order=True)}),
        "tied": _content({"embedding.weight": integers(1, (10, 4), 8)}, ties={"head.weight": "embedding.weight"}),
        "large": _content(large),
        "uneven_columns": _content({f"blocks.{layer}.w": uneven(layer, True) for layer in range(2)}),
        "uneven_rows": _content({f"blocks.{layer}.w": uneven(layer, False) for layer in range(2)}),
        "bare": _content({}, code=b""),
    }
