"""An independent reading of what the evaluator reports: numpy and the standard library only, float64 throughout.

It shares no code with the project. It reads an artifact's weights from plain arrays, the shards from their bytes, and
computes plain and sliding-window bits per byte of a network of the baseline's architecture, one window at a time.
"""

from __future__ import annotations

import json
import math
import struct
from pathlib import Path

import numpy as np

BOS = 1
MAGIC = 20240520


def read_shards(folder: Path, pattern: str) -> np.ndarray:
    """All uint16 values of the shards whose names match, in name order."""
    parts = []
    for path in sorted(folder.glob(pattern)):
        data = path.read_bytes()
        magic, version, count = struct.unpack("<3i", data[:12])
        assert (magic, version) == (MAGIC, 1)
        assert len(data) == 1024 + 2 * count
        parts.append(np.frombuffer(data, "<u2", offset=1024))
    return np.concatenate(parts).astype(np.int64)


def credited_bytes(documents: list[str], lossless_pieces: list[bytes], tokens: np.ndarray) -> np.ndarray:
    """Bytes of each token, found by walking the documents' UTF-8 text token by token."""
    credited = np.zeros(len(tokens), dtype=np.int64)
    document, position = -1, 0
    texts = [text.encode("utf-8") for text in documents]
    for index, token in enumerate(tokens):
        if token == BOS:
            assert document < 0 or position == len(texts[document]), "a document's tokens end before its text"
            document, position = document + 1, 0
            continue
        piece = lossless_pieces[token]
        assert texts[document][position : position + len(piece)] == piece, "a token isn't what the text says"
        credited[index] = len(piece)
        position += len(piece)
    assert (document, position) == (len(texts) - 1, len(texts[-1]))
    return credited


def rms(x: np.ndarray) -> np.ndarray:
    return x / np.sqrt((x * x).mean(-1, keepdims=True) + 2.0**-23)


def rotate(x: np.ndarray) -> np.ndarray:
    """Rotary embedding of [T, H, d] over all of d, base 10,000; angles in float32, as stored by the network."""
    half = x.shape[-1] // 2
    frequencies = np.float32(10_000.0) ** (-np.arange(0, 2 * half, 2, dtype=np.float32) / np.float32(2 * half))
    angles = np.outer(np.arange(len(x), dtype=np.float32), frequencies.astype(np.float32)).astype(np.float32)
    cos, sin = np.cos(angles).astype(np.float64)[:, None], np.sin(angles).astype(np.float64)[:, None]
    a, b = x[..., :half], x[..., half:]
    return np.concatenate([a * cos + b * sin, b * cos - a * sin], -1)


def attention(x: np.ndarray, w: dict[str, np.ndarray], heads: int, kv_heads: int) -> np.ndarray:
    length, width = x.shape
    size = width // heads
    q = rotate(rms((x @ w["q.weight"].T).reshape(length, heads, size))) * w["q_gain"][:, None]
    k = rotate(rms((x @ w["k.weight"].T).reshape(length, kv_heads, size)))
    v = (x @ w["v.weight"].T).reshape(length, kv_heads, size)
    mask = np.triu(np.full((length, length), -np.inf), 1)
    out = np.empty((length, heads, size))
    for head in range(heads):
        group = head * kv_heads // heads
        logits = q[:, head] @ k[:, group].T / math.sqrt(size) + mask
        weights = np.exp(logits - logits.max(-1, keepdims=True))
        out[:, head] = weights / weights.sum(-1, keepdims=True) @ v[:, group]
    return out.reshape(length, width) @ w["out.weight"].T


def token_nats(ids: np.ndarray, weights: dict[str, np.ndarray], layers: int, heads: int, kv_heads: int) -> np.ndarray:
    """Loss in nats of ids[1:], each given the ids before it in this window."""
    x = x0 = rms(weights["embedding.weight"][ids[:-1]])
    outputs: list[np.ndarray] = []
    half = layers // 2
    for layer in range(layers):
        block = {
            name.removeprefix(f"blocks.{layer}."): a
            for name, a in weights.items()
            if name.startswith(f"blocks.{layer}.")
        }
        if layer >= half and layer - half < half:
            x = x + weights["skip_weights"][layer - half] * outputs[half - 1 - (layer - half)]
        u = block["residual_mix"][0] * x + block["residual_mix"][1] * x0
        inner = {name.removeprefix("attention."): a for name, a in block.items() if name.startswith("attention.")}
        x = u + block["attention_scale"] * attention(rms(u), inner, heads, kv_heads)
        hidden = np.maximum(rms(x) @ block["mlp.up.weight"].T, 0.0) ** 2
        x = x + block["mlp_scale"] * (hidden @ block["mlp.down.weight"].T)
        outputs.append(x)
    logits = 30.0 * np.tanh(rms(x) @ weights["embedding.weight"].T / 30.0)
    top = logits.max(-1, keepdims=True)
    log_sum = top[:, 0] + np.log(np.exp(logits - top).sum(-1))
    return log_sum - logits[np.arange(len(logits)), ids[1:]]


def bits_per_byte(
    tokens: np.ndarray, token_bytes: np.ndarray, weights: dict[str, np.ndarray], shape: dict, context: int, stride: int
) -> tuple[float, float, int, int]:
    """BPB, mean nats, targets and bytes. Every target's window is found from the target, not from a list of windows."""
    num_targets = len(tokens) - 1
    shape_of_model = (shape["num_layers"], shape["num_heads"], shape["num_kv_heads"])
    cache: dict[int, np.ndarray] = {}
    nats = 0.0
    for target in range(num_targets):
        start = max(0, -(-(target + 1 - context) // stride)) * stride
        if start not in cache:
            cache = {start: token_nats(tokens[start : start + context + 1], weights, *shape_of_model)}
        nats += float(cache[start][target - start])
    num_bytes = int(token_bytes[1:].sum())
    return nats / math.log(2.0) / num_bytes, nats / num_targets, num_targets, num_bytes


def read_documents(path: Path) -> list[str]:
    return [json.loads(line)["text"] for line in path.read_text(encoding="utf-8").splitlines()]
