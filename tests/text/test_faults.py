"""Slow tests: many more random texts, the whole documentation corpus, and a killed `data prepare`."""

import signal
import subprocess
import sys
import time
from pathlib import Path

import numpy as np
import pytest
from hypothesis import given, settings

from launch.data.corpus import python_documentation
from launch.data.prepare import prepare
from launch.data.verify import verify
from model.text.shards import DataFolder
from model.text.tokenizer import BOS_ID, Tokenizer, train_lossless
from model.text.tokenizer_training import train_challenge
from tests.text.strategies import texts
from tests.text.test_prepare import COMMUNITY, TEXTS, json_lines
from tests.text.test_tokenizer import expected

pytestmark = pytest.mark.slow
ROOT = Path(__file__).resolve().parents[2]


@settings(max_examples=5000, deadline=None)
@given(text=texts)
def test_random_texts_against_the_library(text, community, community_caseops, lossless, lossless_caseops):
    for tokenizer in (community, community_caseops, lossless, lossless_caseops):
        encoded = tokenizer.encode_text(text)
        if tokenizer is not lossless:  # its escape is counted by table, not by surface
            assert (encoded.ids.tolist(), encoded.token_bytes.tolist()) == expected(tokenizer, text)
        assert int(encoded.token_bytes.sum()) + encoded.uncredited_bytes == len(text.encode())
        if tokenizer.lossless:
            assert tokenizer.decode(encoded.ids) == text


def test_the_documentation_corpus_against_the_library(community, community_caseops):
    train, val = python_documentation()
    own = [Tokenizer.from_bytes(train_lossless(train, 1024, case_operators=flag)) for flag in (False, True)]
    for tokenizer in (community, community_caseops, *own):
        table = tokenizer.byte_table()
        for text in val:
            encoded = tokenizer.encode_text(text)
            assert encoded.ids.tolist() == expected(tokenizer, text)[0]
            assert int(encoded.token_bytes.sum()) + encoded.uncredited_bytes == len(text.encode())
            if tokenizer.lossless:
                assert tokenizer.decode(encoded.ids) == text
            if tokenizer is own[0]:
                previous = np.concatenate(([BOS_ID], encoded.ids[:-1]))
                assert int(table.token_bytes(previous, encoded.ids).sum()) == len(text.encode())


@pytest.mark.parametrize("vocab_size", [1024, 4096, 8192])
@pytest.mark.parametrize("case_operators", [False, True])
def test_challenge_tokenizers_of_the_challenges_sizes(vocab_size, case_operators):
    train, val = python_documentation()
    paragraphs = [paragraph for text in train for paragraph in text.split("\n\n")]
    tokenizer = Tokenizer.from_bytes(train_challenge(paragraphs, vocab_size, case_operators=case_operators))
    assert (tokenizer.vocab_size, tokenizer.is_caseops, tokenizer.lossless) == (vocab_size, case_operators, False)
    assert " " in tokenizer.boundaries
    for text in val:
        encoded = tokenizer.encode_text(text)
        assert (encoded.ids.tolist(), encoded.token_bytes.tolist()) == expected(tokenizer, text)
        previous = np.concatenate(([BOS_ID], encoded.ids[:-1]))
        counted = tokenizer.byte_table().token_bytes(previous, encoded.ids)
        assert int(counted.sum()) == len(tokenizer.decode(encoded.ids).encode())


@pytest.mark.parametrize("signal_number", [signal.SIGKILL, signal.SIGTERM, signal.SIGINT])
def test_a_killed_prepare_leaves_no_folder_and_can_be_repeated(signal_number, tmp_path):
    source, out = tmp_path / "in.jsonl", tmp_path / "out"
    source.write_bytes(json_lines(TEXTS * 2000))
    program = (
        "from launch.data.prepare import prepare; import sys;"
        "prepare(sys.argv[1], sys.argv[2], sys.argv[3], val_documents=5, num_workers=2)"
    )
    process = subprocess.Popen(
        [sys.executable, "-c", program, str(source), str(COMMUNITY), str(out)],
        cwd=ROOT,
        stderr=subprocess.DEVNULL,
        preexec_fn=lambda: signal.signal(signal.SIGINT, signal.SIG_DFL),  # a background job inherits it as ignored
    )
    deadline = time.monotonic() + 60
    while not list(tmp_path.glob(".out.part/*_train_*.bin")):  # it has begun to write training shards
        assert process.poll() is None
        assert time.monotonic() < deadline
        time.sleep(0.01)
    workers = Path(f"/proc/{process.pid}/task/{process.pid}/children").read_text().split()
    assert len(workers) == 2
    process.send_signal(signal_number)
    assert process.wait(60) != 0
    assert not out.exists()
    while any(Path(f"/proc/{worker}").exists() for worker in workers):
        assert time.monotonic() < deadline, "a worker outlives the command"
        time.sleep(0.01)
    source.write_bytes(json_lines(TEXTS))
    prepare(source, COMMUNITY, out, val_documents=5, num_workers=1, quiet=True)
    assert sorted(path.name for path in tmp_path.iterdir()) == ["in.jsonl", "out"]
    assert verify(out, quiet=True).ledger_proved
    assert DataFolder.open(out).manifest["splits"]["train"]["documents"] == len(TEXTS) - 5
