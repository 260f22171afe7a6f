"""Settings of the evaluator: which mode, which windows, which adaptation.

A preset's `[eval]` section and the `eval` entry of an artifact's configuration hold only the fields that differ from
the defaults below; `eval_config_from_dict` turns such an entry back into an `EvalConfig`.
"""

from __future__ import annotations

import dataclasses
import difflib
import math
from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any, get_args, get_origin, get_type_hints

MODES = ("plain", "sliding", "ttt")
METHODS = ("lora", "phased", "full")
ADAPTER_SITES = ("q", "k", "v", "attention", "mlp", "head")


def _require(condition: bool, message: str) -> None:
    if not condition:
        raise ValueError(message)


def _require_at_least(name: str, value: int, least: int) -> None:
    is_integer = isinstance(value, int) and not isinstance(value, bool)
    _require(is_integer and value >= least, f"{name} must be an integer of at least {least}, not {value!r}")


def _require_number(name: str, value: float, low: float, high: float, *, open_low: bool = False) -> None:
    is_number = isinstance(value, (int, float)) and not isinstance(value, bool) and math.isfinite(value)
    inside = is_number and low <= value <= high and not (open_low and value == low)
    bracket = "(" if open_low else "["
    _require(inside, f"{name} must be a number in {bracket}{low}, {high}], not {value!r}")


@dataclass(frozen=True)
class SGDConfig:
    """SGD with momentum on the base weights from targets already scored (methods.md 8.4 and 8.6).

    chunk_tokens: targets of one step per epoch; a multiple of buffer_tokens. With method full it is also how many
        targets are scored before each update.
    buffer_tokens: targets of one forward; a step averages over its buffers, so only speed and memory depend on it.
    sequence_tokens: longest stretch that attention sees.
    learning_rate: of the first chunk; it falls to 0 along half a cosine over the chunks.
    frozen_blocks: blocks at the bottom whose weights don't learn.
    """

    chunk_tokens: int = 32_768
    buffer_tokens: int = 4_096
    sequence_tokens: int = 2_048
    learning_rate: float = 0.001
    momentum: float = 0.9
    num_epochs: int = 1
    gradient_clip_norm: float = 1.0
    frozen_blocks: int = 0

    def __post_init__(self) -> None:
        for name in ("chunk_tokens", "buffer_tokens", "sequence_tokens", "num_epochs"):
            _require_at_least(f"ttt.sgd.{name}", getattr(self, name), 1)
        _require_at_least("ttt.sgd.frozen_blocks", self.frozen_blocks, 0)
        multiple = self.chunk_tokens % self.buffer_tokens == 0 and self.buffer_tokens % self.sequence_tokens == 0
        sizes = f"{self.chunk_tokens}, {self.buffer_tokens}, {self.sequence_tokens}"
        names = "ttt.sgd.chunk_tokens, buffer_tokens, sequence_tokens"
        _require(multiple, f"{names} must each be a multiple of the next, not {sizes}")
        _require_number("ttt.sgd.learning_rate", self.learning_rate, 0.0, 100.0)
        _require_number("ttt.sgd.momentum", self.momentum, 0.0, 0.9999999)
        _require_number("ttt.sgd.gradient_clip_norm", self.gradient_clip_norm, 0.0, 1e9, open_low=True)


