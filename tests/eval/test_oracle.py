"""The evaluator's report against an independent oracle of at most 200 lines."""

from __future__ import annotations

import importlib.util
import json
from pathlib import Path

import numpy as np
import pytest
import sentencepiece

import artifact.reader
from eval.command import main

ORACLE = Path(__file__).with_name("oracle.py")


@pytest.fixture(scope="module")
def oracle():
    specification = importlib.util.spec_from_file_location("oracle", ORACLE)
    module = importlib.util.module_from_spec(specification)
    specification.loader.exec_module(module)
    return module


def test_the_oracle_is_small_and_independent():
    source = ORACLE.read_text()
    assert len(source.splitlines()) <= 200
    imported = {
        line.split()[1].partition(".")[0] for line in source.splitlines() if line.startswith(("import ", "from "))
    }
    assert imported <= {"__future__", "json", "math", "struct", "pathlib", "numpy"}


def lossless_pieces(path: Path) -> list[bytes]:
    """The bytes each piece stands for, read with the SentencePiece library alone."""
    processor = sentencepiece.SentencePieceProcessor(model_file=str(path))
    pieces = []
    for index in range(processor.get_piece_size()):
        piece = processor.id_to_piece(index)
        is_byte = processor.is_byte(index)
        pieces.append(bytes([int(piece[3:5], 16)]) if is_byte else piece.replace("▁", " ").encode())
    return pieces


@pytest.mark.parametrize(
    ("mode", "section"), [("plain", "post_quantization"), ("sliding", "post_quantization_sliding")]
)
def test_the_report_agrees_with_the_oracle(evaluation_folder, oracle, tmp_path, mode, section):
    data = evaluation_folder / "data"
    report = tmp_path / "report.json"
    arguments = ["--data", str(data), "--mode", mode, "--report", str(report), "--device", "cpu", "--dtype", "float64"]
    assert main([str(evaluation_folder / "a.albatross"), *arguments]) == 0
    found = json.loads(report.read_text())[section]

    packed = artifact.reader.read(evaluation_folder / "a.albatross")
    weights = {name: value.astype(np.float64) for name, value in packed.arrays().items()}
    tokens = oracle.read_shards(data, "*_val_0*.bin")
    documents = oracle.read_documents(evaluation_folder / "val.jsonl")
    token_bytes = oracle.credited_bytes(documents, lossless_pieces(data / "tokenizer.model"), tokens)
    settings = packed.configuration["eval"]
    stride = settings["stride_tokens"] if mode == "sliding" else settings["context_tokens"]
    shape = packed.configuration["model"]
    expected = oracle.bits_per_byte(tokens, token_bytes, weights, shape, settings["context_tokens"], stride)
    assert (found["num_scored_targets"], found["num_bytes"]) == expected[2:]
    assert found["bpb"] == pytest.approx(expected[0], rel=1e-9)
    assert found["val_loss_nats"] == pytest.approx(expected[1], rel=1e-9)
