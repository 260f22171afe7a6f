"""Opens what an evaluation reads, an artifact and a data folder, and refuses pairs that don't belong together."""

from __future__ import annotations

import hashlib
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
import torch

import artifact.reader
from artifact.errors import ArtifactError
from eval import provenance
from eval.config import EvalConfig, eval_config_from_dict
from eval.documents import Documents, find_documents
from eval.ledger import ByteLedger
from eval.ranks import Ranks
from eval.scoring import TokenArray
from model.config import ModelConfig, model_config_from_dict
from model.errors import InputError
from model.network import gpt
from model.text.shards import DataFolder
from model.text.tokenizer import BOS_ID, Tokenizer


@dataclass
class Session:
    """Everything an evaluation works on, checked to fit together."""

    model: gpt.GPT
    eval_config: EvalConfig
    stream: TokenArray
    documents: Documents
    ledger: ByteLedger
    ranks: Ranks
    identity: dict[str, Any]
    """Hashes and names that every report section repeats."""

    @property
    def device(self) -> torch.device:
        return self.ranks.device

    @property
    def num_targets(self) -> int:
        return self.stream.num_tokens - 1


def pick_device(name: str | None) -> torch.device:
    """The named device, or CUDA if there is one and the CPU otherwise. Raises InputError if it isn't there."""
    if name is None:
        return torch.device("cuda" if torch.cuda.is_available() else "cpu")
    try:
        device = torch.device(name)
    except RuntimeError:
        raise InputError(f"--device: {name!r} is no device; use cpu, cuda or cuda:N") from None
    if device.type == "cuda" and not torch.cuda.is_available():
        raise InputError(f"--device: {name} is not available here")
    if device.type == "cuda" and (device.index or 0) >= torch.cuda.device_count():
        raise InputError(f"--device: {name} does not exist; there are {torch.cuda.device_count()} GPUs")
    return device


def open_session(
    artifact_path: Path,
    data_path: Path,
    tokenizer_path: Path | None,
    ranks: Ranks,
    dtype: torch.dtype,
) -> Session:
    """Reads artifact, data and tokenizer. Raises InputError, ArtifactError or OSError, each with a one-line message."""
    packed, arrays = _read_artifact(artifact_path)
    model_config = _model_config(packed.configuration.get("model", {}), artifact_path)
    try:
        eval_config = eval_config_from_dict(packed.configuration.get("eval", {}))
    except ValueError as error:
        raise InputError(f"{artifact_path}: eval configuration: {error}") from None
    data = DataFolder.open(data_path)
    path = tokenizer_path or data.tokenizer_path
    if path is None:
        raise InputError(f"{data_path} holds no tokenizer.model; name one with --tokenizer")
    tokenizer = Tokenizer.load(path)
    _check_tokenizer(tokenizer, Path(path), packed.tokenizer_sha256, model_config)
    tokens = np.ascontiguousarray(data.val.read(0, data.val.num_tokens))
    documents = find_documents(tokens, BOS_ID)
    if int(tokens.max()) >= model_config.vocab_size:
        raise InputError(
            f"{data_path}: token id {int(tokens.max())} is outside the vocabulary {model_config.vocab_size}"
        )
    ledger = ByteLedger.open(data, tokenizer, BOS_ID)
    model = gpt.load(model_config, arrays, device=ranks.device, activation_dtype=dtype)
    model.requires_grad_(False)
    hashes = provenance.data_hashes(Path(data_path))
    combined = "".join(f"{name} {digest}\n" for name, digest in sorted(hashes.items()))
    identity = {
        "artifact_sha256": packed.sha256,
        "artifact_bytes": artifact_path.stat().st_size,
        "code_bytes": len(packed.code),
        "preset": packed.configuration.get("preset"),
        "legal": packed.configuration.get("legal", True) is True,
        "tokenizer_sha256": tokenizer.sha256,
        "data_sha256": hashlib.sha256(combined.encode()).hexdigest(),
        "data_files": hashes,
    }
    return Session(model, eval_config, TokenArray(tokens), documents, ledger, ranks, identity)


def _read_artifact(path: Path) -> tuple[artifact.reader.Artifact, dict[str, npt.NDArray[np.float32]]]:
    try:
        packed = artifact.reader.read(path)
        return packed, packed.arrays()
    except ArtifactError as error:
        raise InputError(f"{path}: {error}") from None


def _model_config(values: Mapping[str, Any], artifact_path: Path) -> ModelConfig:
    try:
        return model_config_from_dict(values)
    except ValueError as error:
        raise InputError(f"{artifact_path}: model configuration: {error}") from None


def _check_tokenizer(tokenizer: Tokenizer, path: Path, expected_sha256: str, model_config: ModelConfig) -> None:
    if tokenizer.sha256 != expected_sha256:
        raise InputError(
            f"{path}: this tokenizer (sha256 {tokenizer.sha256[:12]}...) is not the one the artifact was made with "
            f"(sha256 {expected_sha256[:12]}...)"
        )
    if tokenizer.vocab_size != model_config.vocab_size:
        raise InputError(
            f"{path}: the tokenizer has {tokenizer.vocab_size} pieces, the artifact's model {model_config.vocab_size}"
        )