@dataclass(frozen=True)
class TTTConfig:
    """Score-first test-time training.

    method: `lora`, one private LoRA set per document (methods.md 8.5); `phased`, the same with SGD on the base weights
        between phases (8.6); `full`, SGD on the base weights over chunks of the stream (8.4).
    chunk_tokens: targets scored, and then trained on, per step.
    window_tokens: context of one forward; at least chunk_tokens.
    batch_documents: documents adapted side by side; only speed and memory depend on it.
    rank, alpha: the adapter adds alpha/rank * (x Aᵀ) Bᵀ at each site.
    sites: where adapters sit, a subset of ADAPTER_SITES.
    learning_rate, beta1, beta2, epsilon, weight_decay: AdamW, one step per chunk.
    warm_start: keep A from the batch before in the same lane (B is always zeroed); False makes documents independent
        of each other.
    num_lanes: batch i belongs to lane i modulo num_lanes, so that warm A doesn't depend on the number of processes,
        which must be a divisor.
    seed: draws A.
    prefix_documents, num_phases: with method phased, phase k of n ends once at least prefix_documents k/n documents are
        scored; the base weights then learn from that many of them, the shortest.
    sgd: with methods phased and full.
    """

    method: str = "lora"
    chunk_tokens: int = 256
    window_tokens: int = 1024
    batch_documents: int = 64
    rank: int = 8
    alpha: float = 8.0
    sites: tuple[str, ...] = ("q", "v", "head")
    learning_rate: float = 0.01
    beta1: float = 0.9
    beta2: float = 0.95
    epsilon: float = 1e-10
    weight_decay: float = 0.0
    warm_start: bool = False
    num_lanes: int = 8
    seed: int = 0
    prefix_documents: int = 2500
    num_phases: int = 3
    sgd: SGDConfig = field(default_factory=SGDConfig)

    def __post_init__(self) -> None:
        _require(self.method in METHODS, f"ttt.method must be one of {', '.join(METHODS)}, not {self.method!r}")
        for name in ("num_lanes", "prefix_documents", "num_phases"):
            _require_at_least(f"ttt.{name}", getattr(self, name), 1)
        _require_at_least("ttt.chunk_tokens", self.chunk_tokens, 1)
        _require_at_least("ttt.window_tokens", self.window_tokens, self.chunk_tokens)
        _require_at_least("ttt.batch_documents", self.batch_documents, 1)
        _require_at_least("ttt.rank", self.rank, 1)
        _require_at_least("ttt.seed", self.seed, 0)
        _require_number("ttt.alpha", self.alpha, 0.0, 1e6, open_low=True)
        _require_number("ttt.learning_rate", self.learning_rate, 0.0, 10.0)
        _require_number("ttt.beta1", self.beta1, 0.0, 0.9999999)
        _require_number("ttt.beta2", self.beta2, 0.0, 0.9999999)
        _require_number("ttt.epsilon", self.epsilon, 0.0, 1.0, open_low=True)
        _require_number("ttt.weight_decay", self.weight_decay, 0.0, 100.0)
        _require(isinstance(self.warm_start, bool), f"ttt.warm_start must be true or false, not {self.warm_start!r}")
        valid = len(self.sites) > 0 and len(set(self.sites)) == len(self.sites) and set(self.sites) <= {*ADAPTER_SITES}
        accepted = ", ".join(ADAPTER_SITES)
        _require(valid, f"ttt.sites must be different names out of {accepted}, not {self.sites!r}")


@dataclass(frozen=True)
class TiltConfig:
    """Causal n-gram tilt (methods.md 2.12), with ttt method full.

    strength: β is strength times the hint's share of the occurrences; 0 switches the tilt off.
    orders: lengths of contexts; confidences, counts: for each, the least share and number of occurrences of a hint.
    """

    strength: float = 0.0
    orders: tuple[int, ...] = (8, 10, 12, 14, 16)
    confidences: tuple[float, ...] = (0.7, 0.7, 0.6, 0.5, 0.5)
    counts: tuple[int, ...] = (3, 3, 2, 2, 2)

    def __post_init__(self) -> None:
        _require_number("tilt.strength", self.strength, 0.0, 50.0)
        same = len(self.orders) == len(self.confidences) == len(self.counts) > 0
        _require(same, "tilt.orders, tilt.confidences and tilt.counts must have the same number of entries, at least 1")
        for order, confidence, count in zip(self.orders, self.confidences, self.counts, strict=True):
            _require_at_least("tilt.orders", order, 1)
            _require_number("tilt.confidences", confidence, 0.0, 1.0)
            _require_at_least("tilt.counts", count, 1)


@dataclass(frozen=True)
class EvalConfig:
    """How an artifact is scored.

    mode: what `python -m eval` does when no --mode is given.
    context_tokens: length of the windows of the plain and sliding modes.
    stride_tokens: step of the sliding windows; at most context_tokens.
    batch_windows: windows per forward; only speed and memory depend on it.
    isolate_documents: in the plain mode no window sees another document, as under document-masked attention; for models
        trained with it.
    """

    mode: str = "plain"
    context_tokens: int = 1024
    stride_tokens: int = 64
    batch_windows: int = 32
    isolate_documents: bool = False
    ttt: TTTConfig = field(default_factory=TTTConfig)
    tilt: TiltConfig = field(default_factory=TiltConfig)

    def __post_init__(self) -> None:
        _require(self.mode in MODES, f"mode must be one of {', '.join(MODES)}, not {self.mode!r}")
        _require_at_least("context_tokens", self.context_tokens, 1)
        _require_at_least("stride_tokens", self.stride_tokens, 1)
        message = f"stride_tokens must be at most context_tokens ({self.context_tokens}), not {self.stride_tokens}"
        _require(self.stride_tokens <= self.context_tokens, message)
        _require_at_least("batch_windows", self.batch_windows, 1)
        is_bool = isinstance(self.isolate_documents, bool)
        tilt_fits = self.tilt.strength == 0 or self.ttt.method == "full"
        _require(tilt_fits, f"tilt.strength must be 0 unless ttt.method is full, not {self.tilt.strength!r}")
        _require(is_bool, f"isolate_documents must be true or false, not {self.isolate_documents!r}")


