"""Any number of processes gives the same result: plain scores exactly, adapted ones to 1e-6."""

from __future__ import annotations

import copy
import dataclasses
import json
import multiprocessing

import numpy as np
import pytest
import torch
import torch.distributed as dist

from eval.command import main
from eval.config import EvalConfig, SGDConfig, TTTConfig
from eval.documents import find_documents
from eval.full_weights import score_chunks
from eval.phases import score_adapting
from eval.plan import sliding_windows
from eval.ranks import Ranks
from eval.scores import Scores
from eval.scoring import TokenArray, score_windows

LENGTHS = [40, 9, 25, 33, 2, 17, 21, 1, 8, 60, 31, 12, 44, 5]
SGD = SGDConfig(chunk_tokens=32, buffer_tokens=16, sequence_tokens=8, learning_rate=0.2)
TTT = TTTConfig(
    method="phased",
    chunk_tokens=8,
    window_tokens=20,
    batch_documents=2,
    rank=2,
    learning_rate=0.01,
    warm_start=True,
    num_lanes=4,
    prefix_documents=7,
    num_phases=2,
    sgd=SGD,
)
CONFIG = EvalConfig(context_tokens=12, stride_tokens=4, batch_windows=3, ttt=dataclasses.replace(TTT, method="full"))


def score(kind: str, model, tokens: np.ndarray, ranks: Ranks) -> np.ndarray:
    scores = Scores(len(tokens) - 1)
    if kind == "sliding":
        plan = sliding_windows(len(tokens) - 1, 12, 4)
        score_windows(model, TokenArray(tokens), plan, scores, 3, "cpu", share=ranks.share)
    elif kind == "full":
        score_chunks(model, tokens, CONFIG, scores, ranks=ranks)
    else:
        config = dataclasses.replace(TTT, method=kind)
        score_adapting(model, tokens, find_documents(tokens, 1), config, scores, ranks=ranks)
    scores.gather(ranks)
    scores.coverage.require_complete()
    return scores.nats


def in_one_of(num_processes: int, rank: int, folder, kinds, model, tokens) -> None:
    torch.set_num_threads(1)
    model = copy.deepcopy(model)  # it arrived in memory that all processes share
    store = dist.FileStore(str(folder / "store"), num_processes)
    dist.init_process_group("gloo", store=store, rank=rank, world_size=num_processes)
    for kind in kinds:
        nats = score(kind, model, tokens, Ranks(rank, num_processes))
        np.save(folder / f"{kind}.{rank}.npy", nats)
    dist.destroy_process_group()


@pytest.mark.parametrize("num_processes", [2, pytest.param(4, marks=pytest.mark.slow)])
def test_the_number_of_processes_changes_nothing(load_model, make_tokens, tmp_path, num_processes):
    model, tokens = load_model(), make_tokens(LENGTHS)
    kinds = ["sliding", "lora", "phased", "full"]
    # Not forked: a test that trained in this process may have left threads and a process group behind.
    spawn = multiprocessing.get_context("spawn")
    arguments = (tmp_path, kinds, model, tokens)
    processes = [spawn.Process(target=in_one_of, args=(num_processes, r, *arguments)) for r in range(num_processes)]
    for process in processes:
        process.start()
    for process in processes:
        process.join(timeout=120)
        assert process.exitcode == 0
    for kind in kinds:
        alone = score(kind, model, tokens, Ranks())
        for rank in range(num_processes):
            shared = np.load(tmp_path / f"{kind}.{rank}.npy")
            if kind in ("sliding", "lora"):
                assert (shared == alone).all()
            else:
                assert shared.sum(dtype=np.float64) == pytest.approx(alone.sum(dtype=np.float64), rel=1e-6)
                np.testing.assert_allclose(shared, alone, rtol=1e-4)


def test_the_number_of_processes_must_divide_the_lanes(load_model, make_tokens):
    tokens = make_tokens([9, 9])
    with pytest.raises(ValueError, match="num_lanes"):
        score_adapting(load_model(), tokens, find_documents(tokens, 1), TTT, Scores(17), ranks=Ranks(0, 3))


@pytest.mark.slow
def test_the_command_starts_processes(evaluation_folder, tmp_path, capsys):
    reports = []
    for num_processes in ("1", "2"):
        report = tmp_path / f"{num_processes}.json"
        arguments = ["--device", "cpu", "--mode", "plain", "ttt", "--num-processes", num_processes]
        arguments += ["--data", str(evaluation_folder / "data"), "--report", str(report)]
        assert main([str(evaluation_folder / "a.albatross"), *arguments]) == 0
        reports.append(json.loads(report.read_text()))
    for section in ("post_quantization", "post_ttt"):
        one, two = (report[section] for report in reports)
        assert (one["num_processes"], two["num_processes"]) == (1, 2)
        assert two["bpb"] == pytest.approx(one["bpb"], rel=1e-9)
        assert two["num_scored_targets"] == one["num_targets"]


@pytest.mark.slow
def test_an_error_in_a_process_is_one_line(evaluation_folder, write_artifact, tmp_path, capfd):
    path = tmp_path / "b.albatross"
    write_artifact(path, "0" * 64)
    arguments = ["--data", str(evaluation_folder / "data"), "--device", "cpu", "--num-processes", "2"]
    assert main([str(path), *arguments]) == 2
    captured = capfd.readouterr()
    lines = [line for line in captured.err.splitlines() if line.startswith("albatross: error:")]
    assert len(lines) == 1
    assert "is not the one the artifact was made with" in lines[0]
    assert "Traceback" not in captured.err