def eval_config_from_dict(values: Mapping[str, Any]) -> EvalConfig:
    """Builds an EvalConfig from nested plain data (a TOML section, an artifact's configuration).

    Raises ValueError naming the field if a key is unknown or a value is of the wrong kind.
    """
    config: EvalConfig = _from_dict(EvalConfig, values, "")
    return config


def _from_dict(cls: type[Any], values: Mapping[str, Any], prefix: str) -> Any:
    if not isinstance(values, Mapping):
        raise ValueError(f"{prefix.rstrip('.') or 'eval'} must be a table of settings, not {values!r}")
    hints = get_type_hints(cls)
    known = {item.name for item in dataclasses.fields(cls)}
    arguments: dict[str, Any] = {}
    for key, value in values.items():
        if key not in known:
            raise ValueError(f"unknown eval setting {prefix}{key}; known: {', '.join(sorted(known))}")
        arguments[key] = _convert(hints[key], value, f"{prefix}{key}")
    return cls(**arguments)


def _convert(hint: Any, value: Any, name: str) -> Any:
    if dataclasses.is_dataclass(hint) and isinstance(hint, type):
        return _from_dict(hint, value, f"{name}.")
    if get_origin(hint) is tuple:
        if not isinstance(value, (list, tuple)):
            raise ValueError(f"{name} must be a list, not {value!r}")
        return tuple(_convert(get_args(hint)[0], item, name) for item in value)
    if hint is float and isinstance(value, int) and not isinstance(value, bool):
        return float(value)
    if not isinstance(value, hint) or (hint is int and isinstance(value, bool)):
        raise ValueError(f"{name} must be of type {hint.__name__}, not {value!r}")
    return value


def with_overrides(config: EvalConfig, overrides: Mapping[str, str]) -> EvalConfig:
    """Returns the configuration with dotted settings replaced, e.g. {"ttt.learning_rate": "0.02"}.

    Dashes stand for underscores. Lists are given as comma-separated text. Raises ValueError naming the setting.
    """
    for name, text in overrides.items():
        name = check_setting(name)
        config = _replace(config, name.split("."), text, name)
    return config


def check_setting(name: str) -> str:
    """The setting's name with underscores. Raises ValueError naming the nearest if there is no such setting."""
    name = name.replace("-", "_")
    path = name.split(".")
    value: Any = EvalConfig()
    for depth, part in enumerate(path):
        known = [item.name for item in dataclasses.fields(value)] if dataclasses.is_dataclass(value) else []
        if part not in known:
            nearest = difflib.get_close_matches(part, known, n=1, cutoff=0.5)
            suggestion = f" (did you mean {'.'.join([*path[:depth], nearest[0]])}?)" if nearest else ""
            raise ValueError(f"unknown eval setting {name}{suggestion}")
        value = getattr(value, part)
    if dataclasses.is_dataclass(value):
        raise ValueError(f"{name} is a group of settings; give one of them, such as {name}.NAME")
    return name


def _replace(config: Any, path: list[str], text: str, name: str) -> Any:
    current = getattr(config, path[0])
    if len(path) > 1:
        return dataclasses.replace(config, **{path[0]: _replace(current, path[1:], text, name)})
    return dataclasses.replace(config, **{path[0]: _parse_text(get_type_hints(type(config))[path[0]], text, name)})


def _parse_text(hint: Any, text: str, name: str) -> Any:
    if get_origin(hint) is tuple:
        return tuple(_parse_text(get_args(hint)[0], part.strip(), name) for part in text.split(",") if part.strip())
    if hint is bool:
        if text.lower() not in ("true", "false"):
            raise ValueError(f"{name} must be true or false, not {text!r}")
        return text.lower() == "true"
    try:
        return hint(text)
    except ValueError:
        raise ValueError(f"{name} must be of type {hint.__name__}, not {text!r}") from None


def to_dict(config: Any) -> dict[str, Any]:
    """The full configuration as JSON-able nested plain data."""
    result: dict[str, Any] = {}
    for item in dataclasses.fields(config):
        value = getattr(config, item.name)
        if dataclasses.is_dataclass(value):
            value = to_dict(value)
        elif isinstance(value, tuple):
            value = list(value)
        result[item.name] = value
    return result
